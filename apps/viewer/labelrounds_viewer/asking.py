"""Asking the server, and saying what came of it: progress, failures, login and questions, each on the page.

`Rounds` is the only subclass; the two are apart only because each is long enough. A request runs in a thread of its
own; `watch`, in the loop of the page, hands over what came of it, so that the scene is touched by that loop alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from trame_server import Server
from trame_slicer.app.logic.base_logic import BaseLogic
from trame_slicer.core import SlicerApp

from LabelRoundsLib import failures
from LabelRoundsLib.background import Lookout
from LabelRoundsLib.failures import Failed
from LabelRoundsLib.http import Call
from LabelRoundsLib.logic import LabelRoundsLogic

from .state import GREEN, RED, YELLOW, RoundsState

logger = logging.getLogger(__name__)

_DELIVER_S, _TICK_S = 0.05, 1.0
_LIGHTS = {"unreachable": RED, "lost": RED, "login": YELLOW, "busy": YELLOW}


class Asking(BaseLogic[RoundsState]):
    """Requests, and what the page says of them.

    Args:
        server: of the page.
        core: Slicer's core.
        address: of the LabelRounds server.
    """

    def __init__(self, server: Server, core: SlicerApp, address: str) -> None:
        super().__init__(server, core, RoundsState)
        self.logic = LabelRoundsLogic()
        self.logic.use_server(address, f"viewer-{uuid.uuid4().hex[:8]}")
        self.lookout = Lookout(self.logic.background, self._look_failed)
        self.data.address = self.logic.client.address
        self._call: Call | None = None
        self._after_login: Callable[[], None] = lambda: None
        self._answered: Callable[[int], None] = lambda choice: None

    async def watch(self) -> None:
        """Hand over what requests have come to, and look once a second for what is to be asked again; for ever."""
        ticked = 0.0
        while True:
            await asyncio.sleep(_DELIVER_S)
            with self.state:
                if not self._guarded(self.logic.background.deliver):
                    self._end()  # what failed may be what had to say so
                if time.monotonic() - ticked >= _TICK_S:
                    ticked = time.monotonic()
                    self._guarded(self.tick)

    def tick(self) -> None:
        """Do what is to be done every second."""

    def close(self, **_state: Any) -> None:
        """End all requests, and remove their files."""
        self.logic.close()

    def start(
        self,
        what: str,
        start: Callable[..., Call],
        then: Callable[..., Any],
        after_login: Callable[[], None] | None = None,
    ) -> None:
        """Do what the user has asked for, show how far it is, and go on with what came of it.

        Args:
            what: is being done, in words.
            start: gets whom to tell the outcome, a failure and the progress; returns the means to cancel it.
            then: gets the outcome.
            after_login: is done where the server wants a login first; the same again when left out.
        """
        if self._call is not None:
            return

        def done(*outcome: Any) -> None:
            self._end()
            self._guarded(lambda: then(*outcome))

        def failed(error: Failed) -> None:
            self._end()
            if error.kind == "login":
                self._after_login = after_login or (lambda: self.start(what, start, then))
                self.data.login_why = str(error)
            self.say_failed(error)

        def progress(part: float | None) -> None:
            self.data.part = None if part is None else 100 * part

        self.data.busy, self.data.part, self.data.trouble = True, 0.0, ""
        self.data.sentence = f"{what} ..."
        try:
            self._call = start(done, failed, progress)
        except (RuntimeError, OSError) as error:  # what Slicer says if it can't write the label
            failed(failures.in_slicer(error))

    def run(self, what: str, work: Callable[[Call], Any], then: Callable[[Any], Any]) -> None:
        """Do the same with some work that the logic has no method for."""
        self.start(what, lambda *ends: self.logic.background.start(work, *ends), then)

    def cancel(self) -> None:
        """Cancel the request that runs."""
        if self._call is not None:
            self._call.cancel()

    def say(self, sentence: str, light: str = GREEN) -> None:
        """Say what was done."""
        self.data.light, self.data.sentence = light, sentence

    def warn(self, sentence: str) -> None:
        """Say why something was not done."""
        self.data.trouble = sentence

    def say_failed(self, error: Failed) -> None:
        """Say what went wrong."""
        self.say(str(error), _LIGHTS.get(error.kind, self.data.light))
        if error.kind not in ("cancelled", "login"):
            self.warn(str(error))

    def ask(self, question: str, choices: list[str], then: Callable[[int], None]) -> None:
        """Ask the user; ``then`` gets the place of the choice, and is not called where the question is dropped."""
        self.data.question, self.data.choices, self._answered = question, choices, then

    def answer(self, choice: int) -> None:
        """Go on with what was answered; -1 for nothing."""
        then, count = self._answered, len(self.data.choices)
        self.data.question, self.data.choices, self._answered = "", [], lambda choice: None
        if 0 <= choice < count:
            then(choice)

    def log_in(self, name: str, key: str) -> None:
        """Log in and go on with what had asked for it; no key is kept."""
        self.data.login_why = ""
        client, again = self.logic.client, self._after_login

        def start(*ends: Any) -> Call:
            return self.logic.background.start(lambda call: client.log_in(name, key, call), *ends)

        self.start("Logging in", start, lambda _none: again(), again)

    def drop_login(self) -> None:
        """Do without."""
        self.data.login_why = ""

    def _end(self) -> None:
        self._call, self.data.busy, self.data.part = None, False, 0.0

    def _look_failed(self, error: Failed) -> None:
        """Show that the server is away or the login has ended, though nobody has asked for anything."""
        told = failures.in_passing(error)
        if error.kind == "login" and not self.logic.info:
            return  # nobody was let in yet: it waits for the first click
        if self._call is None and told is not None:
            self.say(str(told), _LIGHTS[told.kind])

    def _guarded(self, do: Callable[[], Any]) -> bool:
        """Do something of which no error may end the page; tell whether there was none."""
        try:
            do()
        except Exception as error:
            logger.exception("The viewer failed")
            self.say_failed(failures.in_slicer(error))
            return False
        return True
