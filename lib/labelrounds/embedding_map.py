"""The cases of a pool on a plane, near each other where a model takes them for alike.

The plane is that of the two principal components of the embeddings: linear and the same for the same embeddings, so
that two people see one map. It shows the coarse order alone; how much of it is said beside it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = ("unlabelled", "labelled", "taken", "suspect", "queued")
MOST_POINTS = 2000

Embedding = NDArray[np.float32]


def embedding_map(
    embeddings: Mapping[str, Embedding], kinds: Mapping[str, str], most: int = MOST_POINTS
) -> dict[str, Any]:
    """Return the map, ready for JSON.

    Args:
        embeddings: by image, of one model.
        kinds: by image, one of `KINDS`; ``unlabelled`` where it is missing.
        most: cases that are shown; of the unlabelled ones a sample that follows from their names.

    Returns:
        ``points`` (``id``, ``x``, ``y``, ``kind``; both coordinates in -1..1 and in the same scale), ``explained`` (the
        share of the variance along x and along y), ``shown`` and ``of``.
    """
    known = {image: vector for image, vector in embeddings.items() if np.isfinite(vector).all()}
    chosen = _chosen(sorted(known), kinds, most)
    if not chosen:
        return {"points": [], "explained": [], "shown": 0, "of": len(known)}
    places, explained = _components(np.stack([known[image] for image in chosen]).astype(np.float64))
    points = [
        {"id": image, "x": round(float(x), 4), "y": round(float(y), 4), "kind": kinds.get(image, KINDS[0])}
        for image, (x, y) in zip(chosen, places, strict=True)
    ]
    return {"points": points, "explained": explained, "shown": len(points), "of": len(known)}


def _chosen(images: Sequence[str], kinds: Mapping[str, str], most: int) -> list[str]:
    """Return the images to show, those that are labelled, queued or suspect before the others."""
    if len(images) <= most:
        return list(images)

    def place(image: str) -> tuple[int, bytes]:
        return -KINDS.index(kinds.get(image, KINDS[0])), hashlib.sha256(image.encode()).digest()

    return sorted(sorted(images, key=place)[:most])


def _components(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
    """Return the rows of ``table (N, D)`` on their first two principal components, the largest coordinate being 1."""
    table = table - table.mean(axis=0)
    variances, axes = np.linalg.eigh(table.T @ table if len(table) > table.shape[1] else table @ table.T)
    variances = np.maximum(variances[::-1], 0)
    axes = axes[:, ::-1][:, :2]
    places = table @ axes if len(table) > table.shape[1] else axes * np.sqrt(variances[:2])
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    # An axis has no direction of its own; the farthest case is on the right, or above.
    farthest = np.take_along_axis(places, np.abs(places).argmax(axis=0)[None], axis=0)
    places = places * np.where(farthest < 0, -1, 1)
    total = variances.sum()
    shares = [round(float(share), 4) for share in (variances[:2] / total if total > 0 else np.zeros(2))]
    return places / max(float(np.abs(places).max()), 1e-12), [*shares, 0.0, 0.0][:2]
