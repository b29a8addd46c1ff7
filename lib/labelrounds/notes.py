"""JSON that clients send along and that is kept with an image or a label.

On the way of a round. Python reads and writes NaN, infinity and any depth, which JSON has not: one such value, once
kept, would break every listing that it stands in. So it is refused where it comes in, and what an older release has
kept is read without it.
"""

import json
import math
from typing import Any

from labelrounds.errors import BadInput

MOST_LEVELS = 32
_MOST_LEVELS_KEPT = 2 * MOST_LEVELS  # of a whole file, of which what clients have sent is a part


def check_plain(value: object, where: str) -> None:
    """Refuse what can't be given back as JSON.

    Raises:
        BadInput: a number that is not finite, half a character, or lists and objects in each other over `MOST_LEVELS`
            deep.
    """
    fault = _fault(value, 0)
    if fault:
        raise BadInput(f"{where}: {fault}")


def read_tamed(content: bytes | str) -> Any:
    """Return JSON that was kept before `check_plain`.

    Null stands for what is not finite or far too deep, a question mark for half a character.

    Raises:
        ValueError: not JSON.
    """
    try:
        return _tamed(json.loads(content), 0)
    except RecursionError as error:
        raise ValueError("nested too deep to be read") from error


def _fault(value: object, level: int) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number, which JSON can't hold"
    if isinstance(value, str) and value != in_utf8(value):
        return f"{value[:100]!a} has half a character in it, which UTF-8 can't hold"
    if not isinstance(value, dict | list | tuple):
        return None
    if level == MOST_LEVELS:
        return f"lists and objects lie over {MOST_LEVELS} levels deep in each other"
    parts = (part for pair in value.items() for part in pair) if isinstance(value, dict) else value
    return next((fault for part in parts if (fault := _fault(part, level + 1))), None)


def _tamed(value: Any, level: int) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return in_utf8(value)
    if not isinstance(value, dict | list):
        return value
    if level == _MOST_LEVELS_KEPT:
        return None
    if isinstance(value, dict):
        return {in_utf8(key): _tamed(part, level + 1) for key, part in value.items()}
    return [_tamed(part, level + 1) for part in value]


def in_utf8(text: str) -> str:
    """Return a text with ? for what can't be written in UTF-8."""
    return text.encode("utf-8", "replace").decode()
