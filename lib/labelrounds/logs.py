"""How the server logs: a line for each event, as text or as JSON, each with the id of the request that it belongs to.

Beside the way of every request: ``tracing.py`` opens a request's `Context`, and whatever is logged on its behalf, also
in the thread that a route runs in and in a device's (`engine.py`), carries its id and user. A training's process prints
to the server, which logs each of its lines in the same format.

No line can be forged by what a client sends: JSON escapes it, text has no control character but those that end a line,
and the lines of a traceback are indented.
"""

import json
import logging
import re
import traceback
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from labelrounds import folders

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OF_REQUESTS = ("method", "route", "status", "duration_s", "address")


@dataclass
class Context:
    """What is known of the request that a thread works for.

    Attributes:
        id: the client's ``X-Request-ID``, or one that was made.
        state: the request's, in which the login puts ``user``.
        ids: of images, labels and the like that a route has come to know, for the audit log.
    """

    id: str
    state: Mapping[str, Any] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def user(self) -> str | None:
        """Who asks, where a login has told."""
        return getattr(self.state.get("user"), "username", None)


current: ContextVar[Context | None] = ContextVar("request", default=None)


def request_id() -> str:
    """Return the id of the request that is worked for; a new one where there is none."""
    context = current.get()
    return context.id if context is not None else new_id()


def accepted_id(sent: str) -> str:
    """Return the id that a client has sent, or a new one if it is none: 1 to 64 letters, digits and ``._-``."""
    return sent if _REQUEST_ID.fullmatch(sent) else new_id()


def new_id() -> str:
    """Return an id that no other request has."""
    return uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """One JSON object a line; ``request_id`` and ``user`` where there are, the rest of a request in its own line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        context = current.get()
        line = {
            "time": time_of(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **({"request_id": context.id, "user": context.user} if context is not None else {}),
            **{name: getattr(record, name) for name in _OF_REQUESTS if hasattr(record, name)},
        }
        if told := _exception(record):
            line["exception"] = told
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line, ``time LEVEL logger [request id]: message``; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        context = current.get()
        of = f" [{context.id}]" if context is not None else ""
        said = [f"{time_of(record.created)} {record.levelname} {record.name}{of}: {one_line(record.getMessage())}"]
        said += [f"    {one_line(line)}" for line in _exception(record).splitlines()]
        return "\n".join(said)


def _exception(record: logging.LogRecord) -> str:
    """Return a record's traceback; where `labelrounds.redaction` has cleaned it, as it was left."""
    if record.exc_text:
        return record.exc_text
    if record.exc_info and record.exc_info[0] is not None:
        return "".join(traceback.format_exception(*record.exc_info))
    return ""


def one_line(text: str) -> str:
    """Return a text with its control characters, and what is no text, written as escapes."""
    escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def time_of(seconds: float) -> str:
    """Return a time since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_config(form: str) -> dict[str, Any]:
    """Return the settings of Python's logging: to the terminal and, rotating, to ``home()/logs/labelrounds.log``."""
    logs = folders.home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    file = {
        "class": "logging.handlers.RotatingFileHandler",
        "filename": str(logs / "labelrounds.log"),
        "maxBytes": 10_000_000,
        "backupCount": 3,
        "encoding": "utf-8",
        "formatter": "chosen",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"chosen": {"()": JsonFormatter if form == "json" else TextFormatter}},
        # The host's timer has a handler of its own, which prints plain text among the lines; it says nothing of use.
        "filters": {"nothing": {"name": "-"}},  # no logger is called so: it lets nothing through
        "loggers": {"timeloop": {"filters": ["nothing"]}},
        "handlers": {"terminal": {"class": "logging.StreamHandler", "formatter": "chosen"}, "file": file},
        "root": {"level": "INFO", "handlers": ["terminal", "file"]},
    }
