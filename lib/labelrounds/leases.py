"""Who has which case in hand, and which cases are put aside; each change is in the ledger, too.

On the way of a round: `labelrounds.handing_out` has the cases ordered, `Leases.take` gives one if it is still free.

Concurrency
    Each change is one writing transaction (`labelrounds.database`), which looks and takes: of any number of
    threads and processes that ask at once no two get the same case. A case that was submitted since an order was made
    is not handed out by it.

Crash
    What was answered to a client is in the file. A client that vanishes frees its cases when its leases end, by a clock
    that nobody sets (`labelrounds.lease_clock`).
"""

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labelrounds import lease_clock, ledger
from labelrounds.database import Database
from labelrounds.errors import Conflict, NotFound
from labelrounds.lease_clock import Clock, machine_clock, passed, tick
from labelrounds.ledger import Ledger
from labelrounds.reviews import SENT_BACK
from labelrounds.strategies.base import Choice

SCHEMA = (
    lease_clock.SCHEMA
    + ledger.SCHEMA
    + """
CREATE TABLE IF NOT EXISTS leases (
    image TEXT PRIMARY KEY, client TEXT NOT NULL, since REAL NOT NULL, expires REAL NOT NULL, strategy TEXT,
    reason TEXT, score REAL, monitor INTEGER, second INTEGER, taken REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS aside (
    image TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('skip', 'defer')), reason TEXT, client TEXT,
    time REAL NOT NULL, until REAL
);
CREATE TABLE IF NOT EXISTS unreadable (image TEXT PRIMARY KEY, identity TEXT NOT NULL, reason TEXT NOT NULL);
"""
)
SKIP, DEFER = "skip", "defer"
LEASE_S = 3600.0
_EVENT_OF = {SKIP: "skipped", DEFER: "deferred"}


@dataclass(frozen=True)
class Lease:
    """A case in somebody's hands.

    Attributes:
        since: when it was handed out, in unix seconds.
        left_s: after how many seconds it is free again.
        second: whether it has a label already, and is given to a second annotator to compare.
    """

    image: str
    client: str
    since: float
    left_s: float
    strategy: str
    reason: str
    score: float | None
    monitor: bool
    second: bool


@dataclass(frozen=True)
class Aside:
    """A case that is not handed out; ``left_s`` is None where it was skipped for good."""

    image: str
    kind: str
    reason: str
    client: str
    time: float
    left_s: float | None


@dataclass(frozen=True)
class Standing:
    """What is out of the pool at one moment.

    Attributes:
        leases: by image, the one taken longest ago first.
        aside: by image.
        unreadable: by image: what the file was known by when it could not be read, and why it could not.
        ledger: number of the ledger's last entry.
    """

    leases: Mapping[str, Lease] = field(default_factory=dict)
    aside: Mapping[str, Aside] = field(default_factory=dict)
    unreadable: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ledger: int = 0


@dataclass(frozen=True)
class Asking:
    """Who asks for a case, and by what it is chosen; ``again`` gives also what that client has in hand already."""

    client: str
    strategy: str
    model: str = ""
    version: int | None = None
    again: bool = False
    second: bool = False


