"""The audit log: who saw, changed or trained what, in files that are only ever appended to.

Beside the way of every request: ``tracing.py`` has a line written before the answer goes out. ``home()/audit`` holds a
file a month, or several where one grows over 50 MB; nobody but the server's user may read them. What is in a line:
time, request id, user, client's address, method, route, ids (images, labels, models, sessions) and the answer's
status; never what was sent, and no word of an image.

Integrity: each line has a number and the SHA-256 of the line before, so that one which is altered, inserted, moved or
taken out breaks the chain; the file ``head`` has the last number, so that lines cut off at the end are missed too
(``labelrounds audit --verify``). Who may write to all files can make a new chain; against that, keep the number and
hash that ``--verify`` prints elsewhere.

Concurrency: a lock in the process and one on the folder, as commands write too. A line is one ``write`` to a file that
was opened for appending. Crash rules: what a killed process has written is there; a power cut may take the last half
minute. A line that a full disk cut is taken back. Lines that could not be written wait in memory, and come first when
the disk takes them again.
"""

import errno
import getpass
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from labelrounds import folders
from labelrounds.atomic import disk_errors
from labelrounds.errors import OutOfSpace
from labelrounds.logs import new_id, one_line, time_of

logger = logging.getLogger(__name__)

_MOST_BYTES = 50_000_000
_MOST_WAITING = 10_000
_LEAST_FREE = 1_000_000  # bytes; less is taken for a full disk
_TAIL = 65_536  # bytes, far more than a line has
_NOTHING = "0" * 64  # the hash before the first line
_LONGEST = 200


@dataclass(frozen=True)
class _End:
    """Where the log ends.

    Attributes:
        file: the newest one; None where there is none.
        size: its bytes.
        number: of the last line.
        hash: of the last line.
        is_torn: whether that line lacks its end, as after a power cut.
    """

    file: Path | None = None
    size: int = 0
    number: int = 0
    hash: str = _NOTHING
    is_torn: bool = False


@dataclass
class Verified:
    """What the check of a log has found.

    Attributes:
        first: the number of the first line that is there.
        last: of the last one.
        hash: of the last line.
        faults: each a sentence with file and line.
    """

    first: int = 0
    last: int = 0
    hash: str = _NOTHING
    faults: list[str] = field(default_factory=list)


