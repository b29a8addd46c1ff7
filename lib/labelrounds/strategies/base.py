"""What every strategy of choosing the next case sees, and what it answers.

On the way of a round: `labelrounds.pool` gathers a `Pool` (who may be handed out, what is known of each), a strategy
orders it, and `labelrounds.handing_out` hands out the first case. A strategy is a pure function of the pool: no clock,
no datastore, no randomness but by the pool's seed, so that the same state gives the same order.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from labelrounds.registry import Registry
from labelrounds.scores import CaseScores

Embedding = NDArray[np.float32]


@dataclass(frozen=True)
class Pool:
    """What a strategy chooses from, and by.

    Attributes:
        candidates: ids of the cases that may be handed out, sorted: without a label, in nobody's hands, not put aside.
        labelled: ids of the cases with a human's label, in the order in which they were first labelled.
        taken: ids of the cases that others have in hand: a choice should be unlike them, too.
        scores: by id, what the model's one pass has said of candidates, taken and labelled cases; some may be missing.
        cold: by id, an embedding that needs no model (`labelrounds.cold`); asked for only where `CaseStrategy.cold`.
        labelled_once: ids of labelled cases that one annotator only has labelled, and not the one who asks: for a
            second opinion.
        classes: the labels of the model: organs, or classes of whole images.
        present: by id of a labelled case, which of the classes its label has.
        trained: whether the scores are by a model that was trained on these studies' labels or ships trained.
        learnt_from: how many of these studies' labels the model that has scored was trained on.
        batch: cases a round, which several annotators are handed before the next training.
        seed: of whatever is drawn.
    """

    candidates: Sequence[str]
    labelled: Sequence[str] = ()
    taken: Sequence[str] = ()
    scores: Mapping[str, CaseScores] = field(default_factory=dict)
    cold: Mapping[str, Embedding] = field(default_factory=dict)
    labelled_once: Sequence[str] = ()
    classes: Sequence[str] = ()
    present: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trained: bool = False
    learnt_from: int = 0
    batch: int = 4
    seed: int = 0

    @property
    def round(self) -> int:
        """The number of the round, from 0: it goes up with every batch of labels."""
        return len(self.labelled) // max(1, self.batch)

    @property
    def drawn(self) -> int:
        """The number of cases handed out so far: the place of the next one, the same after a restart."""
        return len(self.labelled) + len(self.taken)


@dataclass(frozen=True)
class Choice:
    """A case, and why.

    Attributes:
        image_id: of the case.
        reason: in words that a radiologist reads, without a full stop.
        score: by which it was chosen, the higher the sooner; None where there is none.
        monitor: whether it was drawn at random, so that the model's errors on such cases are unbiased.
    """

    image_id: str
    reason: str
    score: float | None = None
    monitor: bool = False


class CaseStrategy(ABC):
    """Orders a pool.

    Attributes:
        description: one line, for a client's list.
        costly: names of the scores beyond the one pass that it goes by (`labelrounds.scoring.COSTLY`): they are
            computed only where a strategy that needs them is in use.
        cold: tells whether it needs `Pool.cold`.
    """

    description: ClassVar[str]
    costly: ClassVar[tuple[str, ...]] = ()
    cold: ClassVar[bool] = False

    @abstractmethod
    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the first ``count`` cases, the next one first; fewer only where there are fewer candidates."""


strategies: Registry[type[CaseStrategy]] = Registry("strategy", "labelrounds.strategies")
