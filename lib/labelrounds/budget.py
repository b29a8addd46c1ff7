"""What the labels have brought: the score of each version against the labels it learnt from, and when to stop.

Read by `labelrounds.round_state`; plain figures, no file is opened. Two curves. One is of the cases that each version
was judged on when it was published: as many as there are, but the version's epoch was chosen by them. The other is of
the cases that were drawn at random and corrected by a human: few, but nobody chose them, so that they say without bias
what a correction of the next case will cost.

Advice to stop is for people; nothing follows from it by itself. What too few data can't tell is said to be so.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.checkpoints import Version
from labelrounds.policies import learnt_from
from labelrounds.splits import TRAIN

RESAMPLES, INTERVAL = 1000, (2.5, 97.5)
FEWEST_CASES = 3
FEWEST_PICKS, LAST_PICKS = 5, 20
PLATEAU = 0.03
TARGET = 0.9


@dataclass(frozen=True)
class Point:
    """A version on the curve.

    Attributes:
        version: its number.
        labels: of how many labelled cases of these studies it has learnt, its ancestors' included.
        score: the mean over the labels of the mean over the cases, as `labelrounds.promotion` judges by.
        interval: ends of the 95 % interval of ``score`` by bootstrap over the cases; None for under three cases.
        error: standard error of ``score``, by the same resamples.
        judged_by: ``validation``, ``cross-validation``, or ``train``, which says nothing about new cases.
        by_case: each case's mean over the labels that it says something of.
        created: when it was published, ISO 8601.
    """

    version: int
    labels: int
    score: float
    interval: tuple[float, float] | None
    error: float | None
    judged_by: str
    by_case: Mapping[str, float] = field(default_factory=dict)
    created: str = ""

    @property
    def claims(self) -> bool:
        """Whether it says something about new cases."""
        return self.judged_by != TRAIN


@dataclass(frozen=True)
class Pick:
    """A case that was drawn at random, predicted and then corrected: its Dice, and the version that predicted it."""

    version: int
    dice: float


@dataclass(frozen=True)
class PoolMean:
    """The mean score of the unlabelled cases by a version, the higher the less sure it is; over how many cases."""

    version: int
    mean: float
    cases: int


@dataclass(frozen=True)
class Reason:
    """One of the reasons to stop; ``holds`` is None where the data are too few to tell."""

    name: str
    holds: bool | None
    sentence: str


# The curves ----------------------------------------------------------------------------------------------------------


def budget_curve(versions: Sequence[Version]) -> list[Point]:
    """Return the versions that were trained and judged, by how many labels they learnt from and then by number."""
    shipped = {image for version in versions if version.number == 0 for image in learnt_from(version)}
    points = [_point(version, shipped) for version in versions if version.number > 0]
    return sorted((point for point in points if point is not None), key=lambda point: (point.labels, point.version))


def _point(version: Version, shipped: Iterable[str]) -> Point | None:
    scores = version.record.get("scores")
    if not isinstance(scores, dict) or not scores:
        return None
    own = version.record.get("cases", {}).get(TRAIN, {})
    table = np.array([[_number(value) for value in case.values()] for case in _alike(scores)], dtype=np.float64)
    score = _score(np.ones((1, len(table))), table)[0]
    if math.isnan(score):
        return None
    interval, error = _spread(table)
    return Point(
        version=version.number,
        labels=len({*own, *(set(learnt_from(version)) - set(shipped))}),
        score=float(score),
        interval=interval,
        error=error,
        judged_by=str(version.record.get("judged_by") or "validation"),
        by_case={image: mean for image, mean in zip(scores, _means(table), strict=True) if not math.isnan(mean)},
        created=str(version.record.get("created", "")),
    )


def monitor_curve(picks: Sequence[Pick]) -> list[dict[str, Any]]:
    """Return for each version the mean Dice on the cases drawn at random that it predicted, with its interval."""
    found = []
    for number in sorted({pick.version for pick in picks}):
        dice = np.array([[pick.dice] for pick in picks if pick.version == number])
        interval, error = _spread(dice)
        found.append({"version": number, "dice": float(dice.mean()), "cases": len(dice), **_ends(interval, error)})
    return found


def as_json(point: Point) -> dict[str, Any]:
    """Return a point as `labelrounds.round_state` gives it."""
    return {
        "version": point.version,
        "labels": point.labels,
        "score": point.score,
        **_ends(point.interval, point.error),
        "judged_by": point.judged_by,
        "cases": len(point.by_case),
        "claims": point.claims,
        "created": point.created,
    }


def _ends(interval: tuple[float, float] | None, error: float | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"low": low, "high": high, "standard_error": error}


def _alike(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores of the cases, each with every label's, in one order."""
    labels = sorted({label for case in scores.values() if isinstance(case, dict) for label in case})
    return [{label: (case or {}).get(label) for label in labels} for case in scores.values()]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _means(table: NDArray[np.float64]) -> list[float]:
    known = ~np.isnan(table)
    counts = known.sum(axis=1)
    return list(np.where(counts, np.where(known, table, 0).sum(axis=1) / np.maximum(counts, 1), np.nan).tolist())


