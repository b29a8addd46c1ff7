"""One SQLite file for what rounds of labelling keep: scores of images, leases, the ledger.

Concurrency
    Write-ahead logging: any number of threads and processes read while one writes. Each thread has a connection of its
    own, made anew in a child process; a writer takes the file before it reads, so that two never decide by the
    same state. The file lies in ``LABELROUNDS_HOME``, which has to be on a disk of this machine: write-ahead
    logging does not work over a network.

Crash
    A transaction is in the file whole or not at all, also after ``kill -9``. A file that is damaged is kept aside,
    and a new one begun, which the other threads and processes go on with; the administrator is told by the log and
    `Database.warnings`.
"""

import errno
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from labelrounds import folders
from labelrounds.errors import LabelRoundsError, OutOfSpace, Overloaded, Unwritable

logger = logging.getLogger(__name__)

_WAIT_S = 30.0
_RETRY_S = 0.02
# SQLite's codes FULL; CORRUPT, NOTADB; BUSY, LOCKED; PERM, READONLY, IOERR, CANTOPEN: Python 3.10 has no names of them.
_FULL, _DAMAGED, _TAKEN, _NO_ACCESS = (13,), (11, 26), (5, 6), (3, 8, 10, 14)
_CODES = {
    "is full": 13,
    "malformed": 11,
    "not a database": 26,
    "locked": 5,
    "readonly": 8,
    "disk I/O": 10,
    "unable to open": 14,
}


@dataclass(frozen=True)
class _Opened:
    """A connection, the process that made it, and the file that it is to."""

    connection: sqlite3.Connection
    process: int
    file: tuple[int, int] | None


# Connections of a parent process, which its children leave alone.
_INHERITED: list[_Opened] = []


