"""The case that the user has in hand: why it was chosen, and for how long it is theirs; without Slicer and Qt."""

from __future__ import annotations

import time
from http import HTTPStatus

from .client import Case, Client
from .failures import Failed
from .http import Call
from .translation import _


class CaseInHand:
    """A case, and its lease.

    Attributes:
        case: what the server said of it.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.kept(float(case.told["lease_s"]))

    def kept(self, seconds: float) -> None:
        """Note for how long it is the user's from now on."""
        self._lease_s, self._ends = seconds, time.monotonic() + seconds
        self._is_renewed = True

    def keep(self, client: Client, call: Call) -> float | str:
        """Ask the server to keep it; return for how long it does, or that others have it by now. In any thread."""
        try:
            return client.keep(self.case.image, call)
        except Failed as error:
            self._is_renewed = False
            if error.status != HTTPStatus.CONFLICT:
                raise
            return str(error)

    def should_be_kept(self) -> bool:
        """Tell whether half of the time is over, so that the lease is to be renewed."""
        return self._ends - time.monotonic() <= self._lease_s / 2

    def reason(self) -> str:
        """Return why it was chosen, and how many wait."""
        told = self.case.told
        lines = [told["reason"].rstrip(".") + "."] if told.get("reason") else []
        if told.get("score") is not None:
            lines.append(_("Score {score:.3g} by {strategy}, rank {rank}.").format(**told))
        if "queue" in told:
            lines.append(_("{queue} more wait.").format(queue=told["queue"]))
        return " ".join(lines)

    def lease(self) -> str:
        """Return for how long it is the user's, in words."""
        minutes = max(0, round((self._ends - time.monotonic()) / 60))
        if not self._is_renewed:
            told = _("Yours for another {minutes} min; it could not be renewed, which is tried again.")
            return told.format(minutes=minutes)
        return _("Yours for another {minutes} min; it is renewed while the case is open.").format(minutes=minutes)