class Leases:
    """The cases in hand, those put aside, and the ledger.

    Args:
        database: with the tables of `SCHEMA`.
        seconds: how long a case is kept for a client that says nothing.
        clock: see `labelrounds.lease_clock`.
        wall: the time of day, in unix seconds.

    Attributes:
        seconds: as above.
        ledger: of what was.
    """

    def __init__(
        self,
        database: Database,
        seconds: float = LEASE_S,
        clock: Clock = machine_clock,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._database, self.seconds = database, seconds
        self._clock, self._wall = clock, wall
        self.ledger = Ledger(database, wall)

    def standing(self) -> Standing:
        """Return what is out of the pool now; leases and deferrals that have ended are not in it."""
        with self._database.reading() as connection:
            now = passed(connection, self._clock)
            leases = connection.execute("SELECT * FROM leases WHERE expires > ? ORDER BY taken, image", (now,))
            held = {row["image"]: _lease(row, now) for row in leases}
            rows = connection.execute("SELECT * FROM aside WHERE until IS NULL OR until > ? ORDER BY time", (now,))
            aside = {row["image"]: _aside(row, now) for row in rows}
            unreadable = {
                row["image"]: (row["identity"], row["reason"]) for row in connection.execute("SELECT * FROM unreadable")
            }
            last = connection.execute("SELECT COALESCE(MAX(id), 0) FROM ledger").fetchone()[0]
        return Standing(held, aside, unreadable, int(last))

    def take(self, choice: Choice, rank: int, asking: Asking, standing: Standing) -> bool:
        """Give a client a case, and write it into the ledger.

        Args:
            choice: the case, and why.
            rank: its place in the order, from 1.
            asking: who asks.
            standing: by which the order was made.

        Returns:
            whether it was still free; if not, nothing is changed.
        """
        with self._database.writing() as connection:
            now = self._expire(connection)
            if free := self._is_free(connection, choice.image_id, asking, standing):
                self._hand_out(connection, choice, rank, asking, now)
        return free

    def renew(self, image: str, client: str) -> float:
        """Keep a case for its client from now on as long as if it had just been handed out; returns the seconds.

        Raises:
            Conflict: another client has it, or nobody.
        """
        with self._database.writing() as connection:
            now = tick(connection, self._clock)
            # Also a lease that has ended, as long as nobody else was given the case.
            row = connection.execute("SELECT client FROM leases WHERE image = ?", (image,)).fetchone()
            if row is None or row["client"] != client:
                whose = "another client has it" if row is not None else "nobody has it in hand"
                raise Conflict(f"image {image!r} is not yours to keep: {whose}; ask for a case with Next Sample")
            connection.execute("UPDATE leases SET expires = ? WHERE image = ?", (now + self.seconds, image))
        return self.seconds

    def give_back(self, image: str, client: str, reason: str) -> None:
        """Take a case out of a client's hands at once, as it could not be handed over."""
        with self._database.writing() as connection:
            mine = connection.execute("DELETE FROM leases WHERE image = ? AND client = ?", (image, client))
            if mine.rowcount:
                self.ledger.write(connection, "returned", image, client=client, reason=reason)

    def put_aside(self, image: str, client: str, kind: str, reason: str, hours: float | None = None) -> None:
        """Hand a case out to nobody any more: for good (``skip``), or for some hours (``defer``)."""
        with self._database.writing() as connection:
            now = self._expire(connection)
            until = None if kind == SKIP else now + 3600 * (hours or 0.0)
            connection.execute("DELETE FROM leases WHERE image = ? AND client = ?", (image, client))
            connection.execute(
                "INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?, ?, ?)",
                (image, kind, reason, client, self._wall(), until),
            )
            details = {"hours": hours} if kind == DEFER else {}
            self.ledger.write(connection, _EVENT_OF[kind], image, client=client, reason=reason, details=details)

    def put_back(self, image: str, client: str) -> None:
        """Hand a case out again that was put aside.

        Raises:
            NotFound: it is not put aside.
        """
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM aside WHERE image = ?", (image,)).rowcount:
                raise NotFound(f"image {image!r} is not put aside")
            self.ledger.write(connection, "returned", image, client=client)

    def reviewed(self, image: str, client: str, verdict: str, reason: str) -> None:
        """Note a reviewer's word on a label; a case whose label is sent back is in nobody's hands any more."""
        with self._database.writing() as connection:
            if verdict == SENT_BACK:
                connection.execute("DELETE FROM leases WHERE image = ?", (image,))
            self.ledger.write(connection, verdict, image, client=client, reason=reason)

    def submitted(self, image: str, client: str, label: str, model: str, version: int | None) -> int | None:
        """Note a label; whoever has the case in hand has it no more.

        Args:
            image: that was labelled, by whomever it was handed out to or by anybody else.
            client: who has submitted it.
            label: SHA-256 of the label.
            model: whose prediction is to be compared with it, where the case was not handed out by a model.
            version: of that model, when the label came.

        Returns:
            the number of the entry; None where the same client has submitted the same label just before.
        """
        with self._database.writing() as connection:
            now = tick(connection, self._clock)
            last = connection.execute(
                "SELECT client, label FROM ledger WHERE image = ? AND event = 'submitted' ORDER BY id DESC LIMIT 1",
                (image,),
            ).fetchone()
            lease = connection.execute("SELECT * FROM leases WHERE image = ?", (image,)).fetchone()
            connection.execute("DELETE FROM leases WHERE image = ?", (image,))
            connection.execute("DELETE FROM aside WHERE image = ?", (image,))
            if lease is None and last is not None and (last["client"], last["label"]) == (client, label):
                return None
            mine = lease if lease is not None and lease["client"] == client else None
            handed = dict(mine) if mine is not None else {}
            taken = handed.get("taken", ledger.last_taken(connection, image, client))
            by = ledger.handed_out_by(connection, image, client) if mine is not None else None
            if by is not None and by[0] != model:  # of another one than the one that was asked last
                model, version = by
            return self.ledger.write(
                connection,
                "submitted",
                image,
                client=client,
                strategy=handed.get("strategy"),
                model=model or None,
                version=version,
                reason=handed.get("reason"),
                score=handed.get("score"),
                monitor=handed.get("monitor"),
                seconds=None if taken is None else max(0.0, now - taken),
                label=label,
                details={"second": True} if handed.get("second") else {},
            )

    def note_unreadable(self, image: str, identity: str, reason: str) -> None:
        """Hand an image out to nobody for as long as its file is the same."""
        with self._database.writing() as connection:
            known = connection.execute("SELECT identity FROM unreadable WHERE image = ?", (image,)).fetchone()
            if known is None or known["identity"] != identity:
                connection.execute("INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?)", (image, identity, reason))
                self.ledger.write(connection, "unreadable", image, reason=reason)
            connection.execute("DELETE FROM leases WHERE image = ?", (image,))

    def _expire(self, connection: sqlite3.Connection) -> float:
        """Free the cases of clients that have vanished, and return the time by the leases' clock."""
        now = tick(connection, self._clock)
        for row in connection.execute("SELECT * FROM leases WHERE expires <= ? ORDER BY expires", (now,)).fetchall():
            self.ledger.write(connection, "expired", row["image"], client=row["client"], strategy=row["strategy"])
        connection.execute("DELETE FROM leases WHERE expires <= ?", (now,))
        connection.execute("DELETE FROM aside WHERE until <= ?", (now,))
        return now

    def _is_free(self, connection: sqlite3.Connection, image: str, asking: Asking, standing: Standing) -> bool:
        lease = connection.execute("SELECT client FROM leases WHERE image = ?", (image,)).fetchone()
        if lease is not None and not (asking.again and lease["client"] == asking.client):
            return False
        # What has happened since the order was made: another client has labelled it or put it aside.
        since = connection.execute(
            "SELECT 1 FROM ledger WHERE image = ? AND id > ? AND event IN ('submitted', 'skipped', 'deferred')",
            (image, standing.ledger),
        )
        return since.fetchone() is None

    def _hand_out(self, connection: sqlite3.Connection, choice: Choice, rank: int, asking: Asking, now: float) -> None:
        lease: dict[str, Any] = {
            "image": choice.image_id,
            "client": asking.client,
            "strategy": asking.strategy,
            "reason": choice.reason,
            "score": choice.score,
            "monitor": choice.monitor,
        }
        connection.execute("DELETE FROM aside WHERE image = ?", (choice.image_id,))
        connection.execute(
            "INSERT OR REPLACE INTO leases (image, client, strategy, reason, score, monitor, second, since, expires,"
            " taken) VALUES (:image, :client, :strategy, :reason, :score, :monitor, :second, :since, :expires, :taken)",
            {**lease, "since": self._wall(), "expires": now + self.seconds, "taken": now, "second": asking.second},
        )
        details = {"clock": now, **({"second": True} if asking.second else {})}
        model = asking.model or None
        self.ledger.write(
            connection, "handed_out", **lease, model=model, version=asking.version, rank=rank, details=details
        )


def _lease(row: sqlite3.Row, now: float) -> Lease:
    return Lease(
        image=row["image"],
        client=row["client"],
        since=row["since"],
        left_s=row["expires"] - now,
        strategy=row["strategy"] or "",
        reason=row["reason"] or "",
        score=row["score"],
        monitor=bool(row["monitor"]),
        second=bool(row["second"]),
    )


def _aside(row: sqlite3.Row, now: float) -> Aside:
    left = None if row["until"] is None else row["until"] - now
    return Aside(row["image"], row["kind"], row["reason"] or "", row["client"] or "", row["time"], left)
