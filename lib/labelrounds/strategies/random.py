"""Random choice: the baseline that every other strategy has to beat."""

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.ordering import shuffled


@strategies.register("random")
class RandomStrategy(CaseStrategy):
    """Hands out the unlabelled cases in a random order that is the same for the same pool of cases."""

    description = "Random: unlabelled cases in a random order"

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return cases in random order."""
        reason = f"chosen at random from {len(pool.candidates)} cases without a label"
        return at_random(pool, count, reason)


def at_random(pool: Pool, count: int, reason: str, without: frozenset[str] = frozenset()) -> list[Choice]:
    """Return candidates in random order, but for those ``without``."""
    left = [name for name in pool.candidates if name not in without]
    return [Choice(name, reason) for name in shuffled(left, pool.seed)[: max(0, count)]]


def completed(pool: Pool, count: int, chosen: list[Choice], reason: str) -> list[Choice]:
    """Return ``count`` choices: those chosen, then at random what they left out, for a reason."""
    chosen = chosen[: max(0, count)]
    taken = frozenset(choice.image_id for choice in chosen)
    return chosen + at_random(pool, count - len(chosen), reason, taken)
