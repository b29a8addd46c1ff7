"""How well annotators agree on the cases that two of them have labelled.

Read by `labelrounds.round_state`. Who submitted which label stands in the ledger of rounds, what the label was in the
history of the studies folder (`labelrounds.history`), which keeps every version. Of each annotator the last label of a
case counts. A label that was made from another's is no second opinion; whether a case was handed out for that purpose
is said with each pair.
"""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from labelrounds.classification.labels import read_class_label
from labelrounds.errors import LabelRoundsError
from labelrounds.history import History
from labelrounds.labels import on_grid_of
from labelrounds.metrics import dice
from labelrounds.names import is_safe_id, is_safe_tag
from labelrounds.reading import read_label
from labelrounds.store import CLASSES

logger = logging.getLogger(__name__)

FEWEST_FOR_KAPPA = 5
_SECONDS = 2.0


def annotators_agree(
    ledger: Iterable[Mapping[str, Any]], history: History, tag: str, seconds: float = _SECONDS
) -> dict[str, Any]:
    """Return how alike the labels are that different annotators gave the same cases.

    Args:
        ledger: the entries, the oldest first.
        history: of the studies folder.
        tag: of the labels, ``final`` or ``classes``.
        seconds: after which no more labels are read; the newest pairs come first.

    Returns:
        ``pairs`` with ``image``, ``annotators``, ``second`` (whether it was handed out to be compared), ``agreement``
        and ``by_label`` (Dice of each, or whether the classes are the same); ``mean``, ``worst``, ``kappa`` by pair of
        annotators (Cohen's, of classes, from five cases on), ``left_out`` (how many could not be compared or were not
        yet), ``sentence``.
    """
    wanted = _twice_labelled(ledger)
    versions = _versions(history, tag) if wanted else {}
    until, pairs, left_out = time.monotonic() + seconds, [], 0
    for image, (one, first), (other, second), asked in wanted:
        found = None
        if time.monotonic() < until:
            found = _compared(versions.get((image, first)), versions.get((image, second)), tag)
        if found is None:
            left_out += 1
            continue
        pairs.append({"image": image, "annotators": [one, other], "second": asked, **found})
    known = [pair["agreement"] for pair in pairs if pair["agreement"] is not None]
    mean = float(np.mean(known)) if known else None
    return {
        "pairs": [{key: value for key, value in pair.items() if key != "classes"} for pair in pairs],
        "mean": mean,
        "worst": min(known) if known else None,
        "kappa": _kappas(pairs) if tag == CLASSES else [],
        "left_out": left_out,
        "sentence": _said(mean, len(known), tag),
    }


def _said(mean: float | None, pairs: int, tag: str) -> str:
    if mean is None:
        return "No case was labelled by two annotators yet, so nothing is known of how well they agree."
    few = "" if pairs >= FEWEST_FOR_KAPPA else ": too few to judge by"
    if tag == CLASSES:
        return f"Two annotators gave the same classes in {mean:.0%} of {pairs} comparison(s){few}."
    return f"Labels by two annotators agree with a mean Dice of {mean:.3f} in {pairs} comparison(s){few}."


def _twice_labelled(
    ledger: Iterable[Mapping[str, Any]],
) -> list[tuple[str, tuple[str, str], tuple[str, str], bool]]:
    """Return image, two annotators with the checksums of their last labels, and if asked for; the newest first."""
    latest: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    asked: dict[str, bool] = defaultdict(bool)
    for number, entry in enumerate(ledger):
        image, client, label = str(entry.get("image")), entry.get("client"), entry.get("label")
        if entry.get("event") == "submitted" and client and label:
            latest[image][str(client)] = (number, str(label))
            asked[image] |= bool((entry.get("details") or {}).get("second"))
    found = [
        (max(one[1][0], other[1][0]), image, (one[0], one[1][1]), (other[0], other[1][1]), asked[image])
        for image, labels in latest.items()
        for one, other in combinations(sorted(labels.items()), 2)
    ]
    return [pair[1:] for pair in sorted(found, key=lambda pair: -pair[0])]


