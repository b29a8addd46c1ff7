"""How a group's labelling stands: all that ``GET /rounds/`` answers and ``labelrounds rounds`` shows, as plain JSON.

Gathered from what others have written: the versions' records, the scores of the pool, the ledger, the history of
labels. No network computes for it, and nothing is handed out. Whatever is missing (a model, a ledger, labels) is left
empty, with a sentence where a reader would wonder.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelrounds.annotators import annotators_agree
from labelrounds.budget import TARGET, Pick, advise, as_json, budget_curve, monitor_curve
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.classification.config import ClassifierConfig
from labelrounds.config import AnyConfig
from labelrounds.database import Database
from labelrounds.duplicates import find_duplicates
from labelrounds.embedding_map import embedding_map
from labelrounds.errors import LabelRoundsError
from labelrounds.policies import learnt_from
from labelrounds.pool import Gathered
from labelrounds.pool_means import note_pool_mean, pool_means
from labelrounds.reviews import review_of
from labelrounds.store import StudyStore, patient_in
from labelrounds.strategies.base import Choice
from labelrounds.suspects import (
    Suspect,
    evidence_of_corrections,
    evidence_of_versions,
    out_of_fold_probabilities,
    outliers,
    wrong_classes,
)
from labelrounds.tasks import label_tag_of, task_of
from labelrounds.thumbnails import thumbnail

logger = logging.getLogger(__name__)

LEDGER_TAIL = 50
_MOST_NAMED, _MOST_LABELS = 100, 500


@dataclass(frozen=True)
class Parts:
    """What a state is made of.

    Attributes:
        config: the model that the rounds are about.
        store: the datastore.
        database: of the rounds.
        gathered: the pool as it is now.
        strategy: by which the queue is ordered.
        choices: the next cases, the first one first.
        ledger: all entries, the oldest first.
        progress: how far the pass over the pool is.
        cold: by image, an embedding that needs no model, for the map of a pool that no version has scored.
        ready: tells whether the prediction of an image is in memory.
        target: mean Dice of predictions on random cases at which to stop.
        thumbnails: whether the queue has pictures, for which images are read.
    """

    config: AnyConfig
    store: StudyStore
    database: Database
    gathered: Gathered
    strategy: str = "auto"
    choices: Sequence[Choice] = ()
    ledger: Sequence[Mapping[str, Any]] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    cold: Mapping[str, Any] = field(default_factory=dict)
    ready: Callable[[Path], bool] = lambda image: False
    target: float = TARGET
    thumbnails: bool = False


def state_of(parts: Parts) -> dict[str, Any]:
    """Return how the labelling stands, ready for JSON: no NaN, no infinity, nothing but plain values.

    Raises:
        LabelRoundsError: the database can't be read.
    """
    config, gathered = parts.config, parts.gathered
    versions = _versions(config)
    infos = _label_infos(parts)
    suspects = [each for each in _suspects(parts, versions) if not review_of(infos.get(each.image, {}))]
    picks = _picks(parts.ledger, config.name)
    points = budget_curve(versions)
    measure = task_of(config).measure
    state = {
        "time": time.time(),
        "model": config.name,
        "task": config.task,
        "version": _served(config),
        "strategy": parts.strategy,
        "cases": _counts(parts),
        "curve": {
            "measure": measure,
            "band": "95 % interval by bootstrap over the cases that each version was judged on",
            "points": [as_json(point) for point in points],
            "monitor": monitor_curve(picks),
        },
        "stop": _advice(parts, advise(points, _pool_means(parts), picks, parts.target, measure)),
        "queue": [_queued(parts, choice, rank) for rank, choice in enumerate(parts.choices, start=1)],
        "leases": [vars(lease) for lease in gathered.standing.leases.values()],
        "aside": [vars(one) for one in gathered.standing.aside.values()],
        "unreadable": [{"image": image, "reason": reason} for image, reason in sorted(gathered.unreadable.items())],
        "ledger": [dict(entry) for entry in parts.ledger[-LEDGER_TAIL:]],
        "labels": _labels(parts),
        "suspects": [vars(suspect) for suspect in suspects[:_MOST_NAMED]],
        "duplicates": _duplicates(parts),
        "agreement": annotators_agree(parts.ledger, parts.store.history, label_tag_of(config)),
        "map": _map(parts, suspects),
        "scoring": _scoring(parts),
        "warnings": _warnings(parts, versions),
    }
    plain: dict[str, Any] = plain_json(state)
    return plain


def plain_json(value: Any) -> Any:
    """Return a value as JSON knows it: null for what is no finite number, text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(each) for each in value]
    if isinstance(value, np.generic):
        return plain_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


