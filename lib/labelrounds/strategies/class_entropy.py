"""Entropy of one label at a time, and chance: ClaSP PE for whole cases."""

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.by_score import NOT_SCORED
from labelrounds.strategies.foreground_random import label_in_turn
from labelrounds.strategies.ordering import powered, sharpness
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import Unusual, by_label, joined, unsure, value_of


@strategies.register("class_entropy")
class ClassEntropy(CaseStrategy):
    """Two of three cases by one label's entropy, each label in its turn, the third by all labels' entropy.

    With power noise that falls over the rounds, so that the cases of one batch are not all alike.
    """

    description = "Entropy by label: where the model is least sure of one label, each label in its turn"

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return cases by their labels' entropy; those without any score last, at random."""
        orders = _Orders(pool)
        unusual = Unusual(pool)
        chosen: dict[str, Choice] = {}
        while len(chosen) < count:
            label = label_in_turn(pool, pool.drawn + len(chosen))
            found = next((one for one in orders[label] if one[0] not in chosen), None)
            if found is None:
                label, found = None, next((one for one in orders[None] if one[0] not in chosen), None)
            if found is None:
                break
            name, value = found
            why = unsure(pool.scores[name]) if label is None else f"the model is unsure of {label}"
            chosen[name] = Choice(name, joined(why, unusual(name)), value)
        return completed(pool, count, list(chosen.values()), NOT_SCORED)


class _Orders(dict[str | None, list[tuple[str, float]]]):
    """The candidates by each label's entropy, or for None by their own, falling but for noise; made when asked for."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def __missing__(self, label: str | None) -> list[tuple[str, float]]:
        self[label] = _falling(self._pool, label)
        return self[label]


def _falling(pool: Pool, label: str | None) -> list[tuple[str, float]]:
    """Return the candidates and a label's entropy, or their own, falling but for noise."""
    found = {
        name: value_of(scores, "entropy") if label is None else by_label(scores, "entropy").get(label)
        for name in (*pool.candidates, *pool.taken)  # so that taking one leaves the others' ranks
        for scores in (pool.scores.get(name),)
    }
    values = {name: value for name, value in found.items() if value is not None}
    ids = sorted(values)
    noisy = powered(ids, [values[name] for name in ids], pool.seed, f"{pool.round}/{label}", sharpness(pool.round))
    free = set(pool.candidates)
    return [(name, values[name]) for _, name in sorted(zip((-noisy).tolist(), ids, strict=True)) if name in free]
