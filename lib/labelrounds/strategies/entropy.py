"""The highest entropy where there is foreground."""

from labelrounds.strategies.base import strategies
from labelrounds.strategies.by_score import ByScore


@strategies.register("entropy")
class Entropy(ByScore):
    """Orders by the entropy of the probabilities, averaged over the foreground."""

    description = "Entropy: where the model is least sure"
    measure = "entropy"
