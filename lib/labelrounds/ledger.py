"""The ledger of the rounds: who was handed which case, when and why, and what came of it.

It is only ever added to, by whoever changes something and within the same transaction (`labelrounds.leases`). Its
events are ``handed_out``, ``submitted``, ``skipped``, ``deferred``, ``returned``, ``approved``, ``sent_back``,
``expired``, ``unreadable`` and ``agreement``. Times are of the wall clock, in unix seconds, for people; what must be
right whatever that clock does goes by the numbers of the entries, and by `labelrounds.lease_clock`.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from labelrounds.database import Database
from labelrounds.errors import NotFound

SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, event TEXT NOT NULL, image TEXT NOT NULL, client TEXT, strategy TEXT,
    model TEXT, version INTEGER, reason TEXT, score REAL, rank INTEGER, monitor INTEGER, seconds REAL, dice REAL,
    label TEXT, details TEXT
);
CREATE INDEX IF NOT EXISTS ledger_of_image ON ledger (image, event);
CREATE INDEX IF NOT EXISTS ledger_of_event ON ledger (event);
"""


class Ledger:
    """The entries.

    Args:
        database: with the table of `SCHEMA`.
        wall: the time of day, in unix seconds.
    """

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        self._database, self._wall = database, wall

    def write(self, connection: sqlite3.Connection, event: str, image: str, **entry: Any) -> int:
        """Add an entry within a transaction, and return its number; ``entry`` are columns of the table."""
        entry = {**entry, "time": self._wall(), "event": event, "image": image}
        entry["details"] = json.dumps(entry.get("details") or {})
        columns, places = ", ".join(entry), ", ".join("?" * len(entry))
        done = connection.execute(f"INSERT INTO ledger ({columns}) VALUES ({places})", list(entry.values()))
        return int(done.lastrowid or 0)

    def note_agreement(self, submission: int, label: str, dice: float | None, details: Mapping[str, Any]) -> None:
        """Add to a submission how well the prediction agreed with its label.

        Raises:
            NotFound: the ledger, which may have been begun anew, has no such submission.
        """
        with self._database.writing() as connection:
            of = connection.execute(
                "SELECT * FROM ledger WHERE id = ? AND event = 'submitted' AND label = ?", (submission, label)
            ).fetchone()
            if of is None:
                raise NotFound(f"entry {submission} of the ledger is not the submission that was compared")
            copied = {key: of[key] for key in ("client", "strategy", "score", "monitor", "label")}
            model, version = details.get("model", of["model"]), details.get("version", of["version"])
            more = {"submission": submission, **details}
            self.write(
                connection, "agreement", of["image"], dice=dice, model=model, version=version, details=more, **copied
            )

    def without_agreement(self) -> list[dict[str, Any]]:
        """Return the submissions that no prediction was compared with yet, the oldest first."""
        with self._database.reading() as connection:
            done = {
                json.loads(row["details"])["submission"]
                for row in connection.execute("SELECT details FROM ledger WHERE event = 'agreement'")
            }
            rows = connection.execute("SELECT * FROM ledger WHERE event = 'submitted' ORDER BY id").fetchall()
        return [dict(row) for row in rows if row["id"] not in done]

    def entries(self, last: int | None = None, event: str | None = None) -> list[dict[str, Any]]:
        """Return the entries, the oldest first: all, or the last so many, or those of an event."""
        where, values = ("WHERE event = ?", [event]) if event else ("", [])
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM ledger {where} ORDER BY id DESC LIMIT ?",
                [*values, -1 if last is None else last],
            ).fetchall()
        return [{**dict(row), "details": json.loads(row["details"] or "{}")} for row in reversed(rows)]


def handed_out_by(connection: sqlite3.Connection, image: str, client: str) -> tuple[str, int | None] | None:
    """Return the model, and its version, by which a case was last handed out to a client; None where by no model."""
    row = connection.execute(
        "SELECT model, version FROM ledger WHERE image = ? AND client = ? AND event = 'handed_out'"
        " ORDER BY id DESC LIMIT 1",
        (image, client),
    ).fetchone()
    return (str(row["model"]), row["version"]) if row is not None and row["model"] else None


def last_taken(connection: sqlite3.Connection, image: str, client: str) -> float | None:
    """Return when a case was last handed out to a client that has not labelled it since, by the leases' clock."""
    row = connection.execute(
        "SELECT event, details FROM ledger WHERE image = ? AND client = ?"
        " AND event IN ('handed_out', 'submitted') ORDER BY id DESC LIMIT 1",
        (image, client),
    ).fetchone()
    return float(json.loads(row["details"])["clock"]) if row is not None and row["event"] == "handed_out" else None