class AuditLog:
    """A folder of audit files.

    Args:
        folder: made at the first line.
        most_bytes: of a file, after which the next one begins.

    Attributes:
        failing: why the last line could not be written; empty when it was.
    """

    def __init__(self, folder: Path, most_bytes: int = _MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._mutex = threading.Lock()
        self._end = _End()
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self.failing = ""

    def append(self, event: Mapping[str, Any]) -> None:
        """Write a line.

        Raises:
            OutOfSpace: the disk takes none; the line waits, and comes before the next one.
        """
        with self._mutex:
            self._waiting.append({"time": time_of(time.time()), **event})
            if len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()
                self._lost += 1
            try:
                with disk_errors(self._folder):
                    self._write_waiting()
            except (OSError, OutOfSpace) as error:
                if not self.failing:
                    logger.error("The audit log can't be written: %s", error)
                self.failing = str(error)
                raise OutOfSpace("the audit log can't be written; free some space on its disk first") from error
            self.failing = ""

    def check(self) -> None:
        """Find out, before something is done that has to be in the log, whether the log takes lines.

        Raises:
            OutOfSpace: it does not, or hardly any more.
        """
        if self.failing:
            self.append({"method": "-", "route": "the audit log is written again"})
        self._make_folder()
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < _LEAST_FREE:
            raise OutOfSpace("the audit log's disk is full, and nothing is done without it; free some space first")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines in their order, those left out that can't be read."""
        for _, _, line in self._raw():
            with suppress(ValueError):
                content = json.loads(line)
                if isinstance(content, dict):
                    yield content

    def verify(self) -> Verified:
        """Check the chain of all lines that are there."""
        found = Verified()
        head = self._head()
        for file, number, line in self._raw():
            place = f"{file.name} line {number}"
            try:
                content = json.loads(line)
                this, before = int(content["number"]), str(content["previous"])
            except (ValueError, KeyError, TypeError, OverflowError):  # JSON has Infinity, as Python reads it
                found.faults.append(f"{place}: is no line of the audit log, or only a part of one")
                found.hash = _digest(line)
                continue
            if not found.first:
                found.first = this
                if this == 1 and before != _NOTHING:
                    found.faults.append(f"{place}: the first line follows another one")
            else:
                if this != found.last + 1:
                    found.faults.append(f"{place}: number {this} follows {found.last}: lines are missing or were moved")
                if before != found.hash:
                    found.faults.append(f"{place}: the line before it is not the one that was written")
            found.last, found.hash = this, _digest(line)
        if head is None and found.last:
            found.faults.append("head: is missing, so it is not known whether lines at the end are")
        elif head is not None and head["number"] > found.last:
            found.faults.append(f"head: {head['number'] - found.last} lines are missing at the end")
        elif head is not None and head["number"] == found.last and head["hash"] != found.hash:
            found.faults.append(f"head: line {found.last} is not the one that was written")
        return found

    def _raw(self) -> Iterator[tuple[Path, int, bytes]]:
        for path in self._files():
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield path, number, line.removesuffix(b"\n")

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("audit-*.jsonl"))

    def _make_folder(self) -> None:
        with disk_errors(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write_waiting(self) -> None:
        self._make_folder()
        with FileLock(self._folder / ".lock", mode=0o600):
            while self._waiting:
                lost = {"lost": self._lost} if self._lost else {}
                self._write({**self._waiting[0], **lost})
                self._waiting.popleft()
                self._lost = 0

    def _write(self, event: dict[str, Any]) -> None:
        end = self._found_end()
        path = self._file_for(end)
        line = json.dumps({"number": end.number + 1, **event, "previous": end.hash}, separators=(",", ":")).encode()
        before = b"\n" if end.is_torn and path == end.file else b""
        size = _append(path, before + line + b"\n")
        self._end = _End(path, size, end.number + 1, _digest(line))
        head = json.dumps({"number": self._end.number, "hash": self._end.hash}).ljust(127) + "\n"
        handle = os.open(self._folder / "head", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, head.encode(), 0)
        finally:
            os.close(handle)

    def _found_end(self) -> _End:
        """Return where the log ends, read anew where another process has written."""
        newest = max(self._files(), default=None)
        if newest is None:
            return _End()
        if newest == self._end.file and newest.stat().st_size == self._end.size:
            return self._end
        return _end_of(newest)

    def _file_for(self, end: _End) -> Path:
        """Return where the next line goes: a clock that was set back opens no older file again."""
        month = time.strftime("%Y-%m", time.gmtime())
        if end.file is None:
            return self._folder / f"audit-{month}-001.jsonl"
        last, part = end.file.stem.removeprefix("audit-")[:7], int(end.file.stem[-3:])
        if month > last:
            return self._folder / f"audit-{month}-001.jsonl"
        if end.size >= self._most_bytes and part < 999:
            return self._folder / f"audit-{last}-{part + 1:03d}.jsonl"
        return end.file

    def _head(self) -> dict[str, Any] | None:
        try:
            head = json.loads((self._folder / "head").read_text())
            return {"number": int(head["number"]), "hash": str(head["hash"])}
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None


def audit_log() -> AuditLog:
    """Return this process' audit log."""
    return _opened(folders.home() / "audit")


def record_command(command: str, **ids: str) -> None:
    """Write down what a command of this machine's user has changed; a log that can't be written is said, no more."""
    event = {"request": new_id(), "user": _user(), "address": "terminal", "method": "COMMAND", "route": command}
    try:
        audit_log().append({**event, "ids": _short(ids), "status": 0})
    except OutOfSpace as error:
        logger.warning("%s", error)


def listing(last: int, user: str = "", image: str = "") -> list[str]:
    """Return the newest lines, one of text each: of a user, or about an image, where one is named."""
    newest: deque[str] = deque(maxlen=last)
    for line in audit_log().lines():
        ids = line.get("ids") or {}
        about = {str(ids.get(name)) for name in ("image", "id", "label", "series")}
        if (not user or line.get("user") == user) and (not image or image in about):
            words = [line.get(name) for name in ("time", "user", "address", "method", "route", "status")]
            named = " ".join(f"{name}={value}" for name, value in ids.items())
            newest.append(one_line(" ".join([*(str(word or "-") for word in words), named]).rstrip()))
    return list(newest)


def verification() -> tuple[str, bool]:
    """Return what is to be said of the log, and whether it is whole."""
    found = audit_log().verify()
    if found.faults:
        return "\n".join([*found.faults, f"The audit log is not whole: {len(found.faults)} faults."]), False
    if not found.last:
        return "The audit log is empty.", True
    earlier = "" if found.first == 1 else f" Lines before {found.first} are not in this folder."
    return (
        f"The audit log is whole: lines {found.first} to {found.last}, the last with hash {found.hash}.{earlier}",
        True,
    )


def event_of(
    request: str, user: str | None, address: str, method: str, route: str, ids: Mapping[str, str], status: int
) -> dict[str, Any]:
    """Return what a line says of a request."""
    about = {"request": request, "user": user, "address": address, "method": method[:16], "route": route[:_LONGEST]}
    return {**about, "ids": _short(ids), "status": status}


def _short(ids: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST] for name, value in ids.items() if value}


@cache
def _opened(folder: Path) -> AuditLog:
    return AuditLog(folder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid {os.getuid()}"


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _end_of(file: Path) -> _End:
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - _TAIL))
        tail = opened.read()
    lines = tail.removesuffix(b"\n").split(b"\n")
    number = 0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            number = int(json.loads(line)["number"])
            break
    return _End(file, size, number, _digest(lines[-1]) if size else _NOTHING, size > 0 and not tail.endswith(b"\n"))


def _append(path: Path, content: bytes) -> int:
    """Append to a file in one step, or leave it as it was; return its size.

    Raises:
        OSError: the disk is full, or takes nothing.
    """
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(handle).st_size
        written = os.write(handle, content)
        if written < len(content):
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return size + written
    finally:
        os.close(handle)
