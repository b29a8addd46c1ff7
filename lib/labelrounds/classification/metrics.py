"""How well the classes of whole images are predicted, on arrays of one row per case and one column per label.

The one place for these numbers. Two kinds of task: one label per case (softmax, the winner is predicted) and any
number of labels per case (sigmoid, what reaches 0.5 is predicted). Definitions follow Metrics Reloaded
(DOI 10.1038/s41592-023-02151-z). What is undefined, as the recall of a class that no case has, is None and is left out
of means.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from labelrounds.classification.intervals import bootstrap_intervals
from labelrounds.errors import BadInput

THRESHOLD = 0.5
CALIBRATION_BINS = 15
_PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc")


def class_metrics(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    labels: Sequence[str],
    multilabel: bool,
    bootstraps: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all that is reported of a classification, ready for JSON.

    Args:
        probabilities: ``(N, K)``, 0 to 1.
        truth: ``(N, K)``, 0 or 1; without ``multilabel`` exactly one 1 in each row.
        labels: names of the K columns.
        multilabel: whether a case may have any number of labels.
        bootstraps: how many resamples of the cases the intervals are taken from; 0 for no intervals.
        seed: of the resamples.

    Returns:
        ``cases``, ``labels``, ``multilabel``; ``accuracy`` (with ``multilabel``: every label of the case right);
        ``balanced_accuracy`` (mean recall of the classes; with ``multilabel`` the mean over the labels of sensitivity
        and specificity); ``macro`` and ``per_class`` with precision, recall, specificity, f1 and one-versus-rest auroc,
        the latter with ``support`` too; ``confusion``, rows the truth: ``K x K``, or by label
        ``[[true negatives, false positives], [false negatives, true positives]]``; ``ece`` (see
        `calibration_error`); ``brier`` (see `brier_score`); ``intervals_95`` of accuracy, balanced_accuracy and
        macro_auroc, as ``[low, high]``.

    Raises:
        BadInput: no case; shapes that don't fit; values out of range; a row without exactly one label.
    """
    probabilities, truth = checked(probabilities, truth, labels, multilabel)
    predicted = decisions(probabilities, multilabel)
    scores = [_binary_scores(*columns) for columns in zip(probabilities.T, truth.T, predicted.T, strict=True)]
    macro = {name: _mean([score[name] for score in scores]) for name in _PER_CLASS}
    balanced = [(score["recall"] + score["specificity"]) / 2 for score in scores] if multilabel else None
    return {
        "cases": len(truth),
        "labels": list(labels),
        "multilabel": multilabel,
        "accuracy": float((predicted == truth).all(axis=1).mean()),
        "balanced_accuracy": _known(macro["recall"] if balanced is None else _mean(balanced)),
        "macro": {name: _known(value) for name, value in macro.items()},
        "per_class": {
            label: {name: _known(score[name]) for name in _PER_CLASS} | {"support": int(column.sum())}
            for label, score, column in zip(labels, scores, truth.T, strict=True)
        },
        "confusion": _confusion(truth, predicted, labels, multilabel),
        "ece": calibration_error(probabilities, truth, multilabel),
        "brier": brier_score(probabilities, truth, multilabel),
        "intervals_95": bootstrap_intervals(probabilities, truth, predicted, multilabel, bootstraps, seed),
    }


