"""Keep secrets out of every log: whatever logger they are given to, and whoever set up its handlers.

Keys, tokens and passwords are taken out of a record when it is made: of its text, its arguments and its traceback. Of
addresses in the access log nothing stays of what comes after the question mark, which names images.
"""

import logging
import re
import traceback
from collections.abc import Iterable
from typing import Any

GONE = "***"
_SHORTEST = 6  # of a configured secret: a shorter one would be found everywhere
_SECRET = re.compile(
    r"\b(?:lrk|lrs)_[\w.-]+"
    r"|\beyJ[\w-]+\.[\w-]*(?:\.[\w-]*)*"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|(?<=[Bb]asic )[\w+/=]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=password=)|(?<=secret=)|(?<=token=)|(?<=password': ')|(?<=password\": \"))[^\s&'\",]+"
)
_PLAIN = (int, float, type(None))


def hide_secrets(known: Iterable[str] = ()) -> None:
    """Take secrets out of all records from now on; once is enough, and a second time adds to the known ones."""
    _known.update(one for one in known if len(one) >= _SHORTEST)
    if not isinstance(logging.getLogRecordFactory(), _Factory):
        logging.setLogRecordFactory(_Factory(logging.getLogRecordFactory()))


def without_secrets(text: str) -> str:
    """Return a text without keys, tokens and passwords."""
    for one in _known:
        text = text.replace(one, GONE)
    return _SECRET.sub(GONE, text)


_known: set[str] = set()


class _Factory:
    """Makes log records; the one before makes them, this one cleans them."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, *arguments: Any, **keywords: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._before(*arguments, **keywords)
        if isinstance(record.msg, str):
            record.msg = without_secrets(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_clean(one) for one in record.args)
            if record.name == "uvicorn.access" and len(record.args) == 5:
                record.args = tuple(str(one).partition("?")[0] if i == 2 else one for i, one in enumerate(record.args))
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = without_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record


def _clean(argument: Any) -> Any:
    if isinstance(argument, _PLAIN):
        return argument
    text = str(argument)
    clean = without_secrets(text)
    return argument if clean == text else clean
