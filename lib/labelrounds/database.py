"""One SQLite file for what rounds of labelling keep: scores of images, leases, the ledger.

Concurrency
    Write-ahead logging: any number of threads and processes read while one writes. Each thread has a connection of its
    own, made anew in a child process; a writer takes the file before it reads, so that two never decide by the
    same state. The file lies in ``LABELROUNDS_HOME``, which has to be on a disk of this machine: write-ahead
    logging does not work over a network.

Crash
    A transaction is in the file whole or not at all, also after ``kill -9``. A file that is damaged is kept aside,
    and a new one begun; the administrator is told by the log and `Database.warnings`.
"""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelrounds import folders
from labelrounds.errors import LabelRoundsError, OutOfSpace, Unwritable

logger = logging.getLogger(__name__)

_WAIT_S = 30.0
# SQLite's codes SQLITE_FULL, SQLITE_CORRUPT and SQLITE_NOTADB, of which Python 3.10 has no names.
_FULL, _DAMAGED = (13,), (11, 26)


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
        self._mending = threading.Lock()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read with; all that the block reads is of one moment.

        Raises:
            LabelRoundsError: the file can't be read.
        """
        with self._errors():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read and write with; the block's changes are kept whole, or none if it raises.

        Raises:
            OutOfSpace: the disk is full; nothing was changed.
            Unwritable: the file can't be written to; nothing was changed.
        """
        with self._errors():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def changes(self) -> int:
        """Return a number that differs, for this thread, once another connection has changed the file."""
        with self._errors():
            return int(self._connection().execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        known: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if known is not None and self._local.process == os.getpid():
            return known
        try:
            made = self._opened()
        except sqlite3.DatabaseError as error:
            if _code(error) not in _DAMAGED:
                raise
            with self._mending:
                made = self._begun_anew()
        self._local.connection, self._local.process = made, os.getpid()
        return made

    def _opened(self) -> sqlite3.Connection:
        # Closed by whichever thread ends last; each is used by its own alone.
        connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what was answered to a client outlives a power cut
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

    def _begun_anew(self) -> sqlite3.Connection:
        """Keep a damaged file aside and begin another."""
        try:
            return self._opened()  # another thread has done so in the meantime
        except sqlite3.DatabaseError:
            aside = self.path.with_name(f"{self.path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}")
            self.path.replace(aside)
            for leftover in ("-wal", "-shm"):
                self.path.with_name(self.path.name + leftover).unlink(missing_ok=True)
            self.warnings.append(f"{self.path.name} was damaged; it is kept as {aside.name}, and another was begun")
            logger.warning("%s: %s", self.path.parent, self.warnings[-1])
            return self._opened()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite or the disk says into an error for the user."""
        try:
            yield
        except LabelRoundsError:
            raise
        except sqlite3.Error as error:
            if _code(error) in _FULL:
                raise OutOfSpace(f"{self.path.name}: not written, the disk is full; free some space first") from error
            if _code(error) in _DAMAGED:
                self.close()  # the next one who opens it keeps it aside
            raise self._unwritable(error) from error
        except OSError as error:
            raise self._unwritable(error.strerror or error) from error

    def _unwritable(self, reason: object) -> Unwritable:
        return Unwritable(f"{self.path.name}: {reason}; {self.path.parent} must be writable for the server")


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary error code; Python 3.10 has only the message."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return int(code) & 0xFF
    text = str(error)
    by_text = {"malformed": 11, "not a database": 26, "is full": 13}
    return next((number for part, number in by_text.items() if part in text), 1)


def rounds_file(studies: str) -> Path:
    """Return where the rounds of a studies folder, or of a DICOMweb server's address, are kept."""
    address = studies if "://" in studies else str(Path(studies).expanduser().resolve())
    return folders.home() / "rounds" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.sqlite"
