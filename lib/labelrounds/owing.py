"""Submissions that the ledger of the rounds could not take, kept until it can.

On the way of a round: the label is saved, and its line follows when there is room on the disk again, also after the
server was started anew. The note lies beside the labels, which may be on another disk than the ledger; where neither
has room it is kept in memory.

Concurrency
    One thread at a time writes what is owed; the ledger takes the same line once.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from labelrounds.errors import LabelRoundsError
from labelrounds.history import History

logger = logging.getLogger(__name__)


class Owing:
    """What is still to be written.

    Args:
        history: returns where it is noted; asked when it is first needed.
    """

    def __init__(self, history: Callable[[], History]) -> None:
        self._history, self._lock = history, threading.Lock()
        self._entries: list[dict[str, Any]] | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add a submission: the arguments of `labelrounds.leases.Leases.submitted`."""
        with self._lock:
            self._known().append(dict(entry))

    def settle(self, write: Callable[[dict[str, Any]], object]) -> int:
        """Write what is owed, the oldest first, until something can't be written; return how many were.

        Args:
            write: writes one; raises a `LabelRoundsError` where it can't.
        """
        with self._lock:
            entries, written = self._known(), 0
            try:
                while entries:
                    write(entries[0])
                    written += 1
                    del entries[0]
            except LabelRoundsError as error:
                logger.warning("%d label(s) are saved, but not yet in the ledger: %s", len(entries), error)
            except TypeError:
                logger.warning("A damaged note of a submission is dropped: %r", sorted(entries.pop(0)))
            self._note(entries)
            return written

    def _known(self) -> list[dict[str, Any]]:
        if self._entries is None:
            self._entries = self._history().owed()
            self._noted = list(self._entries)
        return self._entries

    def _note(self, entries: list[dict[str, Any]]) -> None:
        if entries == self._noted:
            return
        try:
            self._history().owe(entries)
            self._noted = list(entries)
        except (LabelRoundsError, OSError) as error:
            logger.warning("What is not in the ledger yet can't be noted either; it is kept in memory: %s", error)
