"""The host's epistemic score, as the baseline: what several passes with dropout disagree on."""

from labelrounds.strategies.base import strategies
from labelrounds.strategies.by_score import ByScore


@strategies.register("epistemic")
class Epistemic(ByScore):
    """Orders by the uncertainty over several passes with dropout (DOI 10.48550/arXiv.1703.02910)."""

    description = "Epistemic: where passes with dropout disagree, as in MONAI Label"
    measure = "epistemic"
    costly = ("epistemic",)
    why = "its answers differ from pass to pass"
