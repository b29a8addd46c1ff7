"""The least margin between the two likeliest labels, where there is foreground."""

from labelrounds.strategies.base import strategies
from labelrounds.strategies.by_score import ByScore


@strategies.register("margin")
class Margin(ByScore):
    """Orders by 1 - (p1 - p2), averaged over the foreground."""

    description = "Margin: where the model wavers most between two labels"
    measure = "margin"