# The parts -----------------------------------------------------------------------------------------------------------


def _versions(config: AnyConfig) -> list[Version]:
    try:
        return Checkpoints(config).versions()
    except LabelRoundsError as error:
        logger.warning("The versions of %s are not shown: %s", config.name, error)
        return []


def _served(config: AnyConfig) -> int | None:
    return Checkpoints(config).served_number()


def _counts(parts: Parts) -> dict[str, int]:
    gathered = parts.gathered
    return {
        "images": gathered.images,
        "labelled": len(gathered.pool.labelled),
        "unlabelled": len(gathered.unlabelled),
        "candidates": len(gathered.pool.candidates),
        "in_hand": len(gathered.in_hand),
        "held_back": len(gathered.held_back),
        "put_aside": len(gathered.put_aside),
        "unreadable": len(gathered.unreadable),
        "scored": len(gathered.known.scores),
    }


def _picks(ledger: Sequence[Mapping[str, Any]], model: str) -> list[Pick]:
    """Return the cases drawn at random that a model predicted and a human corrected, in the order of the corrections.

    Of each the first comparison counts, as later versions may have learnt from it. Whether it was drawn at random is a
    property of how it was handed out, whoever then submits it: clients do not always say who they are.
    """
    drawn: dict[str, bool] = {}
    found: dict[str, Pick | None] = {}
    for entry in ledger:
        image, dice = str(entry["image"]), entry.get("dice")
        if entry["event"] == "handed_out":
            drawn.setdefault(image, bool(entry.get("monitor")))
        elif isinstance(dice, int | float) and math.isfinite(dice) and image not in found:
            random = (entry.get("monitor") or drawn.get(image)) and entry.get("model") in (model, None)
            found[image] = Pick(int(entry.get("version") or 0), float(dice)) if random else None
    return [pick for pick in found.values() if pick is not None]


def _pool_means(parts: Parts) -> list[Any]:
    try:
        note_pool_mean(parts.database, parts.config.name, parts.gathered.known, parts.gathered.unlabelled)
    except LabelRoundsError as error:
        logger.warning("The pool's mean score is not kept: %s", error)
    return pool_means(parts.database, parts.config.name)


def _advice(parts: Parts, advice: dict[str, Any]) -> dict[str, Any]:
    """Return the advice, which is to go on only where there is something to go on with."""
    images = parts.gathered.images
    if parts.gathered.unlabelled or not images:
        return advice
    more = f" {advice['sentence']}" if advice["stop"] else ""
    return {**advice, "sentence": f"Every case has a label: {images} of {images}.{more}"}


def _queued(parts: Parts, choice: Choice, rank: int) -> dict[str, Any]:
    path = parts.gathered.files.get(choice.image_id)
    return {
        "id": choice.image_id,
        "rank": rank,
        "reason": choice.reason,
        "score": choice.score,
        "monitor": choice.monitor,
        "ready": path is not None and parts.ready(path),
        "thumbnail": thumbnail(path) if parts.thumbnails and path is not None else None,
    }


