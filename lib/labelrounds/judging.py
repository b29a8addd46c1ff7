"""Whether a new version may replace the served one: both on the same cases, case by case.

The difference is taken within each case, so that easy and hard cases cancel out. The mean may fall by 0.005 and no
label by more than 0.02: with few cases, a rule without tolerance would keep an old version by chance alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from labelrounds.learning import mean_dice, mean_of

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
        cases: how many cases it rests on.
        candidate: mean Dice of the candidate over the labels.
        served: mean Dice of the served version over the labels.
    """

    difference: float
    per_label: dict[str, float]
    interval: tuple[float, float] | None
    cases: int
    candidate: float
    served: float

    @property
    def objection(self) -> str | None:
        """Why the candidate must not replace what is served; None when it may."""
        if self.difference < -TOLERATED_MEAN_LOSS - _ROUNDING:
            return (
                f"mean Dice {self.candidate:.3f} is below the served version's {self.served:.3f} on the same"
                f" {self.cases} case(s), by {-self.difference:.3f} (allowed {TOLERATED_MEAN_LOSS})"
            )
        for label, change in self.per_label.items():
            if change < -TOLERATED_LABEL_LOSS - _ROUNDING:
                return (
                    f"Dice of {label} is {-change:.3f} below the served version's on the same {self.cases} case(s)"
                    f" (allowed {TOLERATED_LABEL_LOSS})"
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
        between = (
            "" if self.interval is None else f" (95 % interval {self.interval[0]:+.3f} to {self.interval[1]:+.3f})"
        )
        return f"Mean paired difference to the served version {self.difference:+.3f}{between}."


def compare(candidate: Scores, served: Scores) -> Comparison:
    """Compare the Dice of two versions on the same cases, in the same order.

    Where one finds a label that is not there and the other rightly finds none, the latter counts as 1; where both
    rightly find none, the label says nothing in that case.
    """
    changes = [
        {label: _filled(one[label]) - _filled(other[label]) for label in one if not _nothing(one[label], other[label])}
        for one, other in zip(candidate, served, strict=True)
    ]
    per_case = [sum(change.values()) / len(change) for change in changes if change]
    labels = list(candidate[0]) if candidate else []
    per_label = {label: [change[label] for change in changes if label in change] for label in labels}
    return Comparison(
        difference=float(np.mean(per_case)) if per_case else 0.0,
        per_label={label: float(np.mean(values)) for label, values in per_label.items() if values},
        interval=_interval(per_case),
        cases=len(candidate),
        candidate=mean_of(mean_dice(list(candidate))),
        served=mean_of(mean_dice(list(served))),
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
