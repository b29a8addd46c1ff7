"""Cases as points whose distance says how unlike they are: PCA, k-means, typicality, for 2,000 cases in milliseconds.

What depends on the points alone is kept by their content, since they stay the same while a round's cases are handed
out: `space_of` answers for equal embeddings with the same `Space`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Rows = NDArray[np.intp]

DIMENSIONS = 32
PROJECTED = 128  # dimensions left by a random projection, before the PCA would take longer than all the rest
NEIGHBOURS = 20  # as TypiClust has it
MOST_REFERENCES = 2_000  # a typicality is measured against, and no more
MOST_CLUSTERS = 200
ITERATIONS = 10
LARGEST = 1e12  # squares of larger values would overflow


class Space:
    """Points of cases.

    Attributes:
        ids: of the cases that have a usable embedding, sorted.
        points: ``(N, D)``, centred, with a mean squared length of 1.
    """

    def __init__(self, ids: Sequence[str], points: Points) -> None:
        self.ids = tuple(ids)
        self.points = points
        self._row = {name: row for row, name in enumerate(self.ids)}
        self._clusters: dict[tuple[int, int], Rows] = {}

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._row

    def rows(self, ids: Iterable[str]) -> Rows:
        """Return the rows of those of the ids that have a point."""
        return np.array([self._row[name] for name in ids if name in self._row], dtype=np.intp)

    @cached_property
    def typicality(self) -> Points:
        """How densely each point is surrounded, ``(N,)``."""
        return typicality(self.points, self.points)

    @cached_property
    def spacing(self) -> float:
        """How far a case of middling typicality is from its neighbours."""
        return float(1 / np.median(self.typicality)) if len(self.ids) else 0.0

    def clusters(self, count: int, seed: int) -> Rows:
        """Return the number of the cluster of each point, of at most ``count`` by k-means."""
        key = (min(count, MOST_CLUSTERS, len(self.ids)), seed)
        if key not in self._clusters:
            self._clusters[key] = k_means(self.points, *key)
        return self._clusters[key]

    def distance(self, rows: Rows, others: Rows) -> Points:
        """Return each row's distance to the nearest of others, infinite where there are none."""
        if not len(others):
            return np.full(len(rows), np.inf, dtype=np.float32)
        return np.sqrt(squared_distances(self.points[rows], self.points[others]).min(axis=1))


def space_of(embeddings: Mapping[str, NDArray[np.float32]]) -> Space:
    """Return the space of the embeddings, whatever their order.

    Left out are those that are not finite, and those of another length than most. Where all are equal they say
    nothing: the space is then empty.
    """
    lengths = Counter(one.shape for one in embeddings.values() if one.ndim == 1 and one.size)
    if not lengths:
        return Space((), np.zeros((0, 1), np.float32))
    shape = max(lengths, key=lambda one: (lengths[one], one))
    ids = sorted(name for name, one in embeddings.items() if one.shape == shape)
    rows = np.array([embeddings[name] for name in ids], dtype=np.float32)
    usable = np.abs(rows).max(axis=1) < LARGEST  # not so where one is not a number
    if not usable.all():
        ids, rows = [name for name, good in zip(ids, usable, strict=True) if good], rows[usable]
    return _space(tuple(ids), shape[0], rows.tobytes())


@lru_cache(maxsize=4)
def _space(ids: tuple[str, ...], length: int, content: bytes) -> Space:
    points = reduced(np.frombuffer(content, np.float32).reshape(-1, length))
    return Space(ids if len(points) else (), points)


def reduced(rows: Points) -> Points:
    """Return rows ``(N, D)`` by their first principal components, scaled to a mean squared length of 1.

    Returns:
        ``(N, D')`` with ``D'`` at most `DIMENSIONS`; without rows where there are less than two different ones.
    """
    if len(rows) < 2:
        return np.zeros((0, 1), np.float32)
    points = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    spread = float(np.abs(points).max())
    if spread <= 1e-6 * float(np.abs(rows).max()):
        return np.zeros((0, 1), np.float32)
    points = (points / spread).astype(np.float32)
    if points.shape[1] > PROJECTED:
        axes = np.random.default_rng(0).normal(size=(points.shape[1], PROJECTED)).astype(np.float32)
        points = points @ axes
    if points.shape[1] > DIMENSIONS:
        points = points @ np.linalg.eigh(points.T @ points)[1][:, -DIMENSIONS:]
    return points / np.sqrt((points**2).sum(axis=1).mean())


def squared_distances(points: Points, others: Points) -> Points:
    """Return squared distances ``(N, M)`` of points ``(N, D)`` and ``(M, D)``."""
    product = points @ others.T
    product *= -2
    product += (points**2).sum(axis=1)[:, None]
    product += (others**2).sum(axis=1)[None]
    return np.maximum(product, 0, out=product)


def typicality(points: Points, references: Points) -> Points:
    """Return the inverse mean distance of each point to its 20 nearest references (TypiClust's density), ``(N,)``.

    Of very many references a part is used, and as much less of the neighbours.
    """
    step = -(-len(references) // MOST_REFERENCES)
    references = references[::step]
    neighbours = max(1, min(NEIGHBOURS // step, len(references) // 2))
    found = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), 1_000):
        squares = squared_distances(points[start : start + 1_000], references)
        last = min(neighbours, squares.shape[1] - 1)
        nearest = np.partition(squares, last, axis=1)[:, : last + 1]  # one of them is the point itself
        found[start : start + 1_000] = np.sqrt(nearest).sum(axis=1) / neighbours
    return 1 / (found + 1e-6)


def k_means(points: Points, count: int, seed: int) -> Rows:
    """Return the cluster of each point ``(N,)`` by k-means++ and a few of Lloyd's iterations.

    Deterministic on any number of threads, and silent where points coincide: clusters may then be empty.
    """
    random = np.random.default_rng(seed)
    centres = points[[int(random.integers(len(points)))]]
    nearest = squared_distances(points, centres)[:, 0]
    while len(centres) < count and nearest.max() > 0:
        bounds = np.cumsum(nearest, dtype=np.float64)
        row = min(int(np.searchsorted(bounds, random.random() * bounds[-1], side="right")), len(points) - 1)
        centres = np.concatenate([centres, points[[row]]])
        np.minimum(nearest, squared_distances(points, points[[row]])[:, 0], out=nearest)
    for _ in range(ITERATIONS):
        member = squared_distances(points, centres).argmin(axis=1)
        one_of = np.zeros((len(centres), len(points)), np.float32)
        one_of[member, np.arange(len(points))] = 1
        sizes = one_of.sum(axis=1, keepdims=True)
        centres = np.where(sizes > 0, one_of @ points / np.maximum(sizes, 1), centres)
    return squared_distances(points, centres).argmin(axis=1)