def _score(weights: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the score of each row of ``weights (B, N)`` over the cases of ``table (N, K)``, nan being unknown."""
    known = ~np.isnan(table)
    counts = weights @ known
    with np.errstate(invalid="ignore", divide="ignore"):
        by_label = (weights @ np.where(known, table, 0)) / counts
        return np.asarray(np.where(counts > 0, by_label, 0).sum(axis=1) / (counts > 0).sum(axis=1))


def _spread(table: NDArray[np.float64]) -> tuple[tuple[float, float] | None, float | None]:
    """Return the 95 % interval and the standard error of a score, by drawing the cases anew with replacement."""
    cases = len(table)
    if cases < FEWEST_CASES:
        return None, None
    draws = np.random.default_rng(0).multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES)
    scores = _score(draws.astype(np.float64), table)
    scores = scores[np.isfinite(scores)]
    low, high = np.percentile(scores, INTERVAL)
    return (float(low), float(high)), float(scores.std(ddof=1))


# When to stop --------------------------------------------------------------------------------------------------------


def advise(
    points: Sequence[Point],
    pool: Sequence[PoolMean],
    picks: Sequence[Pick],
    target: float = TARGET,
    measure: str = "Dice",
) -> dict[str, Any]:
    """Return whether to stop labelling, in a sentence and by its three reasons.

    Args:
        points: of `budget_curve`.
        pool: the pool's mean score by version, the oldest first.
        picks: of the cases drawn at random, the oldest first.
        target: mean Dice of predictions on random cases at which correcting them is thought to be little work.
        measure: of the points.

    Returns:
        ``stop`` (whether a reason holds), ``sentence``, ``target``, and ``reasons`` with ``name``, ``holds`` (None
        where it is too early to say) and ``sentence``.
    """
    reasons = [gain_reason(points, measure), plateau_reason(pool), target_reason(picks, target)]
    holding = [reason.name for reason in reasons if reason.holds]
    unknown = [reason for reason in reasons if reason.holds is None]
    if holding:
        sentence = f"Consider stopping: {len(holding)} of 3 reasons hold ({', '.join(holding)})."
    elif len(unknown) == len(reasons):
        sentence = "Go on labelling: it is too early to say more."
    else:
        sentence = "Go on labelling: no reason to stop" + (
            f", {len(unknown)} of 3 too early to say." if unknown else "."
        )
    return {
        "stop": bool(holding),
        "sentence": sentence,
        "target": target,
        "reasons": [{"name": each.name, "holds": each.holds, "sentence": each.sentence} for each in reasons],
    }


def gain_reason(points: Sequence[Point], measure: str = "Dice") -> Reason:
    """Tell whether the last two steps gained less for 10 labels than one standard error of what they gained."""
    name = "small gain"
    newest = {point.labels: point for point in points if point.claims}
    last = list(newest.values())[-3:]
    if len(last) < 3:
        few = f"{_count(len(last), 'version')} of different numbers of labels and judged on cases held out"
        return Reason(name, None, f"Too early: {few}; 3 are needed.")
    steps = list(pairwise(last))
    gains = [_gain(*step) for step in steps]
    shown = " and ".join(
        f"{gain:+.3f} (standard error {'unknown' if error is None else f'{error:.3f}'}) from {before.labels} to"
        f" {after.labels} labels"
        for (gain, error), (before, after) in zip(gains, steps, strict=True)
    )
    said = f"{measure} per 10 labels: {shown}"
    if any(error is None for _, error in gains):
        return Reason(name, None, f"Too early: {said}; the cases are too few for a standard error.")
    small = [error is not None and gain < error for gain, error in gains]
    verdict = "both" if all(small) else "not both"
    return Reason(name, all(small), f"{said}: {verdict} under one standard error.")


def _gain(before: Point, after: Point) -> tuple[float, float | None]:
    """Return the gain for 10 labels and its standard error: within the cases that both were judged on, if it can be."""
    scale = 10 / (after.labels - before.labels)
    shared = [after.by_case[image] - before.by_case[image] for image in after.by_case if image in before.by_case]
    if len(shared) >= FEWEST_CASES:
        error = float(np.std(shared, ddof=1)) / math.sqrt(len(shared))
        return float(np.mean(shared)) * scale, error * scale
    errors = (before.error, after.error)
    both = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1]) * scale
    return (after.score - before.score) * scale, both


def plateau_reason(pool: Sequence[PoolMean]) -> Reason:
    """Tell whether the pool's mean score has changed by under 3 % from version to version, twice in a row."""
    name = "plateau of the pool"
    last = list(pool)[-3:]
    if len(last) < 3:
        return Reason(name, None, f"Too early: the pool was scored by {_count(len(last), 'version')}; 3 are needed.")
    steps = list(pairwise(last))
    changes = [(after.mean - before.mean) / max(abs(before.mean), 1e-9) for before, after in steps]
    flat = all(abs(change) < PLATEAU for change in changes)
    means = ", ".join(f"{each.mean:.3f} (version {each.version}, {_count(each.cases, 'case')})" for each in last)
    verdict = "twice in a row under" if flat else "not twice in a row under"
    shown = " and ".join(f"{change:+.1%}" for change in changes)
    return Reason(name, flat, f"The pool's mean uncertainty is {means}: {shown}, {verdict} {PLATEAU:.0%}.")


def target_reason(picks: Sequence[Pick], target: float) -> Reason:
    """Tell whether predictions on cases drawn at random agree with their corrections above a target.

    Of the last 20 such cases; the mean has to be above by one standard error, so that chance alone stops nobody.
    """
    name = "target reached"
    last = [pick.dice for pick in picks][-LAST_PICKS:]
    if len(last) < FEWEST_PICKS:
        return Reason(
            name, None, f"Too early: {_count(len(last), 'random case')} corrected so far; {FEWEST_PICKS} are needed."
        )
    mean, error = float(np.mean(last)), float(np.std(last, ddof=1)) / math.sqrt(len(last))
    above = mean - error >= target
    verdict = "at least one standard error above" if above else "not one standard error above"
    return Reason(
        name,
        above,
        f"Predictions on the last {len(last)} random cases agree with their corrections with Dice {mean:.3f} (standard"
        f" error {error:.3f}): {verdict} the target of {target:g}.",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
