"""An embedding of an image without any model, for rounds that begin before the first training.

On the way of a round: `labelrounds.pool_scoring` embeds the pool in the background, strategies cluster what comes of it
after a principal component analysis. It is a coarse view of the image, normalised, beside histograms of the
directions of its gradients (HOG, Dalal and Triggs, DOI 10.1109/CVPR.2005.177; in three dimensions after Kläser et al.,
DOI 10.5244/C.22.99); on raw voxels alone clusters are of brightness, not of anatomy. Both are of unit length.

Concurrency and crash: as for `labelrounds.scores`; rows of the same database.
"""

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from labelrounds.config import AnyConfig
from labelrounds.database import Database, NewRows
from labelrounds.memory_cache import identity_of
from labelrounds.reading import Image, read_image
from labelrounds.scores import Identities
from labelrounds.transforms import closest_to_ras

SCHEMA = """
CREATE TABLE IF NOT EXISTS cold (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    image TEXT NOT NULL,  -- path
    identity TEXT NOT NULL,
    embedding BLOB NOT NULL,  -- float32, little-endian
    reason TEXT,  -- why there is none
    UNIQUE (kind, image)
);
"""
Embedding = NDArray[np.float32]

_EMBEDDING = 1  # to be raised whenever the same image gets another one
# Voxels along each side: of the view that gradients are taken of, of a cell of histograms, of the coarse view.
_SIDE, _CELL, _COARSE = {2: 64, 3: 32}, 8, {2: 16, 3: 8}
_FINEST = 4  # voxels of the image are left out beyond so many for one of the view
_SLICES = 5
_PERCENTILES = (1.0, 99.0)


def embed(path: Path, config: AnyConfig) -> Embedding:
    """Return an image's embedding, ``(D,)`` float32, of the same length for all images of a model.

    The voxels' size does not matter, as the view spans the whole image. A 2-D model's volume is the mean of up to five
    of its slices.

    Raises:
        LabelRoundsError: the image can't be used.
    """
    image = read_image(path, channels=config.channels)
    views = _views(image, config.dimensions)
    return np.mean([_features(view) for view in views], axis=0, dtype=np.float32)


