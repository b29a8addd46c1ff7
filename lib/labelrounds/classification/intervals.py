"""Intervals of classification metrics: resampling the cases, all resamples at once.

A resample is the number of times that each case was drawn, so that counts are products of matrices.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

FEWEST_CASES = 5
"""Below, an interval would say more about the resampling than about the model."""
_LEAST_DEFINED = 0.5
_CHUNK_ELEMENTS = 2_000_000

_Weights = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


def bootstrap_intervals(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    multilabel: bool,
    bootstraps: int,
    seed: int,
) -> dict[str, list[float] | None]:
    """Return 95 % percentile intervals (Efron, DOI 10.1214/aos/1176344552) over the cases.

    Args:
        probabilities: ``(N, K)``.
        truth: ``(N, K)``.
        predicted: ``(N, K)``, the labels that were predicted.
        multilabel: whether a case may have any number of labels.
        bootstraps: the number of resamples.
        seed: of the resamples.

    Returns:
        ``[low, high]`` of accuracy, balanced_accuracy and macro_auroc. A resample that lacks a class is skipped for
        what that leaves undefined; None where over half of them are, for under five cases, and without resamples.
    """
    samples: dict[str, list[_Weights]] = {"accuracy": [], "balanced_accuracy": [], "macro_auroc": []}
    for weights in _resamples(len(truth), bootstraps, seed):
        samples["accuracy"].append(weights @ (predicted == truth).all(axis=1) / len(truth))
        samples["balanced_accuracy"].append(_balanced(weights, truth, predicted, multilabel))
        samples["macro_auroc"].append(_macro_auroc(weights, probabilities, truth))
    return {name: _interval(np.concatenate(values)) if values else None for name, values in samples.items()}


def _resamples(cases: int, bootstraps: int, seed: int) -> Iterator[_Weights]:
    """Yield ``(B, N)``, how often each case was drawn, in parts that fit the memory."""
    generator = np.random.default_rng(seed)
    left = bootstraps if cases >= FEWEST_CASES else 0
    while left:
        rows = min(left, max(1, _CHUNK_ELEMENTS // cases))
        drawn = generator.integers(cases, size=(rows, cases)) + np.arange(rows)[:, None] * cases
        yield np.bincount(drawn.ravel(), minlength=rows * cases).reshape(rows, cases).astype(np.float64)
        left -= rows


def _balanced(weights: _Weights, truth: _Bools, predicted: _Bools, multilabel: bool) -> _Weights:
    """Return ``(B,)``; nan where a class is missing that the whole has."""
    present = truth.any(axis=0)
    if multilabel:
        present &= ~truth.all(axis=0)
    sought, found = truth[:, present], predicted[:, present]
    rates = _share(weights @ (sought & found), weights @ sought)
    if multilabel:
        rates = (rates + _share(weights @ ~(sought | found), weights @ ~sought)) / 2
    return _mean_over_labels(rates)


def _macro_auroc(weights: _Weights, probabilities: npt.NDArray[Any], truth: _Bools) -> _Weights:
    """Return ``(B,)``; nan where a class is missing, or alone, that is not so in the whole."""
    columns = [
        _auroc(weights, *column) for column in zip(probabilities.T, truth.T, strict=True) if _has_both(column[1])
    ]
    return _mean_over_labels(np.stack(columns, axis=1)) if columns else np.full(len(weights), np.nan)


def _auroc(weights: _Weights, scores: npt.NDArray[Any], truth: _Bools) -> _Weights:
    """Return ``(B,)``: the share of pairs of a case with and one without the label that are ordered rightly."""
    order = np.argsort(scores)
    ordered = weights[:, order]
    # Cases of equal score form one group; a pair within it counts half.
    groups = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    having = np.add.reduceat(ordered * truth[order], groups, axis=1)
    lacking = np.add.reduceat(ordered, groups, axis=1) - having
    below = np.cumsum(lacking, axis=1) - lacking / 2
    return _share(np.einsum("bn,bn->b", having, below), having.sum(axis=1) * lacking.sum(axis=1))


def _has_both(truth: _Bools) -> bool:
    return bool(truth.any() and not truth.all())


def _share(part: _Weights, whole: _Weights) -> _Weights:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean_over_labels(rates: _Weights) -> _Weights:
    return rates.mean(axis=1) if rates.shape[1] else np.full(len(rates), np.nan)


def _interval(values: _Weights) -> list[float] | None:
    known = values[~np.isnan(values)]
    if len(known) < _LEAST_DEFINED * len(values):
        return None
    return [float(end) for end in np.percentile(known, (2.5, 97.5))]
