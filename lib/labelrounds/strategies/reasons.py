"""Why a case was chosen, in words that a radiologist reads."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from labelrounds.scores import CaseScores
from labelrounds.strategies.base import Pool
from labelrounds.strategies.clusters import Rows, Space

UNLIKE = 0.9  # share of the candidates that are closer to a labelled case than one that is "unlike any"
FEWEST_KNOWN = 3  # labelled cases with a label, before one can be larger than all


def value_of(scores: CaseScores | None, name: str) -> float | None:
    """Return a score where there is one and it is a number."""
    value = None if scores is None else scores.values.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def by_label(scores: CaseScores | None, measure: str) -> dict[str, float]:
    """Return a measure of every label for which it is a number."""
    found: Mapping[str, float] = {} if scores is None else scores.by_label.get(measure, {})
    return {label: float(value) for label, value in found.items() if value is not None and math.isfinite(value)}


def predicted(scores: CaseScores | None) -> list[str]:
    """Return the labels that the model takes an image to have; the likeliest one where it is sure of none."""
    presence: Mapping[str, float] = {} if scores is None else scores.by_label.get("presence", {})
    if likely := [label for label, value in presence.items() if value >= 0.5]:
        return sorted(likely)
    possible = {label: value for label, value in by_label(scores, "presence").items() if value > 0}
    return [max(sorted(possible), key=lambda label: possible[label])] if possible else []


def of_whole_images(scores: CaseScores | None) -> bool:
    """Tell whether the scores are a classification's."""
    return scores is not None and "volume_ml" not in scores.by_label


def unsure(scores: CaseScores | None) -> str:
    """Return of what the model is unsure: of a label's border, or between which classes."""
    presence = by_label(scores, "presence")
    if of_whole_images(scores) and len(presence) > 1:
        first, second = sorted(sorted(presence), key=lambda label: -presence[label])[:2]
        return f"the model is unsure whether it is {first} or {second}"
    entropy = by_label(scores, "entropy")
    if not entropy:
        return "the model is unsure of it"
    worst = max(sorted(entropy), key=lambda label: entropy[label])
    return f"the model is unsure of {possessive(worst)} border"


def possessive(label: str) -> str:
    """Return "spleen's", "kidneys'"."""
    return f"{label}'" if label.endswith("s") else f"{label}'s"


def unlike_labelled(pool: Pool, space: Space, image_ids: Iterable[str]) -> dict[str, str]:
    """Return "unlike any labelled case" for those of the cases that lie far from all of them."""
    labelled = space.rows(pool.labelled)
    if not len(labelled):
        return {}
    candidates: Rows = space.rows(pool.candidates)
    if not len(candidates):
        return {}
    border = float(np.quantile(space.distance(candidates, labelled), UNLIKE))
    asked = [name for name in image_ids if name in space]
    distances = space.distance(space.rows(asked), labelled)
    return {
        name: "unlike any labelled case"
        for name, far in zip(asked, distances.tolist(), strict=True)
        if far > border or (far == border > 0 and len(candidates) < 10)
    }


class Unusual:
    """In which label's volume or number of pieces a case lies outside all the labelled ones."""

    def __init__(self, pool: Pool) -> None:
        self._scores = pool.scores
        self._ranges: dict[tuple[str, str], tuple[float, float]] = {}
        for measure in ("volume_ml", "components"):
            known: dict[str, list[float]] = {}
            for name in pool.labelled:
                for label, value in by_label(pool.scores.get(name), measure).items():
                    known.setdefault(label, []).append(value)
            for label, values in known.items():
                if len(values) >= FEWEST_KNOWN:
                    self._ranges[measure, label] = min(values), max(values)

    def __call__(self, image_id: str) -> str | None:
        """Return in what a case is unusual, or None."""
        for (measure, label), (least, most) in self._ranges.items():
            value = by_label(self._scores.get(image_id), measure).get(label)
            if value is None:
                continue
            if value > 1.2 * most:
                what = "is larger" if measure == "volume_ml" else "lies in more pieces"
                return f"{label} {what} than in any labelled case"
            if measure == "volume_ml" and value < 0.8 * least:
                return f"{label} is smaller than in any labelled case"
        return None


def joined(*parts: str | None) -> str:
    """Return the parts that there are, as one sentence without a full stop."""
    return "; ".join(part for part in parts if part)
