"""A file that a client sends: under a name that is safe, and in a temporary folder while a request works on it."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import UploadFile

from labelrounds.errors import UnsupportedMedia
from labelrounds.formats import ENDINGS, ending_of
from labelrounds.privacy.identity import check_folder_or_file


def safe_name(upload: UploadFile) -> str:
    """Return an upload's file name, without its folder and with nothing in it that a file system could stumble over."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", Path(upload.filename or "").name).lstrip(".")[-100:]


def check_ending(name: str, also: tuple[str, ...] = ()) -> None:
    """Refuse a file by its name.

    Raises:
        UnsupportedMedia: it has no ending that is read, nor one of ``also``.
    """
    if not ending_of(name) and not name.lower().endswith(also):
        raise UnsupportedMedia(f"{name!r} does not end in one of {', '.join([*ENDINGS, *also])}")


@contextmanager
def received(upload: UploadFile, also: tuple[str, ...] = ()) -> Iterator[Path]:
    """Keep an upload in a temporary file of the same name while it is worked on; errors then name what was sent.

    Raises:
        UnsupportedMedia: its name has no ending that is read.
        Identified: it still says whose image it is, and the server refuses such.
    """
    name = safe_name(upload)
    check_ending(name, also)
    with tempfile.TemporaryDirectory(prefix="labelrounds-") as folder:
        path = Path(folder) / name
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        check_folder_or_file(path)
        yield path