class Database:
    """A SQLite file that several threads and processes share.

    Args:
        path: of the file; made where it does not exist, with its folder.
        schema: SQL that makes the tables, each ``IF NOT EXISTS``.

    Attributes:
        path: of the file.
        warnings: what an administrator should know: a damaged file that was kept aside.

    Raises:
        OutOfSpace: the disk is full.
        Unwritable: the folder can't be written to.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._schema = schema
        self._local = threading.local()
        self._damaged: tuple[int, int] | None = None  # the file that was found so
        with self._errors():
            self._connection()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read with; all that the block reads is of one moment.

        Raises:
            Overloaded: another process has had the file for half a minute, or the file was found damaged.
            LabelRoundsError: the file can't be read.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read and write with; the block's changes are kept whole, or none if it raises.

        Raises:
            OutOfSpace: the disk is full; nothing was changed.
            Unwritable: the file can't be written to; nothing was changed.
            Overloaded: another process has had the file for half a minute, or it is damaged; nothing was changed.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._errors():
            connection = self._connection()
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # what went wrong counts; SQLite may have rolled back already
                    connection.execute("ROLLBACK")
                raise

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection.

        Raises:
            OutOfSpace, Unwritable, Overloaded: as for `writing`.
        """
        try:
            return self._connected()
        except Timeout as error:
            raise Overloaded(f"{self.path.name}: another process is replacing it; try again in a moment") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise self._unwritable(error.strerror or error) from error

    def _connected(self) -> sqlite3.Connection:
        opened: _Opened | None = getattr(self._local, "opened", None)
        if opened is not None:
            if opened.process != os.getpid():  # closing it in a child would disturb the parent's
                _INHERITED.append(opened)
            elif opened.file == self._file():
                return opened.connection
            else:  # another thread or process has kept the file aside and begun another
                opened.connection.close()
        self._local.opened = None
        if self._file() == self._damaged and self._damaged is not None:
            self._keep_aside(self._damaged)
        self._clear_away()
        try:
            made = self._opened()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise
            self._keep_aside(self._file())
            made = self._opened()
        self._local.opened = _Opened(made, os.getpid(), self._file())
        return made

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Closed by whichever thread ends last; each is used by its own alone.
        connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            _switch_to_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")  # what was answered to a client outlives a power cut
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

    def _file(self) -> tuple[int, int] | None:
        """Return which file lies at the path now, None where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _parts(self) -> list[Path]:
        return [self.path.with_name(self.path.name + ending) for ending in ("-wal", "-shm")]

    def _clear_away(self) -> None:
        """Remove the parts of a file that was removed: who still has it open would share them with the next one."""
        if self._file() is not None or not any(part.exists() for part in self._parts()):
            return
        with FileLock(f"{self.path}.lock", timeout=_WAIT_S):
            if self._file() is None:
                for part in self._parts():
                    part.unlink(missing_ok=True)

    def _keep_aside(self, damaged: tuple[int, int] | None) -> None:
        """Move a damaged file out of the way, with what belongs to it; once, whoever else finds it damaged too."""
        with FileLock(f"{self.path}.lock", timeout=_WAIT_S):
            if damaged is None or self._file() != damaged:
                return
            aside = self.path.with_name(f"{self.path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}")
            # The file last: once it is gone another may be begun, whose parts must stay.
            for part in self._parts():  # the first may have what the file has not yet
                with suppress(FileNotFoundError):
                    part.replace(f"{aside}{part.name.removeprefix(self.path.name)}")
            self.path.replace(aside)
        self.warnings.append(f"{self.path.name} was damaged; it is kept as {aside.name}, and another was begun")
        logger.warning("%s: %s", self.path.parent, self.warnings[-1])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite says into an error for the user; another error of the block is left as it is."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_of(error) from error

    def _error_of(self, error: sqlite3.Error) -> LabelRoundsError:
        code = _code(error)
        if code in _FULL:
            return self._full()
        if code in _TAKEN:
            return Overloaded(
                f"{self.path.name}: another process has had it for {_WAIT_S:.0f} seconds; try again in a moment"
            )
        if code in _DAMAGED:
            self._damaged = self._file()  # who opens it next keeps it aside
            self._local.opened = None
            return Overloaded(f"{self.path.name}: {error}; it is kept aside, and another begun: try again")
        if code in _NO_ACCESS:
            return self._unwritable(error)
        return LabelRoundsError(f"{self.path.name}: {error}")

    def _full(self) -> OutOfSpace:
        return OutOfSpace(f"{self.path.name}: not written, the disk is full; free some space first")

    def _unwritable(self, reason: object) -> Unwritable:
        return Unwritable(f"{self.path.name}: {reason}; its folder must be writable for the server")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, which SQLite refuses without waiting while another is just doing so."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _code(error) not in _TAKEN or time.monotonic() > until:
                raise
        time.sleep(_RETRY_S)


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary error code; Python 3.10 has only the message."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF
    text = str(error)
    return next((number for part, number in _CODES.items() if part in text), 1)


def rounds_file(studies: str) -> Path:
    """Return where the rounds of a studies folder, or of a DICOMweb server's address, are kept."""
    address = studies if "://" in studies else str(Path(studies).expanduser().resolve())
    return folders.home() / "rounds" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.sqlite"


class NewRows:
    """The rows of a table that have come since the last look.

    Args:
        database: with the table, whose ``id`` increases by itself.
        table: its name.
        column: by which it is narrowed, and ``value``, to which.
    """

    def __init__(self, database: Database, table: str, column: str, value: str) -> None:
        self._database, self._table, self._value = database, table, value
        self._query = f"SELECT * FROM {table} WHERE {column} = ? AND id > ? ORDER BY id"
        self._last = 0

    def look(self) -> tuple[bool, list[sqlite3.Row]]:
        """Return whether the table was begun anew, after damage to the file, and its new rows in their order."""
        with self._database.reading() as connection:
            query = "SELECT seq FROM sqlite_sequence WHERE name = ?"
            row = connection.execute(query, (self._table,)).fetchone()
            newest = int(row["seq"]) if row is not None else 0
            begun_anew = newest < self._last
            if begun_anew:
                self._last = 0
            rows = connection.execute(self._query, (self._value, self._last)).fetchall() if newest > self._last else []
            self._last = newest
        return begun_anew, rows
