"""Requests in threads of their own, whose outcomes are handed over in the main thread.

Slicer's scene and Qt may be touched in the main thread alone. A request's thread only puts what it has to say into a
queue; `Background.deliver`, which the panel calls by a timer, takes it out and calls who waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Callable

from .failures import Failed
from .http import Call
from .translation import _

logger = logging.getLogger(__name__)


class Background:
    """Runs requests; all methods are for the main thread."""

    def __init__(self) -> None:
        self._said: queue.Queue[tuple[Callable[..., None], Any]] = queue.Queue()
        self._running: set[Call] = set()

    def start(
        self,
        work: Callable[[Call], Any],
        done: Callable[[Any], None],
        failed: Callable[[Failed], None],
        progress: Callable[[float | None], None] = lambda part: None,
    ) -> Call:
        """Do some work in a thread.

        Args:
            work: gets the call, which it must hand to each request.
            done: is called with what it returns.
            failed: is called with why it came to nothing.
            progress: is told the part of the request that is done, 0 to 1, or None while the server computes.

        Returns:
            the means to cancel it.
        """
        call = Call(lambda part: self._said.put((progress, part)))

        def run() -> None:
            try:
                outcome = done, work(call)
            except Failed as error:
                outcome = failed, error
            except Exception as error:  # as a full disk; a thread's traceback would be seen by nobody
                logger.exception("A request of LabelRounds failed")
                outcome = failed, Failed("failed", _("This failed in Slicer: {error}").format(error=error))
            self._said.put((self._ended, (call, *outcome)))

        self._running.add(call)
        threading.Thread(target=run, name="LabelRounds", daemon=True).start()
        return call

    def deliver(self) -> None:
        """Call whoever something was said for."""
        while True:
            try:
                listener, said = self._said.get_nowait()
            except queue.Empty:
                return
            listener(said)

    def cancel_all(self) -> None:
        """Cancel whatever runs; nobody is called any more for it."""
        for call in self._running:
            call.cancel()
        self._running.clear()

    @property
    def busy(self) -> bool:
        """Tell whether something runs, or is still to be delivered."""
        return bool(self._running) or not self._said.empty()

    def _ended(self, outcome: tuple[Call, Callable[[Any], None], Any]) -> None:
        call, listener, result = outcome
        if call in self._running:
            self._running.discard(call)
            listener(result)
