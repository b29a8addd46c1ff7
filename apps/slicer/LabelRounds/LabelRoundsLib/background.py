"""Requests in threads of their own, whose outcomes are handed over in the main thread.

Slicer's scene and Qt may be touched in the main thread alone. A request's thread only puts what it has to say into a
queue; `Background.deliver`, which the panel calls by a timer, takes it out and calls who waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any, Callable

from . import failures
from .failures import Failed
from .http import Call

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
                outcome = failed, failures.in_slicer(error)
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


class Lookout:
    """Asks the server in passing, one question of a kind at a time; for the main thread too.

    Args:
        background: what runs the requests.
        failed: is called with why one came to nothing.
    """

    def __init__(self, background: Background, failed: Callable[[Failed], None]) -> None:
        self._background, self._failed = background, failed
        self.forget()

    def forget(self) -> None:
        """Drop what is asked, as from now on another server is."""
        self._asked: dict[str, float] = {}
        self._asking: set[str] = set()

    def ask(self, what: str, work: Callable[[Call], Any], then: Callable[[Any], None]) -> None:
        """Ask, unless the last question of this kind is not answered yet; ``then`` is called with what was found."""
        if what in self._asking:
            return

        asking = self._asking

        def over(listener: Callable[[Any], None]) -> Callable[[Any], None]:
            def ended(result: Any) -> None:
                asking.discard(what)
                if asking is self._asking:
                    listener(result)

            return ended

        asking.add(what)
        self.note(what)
        self._background.start(work, over(then), over(self._failed))

    def note(self, what: str) -> None:
        """Note that a question of this kind was answered just now, in another way."""
        self._asked[what] = time.monotonic()

    def hasten(self, what: str) -> None:
        """Have a question of this kind asked at the next occasion, as what stood against it may be gone."""
        self._asked.pop(what, None)

    def is_due(self, what: str, every_s: float) -> bool:
        """Tell whether the last question of this kind was asked so many seconds ago, or never."""
        return time.monotonic() - self._asked.get(what, -1e9) >= every_s
