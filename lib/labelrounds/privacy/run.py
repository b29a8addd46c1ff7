"""``labelrounds deidentify``: a file, a folder or a whole archive into a new folder, with a report of what was done.

Crash and repetition: each file appears whole or not at all, and none is ever replaced. With the same secret the same
command goes on where it was ended: what is there already is left as it is.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound, OutOfSpace, UnsupportedMedia
from labelrounds.formats import ENDINGS, ending_of, is_dicom
from labelrounds.privacy.dicom_files import NotAnImage, clean_dicom
from labelrounds.privacy.pseudonyms import Pseudonyms
from labelrounds.privacy.volume_files import clean_volume

DONE, THERE, LEFT_OUT, FAILED = "done", "there already", "left out", "failed"
COLUMNS = ("input", "status", "output", "reason", "look_at", "removed", "emptied", "replaced", "mapped", "private")
# Folders of a studies folder, by which its labels are found.
_KNOWN_FOLDERS = ("labels", "final", "original", "classes")


@dataclass(frozen=True)
class Wishes:
    """How to de-identify.

    Attributes:
        pseudonyms: of the run's key.
        shift_dates: move dates back by a patient's own number of days instead of removing them.
        with_burned_in: also write images that say that text stands in their pixels.
    """

    pseudonyms: Pseudonyms
    shift_dates: bool = False
    with_burned_in: bool = False


@dataclass
class Tally:
    """How many files came to which end, and of those written how many a person should look at."""

    ends: Counter[str] = field(default_factory=Counter)
    to_look_at: int = 0

    def __str__(self) -> str:
        told = ", ".join(f"{self.ends[end]:,} {end}" for end in (DONE, THERE, LEFT_OUT, FAILED) if self.ends[end])
        looked = f"; look at {self.to_look_at:,} for text in the pixels" if self.to_look_at else ""
        return f"{told or 'no file found'}{looked}"


def run(
    source: Path, output: Path, report: Path, wishes: Wishes, each: Callable[[int, int], None] = lambda done, of: None
) -> Tally:
    """De-identify a file, or all files of a folder and of those in it.

    Args:
        source: only read.
        output: a folder, made if need be; what lies in it is never replaced.
        report: a new CSV file that names the inputs, for the owner alone; not in ``output``, which may be given away.
        wishes: how.
        each: called after each file with the number done and of all.

    Raises:
        NotFound: no such file or folder.
        BadInput: places that are in each other.
        Conflict: the report is there already.
        OutOfSpace: the disk is full; what was written is whole.
        KeyboardInterrupt: ended; what was written is whole, and in the report.
    """
    source, output, report = (path.expanduser().resolve() for path in (source, output, report))
    _check_places(source, output, report)
    files = sorted(_files(source))
    tally = Tally()
    with _reporting(report) as note:
        with disk_errors(output):
            output.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files, start=1):
            row = _row(file, source, output, wishes)
            note(row)
            tally.ends[row["status"]] += 1
            tally.to_look_at += bool(row["look_at"] and row["status"] == DONE)
            each(number, len(files))
    return tally


def _check_places(source: Path, output: Path, report: Path) -> None:
    if not source.exists():
        raise NotFound(f"{source}: there is no such file or folder")
    if output.exists() and not output.is_dir():
        raise BadInput(f"output {str(output)!r} is a file; a folder is written")
    within = source if source.is_dir() else source.parent
    if source.is_dir() and (output == source or output.is_relative_to(source) or source.is_relative_to(output)):
        raise BadInput(f"output {str(output)!r} and input {str(source)!r} lie in each other; name a folder elsewhere")
    if output == within:
        raise BadInput(f"output {str(output)!r} is the input's folder; name another one")
    if report.is_relative_to(output):
        raise BadInput(f"report {str(report)!r} names the inputs: it must not lie in the output, to be given away")


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for path in source.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts):
            yield path


@contextmanager
def _reporting(report: Path) -> Iterator[Callable[[dict[str, str]], None]]:
    """Write a row at once, so that an ended run has its report."""
    try:
        with disk_errors(report):
            handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Conflict(f"report {str(report)!r} is there already; name another one") from error
    except FileNotFoundError as error:
        raise BadInput(f"report {str(report)!r}: there is no folder {str(report.parent)!r}") from error
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()

        def note(row: dict[str, str]) -> None:
            with disk_errors(report):
                writer.writerow(row)
                file.flush()

        yield note


def _row(file: Path, source: Path, output: Path, wishes: Wishes) -> dict[str, str]:
    """De-identify a file, and say how it went."""
    name = file.name if file == source else str(file.relative_to(source))
    try:
        return {"look_at": "", **_cleaned(file, source, output, wishes), "input": name, "status": DONE}
    except OutOfSpace:
        raise
    except (NotAnImage, UnsupportedMedia) as error:
        status, reason = LEFT_OUT, str(error)
    except Conflict as error:
        status, reason = THERE, str(error)
    except LabelRoundsError as error:
        status, reason = FAILED, str(error).removeprefix(f"{file.name}: ")
    except OSError as error:
        status, reason = FAILED, error.strerror or type(error).__name__
    return {"input": name, "status": status, "reason": reason, "look_at": ""}


def _cleaned(file: Path, source: Path, output: Path, wishes: Wishes) -> dict[str, str]:
    ending = ending_of(file.name)
    if file.name.upper() != "DICOMDIR" and ENDINGS.get(ending, "dicom") == "dicom" and is_dicom(file):
        done = clean_dicom(file, output, wishes.pseudonyms, wishes.shift_dates, wishes.with_burned_in)
        told = {action: ";".join(sorted(names)) for action, names in done.changes.done.items()}
        private = str(done.changes.private or "")
        where = str(done.path.relative_to(output))
        return {**told, "private": private, "output": where, "look_at": "; ".join(done.warnings)}
    if ENDINGS.get(ending) not in ("nifti", "nrrd"):
        raise UnsupportedMedia("neither DICOM nor NIfTI nor NRRD")
    target = _place(file, source, output, wishes.pseudonyms)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return {"removed": ";".join(clean_volume(file, target)), "output": str(target.relative_to(output))}


def _place(file: Path, source: Path, output: Path, pseudonyms: Pseudonyms) -> Path:
    """Return where a volume goes: an image and its label, of one name in two folders, keep one name."""
    ending = ending_of(file.name)
    if file.name.lower().endswith(".seg.nrrd"):
        ending = ".seg.nrrd"
    folders: list[Any] = [] if file == source else list(file.relative_to(source).parts[:-1])
    named = [part if part in _KNOWN_FOLDERS else pseudonyms.folder(part) for part in folders]
    return output.joinpath(*named, pseudonyms.file(file.name[: -len(ending)]) + ending.lower())