def _label_infos(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """Return what is known of the label of each labelled image."""
    tag = label_tag_of(parts.config)
    return {image: entry.labels[tag].info for image, entry in parts.store.entries.items() if tag in entry.labels}


def _labels(parts: Parts) -> list[dict[str, Any]]:
    """Return who has labelled what, when, and a reviewer's word on it, the newest first."""
    found: list[dict[str, Any]] = [
        {
            "image": image,
            "user": str(info.get("user") or ""),
            "client": str(info.get("client_id") or ""),
            "time": float(info.get("ts") or 0),
            "sha256": str(info.get("sha256") or ""),
            "review": review_of(info),
        }
        for image, info in _label_infos(parts).items()
    ]
    return sorted(found, key=lambda each: (-each["time"], each["image"]))[:_MOST_LABELS]


def _suspects(parts: Parts, versions: Sequence[Version]) -> list[Suspect]:
    infos = _label_infos(parts)
    saved = {image: float(info.get("ts") or 0) for image, info in infos.items()}
    evidence = evidence_of_versions(versions, saved, task_of(parts.config).measure)
    if isinstance(parts.config, ClassifierConfig):
        given = {image: [str(name) for name in info.get("classes") or ()] for image, info in infos.items()}
        likely = {**out_of_fold_probabilities(versions, saved), **_present_probabilities(parts, versions)}
        wrong = wrong_classes(likely, given, list(parts.config.labels), parts.config.multilabel)
        # A model that errs on a class is no reason to doubt it, unless nothing more is known of the image.
        return wrong + outliers(each for each in evidence if each.image not in likely)
    checksums = {image: str(info.get("sha256", "-")) for image, info in infos.items()}
    learnt = {version.number: learnt_from(version) for version in versions}
    return outliers([*evidence, *evidence_of_corrections(parts.ledger, checksums, learnt)])


def _present_probabilities(parts: Parts, versions: Sequence[Version]) -> dict[str, list[float]]:
    """Return the classes' probabilities of labelled images that the version which has scored the pool is new to."""
    known = parts.gathered.known
    learnt = next((learnt_from(version) for version in versions if version.number == known.version), None)
    if learnt is None:
        return {}
    unlearnt = [image for image in parts.gathered.pool.labelled if image in known.scores and image not in learnt]
    presence = {image: known.scores[image].by_label.get("presence", {}) for image in unlearnt}
    labels = parts.config.labels
    return {image: [found[label] for label in labels] for image, found in presence.items() if set(labels) <= set(found)}


def _duplicates(parts: Parts) -> list[dict[str, Any]]:
    files, entries = parts.gathered.files, parts.store.entries

    def patient_of(image: str) -> str | None:
        if image not in entries or image not in files:
            return None
        patient = patient_in(image, files[image], entries[image].image.info)
        return patient if patient != image else None

    embeddings = {image: vector for image, vector in _embeddings(parts).items() if image in files}
    found = find_duplicates(embeddings, lambda image: files[image], patient_of)
    return [{**vars(pair), "across_patients": pair.across_patients} for pair in found[:_MOST_NAMED]]


def _embeddings(parts: Parts) -> dict[str, Any]:
    """Return the images' embeddings by the version that has scored them, else those that need no model."""
    if parts.gathered.known.scores:
        return {image: scores.embedding for image, scores in parts.gathered.known.scores.items()}
    return dict(parts.cold)


def _map(parts: Parts, suspects: Sequence[Suspect]) -> dict[str, Any]:
    gathered = parts.gathered
    kinds = dict.fromkeys(gathered.pool.labelled, "labelled")
    kinds |= dict.fromkeys(gathered.standing.leases, "taken")
    kinds |= {suspect.image: "suspect" for suspect in suspects}
    kinds |= {choice.image_id: "queued" for choice in parts.choices}
    version = gathered.known.version
    by = "intensities alone, without a model" if not gathered.known.scores else f"version {version}"
    return {**embedding_map(_embeddings(parts), kinds), "by": by}


def _scoring(parts: Parts) -> dict[str, Any]:
    """Return how far the served version is with its pass over the images: by who passes, or else by what is kept."""
    known, of = parts.gathered.known, len(parts.gathered.files)
    kept = {
        "scored": of - len(known.missing) - len(known.failed),
        "of": of,
        "failed": len(known.failed),
        "version": known.version,
    }
    running = {key: value for key, value in parts.progress.items() if parts.progress.get("running")}
    note = parts.progress.get("note", "")
    return {**kept, "running": False, "eta_s": None, **running, "note": note, "stale": known.stale}


def _warnings(parts: Parts, versions: Sequence[Version]) -> list[str]:
    """Return what a reader should know."""
    known = parts.gathered.known
    found = [*parts.database.warnings, *getattr(parts.store, "warnings", [])]
    if not versions:
        found.append(f"Model {parts.config.name} has no trained version yet.")
    if known.stale:
        found.append(
            f"The scores are of version {known.version}: the served one has {len(known.missing)} images to score yet."
        )
    if known.failed:
        image, reason = next(iter(sorted(known.failed.items())))
        found.append(f"{len(known.failed)} image(s) could not be scored, such as {image}: {reason}")
    return found
