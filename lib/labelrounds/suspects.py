"""Labels that a human should look at again, because a model that did not learn from them says otherwise.

Read by `labelrounds.round_state`; plain figures, no file is opened. What counts is said by models that had not seen the
label: scores of validation cases and of cross-validation, which a version's record holds, and the Dice between a
prediction and its correction, which the ledger holds for each case that was handed out. A label that was saved again
since is not judged by what was said of the former one.

Low scores are found by the modified z-score of Iglewicz and Hoaglin (1993, ISBN 0873892477), which a few wrong labels
do not sway; wrong classes by confident learning (DOI 10.1613/jair.1.12125) with cleanlab.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from labelrounds.checkpoints import Version
from labelrounds.evaluation import OUT_OF_FOLD
from labelrounds.splits import TRAIN

FEWEST_SCORES, FEWEST_CLASSIFIED = 6, 10
_Z_AT_OUTLIER, _TO_SIGMA = 3.5, 0.6745
# Where nearly all scores are alike, what nobody would see is no outlier: it is at least 0.1 below the median.
_LEAST_MAD = 0.02
CORRECTION = "correction"


@dataclass(frozen=True)
class Evidence:
    """What a model that had not learnt from a label says of it.

    Attributes:
        image: whose label it is.
        scores: how well both agree, 0 to 1, by label; one entry ``""`` where only their mean is known.
        version: of the model; None where it is not known.
        source: ``validation``, ``cross-validation``, or ``correction``, of the prediction that was corrected.
        measure: what the scores are.
    """

    image: str
    scores: Mapping[str, float]
    version: int | None
    source: str
    measure: str = "Dice"


@dataclass(frozen=True)
class Suspect:
    """A label to look at again; ``severity`` orders them, the highest first, and ``score`` is from 0 to 1."""

    image: str
    reason: str
    score: float
    severity: float
    label: str
    source: str
    version: int | None


# What is known -------------------------------------------------------------------------------------------------------


def evidence_of_versions(
    versions: Sequence[Version], saved: Mapping[str, float], measure: str = "Dice"
) -> list[Evidence]:
    """Return what the newest version that was judged on a label, without having learnt from it, says of it.

    Args:
        versions: the trained ones, by number.
        saved: when each image's label was saved, in unix seconds; images that have none now are left out.
        measure: of their scores.
    """
    found: dict[str, Evidence] = {}
    for version in versions:
        source = str(version.record.get("judged_by") or "validation")
        if source == TRAIN or not isinstance(version.record.get("scores"), dict):
            continue
        for image, scores in version.record["scores"].items():
            known = {label: float(value) for label, value in (scores or {}).items() if isinstance(value, int | float)}
            if known and _is_of(version, saved.get(image)):
                found[image] = Evidence(image, known, version.number, source, measure)
    return list(found.values())


def evidence_of_corrections(
    ledger: Iterable[Mapping[str, Any]],
    checksums: Mapping[str, str],
    learnt: Mapping[int, Collection[str]],
) -> list[Evidence]:
    """Return the Dice between the labels as they are now and the predictions that they were corrected from.

    Args:
        ledger: the entries, the oldest first.
        checksums: of each image's label as it is now.
        learnt: the images that each version has learnt from, whose predictions on them are left out.
    """
    found: dict[str, Evidence] = {}
    for entry in ledger:
        dice, image, version = entry.get("dice"), str(entry.get("image")), entry.get("version")
        if not isinstance(dice, int | float) or not math.isfinite(dice) or image in learnt.get(version or 0, ()):
            continue
        if entry.get("label") == checksums.get(image, ""):
            found[image] = Evidence(image, {"": float(dice)}, version, CORRECTION)
    return list(found.values())


def out_of_fold_probabilities(versions: Sequence[Version], saved: Mapping[str, float]) -> dict[str, list[float]]:
    """Return the classes' probabilities of each labelled image by the newest version that did not learn from it."""
    found: dict[str, list[float]] = {}
    for version in versions:
        for image, probabilities in (version.record.get(OUT_OF_FOLD) or {}).items():
            if _is_of(version, saved.get(image)):
                found[image] = [float(value) for value in probabilities]
    return found


def _is_of(version: Version, saved: float | None) -> bool:
    """Tell whether a label was saved before the training of a version began, so that it is the one it was judged on."""
    if saved is None:
        return False
    try:
        ended = datetime.fromisoformat(str(version.record.get("created"))).timestamp()
    except ValueError:
        return False
    # Labels are dated by the whole second.
    return saved + 1 <= ended - float(version.record.get("wall_time_s") or 0.0)


# What is suspect -----------------------------------------------------------------------------------------------------


