"""How far the scoring of a pool is, as `labelrounds.pool_scoring` counts it and a round's state shows it.

Whoever changes it holds the lock of the scoring.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

_MEASURED = 20  # images by which the time that is left is estimated


@dataclass
class PoolProgress:
    """How far it is, and what it waits for.

    Attributes:
        version: that scores; None for embeddings without a model.
        left: how many images are still to be done.
        failed: how many can't be.
        running: whether it is at work.
        begun: whether it is known yet what is to be done.
        note: what it waits for, if anything.
        seconds: that the last images took.
    """

    version: int | None = None
    left: int = 0
    failed: int = 0
    running: bool = False
    begun: bool = False
    note: str = ""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_MEASURED))

    def begin(self, version: int | None, left: int, failed: int) -> None:
        """Begin with so many images."""
        self.version, self.left, self.failed = version, left, failed
        self.running, self.begun = left > 0, True

    def done(self, seconds: float, failed: bool) -> None:
        """Count an image."""
        self.left -= 1
        self.failed += failed
        self.seconds.append(seconds)

    def told(self, images: int) -> dict[str, Any]:
        """Return it as clients read it, of so many images; see `labelrounds.pool_scoring.PoolScoring.progress`."""
        left = self.left if self.begun else images
        mean_s = sum(self.seconds) / len(self.seconds) if self.seconds else None
        eta_s = 0.0 if left == 0 else None if mean_s is None else round(left * mean_s, 1)
        return {
            "scored": max(0, images - left - self.failed),
            "of": images,
            "failed": self.failed,
            "version": self.version,
            "eta_s": eta_s,
            "running": self.running,
            "note": self.note,
        }
