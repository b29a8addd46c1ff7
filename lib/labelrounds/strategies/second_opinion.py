"""A second annotator for cases that have a label: how far do two agree?"""

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.ordering import shuffled


@strategies.register("second_opinion")
class SecondOpinion(CaseStrategy):
    """Hands out labelled cases, not candidates; at random, so that their agreement is that of all labelled cases."""

    description = "Second opinion: a case that another annotator has labelled, to measure agreement"

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return cases of ``pool.labelled_once``; none where every case has a second label or is in hand."""
        left = sorted(set(pool.labelled_once) - set(pool.taken))
        reason = "for a second opinion: one annotator only has labelled it"
        return [Choice(name, reason) for name in shuffled(left, pool.seed, "second")[: max(0, count)]]
