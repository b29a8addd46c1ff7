"""Whether a new version may replace the served one: both on the same cases, case by case.

The difference is taken within each case, so that easy and hard cases cancel out. The mean may fall by 0.005 and no
label by more than 0.02: with few cases, a rule without tolerance would keep an old version by chance alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

TOLERATED_MEAN_LOSS, TOLERATED_LABEL_LOSS = 0.005, 0.02
FEWEST_FOR_INTERVAL = 5
_ROUNDING = 1e-9

Scores = Sequence[dict[str, float]]
"""Dice per label of each case; nan where a label is neither in the prediction nor in the truth."""


@dataclass(frozen=True)
class Comparison:
    """A candidate against what is served.

    Attributes:
        difference: mean over the cases of (candidate - served), each the mean over the labels.
        per_label: mean over the cases of (candidate - served) of each label.
        interval: 95 % t interval of ``difference``; None for under five cases.
        cases: in how many cases one of the two found something or had something to find.
        label_cases: the same for each label.
        candidate: mean of the candidate's values of which ``difference`` is that of the differences.
        served: that of the served version's.
    """

    difference: float
    per_label: dict[str, float]
    interval: tuple[float, float] | None
    cases: int
    label_cases: dict[str, int]
    candidate: float
    served: float
    measure: str = "Dice"

    @property
    def objection(self) -> str | None:
        """Why the candidate must not replace what is served; None when it may."""
        if self.difference < -TOLERATED_MEAN_LOSS - _ROUNDING:
            return (
                f"mean {self.measure} {self.candidate:.3f} is below the served version's {self.served:.3f} on the same"
                f" {self.cases} case(s), by {-self.difference:.3f} (allowed {TOLERATED_MEAN_LOSS})"
            )
        for label, change in self.per_label.items():
            if change < -TOLERATED_LABEL_LOSS - _ROUNDING:
                return (
                    f"{self.measure} of {label} is {-change:.3f} below the served version's on the same"
                    f" {self.label_cases[label]} case(s) (allowed {TOLERATED_LABEL_LOSS})"
                )
        return None

    def figures(self) -> dict[str, object]:
        """Return the comparison as a version's record keeps it."""
        return {
            "difference": round(self.difference, 4),
            "interval_95": [round(end, 4) for end in self.interval] if self.interval else None,
            "per_label": {label: round(change, 4) for label, change in self.per_label.items()},
            "cases": self.cases,
        }

    def __str__(self) -> str:
        if not self.cases:
            return "Neither version finds anything in the cases compared, where there is nothing to find."
        between = (
            "" if self.interval is None else f" (95 % interval {self.interval[0]:+.3f} to {self.interval[1]:+.3f})"
        )
        return f"Mean paired difference to the served version {self.difference:+.3f}{between}."


def compare(candidate: Scores, served: Scores, measure: str = "Dice") -> Comparison:
    """Compare the scores of two versions, by a measure, on the same cases, in the same order.

    Where one finds a label that is not there and the other rightly finds none, the latter counts as 1; where both
    rightly find none, the label says nothing in that case.
    """
    pairs = [
        {label: (_filled(one[label]), _filled(other[label])) for label in one if not _nothing(one[label], other[label])}
        for one, other in zip(candidate, served, strict=True)
    ]
    per_case = [np.mean(list(pair.values()), axis=0) for pair in pairs if pair]
    labels = list(candidate[0]) if candidate else []
    per_label = {label: [pair[label] for pair in pairs if label in pair] for label in labels}
    of_candidate, of_served = (float(mean) for mean in np.mean(per_case, axis=0)) if per_case else (math.nan, math.nan)
    return Comparison(
        difference=of_candidate - of_served if per_case else 0.0,
        per_label={label: float(np.mean([one - other for one, other in of])) for label, of in per_label.items() if of},
        interval=_interval([float(one - other) for one, other in per_case]),
        cases=len(per_case),
        label_cases={label: len(of) for label, of in per_label.items()},
        candidate=of_candidate,
        served=of_served,
        measure=measure,
    )


def _filled(dice: float) -> float:
    return 1.0 if math.isnan(dice) else dice


def _nothing(one: float, other: float) -> bool:
    return math.isnan(one) and math.isnan(other)


def _interval(differences: list[float]) -> tuple[float, float] | None:
    if len(differences) < FEWEST_FOR_INTERVAL:
        return None
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean - half, mean + half
