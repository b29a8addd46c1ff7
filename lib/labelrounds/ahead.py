"""Segment a case before its user asks: one that was just handed out, or whose image was kept for a session.

On the ways of a round and of inference. The answer goes into memory (`memory_cache.py`), where the user's request finds
it. One thread does this, the newest case first, in the background of the users' requests (`engine.py`): it waits while
they compute, and what it has to break off for them it takes up again. Of more than a few cases the oldest is dropped.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from labelrounds.errors import Cancelled, LabelRoundsError

logger = logging.getLogger(__name__)

MOST_PENDING = 4
_CLOSING_S = 5.0


class Ahead:
    """The cases to be segmented, and the thread that does it, which starts with the first.

    Args:
        segment: segments an image; raises `Cancelled` where a user's request is in the way.
    """

    def __init__(self, segment: Callable[[Path], None]) -> None:
        self._segment = segment
        self._changed = threading.Condition()
        self._pending: list[Path] = []  # the newest last
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, image: Path) -> None:
        """Segment an image as soon as no user needs the device."""
        with self._changed:
            self._pending = [*(other for other in self._pending if other != image), image][-MOST_PENDING:]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Begin no further case; wait a few seconds for the end of what is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        while (image := self._next()) is not None:
            try:
                self._segment(image)
            except Cancelled:
                self.add(image)
            except LabelRoundsError as error:
                logger.info("Not segmented ahead: %s", error)
            except Exception:
                logger.exception("Not segmented ahead")

    def _next(self) -> Path | None:
        with self._changed:
            while not self._pending and not self._closed:
                self._changed.wait()
            return None if self._closed else self._pending.pop()
