"""Random choice that minds the foreground: the baseline that is hard to beat (nnActive, ClaSP PE)."""

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.ordering import shuffled
from labelrounds.strategies.random import RandomStrategy
from labelrounds.strategies.reasons import predicted

STRATIFIED = 2  # of three picks


@strategies.register("foreground_random")
class ForegroundRandom(CaseStrategy):
    """Draws two of three cases from those in which the model sees one of its labels, each label in its turn."""

    description = "Foreground-aware random: every label in its turn, a random case that the model sees it in"

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return cases at random, by label; where the model sees a label nowhere, at random."""
        order = shuffled(pool.candidates, pool.seed)
        seen = {name: set(predicted(pool.scores.get(name))) for name in order}
        plain = {choice.image_id: choice for choice in RandomStrategy().order(pool, len(order))}
        chosen: list[Choice] = []
        left = dict.fromkeys(order)
        while left and len(chosen) < count:
            number = pool.drawn + len(chosen)
            label = label_in_turn(pool, number)
            having = () if label is None else (name for name in left if label in seen[name])
            name = next(iter(having), None)
            if name is None:
                name = next(iter(left))
                chosen.append(plain[name])
            else:
                chosen.append(Choice(name, f"chosen at random from the cases in which the model sees {label}"))
            del left[name]
        return chosen


def label_in_turn(pool: Pool, number: int) -> str | None:
    """Return whose turn it is at a place of the order: two of three picks go round the labels, the third is free."""
    if not pool.classes or number % (STRATIFIED + 1) == STRATIFIED:
        return None
    turn = number // (STRATIFIED + 1) * STRATIFIED + number % (STRATIFIED + 1)
    return pool.classes[(turn + pool.seed) % len(pool.classes)]
