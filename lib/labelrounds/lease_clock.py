"""The time by which leases end: how long this machine has run while somebody was labelling, never the time of day.

A clock that is set back would hold cases for hours, one that is set forward would give them to two people at once. So
what has passed is counted by a clock that nobody sets (``CLOCK_BOOTTIME``, which goes on while a laptop sleeps). The
sum is kept in the database, since that clock begins anew with each start of the machine. How long a machine was off
nobody knows: it does not count, and a lease of before lasts that much longer.
"""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS lease_clock (
    one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, seen REAL NOT NULL, passed REAL NOT NULL
);
"""
Clock = Callable[[], tuple[str, float]]
"""Gives what names this run of the machine, and the seconds since its begin."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_clock() -> tuple[str, float]:
    """Return the id of this run of the machine ("" where the system has none) and the seconds since its begin."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        boot = ""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return boot, time.monotonic() if kind is None else time.clock_gettime(kind)


def passed(connection: sqlite3.Connection, clock: Clock) -> float:
    """Return the seconds that have passed since the database began to count."""
    return _count(connection, *clock())


def tick(connection: sqlite3.Connection, clock: Clock) -> float:
    """Return the seconds that have passed, and keep them; within a writing transaction."""
    boot, seconds = clock()
    now = _count(connection, boot, seconds)
    connection.execute("INSERT OR REPLACE INTO lease_clock VALUES (1, ?, ?, ?)", (boot, seconds, now))
    return now


def _count(connection: sqlite3.Connection, boot: str, seconds: float) -> float:
    known = connection.execute("SELECT boot, seen, passed FROM lease_clock").fetchone()
    if known is None:
        return 0.0
    return float(known["passed"]) + (max(0.0, seconds - known["seen"]) if known["boot"] == boot else 0.0)
