"""The most uncertain case first, by one of the scores of the model's pass."""

from typing import ClassVar

from labelrounds.strategies.base import CaseStrategy, Choice, Pool
from labelrounds.strategies.ordering import descending
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import Unusual, joined, unsure, value_of

NOT_SCORED = "chosen at random: no model has looked at it yet"


class ByScore(CaseStrategy):
    """Orders by falling score; what lacks it follows by its margin, and what has no score at all at random.

    Attributes:
        measure: the score's name.
        why: for a reason, what a high score means; without it, of what the model is unsure.
        lacking: for a reason, that the score is not there.
    """

    measure: ClassVar[str]
    why: ClassVar[str] = ""
    lacking: ClassVar[str] = ""

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the cases with the highest scores first."""
        chosen = self._by(pool, self.measure, count, self.why, frozenset())
        if self.measure != "margin" and len(chosen) < count:
            without = frozenset(choice.image_id for choice in chosen)
            missing = self.lacking or f"its {self.measure.replace('_', ' ')} is not known yet"
            chosen += self._by(pool, "margin", count - len(chosen), missing, without)
        return completed(pool, count, chosen, NOT_SCORED)

    @staticmethod
    def _by(pool: Pool, measure: str, count: int, why: str, without: frozenset[str]) -> list[Choice]:
        known = {name: value_of(pool.scores.get(name), measure) for name in pool.candidates if name not in without}
        values = {name: value for name, value in known.items() if value is not None}
        ids = list(values)
        places = descending(ids, list(values.values()), pool.seed)[: max(0, count)]
        unusual = Unusual(pool)
        return [
            Choice(name, joined(unsure(pool.scores[name]), why, unusual(name)), values[name])
            for name in (ids[place] for place in places)
        ]