def _versions(history: History, tag: str) -> dict[tuple[str, str], tuple[Path, tuple[tuple[str, int], ...] | None]]:
    """Return the file of each version of the labels with a tag, by image and checksum, and what its values mean."""
    found: dict[tuple[str, str], tuple[Path, tuple[tuple[str, int], ...] | None]] = {}
    for entry in history.entries():
        image, info = entry.get("image"), entry.get("info")
        if entry.get("tag") != tag or not isinstance(info, dict) or not is_safe_id(image) or not is_safe_tag(tag):
            continue
        digest, values = str(info.get("sha256") or ""), info.get("labels")
        name = str(info.get("name") or "")
        path = history.version(str(image), tag, name[len(str(image)) :], digest)
        meaning = tuple((str(key), int(value)) for key, value in values.items()) if isinstance(values, dict) else None
        found[str(image), digest] = (path, meaning)
    return found


def _compared(one: Any, other: Any, tag: str) -> dict[str, Any] | None:
    """Return how alike two labels are; None where one is not there any more, or can't be read."""
    if one is None or other is None:
        return None
    try:
        if tag == CLASSES:
            return _same_classes(one[0], other[0])
        by_label = dict(_dice_of(*one, *other))
    except (LabelRoundsError, OSError, ValueError) as error:
        logger.warning("Two labels are not compared: %s", error)
        return None
    known = [value for value in by_label.values() if not math.isnan(value)]
    shown = {label: None if math.isnan(value) else value for label, value in by_label.items()}
    return {"agreement": float(np.mean(known)) if known else None, "by_label": shown}


def _same_classes(one: Path, other: Path) -> dict[str, Any]:
    first, second = (frozenset(read_class_label(path).classes) for path in (one, other))
    by_label: dict[str, float] = {name: float((name in first) == (name in second)) for name in sorted(first | second)}
    return {"agreement": float(first == second), "by_label": by_label, "classes": (first, second)}


@lru_cache(maxsize=4096)  # the versions of labels never change
def _dice_of(
    one: Path, values: tuple[tuple[str, int], ...] | None, other: Path, others: tuple[tuple[str, int], ...] | None
) -> tuple[tuple[str, float], ...]:
    """Return the Dice of each label that both have named, on the first one's grid."""
    first = read_label(one)
    first_array, second_array = (
        first.array[0],
        on_grid_of(read_label(other), first.shape, first.affine, False, "a label"),
    )
    named, also = dict(values or _nameless(first_array)), dict(others or _nameless(second_array))
    return tuple(
        (label, dice(np.where(first_array == named[label], 1, 0), np.where(second_array == also[label], 1, 0), 1))
        for label in named
        if label in also
    )


def _nameless(array: Any) -> tuple[tuple[str, int], ...]:
    return tuple((f"value {value}", int(value)) for value in np.unique(array) if value)


def _kappas(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return Cohen's kappa (DOI 10.1177/001316446002000104) of each two annotators with five cases or more."""
    together: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        first, second = (json.dumps(sorted(classes)) for classes in pair["classes"])
        together[tuple(pair["annotators"])].append((first, second))
    return [
        {"annotators": list(annotators), "kappa": kappa, "cases": len(given)}
        for annotators, given in sorted(together.items())
        if len(given) >= FEWEST_FOR_KAPPA and (kappa := cohens_kappa(given)) is not None
    ]


def cohens_kappa(given: Sequence[tuple[str, str]]) -> float | None:
    """Return how much more often two agree than by chance, 1 being always; None where both always say the same one."""
    first, second = (np.array(side) for side in zip(*given, strict=True))
    names = np.unique(np.concatenate([first, second]))
    chance = sum(float((first == name).mean() * (second == name).mean()) for name in names)
    return None if chance >= 1 else (float((first == second).mean()) - chance) / (1 - chance)
