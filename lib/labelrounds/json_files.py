"""JSON files that hold an object: what trainings, versions and measurements keep beside the weights."""

import json
from pathlib import Path
from typing import Any

from labelrounds.atomic import replacing
from labelrounds.errors import BadInput


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None where the file does not exist.

    Raises:
        BadInput: the file is not JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new one, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as staging:
        staging.write_text(json.dumps(content, indent=2), encoding="utf-8")
