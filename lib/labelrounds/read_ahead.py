"""Reading each next image while one is computed, in a thread that takes no core from others.

Behind `labelrounds.pool_scoring`, which passes over hundreds of images in the background.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

_NICENESS = 10


class ReadAhead:
    """A thread that reads.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._reader = ThreadPoolExecutor(1, name, initializer=give_way)
        self._closed = False

    def each(self, read: Callable[[Path], Made], paths: Sequence[Path]) -> Iterator[tuple[Path, "Future[Made]"]]:
        """Yield the images with what reads them, while each next one is read; none any more once it is closed."""
        ahead: Future[Made] | None = None
        try:
            for path, following in zip_longest(paths, paths[1:]):
                reading = ahead or self._reader.submit(read, path)
                ahead = self._reader.submit(read, following) if following is not None else None
                yield path, reading
        except RuntimeError:  # closed in between
            if not self._closed:
                raise
        finally:
            if ahead is not None:
                ahead.cancel()

    def close(self) -> None:
        """Begin to read nothing more."""
        self._closed = True
        self._reader.shutdown(wait=False, cancel_futures=True)


def give_way() -> None:
    """Let the calling thread have no more of the cores than others leave; Linux has this for single threads."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
