"""What inference keeps in memory between requests: prepared images and written answers, by what they were made from.

An image is known by its file as it lies on the disk (`identity_of`), an answer by its image, its model and the weights,
so that a file that was changed, a version that was published or rolled back to, or another configuration is
another key, and what was kept for the former one is never asked for again. What was not used for longest makes room.

The budget is ``LABELROUNDS_MEMORY_GB`` for the machine's memory and as much again for each GPU's own; where it is not
set, a quarter of what is free there when it is first needed. With 0 nothing is kept, and nothing prepared ahead.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from labelrounds.budgets import budget_bytes
from labelrounds.devices import free_bytes
from labelrounds.errors import NotFound

BUDGET = "LABELROUNDS_MEMORY_GB"
_SHARE_OF_FREE = 0.25
_SHARE_OF_ANSWERS = 0.1  # of the machine's memory that is kept; they are a thousandth of an image's size
_ENTRY_BYTES = 1000  # what an entry costs besides its content

Value = TypeVar("Value")


def identity_of(path: Path) -> str:
    """Return what a file, or a folder of files, is known by without reading it; another as soon as it is changed.

    Raises:
        NotFound: no such file.
    """
    try:
        found = [(str(path), *_state(path)), *_members(path)]
    except OSError as error:
        raise NotFound(f"{path.name}: no such file") from error
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _members(path: Path) -> Iterator[tuple[Any, ...]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            yield str(file.relative_to(path)), *_state(file)


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    # The time of the last change of anything about it, which no program can set, beside that of its content.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class MemoryCache(Generic[Value]):
    """Values by key, as many as fit; those not used for longest are dropped first. Any thread may use it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._used = 0

    @property
    def used(self) -> int:
        """How many bytes are kept."""
        return self._used

    def get(self, key: Hashable) -> Value | None:
        """Return a value, or None where it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._kept

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of that many bytes, unless it alone is over the budget."""
        size += _ENTRY_BYTES
        with self._lock:
            self._drop(key)
            if size > self.budget:
                return
            self._kept[key] = (value, size)
            self._used += size
            while self._used > self.budget:
                self._drop(next(iter(self._kept)))

    def clear(self, but: Hashable = None) -> bool:
        """Drop everything but the value of one key; tell whether there was anything."""
        with self._lock:
            others = [key for key in self._kept if key != but]
            for key in others:
                self._drop(key)
            return bool(others)

    def _drop(self, key: Hashable) -> None:
        _, size = self._kept.pop(key, (None, 0))
        self._used -= size


class Memory:
    """The caches of a process.

    Attributes:
        answers: written answers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        cpu = torch.device("cpu")
        budget = _budget(cpu)
        self.answers: MemoryCache[Any] = MemoryCache(int(budget * _SHARE_OF_ANSWERS))
        self._images: dict[str, MemoryCache[Any]] = {str(cpu): MemoryCache(budget - self.answers.budget)}

    def images(self, device: torch.device) -> MemoryCache[Any]:
        """Return the cache of the images that are prepared on a device, and lie there."""
        name = str(device)
        with self._lock:
            if name not in self._images:
                self._images[name] = MemoryCache(_budget(device))
            return self._images[name]


def _budget(device: torch.device) -> int:
    return budget_bytes(BUDGET, free_bytes(device) * _SHARE_OF_FREE / 1e9)