def _views(image: Image, dimensions: int) -> list[torch.Tensor]:
    """Return the image ``(1, 1, X, Y, Z)``, or slices of it ``(1, 1, X, Y)``, near to RAS, of deviation 1."""
    axes, flips = closest_to_ras(image)
    grey = image.array.transpose(0, *(axis + 1 for axis in axes))
    steps = [max(1, side // (_FINEST * _SIDE[dimensions])) for side in grey.shape[1:]]
    if dimensions == 2:
        steps[2] = 1
    turned = grey[:, :: steps[0], :: steps[1], :: steps[2]]
    if dimensions == 2:
        slices = turned.shape[3]
        count = min(slices, _SLICES)
        turned = turned[..., [(2 * part + 1) * slices // (2 * count) for part in range(count)]]
    flat = np.flip(turned, [axis + 1 for axis, flip in enumerate(flips) if flip]).mean(0, dtype=np.float32)
    low, high = np.percentile(flat, _PERCENTILES)
    tensor = torch.from_numpy(np.ascontiguousarray(flat.clip(low, high)))[None, None]
    parts = tensor.unbind(dim=-1) if dimensions == 2 else [tensor]
    return [_normalised(_resized(part, _SIDE[dimensions])) for part in parts]


def _resized(view: torch.Tensor, side: int) -> torch.Tensor:
    """Return a view of equal sides: averaged where it shrinks, interpolated where it grows."""
    shape = view.shape[2:]
    smaller = functional.interpolate(view, size=[min(side, length) for length in shape], mode="area")
    return functional.interpolate(
        smaller, size=[side] * len(shape), mode="bilinear" if len(shape) == 2 else "trilinear"
    )


def _normalised(view: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(view, correction=0)
    return (view - mean) / deviation.clamp_min(1e-6)  # a constant image is 0


def _features(view: torch.Tensor) -> Embedding:
    """Return the coarse view and the histograms of a view ``(1, 1, ...)``, each of length 1 or 0."""
    dimensions = view.dim() - 2
    coarse = functional.interpolate(view, size=[_COARSE[dimensions]] * dimensions, mode="area")
    parts = [coarse.flatten(), _histograms(view).flatten()]
    return torch.cat([functional.normalize(part, dim=0) for part in parts]).numpy()


def _histograms(view: torch.Tensor) -> torch.Tensor:
    """Return how much gradient runs along each direction in each cell, relative to the cells around it."""
    dimensions = view.dim() - 2
    directions = _DIRECTIONS[dimensions]
    gradients = torch.stack(torch.gradient(view[0, 0]))  # (dimensions, ...)
    along = torch.tensordot(directions, gradients, dims=1).abs_()
    # Each direction gets what of the gradient is nearer to it than to being halfway to the next one.
    along = (along - _HALFWAY[dimensions] * gradients.square().sum(0).sqrt()).clamp_min_(0)
    cells = functional.avg_pool2d(along, _CELL) if dimensions == 2 else functional.avg_pool3d(along, _CELL)
    energy = cells.square().sum(0, keepdim=True)[None]
    pool = functional.avg_pool2d if dimensions == 2 else functional.avg_pool3d
    around = pool(energy, 3, stride=1, padding=1, count_include_pad=False)[0]
    return cells / (around.sqrt() + 1e-3)


def _directions(dimensions: int) -> torch.Tensor:
    """Return unit vectors, one for each line: every 20 degrees, or to the 20 corners of a dodecahedron."""
    if dimensions == 2:
        angles = torch.arange(9) * torch.pi / 9
        return torch.stack([angles.cos(), angles.sin()], dim=1)
    golden = (1 + 5**0.5) / 2
    corners = [(1.0, *signs) for signs in itertools.product((1.0, -1.0), repeat=2)]
    for sign in (1.0, -1.0):
        corners += [(0.0, 1 / golden, sign * golden), (1 / golden, sign * golden, 0.0), (golden, 0.0, sign / golden)]
    return functional.normalize(torch.tensor(corners), dim=1)


_DIRECTIONS = {dimensions: _directions(dimensions) for dimensions in (2, 3)}
# Cosine of the angle at which a direction gets nothing any more: that of its nearest neighbour.
_HALFWAY = {
    dimensions: float((lines @ lines.T).abs().fill_diagonal_(0).max()) for dimensions, lines in _DIRECTIONS.items()
}


@dataclass(frozen=True)
class _Row:
    identity: str
    embedding: Embedding
    reason: str | None


class ColdStore:
    """The embeddings of images, the same for all models that see images of as many dimensions and channels.

    Args:
        database: with the table of `SCHEMA`.
        config: the model.
    """

    def __init__(self, database: Database, config: AnyConfig) -> None:
        self._database = database
        self._kind = f"{_EMBEDDING}/{config.dimensions}/{config.channels}"
        self._lock = threading.Lock()
        self._new = NewRows(database, "cold", "kind", self._kind)
        self._rows: dict[str, _Row] = {}
        self._identities = Identities()

    def put(self, image: Path, embedding: Embedding, identity: str | None = None) -> None:
        """Keep an image's embedding.

        Args:
            image: its file, or the folder of its series.
            embedding: ``(D,)``.
            identity: what the file was known by when it was read; what it is known by now when None.

        Raises:
            NotFound: no such file.
            OutOfSpace: the disk is full; nothing was changed.
        """
        content = np.ascontiguousarray(embedding, dtype="<f4").tobytes()
        self._insert(image, identity or identity_of(image), content, None)

    def put_failure(self, image: Path, reason: str) -> None:
        """Keep why an image has no embedding."""
        self._insert(image, self._identities.of(image) or "", b"", reason)

    def known(self, images: Mapping[str, Path]) -> tuple[dict[str, Embedding], dict[str, str]]:
        """Return the embeddings of images by id, and why others have none; those in neither are to be computed."""
        identities = {image_id: self._identities.of(path) or "" for image_id, path in images.items()}
        with self._lock:
            self._renew()
            found = {image_id: self._rows.get(str(path)) for image_id, path in images.items()}
        valid = {one: row for one, row in found.items() if row is not None and row.identity == identities[one]}
        embeddings = {image_id: row.embedding for image_id, row in valid.items() if row.reason is None}
        return embeddings, {image_id: row.reason for image_id, row in valid.items() if row.reason is not None}

    def _insert(self, image: Path, identity: str, embedding: bytes, reason: str | None) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO cold (kind, image, identity, embedding, reason) VALUES (?, ?, ?, ?, ?)",
                (self._kind, str(image), identity, embedding, reason),
            )

    def _renew(self) -> None:
        """Read the rows that have come since."""
        begun_anew, rows = self._new.look()
        if begun_anew:
            self._rows = {}
        for row in rows:
            embedding = np.frombuffer(row["embedding"], dtype="<f4").astype(np.float32)
            self._rows[row["image"]] = _Row(row["identity"], embedding, row["reason"])
