"""What can go wrong with a request, each as a sentence that says what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .translation import _


class Failed(Exception):
    """A request that came to nothing.

    Attributes:
        kind: ``unreachable``, ``lost``, ``cancelled``, ``login``, ``refused``, ``too_large``, ``busy`` or ``failed``.
        status: the server's HTTP status; 0 where there was no answer.
    """

    def __init__(self, kind: str, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.kind, self.status = kind, status


def unreachable(address: str, error: Exception) -> Failed:
    """Say that no server answers at an address."""
    sentence = _("No server answers at {address} ({reason}). Check the address, or ask whoever runs the server.")
    return Failed("unreachable", sentence.format(address=address, reason=_reason(error)))


def lost(address: str, error: Exception) -> Failed:
    """Say that the connection ended before there was an answer, as when the server dies."""
    sentence = _("The server at {address} was lost before it had answered ({reason}). Try again in a moment.")
    return Failed("lost", sentence.format(address=address, reason=_reason(error)))


def cancelled() -> Failed:
    """Say that the user has cancelled."""
    return Failed("cancelled", _("Cancelled. Nothing was changed in Slicer."))


def not_ours(address: str) -> Failed:
    """Say that something else than a LabelRounds server answers."""
    return Failed("failed", _("What answers at {address} is not a LabelRounds server.").format(address=address))


def in_slicer(error: Exception) -> Failed:
    """Say that it did not come to a request, or to what was to be done with its answer, as where a disk is full."""
    return Failed("failed", _("This failed in Slicer: {error}").format(error=error))


def refused(address: str, status: int, headers: Mapping[str, str], body: bytes) -> Failed:
    """Say why the server has refused a request, in its own words."""
    told = {"detail": _detail(body), "status": status, "address": address}
    if status == 401:
        return Failed("login", _("Log in to {address}: {detail}.").format(**told), status)
    if status == 403:
        return Failed("refused", _("You are not allowed to do this: {detail}.").format(**told), status)
    if status == 413:
        return Failed("too_large", _("This is larger than the server takes: {detail}.").format(**told), status)
    if status in (429, 503):
        wait_s = headers.get("Retry-After", "")
        named = wait_s.isdigit() and int(wait_s) > 0  # it may also be a date
        when = _("Try again in {seconds} s.").format(seconds=wait_s) if named else _("Try again in a moment.")
        return Failed("busy", _("The server can't do this now: {detail}.").format(**told) + " " + when, status)
    if 400 <= status < 500:
        return Failed("refused", _("The server refuses this: {detail}.").format(**told), status)
    return Failed("failed", _("The server failed at this (status {status}): {detail}.").format(**told), status)


def replaced(image: str) -> Failed:
    """Say that no version of a label stays long enough to be fetched."""
    sentence = _("The label of {image} is replaced again and again while it is fetched. Try again in a moment.")
    return Failed("busy", sentence.format(image=image))


def in_passing(error: Failed) -> Failed | None:
    """Return what a user is to be told of a question that they have not asked; None where it can wait.

    That the server is away, and that the login has ended, as a case is the user's only for as long as it is renewed.
    """
    if error.kind == "login":
        ended = _(
            "Your login at the server has ended. Press Connect and log in, so that the case stays yours and your work"
            " can be submitted."
        )
        return Failed(error.kind, ended, error.status)
    return error if error.kind in ("unreachable", "lost") else None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error or type(error).__name__)


def _detail(body: bytes) -> str:
    """Return the ``detail`` of problem details (RFC 9457), without the stop at its end."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = _("it gave no reason")
    return str(detail).rstrip(". ")
