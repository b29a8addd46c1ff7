"""What a model's one pass has said of an image, kept for as long as image, preparation and weights are the same.

On the way of a round: `labelrounds.pool_scoring` and whoever else scores puts scores in, the rounds ask what is known.

Concurrency
    The scores are rows of the rounds' database (`labelrounds.database`), which the server and its child processes
    share. Each `ScoreStore` has what it has read in memory and, when it is asked, reads no more than what has come
    since: rows are numbered in the order in which they were committed.

Crash
    A row is there whole or not at all. Rows that nobody can ask for any more (of another content of the same image,
    of versions older than the last two that have scores) are removed when others are put in.
"""

import functools
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.config import AnyConfig
from labelrounds.database import Database, NewRows
from labelrounds.errors import LabelRoundsError, NotFound
from labelrounds.history import checksum
from labelrounds.memory_cache import identity_of

SCORES = ("margin", "entropy", "top_entropy", "mean_entropy", "self_dice")
SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    of TEXT NOT NULL,  -- preparation and weights
    version INTEGER NOT NULL,
    image TEXT NOT NULL,  -- path
    identity TEXT NOT NULL,
    content TEXT NOT NULL,  -- JSON: values and by_label
    embedding BLOB NOT NULL,  -- float32, little-endian
    reason TEXT,  -- why it could not be scored; then the two before mean nothing
    UNIQUE (model, of, image)
);
CREATE INDEX IF NOT EXISTS scores_by_age ON scores (model, of, id);
"""
_SCORING = 1  # to be raised whenever the same pass gives other scores
_VERSIONS_KEPT = 2


@dataclass(frozen=True)
class CaseScores:
    """What is known of an image by one pass of a version.

    Attributes:
        values: by name, each the higher the less sure the model is: those of `SCORES`, and of
            `labelrounds.scoring.COSTLY` what was asked for. ``self_dice`` is 1 - the Dice of the probabilities with
            their own maximum; of a whole image's classes ``margin`` is 1 - (p1 - p2), and there is ``entropy`` besides.
        by_label: by name of a measure, then by the model's label: ``entropy`` (the entropy where the label is
            likely), ``presence`` (0..1, how sure the model is that the image has the label; of a classification
            model the class's probability), of a segmentation also ``volume_ml`` and ``components``.
        embedding: ``(D,)`` float32, the average of the network's bottleneck.
        version: number of the version that has said so.
    """

    values: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, float]]
    embedding: NDArray[np.float32]
    version: int = 0


@dataclass(frozen=True)
class Known:
    """What is known of some images.

    Attributes:
        scores: by id, all of one version.
        version: its number; None where nothing is known.
        stale: whether that is not the version that is served now, which has scored fewer of them yet.
        missing: ids that the version that is served now has still to score, in the order in which they were asked for.
        failed: by id, why the version that is served now could not score an image; tried again when the file changes.
    """

    scores: Mapping[str, CaseScores] = field(default_factory=dict)
    version: int | None = None
    stale: bool = False
    missing: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    identity: str
    scores: CaseScores | None
    reason: str | None


class ScoreStore:
    """The scores of one model's images.

    Args:
        database: with the tables of `SCHEMA`.
        config: the model.
    """

    def __init__(self, database: Database, config: AnyConfig) -> None:
        self._database, self._model = database, config.name
        self._preparation = preparation_of(config)
        self._lock = threading.Lock()
        self._new = NewRows(database, "scores", "model", self._model)
        self._rows: dict[str, dict[str, _Row]] = {}  # by preparation and weights, the latest last; then by image
        self._identities = Identities()

    def put(self, image: Path, scores: CaseScores, weights: str, identity: str | None = None) -> None:
        """Keep what a version has said of an image; costly scores that were kept before stay, where it has none.

        Args:
            image: its file, or the folder of its series.
            scores: of it.
            weights: of the version, see `weights_of`.
            identity: what the file was known by when it was read; what it is known by now when None.

        Raises:
            NotFound: no such file.
            OutOfSpace: the disk is full; nothing was changed.
        """
        identity = identity or identity_of(image)
        of = self._of(weights)
        with self._database.writing() as connection:
            before = connection.execute(
                "SELECT content FROM scores WHERE model = ? AND of = ? AND image = ? AND identity = ?"
                " AND reason IS NULL",
                (self._model, of, str(image), identity),
            ).fetchone()
            kept = json.loads(before["content"])["values"] if before is not None else {}
            content = {"values": {**kept, **scores.values}, "by_label": scores.by_label}
            embedding = np.ascontiguousarray(scores.embedding, dtype="<f4").tobytes()
            self._insert(connection, of, scores.version, image, identity, (json.dumps(content), embedding, None))

    def put_failure(self, image: Path, reason: str, weights: str, version: int, identity: str | None = None) -> None:
        """Keep why a version could not score an image, unless it has before; arguments and errors as for `put`."""
        identity = identity or self._identities.of(image) or ""
        of = self._of(weights)
        with self._database.writing() as connection:
            query = "SELECT 1 FROM scores WHERE model = ? AND of = ? AND image = ? AND identity = ? AND reason IS NULL"
            if connection.execute(query, (self._model, of, str(image), identity)).fetchone() is None:
                self._insert(connection, of, version, image, identity, ("{}", b"", reason))

    def known(self, images: Mapping[str, Path], checkpoints: Checkpoints) -> Known:
        """Return what is known of some images by the version that is served, or by the last one that has scored them.

        All scores are of one version, as those of two can't be compared: of the one that is served as soon as
        it has looked at as many of the images as the last one.

        Args:
            images: by id, the file or the folder of a series.
            checkpoints: of the model; what is served now is asked of it.

        Raises:
            LabelRoundsError: the database can't be read.
        """
        current = _served(checkpoints)
        of = self._of(weights_of(current)) if current is not None else None
        identities = {image_id: self._identities.of(path) for image_id, path in images.items()}
        with self._lock:
            self._renew()
            alike = {name: rows for name, rows in self._rows.items() if name.startswith(f"{self._preparation}/")}
            tables = {name: self._matching(rows, images, identities) for name, rows in alike.items()}
        now = tables.pop(of, {}) if of is not None else {}
        found = {image_id: row.scores for image_id, row in now.items() if row.scores is not None}
        failed = {image_id: row.reason for image_id, row in now.items() if row.reason is not None}
        missing = tuple(image_id for image_id in images if image_id not in now)
        last = _scored(tables.popitem()[1]) if tables else {}
        stale = bool(last) and (not found or len(last) > len(now))
        serving = last if stale else found
        number = next(iter(serving.values())).version if serving else None
        return Known(serving, number, stale, missing, failed)

    def look_again(self, images: Mapping[str, Path]) -> None:
        """Look into the folders of series for files that were changed in place, which takes a moment for each."""
        for path in images.values():
            self._identities.look_again(path)

    def _of(self, weights: str) -> str:
        return f"{self._preparation}/{weights}"

    def _insert(
        self,
        connection: sqlite3.Connection,
        of: str,
        version: int,
        image: Path,
        identity: str,
        content: tuple[str, bytes, str | None],
    ) -> None:
        """Put a row in, and remove what nobody can ask for any more."""
        connection.execute(
            "INSERT OR REPLACE INTO scores (model, of, version, image, identity, content, embedding, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._model, of, version, str(image), identity, *content),
        )
        groups = connection.execute(
            "SELECT of FROM scores WHERE model = ? GROUP BY of ORDER BY MAX(id) DESC", (self._model,)
        ).fetchall()
        for group in groups[_VERSIONS_KEPT:]:
            connection.execute("DELETE FROM scores WHERE model = ? AND of = ?", (self._model, group["of"]))

    def _renew(self) -> None:
        """Read the rows that have come since, and forget the versions that were removed."""
        begun_anew, found = self._new.look()
        if begun_anew:
            self._rows = {}
        for row in found:
            rows = self._rows.pop(row["of"], {})
            rows[row["image"]] = _row(row)
            self._rows[row["of"]] = rows  # the latest last
        while len(self._rows) > _VERSIONS_KEPT:
            del self._rows[next(iter(self._rows))]

    @staticmethod
    def _matching(
        rows: Mapping[str, _Row], images: Mapping[str, Path], identities: Mapping[str, str | None]
    ) -> dict[str, _Row]:
        """Return the rows that are of the images as they are now, by id."""
        found = ((image_id, rows.get(str(path))) for image_id, path in images.items())
        return {
            image_id: row for image_id, row in found if row is not None and row.identity == (identities[image_id] or "")
        }


class Identities:
    """What images are known by, looked up no more often than their files change. Any thread may use it.

    A folder is looked into when files were added to it or removed; what was changed in place is seen by `look_again`.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str | None:
        """Return `memory_cache.identity_of` a file or folder; None where there is none."""
        try:
            found = os.stat(path)  # noqa: PTH116 - 2,000 files a request: Path.stat takes twice as long
        except OSError:
            return None
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known.get(path)
        if known is None or known[0] != state:
            try:
                known = self._known[path] = (state, identity_of(path))
            except NotFound:
                return None
        return known[1]

    def look_again(self, path: Path) -> None:
        """Forget what a folder is known by."""
        if path in self._known and path.is_dir():
            del self._known[path]


def preparation_of(config: AnyConfig) -> str:
    """Return the hash of all of a model's configuration, but for its weights, that scores depend on."""
    about: dict[str, object] = {"scoring": _SCORING, "mirror": config.mirror, **config.preparation}
    if config.task == "segmentation":
        about["inference"] = config.model_dump(mode="json")["inference"]
        about["patch_size"] = config.model_dump(mode="json")["patch_size"]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def weights_of(version: Version) -> str:
    """Return the hash of a version's weights, and of what turns their answer into probabilities.

    Raises:
        NotFound: there is no such file.
    """
    digest = _checksum(version.weights, identity_of(version.weights))
    return f"{digest[:32]}/{version.record.get('temperature', 1.0)}"


@functools.lru_cache(maxsize=256)
def _checksum(path: Path, identity: str) -> str:
    return checksum(path)


def _served(checkpoints: Checkpoints) -> Version | None:
    """Return the version that is served; None where there is none that can be read."""
    try:
        version = checkpoints.current()
    except LabelRoundsError:
        return None
    return version if version is not None and version.weights.is_file() else None


def _scored(rows: Mapping[str, _Row]) -> dict[str, CaseScores]:
    return {image_id: row.scores for image_id, row in rows.items() if row.scores is not None}


def _row(row: sqlite3.Row) -> _Row:
    if row["reason"] is not None:
        return _Row(row["identity"], None, row["reason"])
    content = json.loads(row["content"])
    embedding = np.frombuffer(row["embedding"], dtype="<f4").astype(np.float32)
    return _Row(row["identity"], CaseScores(content["values"], content["by_label"], embedding, row["version"]), None)
