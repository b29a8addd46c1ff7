"""What can go wrong with a request, and the HTTP status that says so.

Raised anywhere below the server; ``labelrounds.server`` turns each into a response whose ``detail`` is the
message, and ``labelrounds.cli`` into one line on the terminal. A message says what was wrong, the value
received and what is allowed.
"""


class LabelRoundsError(Exception):
    """Base of every error that is meant for the user."""

    status = 500


class BadInput(LabelRoundsError):
    """The request or the file it names is not usable as it is."""

    status = 400


class NotLoggedIn(LabelRoundsError):
    """Nobody whom the server knows; never says whether the name or the key was wrong."""

    status = 401


class Forbidden(LabelRoundsError):
    """Known, but without the role for this; or a request that a page of another site, or another machine, has made."""

    status = 403


class NotFound(LabelRoundsError):
    """No such image, label, model, strategy or session."""

    status = 404


class Conflict(LabelRoundsError):
    """The request is sound, but the present state does not allow it (no trained version yet, no labels)."""

    status = 409


class TooLarge(LabelRoundsError):
    """The file, or the volume that it claims to hold, is over the limit."""

    status = 413


class TooLong(LabelRoundsError):
    """An address or headers that no client of this server sends."""

    status = 431


class UnsupportedMedia(LabelRoundsError):
    """Not one of the file formats that are read, or content that does not match its name."""

    status = 415


class Busy(LabelRoundsError):
    """Something else runs that has to end first."""

    status = 429


class Cancelled(LabelRoundsError):
    """Nobody waits for the answer any more; the status is what proxies log for a client that has gone."""

    status = 499


class Overloaded(LabelRoundsError):
    """Too many requests wait already, or the server is about to end; the same request may succeed in a moment."""

    status = 503


class Unreachable(LabelRoundsError):
    """A server that this one depends on, as the PACS, does not answer; the same request may succeed later."""

    status = 503


class OutOfSpace(LabelRoundsError):
    """The disk could not take what was to be written; nothing was changed."""

    status = 507


class Unwritable(OutOfSpace):
    """The disk takes nothing, full or not: it is read-only, failing, or not this user's; nothing was changed."""
