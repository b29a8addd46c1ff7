"""Images that are the same twice: nearly the same embedding, and the same picture.

Read by `labelrounds.round_state`. The embedding finds candidates in a pool of thousands within a blink; a network
takes different patients for alike, so the intensities have the last word. The small pictures that they are compared by
are kept in memory for as long as the files are the same, and read a few at a time: a caller is never kept waiting for
a pool that is looked at for the first time.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelrounds.errors import LabelRoundsError
from labelrounds.memory_cache import identity_of
from labelrounds.reading import read_image
from labelrounds.transforms import closest_to_ras

logger = logging.getLogger(__name__)

NEAR_COSINE, SAME_CORRELATION = 0.98, 0.98
_CLOSE_SHARE = 0.2
_MOST_PAIRS, _ROWS = 200, 1024
_SMALL = (24, 24, 8)
_SECONDS = 1.0

Embedding = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two images that are probably one.

    Attributes:
        images: their ids, sorted.
        cosine: of their embeddings, from the pool's mean.
        correlation: of their intensities; None where it is not known yet, or an image can't be read.
        patients: whom they are of; None where a file does not say so.
    """

    images: tuple[str, str]
    cosine: float
    correlation: float | None
    patients: tuple[str | None, str | None] = (None, None)

    @property
    def across_patients(self) -> bool:
        """Whether it is known that they carry two patients' names."""
        one, other = self.patients
        return one is not None and other is not None and one != other


def near_pairs(embeddings: Mapping[str, Embedding]) -> list[tuple[str, str, float]]:
    """Return the pairs whose embeddings are nearly the same, the nearest first, and their cosine.

    Measured from the pool's mean, as what all images have in common makes every cosine large. In a pool where all are
    alike a large cosine is not enough: a pair is also much closer than neighbours in the pool usually are.
    """
    ids = sorted(image for image, vector in embeddings.items() if np.isfinite(vector).all())
    if len(ids) < 3:
        return []
    table = np.stack([embeddings[image] for image in ids]).astype(np.float32)
    table = table - table.mean(axis=0)
    lengths = np.maximum(np.linalg.norm(table, axis=1), 1e-12)
    unit, squares = table / lengths[:, None], lengths**2
    nearest = np.empty(len(ids))
    found: list[tuple[float, int, int, float]] = []
    for first in range(0, len(ids), _ROWS):
        rows = slice(first, first + _ROWS)
        cosine = unit[rows] @ unit.T
        apart = squares[rows, None] + squares[None] - 2 * cosine * lengths[rows, None] * lengths[None]
        apart = np.sqrt(np.maximum(apart, 0))
        here = np.arange(cosine.shape[0])
        apart[here, first + here] = np.inf
        nearest[rows] = apart.min(axis=1)
        near = cosine >= NEAR_COSINE
        near &= np.arange(len(ids)) > first + here[:, None]  # each pair once
        row, column = np.nonzero(near)
        # A model takes all images of a class for alike: of millions of pairs only the closest are looked at one by one.
        closest = np.argsort(apart[row, column], kind="stable")[:_MOST_PAIRS]
        for one, other in zip(row[closest].tolist(), column[closest].tolist(), strict=True):
            found.append((float(apart[one, other]), first + one, other, float(cosine[one, other])))
    usual = float(np.median(nearest))
    close = sorted(pair for pair in found if pair[0] <= _CLOSE_SHARE * usual or pair[0] <= 1e-3 * np.median(lengths))
    return [(ids[one], ids[other], min(cosine, 1.0)) for _, one, other, cosine in close[:_MOST_PAIRS]]


def find_duplicates(
    embeddings: Mapping[str, Embedding],
    path_of: Callable[[str], Path],
    patient_of: Callable[[str], str | None] = lambda image: None,
    seconds: float = _SECONDS,
) -> list[Pair]:
    """Return the pairs of images that are probably the same picture, the nearest first.

    Args:
        embeddings: by image, of one model.
        path_of: an image's file.
        patient_of: whom an image is of, where that is known.
        seconds: after which no more pictures are read; pairs that are left have no correlation yet.
    """
    until, found = time.monotonic() + seconds, []
    for one, other, cosine in _last.pairs_of(embeddings):
        correlation = None
        if time.monotonic() < until:
            correlation = _correlation(path_of, one, other)
        if correlation is None or correlation >= SAME_CORRELATION:
            found.append(Pair((one, other), cosine, correlation, (patient_of(one), patient_of(other))))
    return found


class _Last:
    """The pairs of the embeddings that were last asked about: they stay until a version or an image comes."""

    def __init__(self) -> None:
        self._known: tuple[dict[str, Embedding], list[tuple[str, str, float]]] = ({}, [])

    def pairs_of(self, embeddings: Mapping[str, Embedding]) -> list[tuple[str, str, float]]:
        known, pairs = self._known  # replaced as one, so that any thread may ask
        if len(known) != len(embeddings) or any(known.get(image) is not each for image, each in embeddings.items()):
            pairs = near_pairs(embeddings)
            self._known = dict(embeddings), pairs
        return pairs


_last = _Last()


def _correlation(path_of: Callable[[str], Path], one: str, other: str) -> float | None:
    try:
        first, second = (_small(path, identity_of(path)) for path in (path_of(one), path_of(other)))
    except (LabelRoundsError, OSError) as error:
        logger.warning("Not compared, %s with %s: %s", one, other, error)
        return None
    return float(np.mean(first * second))


@lru_cache(maxsize=1024)
def _small(path: Path, identity: str) -> NDArray[np.float32]:
    """Return an image's first channel at 24 x 24 x 8, axes near R, A and S, with mean 0 and deviation 1."""
    image = read_image(path)
    axes, flips = closest_to_ras(image)
    array = np.transpose(image.array[0], axes)
    for axis, flip in enumerate(flips):
        array = np.flip(array, axis) if flip else array
    array = _shrunk(array, _SMALL).astype(np.float32)
    return np.asarray((array - array.mean()) / max(float(array.std()), 1e-6), np.float32)


def _shrunk(array: NDArray[np.generic], shape: Sequence[int]) -> NDArray[np.generic]:
    """Return the voxels at the middles of equal parts of each axis."""
    for axis, length in enumerate(shape):
        count = array.shape[axis]
        at = ((np.arange(length) + 0.5) * count / length).astype(int)
        array = np.take(array, np.minimum(at, count - 1), axis=axis)
    return array