def quadratic_score(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Sequence[str], multilabel: bool
) -> dict[str, float]:
    """Return a case's score by label, 0 to 1, by which epochs and versions are chosen.

    The quadratic score of Brier (DOI 10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), turned so that 1 is best. It is
    proper: a network gains by saying what it believes, and it tells two versions apart that err on the same cases.

    Args:
        probabilities: ``(K,)``.
        truth: ``(K,)``, 0 or 1.
        labels: names of the K labels.
        multilabel: whether a case may have any number of labels.

    Returns:
        With ``multilabel`` ``1 - (p - y)^2`` of each label. Otherwise ``1 - 0.5 * sum (p - y)^2`` under the case's
        class and nan under the others. A network that has diverged, whose probabilities are not finite, gets 0.

    Raises:
        BadInput: shapes that don't fit; a truth other than 0 and 1, or without exactly one label.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(truth)
    _check_shapes(p[None], y[None], labels)
    _check_truth(y[None], multilabel)
    if not np.isfinite(p).all():
        values = np.zeros(len(labels))
    elif multilabel:
        values = 1 - (p - y) ** 2
    else:
        values = np.full(len(labels), 1 - 0.5 * ((p - y) ** 2).sum())
    counts = np.ones(len(labels), bool) if multilabel else y == 1
    return {
        label: float(value) if known else math.nan for label, value, known in zip(labels, values, counts, strict=True)
    }


def decisions(probabilities: npt.NDArray[Any], multilabel: bool) -> npt.NDArray[np.bool_]:
    """Return ``(N, K)``, which labels are predicted: those that reach 0.5, or the one winner (the first of equals)."""
    if multilabel:
        return np.asarray(probabilities >= THRESHOLD)
    return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None])


def calibration_error(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], multilabel: bool) -> float:
    """Return the expected calibration error in 15 bins (Guo et al. 2017, arXiv 1706.04599), 0 to 1."""
    counts, confidence, frequency = reliability(probabilities, truth, multilabel)
    filled = counts > 0
    return float(np.abs(confidence - frequency)[filled] @ counts[filled] / counts.sum())


def reliability(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], multilabel: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how often what was given a probability came true, in 15 bins of equal width.

    Without ``multilabel`` it is the winner's probability and whether the winner is right; with it, the probability of
    each label of each case and whether the case has the label.

    Returns:
        For each bin ``(low, high]``: how many fell into it, their mean probability, the share that came true; the
        latter two are nan for an empty bin.
    """
    if multilabel:
        confidence, right = probabilities.ravel(), truth.ravel()
    else:
        confidence, right = probabilities.max(axis=1), truth[decisions(probabilities, multilabel)]
    bins = np.digitize(confidence, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS, right=True)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        means = (np.bincount(bins, weights, CALIBRATION_BINS) / counts for weights in (confidence, right))
        return counts, next(means), next(means)


def brier_score(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], multilabel: bool) -> float:
    """Return the mean over cases of ``sum (p - y)^2``, 0 to 2; with ``multilabel`` the mean over the labels, 0 to 1."""
    squares = (probabilities - truth) ** 2
    return float(squares.mean() if multilabel else squares.sum(axis=1).mean())


def checked(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Sequence[str], multilabel: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return probabilities as float64 and truth as booleans, both ``(N, K)`` and found to be usable.

    Raises:
        BadInput: no case; shapes that don't fit; values out of range; a row without exactly one label.
    """
    given, known = np.asarray(probabilities, np.float64), np.asarray(truth)
    _check_shapes(given, known, labels)
    if not len(given):
        raise BadInput("0 cases; metrics need at least one")
    if not ((given >= 0) & (given <= 1)).all():
        raise BadInput(f"probabilities run from {given.min()} to {given.max()}; they must lie in 0 to 1")
    _check_truth(known, multilabel)
    return given, known.astype(bool)


def _binary_scores(
    probability: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Return one label's scores against all others; nan where undefined."""
    # Here, as it takes a third of a second that the server's start need not wait for.
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    found = precision_recall_fscore_support(truth, predicted, labels=[False, True], zero_division=math.nan)
    precision, recall, f1, _ = (values.tolist() for values in found)
    return {
        "precision": precision[1],
        "recall": recall[1],
        "specificity": recall[0],
        "f1": f1[1],
        "auroc": float(roc_auc_score(truth, probability)) if truth.any() and not truth.all() else math.nan,
    }


def _confusion(
    truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], labels: Sequence[str], multilabel: bool
) -> list[list[int]] | dict[str, list[list[int]]]:
    from sklearn.metrics import confusion_matrix

    if not multilabel:
        columns = range(len(labels))
        whole: list[list[int]] = confusion_matrix(truth.argmax(1), predicted.argmax(1), labels=columns).tolist()
        return whole
    return {
        label: confusion_matrix(sought, found, labels=[False, True]).tolist()
        for label, sought, found in zip(labels, truth.T, predicted.T, strict=True)
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _check_shapes(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Sequence[str]) -> None:
    if probabilities.ndim != 2 or probabilities.shape != truth.shape or probabilities.shape[1] != len(labels):
        raise BadInput(
            f"probabilities have shape {probabilities.shape}, truth {truth.shape}; both must have one row per case and"
            f" one column for each of {len(labels)} labels"
        )


def _check_truth(truth: npt.NDArray[Any], multilabel: bool) -> None:
    if not np.isin(truth, (0, 1)).all():
        raise BadInput(f"truth holds {np.unique(truth)[:5].tolist()}; only 0 and 1 are allowed")
    sums = truth.sum(axis=1)
    if not multilabel and (sums != 1).any():
        case = int((sums != 1).argmax())
        raise BadInput(
            f"case {case} has {int(sums[case])} labels; exactly one is allowed where labels exclude each other"
        )
