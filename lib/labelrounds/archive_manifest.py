"""What became of each image of an archive: ``manifest.jsonl``, a line an image, and ``manifest.csv`` for people.

Concurrency
    One run at a time writes into an output folder, which a lock sees to; of a run the driver alone writes the manifest,
    whatever the number of its workers.

Crash
    A line is added and flushed when the image's output is in its place. After a kill or a power cut the last line may
    be cut short; it is dropped, and that image done again, to the same output. So each image is in the result once.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from labelrounds.atomic import disk_errors, replacing
from labelrounds.errors import BadInput, Conflict

LINES, TABLE, _LOCK = "manifest.jsonl", "manifest.csv", ".labelrounds.lock"
DONE, UNUSABLE, FAILED = "done", "unusable", "failed"
_FORMAT = {"manifest of": "labelrounds predict", "format": 1}


class Manifest:
    """The manifest of an output folder, held by one run.

    Args:
        folder: made if need be; new, empty, or an earlier run's.

    Raises:
        BadInput: the folder holds something else.
        Conflict: another run works on it.
        OutOfSpace: it can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: dict[str, str] = {}  # as they stand in the file: parsed, 100,000 would take 200 MB
        with disk_errors(folder / LINES):
            folder.mkdir(parents=True, exist_ok=True)
            self._check_ours()
            self._lock = FileLock(folder / _LOCK, timeout=0)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise Conflict(f"output {str(folder)!r}: another run works on it; wait until it has ended") from error
            try:
                self._read()
                self._file = (folder / LINES).open("ab", buffering=0)  # what did not fit is not written once more
                if not self._file.tell():
                    self._write(_FORMAT)
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        finally:
            self._lock.release()

    def get(self, image: str) -> dict[str, Any] | None:
        """Return an image's last row."""
        line = self._lines.get(image)
        return dict(json.loads(line)) if line is not None else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the last row of each image, by the images' names."""
        return (json.loads(self._lines[image]) for image in sorted(self._lines))

    def add(self, row: dict[str, Any]) -> None:
        """Add what became of ``row["image"]``; it holds from now on, come what may.

        Raises:
            OutOfSpace: the disk is full.
        """
        self._lines[row["image"]] = self._write(row)

    def write_table(self, labels: Sequence[str], images: set[str]) -> Path:
        """Write the rows of some images as a table, with the volume of each label in ml.

        Raises:
            OutOfSpace: the disk is full.
        """
        path = self.folder / TABLE
        # A file name need not be Unicode; its bytes come back as they were.
        with replacing(path) as file, file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
            table = csv.writer(out)
            table.writerow(["image", "output", *(f"{label}_ml" for label in labels), "version", "seconds", "error"])
            for row in self.rows():
                if row["image"] in images:
                    volumes = [row.get("volumes_ml", {}).get(label, "") for label in labels]
                    rest = [row.get("version", ""), row.get("seconds", ""), row.get("reason", "")]
                    table.writerow([row["image"], row.get("output", ""), *volumes, *rest])
        return path

    def _check_ours(self) -> None:
        first, begun = _line(_FORMAT).encode(), b""
        if (self.folder / LINES).is_file():
            with (self.folder / LINES).open("rb") as file:
                begun = file.readline(len(first))
        # A run that was killed before it had done anything may have left a part of the first line.
        nothing_done = first.startswith(begun) and {path.name for path in self.folder.iterdir()} <= {LINES, _LOCK}
        if begun == first or nothing_done:
            return
        raise BadInput(
            f"output {str(self.folder)!r} holds files of something else: name a new or an empty folder, or that of an"
            " earlier run, which then goes on"
        )

    def _read(self) -> None:
        """Take in the lines of earlier runs, and cut off what a killed one has left of a last line."""
        path = self.folder / LINES
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                if number:
                    self._take(line.decode(errors="replace"))
        if whole < path.stat().st_size:
            os.truncate(path, whole)

    def _take(self, line: str) -> None:
        with suppress(ValueError):  # a damaged line: its image is done again
            row = json.loads(line)
            if _is_row(row):
                self._lines[row["image"]] = line

    def _write(self, row: dict[str, Any]) -> str:
        line = _line(row)
        with disk_errors(self.folder / LINES):
            left = memoryview(line.encode())
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        return line


def _is_row(row: object) -> bool:
    """Tell whether a line holds what is asked of it later."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("image"), str)
        and row.get("status") in (DONE, UNUSABLE, FAILED)
        and isinstance(row.get("volumes_ml", {}), dict)
    )


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
