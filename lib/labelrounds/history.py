"""The history of the studies folder: a line for each change, the versions of each label, and the step under way.

All of it lies in ``history/`` beside the images. Whoever writes holds the store's lock; the crash rules stand in
`labelrounds.store`.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelrounds.atomic import copy_file, disk_errors, remove_leftovers, replacing, write_bytes
from labelrounds.notes import read_tamed

logger = logging.getLogger(__name__)


class History:
    """What was, and what is about to be.

    Attributes:
        folder: Where it lies.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._pending = folder / "pending.json"
        self._journal = folder / "journal.jsonl"
        self._owed = folder / "owed.json"

    def tidy(self) -> None:
        """Remove what killed processes left."""
        for folder in (self.folder, *(self.folder / "versions").glob("*")):
            remove_leftovers(folder)

    def note_pending(self, record: dict[str, Any]) -> None:
        """Note the step that is about to be taken.

        Raises:
            OutOfSpace: the disk is full; nothing is noted.
        """
        with disk_errors(self._pending):
            self.folder.mkdir(exist_ok=True)
        write_bytes(self._pending, json.dumps(record).encode())

    def pending(self) -> dict[str, Any] | None:
        """Return the step in which a process was killed, None where none was."""
        try:
            record = read_tamed(self._pending.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if not isinstance(record, dict) or not {"image", "tag", "ext", "info"} <= record.keys():
            logger.warning("%s cannot be read, it is dropped", self._pending)
            self.forget_pending()
            return None
        return record

    def forget_pending(self) -> None:
        """Drop the note: the step is finished, or was never begun."""
        self._pending.unlink(missing_ok=True)

    def append(self, record: dict[str, Any]) -> None:
        """Add a line. A disk that is full now costs the line, not the change, which is on the disk already."""
        line = json.dumps(record).encode() + b"\n"
        try:
            self.folder.mkdir(exist_ok=True)
            with self._journal.open("ab+") as file:
                # A line that a killed process left unfinished must not swallow this one.
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    line = b"\n" + line
                file.write(line)
        except OSError as error:
            logger.warning("the journal lacks a line: %s: %s", record, error)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the journal, the oldest first; damaged ones are passed over."""
        yield from (entry for line in self._lines() if (entry := _read(line)) is not None)

    def entries_of(self, image_id: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of the journal that are about an image, the oldest first."""
        part = json.dumps(image_id).encode()
        for line in self._lines():
            if part in line and (entry := _read(line)) is not None and entry.get("image") == image_id:
                yield entry

    def _lines(self) -> Iterator[bytes]:
        if self._journal.is_file():
            with self._journal.open("rb") as file:
                yield from file

    def owed(self) -> list[dict[str, Any]]:
        """Return what is still to be written into the ledger of the rounds."""
        try:
            return [dict(one) for one in read_tamed(self._owed.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []

    def owe(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Note what is still to be written into the ledger of the rounds, in the place of what was noted before.

        Raises:
            OutOfSpace: the disk is full; nothing has changed.
        """
        if entries:
            with disk_errors(self._owed):
                self.folder.mkdir(exist_ok=True)
            write_bytes(self._owed, json.dumps([dict(one) for one in entries]).encode())
        else:
            self._owed.unlink(missing_ok=True)

    def known(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """Return the last info of each file that the journal has, by image, tag ("" for the image) and checksum."""
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for record in self.entries():
            try:
                info = dict(record["info"])
                found[str(record["image"]), str(record["tag"]), str(info["sha256"])] = info
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def version(self, image_id: str, tag: str, ext: str, digest: str) -> Path:
        """Return where a version of a label lies."""
        return self.folder / "versions" / image_id / f"{tag}-{digest[:16]}{ext}"

    def keep(self, source: Path, image_id: str, tag: str, ext: str) -> Path:
        """Copy a label to its place among the versions, if it is not there yet.

        Raises:
            OutOfSpace: the disk is full; nothing was kept.
        """
        version = self.version(image_id, tag, ext, checksum(source))
        if not version.exists():
            with disk_errors(version):
                version.parent.mkdir(parents=True, exist_ok=True)
            with replacing(version, durable=True) as file:
                copy_file(source, file)
        return version


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(read_tamed(line))
    except (ValueError, TypeError):
        return None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no links, make a second copy."""
    try:
        target.hardlink_to(source)
    except OSError:
        with disk_errors(target):
            shutil.copyfile(source, target)
