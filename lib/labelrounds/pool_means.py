"""How unsure each version was of the pool, kept beyond its scores, of which only the last two versions' are.

Written once a version has passed over all images, read by `labelrounds.round_state` for the plateau of
`labelrounds.budget`. One row a version in the rounds' database, whose rules for threads and crashes hold
(`labelrounds.database`); what is written first stays, as the pool has fewer cases with every label.
"""

import time
from collections.abc import Collection

import numpy as np

from labelrounds.budget import PoolMean
from labelrounds.database import Database
from labelrounds.scores import Known

SCHEMA = """
CREATE TABLE IF NOT EXISTS pool_means (
    model TEXT NOT NULL, version INTEGER NOT NULL, mean REAL NOT NULL, cases INTEGER NOT NULL, time REAL NOT NULL,
    PRIMARY KEY (model, version)
);
"""
SCORE = "margin"


def pool_means(database: Database, model: str) -> list[PoolMean]:
    """Return the means of a model's versions, the oldest first."""
    with database.reading() as connection:
        rows = connection.execute("SELECT * FROM pool_means WHERE model = ? ORDER BY version", (model,)).fetchall()
    return [PoolMean(row["version"], row["mean"], row["cases"]) for row in rows]


def note_pool_mean(database: Database, model: str, known: Known, unlabelled: Collection[str]) -> None:
    """Keep the mean of a version that has passed over all images, unless it is kept already.

    Args:
        database: with the table of `SCHEMA`.
        model: the name.
        known: what is known of all images.
        unlabelled: ids of those without a label.

    Raises:
        OutOfSpace: the database can't be written to.
    """
    if known.version is None or known.stale or known.missing:
        return
    scored = [known.scores[image].values.get(SCORE) for image in unlabelled if image in known.scores]
    values = [value for value in scored if value is not None and np.isfinite(value)]
    if not values or any(known.version == each.version for each in pool_means(database, model)):
        return
    with database.writing() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO pool_means VALUES (?, ?, ?, ?, ?)",
            (model, known.version, float(np.mean(values)), len(values), time.time()),
        )
