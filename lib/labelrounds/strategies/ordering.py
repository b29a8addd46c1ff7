"""Chance that follows from a seed and a case's id alone, so that neither restarts nor other cases change it."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def uniform(ids: Iterable[str], seed: int, salt: str = "") -> Values:
    """Return a number in (0, 1) for each id; another ``salt`` gives independent ones."""
    drawn = [hashlib.blake2b(f"{seed}/{salt}/{one}".encode(), digest_size=6).digest() for one in ids]
    return (np.array([int.from_bytes(digest, "big") for digest in drawn], dtype=np.float64) + 0.5) / 2.0**48


def shuffled(ids: Sequence[str], seed: int, salt: str = "") -> list[str]:
    """Return the ids in a random order; leaving one out leaves the order of the others."""
    return [name for _, name in sorted(zip(uniform(ids, seed, salt).tolist(), ids, strict=True))]


def descending(ids: Sequence[str], values: Sequence[float] | Values, seed: int) -> list[int]:
    """Return places in ``ids`` by falling value; equals in random order."""
    return np.lexsort((uniform(ids, seed), -np.asarray(values, dtype=np.float64))).tolist()


def ranks(values: Sequence[float] | Values) -> Values:
    """Return the share of the values that are not above each: 1 for the highest, never 0."""
    values = np.asarray(values, dtype=np.float64)
    return np.searchsorted(np.sort(values), values, side="right") / max(1, len(values))


def powered(ids: Sequence[str], values: Sequence[float] | Values, seed: int, salt: str, beta: float) -> Values:
    """Return log-ranks with Gumbel noise of scale ``1 / beta``: their order is a draw that prefers high values.

    The power acquisition of stochastic batches (Kirsch et al. 2023, DOI 10.48550/arXiv.2106.12059), on ranks, which
    do not depend on a score's scale.
    """
    return np.log(ranks(values)) - np.log(-np.log(uniform(ids, seed, salt))) / beta


def sharpness(round_number: int) -> float:
    """Return ``beta`` of a round: chance counts much at first, 1, and little from the tenth round on, 100."""
    return float(100.0 ** min(1.0, round_number / 10))