def outliers(evidence: Iterable[Evidence]) -> list[Suspect]:
    """Return the labels whose agreement with a model is far below that of the others, the worst first.

    Compared are scores of one label by one version, or those of corrections, of at least six cases; an image is named
    once, for the label that is farthest off.
    """
    groups: dict[tuple[str, int | None, str], list[Evidence]] = defaultdict(list)
    for each in evidence:
        version = None if each.source == CORRECTION else each.version
        for label in each.scores:
            groups[each.source, version, label].append(each)
    worst: dict[str, Suspect] = {}
    for (_, _, label), group in groups.items():
        for suspect in _outliers_of(group, label):
            if suspect.image not in worst or suspect.severity > worst[suspect.image].severity:
                worst[suspect.image] = suspect
    return sorted(worst.values(), key=lambda suspect: (-suspect.severity, suspect.image))


def _outliers_of(group: Sequence[Evidence], label: str) -> list[Suspect]:
    if len(group) < FEWEST_SCORES:
        return []
    scores = np.array([each.scores[label] for each in group])
    median = float(np.median(scores))
    spread = max(float(np.median(np.abs(scores - median))), _LEAST_MAD)
    severities = _TO_SIGMA * (median - scores) / spread
    return [
        Suspect(
            each.image, _why(each, label, median, len(group)), float(score), float(z), label, each.source, each.version
        )
        for each, score, z in zip(group, scores, severities, strict=True)
        if z > _Z_AT_OUTLIER
    ]


def _why(each: Evidence, label: str, median: float, cases: int) -> str:
    what = f"{each.measure} of {label}" if label else each.measure
    version = "" if each.version is None else f" of version {each.version}"
    if each.source == CORRECTION:
        said = f"{what} {each.scores[label]:.2f} between the prediction{version} and the label made from it"
    else:
        said = f"{what} {each.scores[label]:.2f} between label and prediction{version}, which did not learn from it"
    return f"{said}; the median of {cases} such cases is {median:.2f}"


def wrong_classes(
    probabilities: Mapping[str, Sequence[float]],
    given: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    multilabel: bool,
) -> list[Suspect]:
    """Return the images whose classes are probably others than the given ones, the least likely first.

    Args:
        probabilities: by image, of each class, by a model that did not learn from the image.
        given: by image, the classes that a human gave.
        classes: the model's.
        multilabel: whether an image may have any number of classes.

    Returns:
        none where under ten images are known, or where each has the same class.
    """
    images = sorted(
        image
        for image, values in probabilities.items()
        if image in given
        and len(values) == len(classes)
        and np.isfinite(values).all()
        and set(given[image]) <= set(classes)
        and (multilabel or len(given[image]) == 1)
    )
    present = sorted({name for image in images for name in given[image]}, key=list(classes).index)
    if len(images) < FEWEST_CLASSIFIED or len(present) < 2:
        return []
    # Classes that no image has can't be confused with; the others' probabilities are made to sum to one again.
    columns = [list(classes).index(name) for name in present]
    table = np.clip(np.array([probabilities[image] for image in images])[:, columns], 1e-6, 1.0)
    table = table if multilabel else table / table.sum(axis=1, keepdims=True)
    numbers = [[present.index(name) for name in given[image]] for image in images]
    found = _mislabelled(numbers, table, multilabel)
    return [_wrong_class(images[int(at)], table[int(at)], numbers[int(at)], present, multilabel) for at in found]


def _mislabelled(numbers: list[list[int]], table: Any, multilabel: bool) -> Any:
    """Return the indices of the rows whose numbers are probably wrong, the least likely first."""
    from cleanlab import filter as single  # takes a second
    from cleanlab import multilabel_classification

    ranked = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    if multilabel:
        return multilabel_classification.filter.find_label_issues(numbers, table, **ranked)
    return single.find_label_issues(np.array([number for (number,) in numbers]), table, **ranked)


def _wrong_class(image: str, row: Any, numbers: Sequence[int], present: Sequence[str], multilabel: bool) -> Suspect:
    truth = np.isin(np.arange(len(present)), numbers)
    # How likely what was given is: of several labels, the one that is least.
    trust = np.where(truth, row, 1 - row) if multilabel else np.where(truth, row, np.inf)
    at = int(trust.argmin())
    if multilabel:
        says = f"labelled {'with' if truth[at] else 'without'} {present[at]}; a model gives it {row[at]:.0%}"
    else:
        likely = int(np.argmax(row))
        says = f"labelled {present[at]} ({row[at]:.0%}); a model says {present[likely]} ({row[likely]:.0%})"
    score = float(trust[at])
    return Suspect(
        image, f"{says}, and did not learn from this image", score, 1 - score, present[at], "confident learning", None
    )
