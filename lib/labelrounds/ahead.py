"""Segment a case before its user asks: one that was just handed out, or whose image was kept for a session.

On the ways of a round and of inference. The answer goes into memory (`memory_cache.py`), where the user's request finds
it. One thread a device does this, the newest case first, in the background of the users' requests (`engine.py`): it
waits while they compute, and what it has to break off for them it takes up again. Of more than a few cases the oldest
is dropped.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from labelrounds.errors import Cancelled, LabelRoundsError

logger = logging.getLogger(__name__)

MOST_PENDING = 4
_CLOSING_S = 5.0


class Ahead:
    """The cases to be segmented, and the threads that do it, which start with the first cases.

    Args:
        segment: segments an image; raises `Cancelled` where a user's request is in the way.
        at_once: how many cases are segmented at the same time, as many as there are devices for it.
    """

    def __init__(self, segment: Callable[[Path], None], at_once: int = 1) -> None:
        self._segment = segment
        self._at_once = at_once
        self._changed = threading.Condition()
        self._pending: list[Path] = []  # the newest last
        self._threads: list[threading.Thread] = []
        self._closed = False

    def add(self, image: Path) -> None:
        """Segment an image as soon as no user needs the device."""
        with self._changed:
            self._pending = [*(other for other in self._pending if other != image), image][-MOST_PENDING:]
            if len(self._threads) < self._at_once:
                self._threads.append(threading.Thread(target=self._work, name="ahead", daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()

    def close(self) -> None:
        """Begin no further case; wait a few seconds for the end of what is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

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
