"""Segment a case before its user asks: one that was just handed out, or whose image was kept for a session.

On the ways of a round and of inference. The answer goes into memory (`memory_cache.py`), where the user's request finds
it. One thread a device does this, the newest case first, in the background of the users' requests (`engine.py`): it
waits while they compute, and what it has to break off for them it takes up again. Of more than a few cases the oldest
is dropped.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from labelrounds.backlog import Backlog
from labelrounds.errors import Cancelled, LabelRoundsError

logger = logging.getLogger(__name__)

MOST_PENDING = 4


class Ahead:
    """The cases to be segmented, and the threads that do it, which start with the first cases.

    Args:
        segment: segments an image; raises `Cancelled` where a user's request is in the way.
        at_once: how many cases are segmented at the same time, as many as there are devices for it.
    """

    def __init__(self, segment: Callable[[Path], None], at_once: int = 1) -> None:
        self._segment = segment
        self._backlog = Backlog("ahead", self._do, at_once, newest_first=True, most=MOST_PENDING)

    def add(self, *images: Path) -> None:
        """Segment images, the first one first, as soon as no user needs the device."""
        self._backlog.add({image: image for image in reversed(images)})

    def unfinished(self) -> int:
        """Return how many cases are still to be segmented."""
        return self._backlog.unfinished()

    def close(self) -> None:
        """Begin no further case; wait a few seconds for the end of what is under way."""
        self._backlog.close()

    def _do(self, image: Path) -> float | None:
        try:
            self._segment(image)
        except Cancelled:
            return 0.0
        except LabelRoundsError as error:
            logger.info("Not segmented ahead: %s", error)
        except Exception:
            logger.exception("Not segmented ahead")
        return None
