"""Things that are done in the background one after the other, by threads that start with the first.

Behind the ways of inference and of a round: cases to segment ahead (`ahead.py`), runtimes to choose (`tuning.py`),
labels to compare with predictions (`agreement.py`). What is to be done at all, and when again, its owner says.

Concurrency
    Any thread may add, which never waits. Nothing is kept over the end of the process.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_CLOSING_S = 5.0


class Backlog(Generic[Item]):
    """What waits, and the threads that do it.

    Args:
        name: of the threads.
        do: does one; returns after how many seconds it is to be tried again before all others, None where it is done.
        at_once: how many are done at the same time.
        newest_first: whether what was added last comes first, rather than what was added first.
        most: how many may wait, beyond which those that were added first are dropped; None for any number.

    Attributes:
        changed: as long as somebody holds it nothing begins or is counted as done.
        threads: that were started.
    """

    def __init__(
        self,
        name: str,
        do: Callable[[Item], float | None],
        at_once: int = 1,
        newest_first: bool = False,
        most: int | None = None,
    ) -> None:
        self._name, self._do, self._at_once = name, do, at_once
        self._newest_first, self._most = newest_first, most
        self.changed = threading.Condition()
        self._pending: dict[Hashable, Item] = {}
        self._under_way: set[Hashable] = set()
        self._closed = False
        self.threads: list[threading.Thread] = []

    def add(self, items: Mapping[Hashable, Item]) -> None:
        """Add things by what they are known by; what is under way, or waits in its turn, is not added again."""
        with self.changed:
            for key, item in items.items():
                if key not in self._under_way:
                    if self._newest_first:
                        self._pending.pop(key, None)
                    self._pending.setdefault(key, item)
            while self._most is not None and len(self._pending) > self._most:
                del self._pending[next(iter(self._pending))]
            lacking = 0 if self._closed else min(self._at_once - len(self.threads), len(self._pending))
            for _ in range(lacking):
                self.threads.append(threading.Thread(target=self._work, name=self._name, daemon=True))
                self.threads[-1].start()
            self.changed.notify_all()

    def unfinished(self) -> int:
        """Return how many wait or are under way."""
        with self.changed:
            return len(self._pending) + len(self._under_way)

    def close(self) -> None:
        """Begin nothing more; wait a few seconds for the end of what is under way."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        deadline = time.monotonic() + _CLOSING_S
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (following := self._next()) is not None:
            key, item = following
            try:
                again_s = self._do(item)
            except Exception:  # one must not keep the others from being done
                logger.exception("A fault in the background (%s)", self._name)
                again_s = None
            with self.changed:
                if again_s:
                    self.changed.wait_for(lambda: self._closed, again_s)
                self._under_way.discard(key)
                if again_s is not None:
                    self._put_first(key, item)

    def _put_first(self, key: Hashable, item: Item) -> None:
        self._pending = {**self._pending, key: item} if self._newest_first else {key: item, **self._pending}
        self.changed.notify_all()

    def _next(self) -> tuple[Hashable, Item] | None:
        with self.changed:
            self.changed.wait_for(lambda: bool(self._pending) or self._closed)
            if self._closed:
                return None
            key = next(reversed(self._pending)) if self._newest_first else next(iter(self._pending))
            self._under_way.add(key)
            return key, self._pending.pop(key)
