"""The index of the studies folder: which images and labels there are, and what is known of each.

It is MONAI Label's own file and format (``datastore_v2.json``), so that either can read what the other wrote; only the
way to write and to read it differs. The crash rules stand in `labelrounds.store`.
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from labelrounds import host  # noqa: F401  (makes the next import possible)

# isort: split
from monailabel.datastore.local import LocalDatastoreModel
from pydantic_core import to_json

logger = logging.getLogger(__name__)

Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Return what changes whenever the file is replaced, None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def load(path: Path, base: Path) -> LocalDatastoreModel:
    """Read the index.

    Raises:
        ValueError: it is torn or not an index.
    """
    model = LocalDatastoreModel.model_validate_json(path.read_bytes())
    model.base_path = str(base)
    return model


def dump(model: LocalDatastoreModel) -> bytes:
    """Return the index as it is written."""
    return to_json(model.model_dump(exclude={"base_path"}), indent=1, fallback=str)


def put_aside(path: Path) -> Path:
    """Move a torn index out of the way, keeping it for whoever wants to look."""
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}")
    path.replace(aside)
    return aside


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def as_json(info: dict[str, Any]) -> dict[str, Any]:
    """Return ``info`` as JSON will give it back, so that memory and file never differ."""
    return dict(json.loads(to_json(info, fallback=str)))


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no links, a second copy."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, target)
