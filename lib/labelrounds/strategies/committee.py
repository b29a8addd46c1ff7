"""The least agreement of the last two versions of a model."""

from labelrounds.strategies.base import strategies
from labelrounds.strategies.by_score import ByScore


@strategies.register("committee")
class Committee(ByScore):
    """Orders by 1 - the Dice between the predictions of the last two versions."""

    description = "Committee: where the last two versions disagree"
    measure = "committee"
    costly = ("committee",)
    why = "its last two versions disagree"
    lacking = "no earlier version has looked at it"
