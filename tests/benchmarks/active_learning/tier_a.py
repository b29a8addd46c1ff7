"""Tier A: MedNIST's features, 6 labels a round for 10 rounds, 20 seeds that were fixed before the first run."""

from collections.abc import Callable, Iterator, Sequence

from labelrounds.strategies import CaseStrategy, Choice, Pool, strategies
from tests.benchmarks.active_learning.mednist import MedNIST, pictures
from tests.benchmarks.active_learning.simulation import Curve, Source, tournament

FIGURE, TARGET = "accuracy", 0.95
SEEDS = tuple(range(1200, 1220))  # 1000 to 1019 were played when a quota of classes was in the first rounds
DRAWS = {"random": 3}
NAMES = ["auto", "random", "foreground_random", "typiclust", "margin", "entropy", "class_entropy", "badge", "coreset"]
NAMES += ["oracle_worst"]
"""A regression has no dropout, no augmentations and no versions: tta, committee and epistemic are not in it."""


class OracleWorst(CaseStrategy):
    """Knows the truth: the case of which the model is most wrong comes first."""

    description = "Oracle: the worst case first"

    def __init__(self, source: Source) -> None:
        self._source = source

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the cases whose true class has the least probability first."""
        if not pool.scores:
            return strategies.get("random")().order(pool, count)
        right = {
            name: pool.scores[name].by_label["presence"][self._source.present(name)[0]] for name in pool.candidates
        }
        return [Choice(name, "the model is wrong", 1 - right[name]) for name in sorted(right, key=right.__getitem__)][
            :count
        ]


def contender(name: str) -> Callable[[Source], CaseStrategy]:
    """Return what makes a strategy for a source."""
    return OracleWorst if name == "oracle_worst" else lambda source: strategies.get(name)()


def read(spoilt: bool = False) -> None:
    """Read the pictures once, for all runs."""
    pictures(spoilt)


def run(seeds: Sequence[int], names: Sequence[str], spoilt: bool = False) -> Iterator[Curve]:
    """Play; ``spoilt`` adds near-copies of 30 % of the pictures and shifts the intensities of 15 %."""
    made = {name: contender(name) for name in names}
    yield from tournament(
        lambda seed: MedNIST(seed, spoilt), made, seeds=seeds, start=0, batch=6, rounds=10, draws=DRAWS
    )
