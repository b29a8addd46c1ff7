"""What the curves of many seeds say: areas, paired tests, intervals. Runs of one seed are pairs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from tests.benchmarks.active_learning.simulation import Curve

RESAMPLES = 10_000
Areas = dict[str, dict[int, float]]


def areas(curves: Iterable[Curve], figure: str) -> Areas:
    """Return the area under each strategy's curve by seed; several draws of a seed are averaged."""
    drawn: dict[str, dict[int, list[float]]] = {}
    for curve in curves:
        drawn.setdefault(curve.strategy, {}).setdefault(curve.seed, []).append(curve.area(figure))
    return {name: {seed: float(np.mean(one)) for seed, one in found.items()} for name, found in drawn.items()}


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval (percentiles) of the mean."""
    found = np.asarray(values, dtype=float)
    means = found[np.random.default_rng(seed).integers(len(found), size=(RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


@dataclass(frozen=True)
class Comparison:
    """One strategy against another on the seeds that both have played.

    Attributes:
        other: the other one's name.
        difference: mean of the differences of area, positive where the first is better.
        low: end of its 95 % bootstrap interval.
        high: the other end.
        better: seeds on which the first is better.
        seeds: in all.
        p: of Wilcoxon's two-sided signed-rank test.
        p_holm: corrected for the number of comparisons.
    """

    other: str
    difference: float
    low: float
    high: float
    better: int
    seeds: int
    p: float
    p_holm: float


def against_others(found: Areas, first: str = "auto") -> list[Comparison]:
    """Compare one strategy with each other one, the closest first."""
    made = []
    for other in (name for name in found if name != first):
        seeds = sorted(set(found[first]) & set(found[other]))
        differences = np.array([found[first][seed] - found[other][seed] for seed in seeds])
        if not len(differences):
            continue
        p = float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0
        low, high = interval(differences.tolist())
        made.append((other, float(differences.mean()), low, high, int((differences > 0).sum()), len(seeds), p))
    corrected = holm([one[-1] for one in made])
    compared = [Comparison(*one, p_holm) for one, p_holm in zip(made, corrected, strict=True)]
    return sorted(compared, key=lambda one: one.difference)


def labels_to_reach(curve: Curve, figure: str, target: float) -> int | None:
    """Return the fewest labels with which a curve is at a target, None where it never is."""
    return next((n for n, one in zip(curve.labels, curve.figures, strict=True) if one[figure] >= target), None)


def summary(curves: Sequence[Curve], figure: str, target: float | None = None) -> dict[str, Any]:
    """Return what is published of some curves, as JSON has it.

    Args:
        curves: of all strategies and seeds.
        figure: by which they are compared.
        target: a height; the labels that each curve needs for it are given.
    """
    found = areas(curves, figure)
    names = sorted(found, key=lambda name: -float(np.mean(list(found[name].values()))))
    published: dict[str, Any] = {}
    for name in names:
        own = [curve for curve in curves if curve.strategy == name]
        heights = np.array([[one[figure] for one in curve.figures] for curve in own])
        values = list(found[name].values())
        published[name] = {
            "area": round(float(np.mean(values)), 4),
            "interval": [round(end, 4) for end in interval(values)],
            "final": round(float(heights[:, -1].mean()), 4),
            "curve": np.round(heights.mean(axis=0), 4).tolist(),
            "areas": {seed: round(value, 4) for seed, value in sorted(found[name].items())},
            "query_ms": round(1000 * float(np.median([curve.query_s for curve in own])), 1),
        }
        if target is not None:
            needed = [labels_to_reach(curve, figure, target) for curve in own]
            # A run that never gets there counts as one that needs more than it had: the median is then still right.
            median = float(np.median([np.inf if one is None else one for one in needed]))
            published[name]["labels_to_target"] = None if np.isinf(median) else median
    return {
        "figure": figure,
        "target": target,
        "labels": curves[0].labels,
        "strategies": published,
        "auto_against": [asdict(one) for one in against_others(found)] if "auto" in found else [],
    }
