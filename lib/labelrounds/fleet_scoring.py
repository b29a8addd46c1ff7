"""``labelrounds score``: the scores of a studies folder's images, by any number of workers, for a server to serve.

What comes of it is in the same store as a server's own scoring (`labelrounds.pool_scoring`), which shares it safely:
both do only what is missing, and a server that runs sees what is put in at once. The driver alone writes to it, so that
the machines of a cluster need no way to the database.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from labelrounds.checkpoints import Checkpoints
from labelrounds.config import AnyConfig
from labelrounds.database import Database, rounds_file
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError
from labelrounds.fleet import MakeCrew, Tally, duration, stopped_by_signals, work_off
from labelrounds.fleet_work import Case, Order, Outcome
from labelrounds.memory_cache import identity_of
from labelrounds.scores import SCHEMA, Known, ScoreStore, weights_of
from labelrounds.scoring import COSTLY
from labelrounds.store import CLASSES, FINAL, StudyStore

_NAMED = 5  # failures that are told in the sentence at the end


def score_studies(
    configs: Mapping[str, AnyConfig],
    model: str,
    studies: Path,
    costly: tuple[str, ...],
    device: str,
    make_crew: MakeCrew,
    say: Callable[[str], None] | None = None,
) -> str:
    """Score the images of a studies folder that the served version of a model has not scored yet.

    Args:
        configs: all models of the studies, by name.
        model: the one that scores.
        studies: the folder.
        costly: names of `COSTLY`; an image that lacks one of them is scored again.
        device: cpu, cuda or cuda:N; the best there is where it is "".
        make_crew: makes the workers.
        say: gets a line on the progress now and then; on the terminal when None.

    Returns:
        a sentence about it.

    Raises:
        BadInput: an unknown costly score.
        Conflict: no trained version, or none before it to compare with.
        Cancelled: stopped; a further run goes on.
        OutOfSpace: the store can't be written to.
    """
    if unknown := set(costly) - set(COSTLY):
        raise BadInput(f"costly score {min(unknown)!r} is not one of {', '.join(COSTLY)}")
    order = _order(configs[model], studies, costly, device)
    images = images_of(studies, configs)
    store = ScoreStore(Database(rounds_file(str(studies)), SCHEMA), order.config)
    weights = weights_of(order.version)
    waiting = _waiting(store.known(images, Checkpoints(order.config)), images, costly)
    failures: dict[str, str] = {}
    identities: dict[str, str] = {}

    def cases() -> Iterator[Case]:
        for image_id in waiting:
            try:
                # Before it is read: what changes in between is scored again.
                identities[image_id] = identity_of(images[image_id])
            except LabelRoundsError as error:
                failures[image_id] = str(error)
            else:
                yield Case(image_id, images[image_id])

    def take(outcome: Outcome) -> None:
        image_id, identity = outcome.case.key, identities.pop(outcome.case.key)
        if not outcome.reason:
            store.put(outcome.case.image, outcome.found["scores"], weights, identity)
            return
        failures[image_id] = outcome.reason
        if outcome.unusable:
            store.put_failure(outcome.case.image, outcome.reason, weights, order.version.number, identity)

    tally = Tally(0)
    with stopped_by_signals() as stop:
        if waiting:
            tally = work_off(make_crew(order, stop), cases(), len(waiting), take, stop, say)
    said = f"{order.version}: {tally.done:,} image(s) scored in {duration(tally.seconds)}{tally.losses()}"
    said += f", {len(images) - len(waiting):,} of {len(images):,} were known already"
    if failures:
        named = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failures.items())[:_NAMED])
        said += f". {len(failures):,} could not be: {named}" + (" ..." if len(failures) > _NAMED else "")
    if tally.done + len(failures) < len(waiting):
        raise Cancelled(f"stopped; {said}. Run the same again to go on")
    return said


def _waiting(known: Known, images: Mapping[str, Path], costly: tuple[str, ...]) -> list[str]:
    """Return the images that the served version has not scored yet, or not by all costly scores that are wanted."""
    scores = {} if known.stale else known.scores
    short = {image_id for image_id, found in scores.items() if not set(costly) <= found.values.keys()}
    short |= set(known.missing)
    return [image_id for image_id in images if image_id in short]


def images_of(studies: Path, configs: Mapping[str, AnyConfig]) -> dict[str, Path]:
    """Return the images of a studies folder by id, those that were dropped into it of late included.

    Raises:
        Conflict: there is none.
    """
    kinds: dict[str, list[str]] = {"segmentation": [], "classification": [], "multilabel": []}
    for config in configs.values():
        kinds[config.task] += config.labels
        kinds["multilabel"] += config.labels if getattr(config, "multilabel", False) else ()
    store = StudyStore(
        studies,
        known_labels=tuple(dict.fromkeys(kinds["segmentation"])),
        known_classes=tuple(dict.fromkeys(kinds["classification"])),
        multilabel_classes=tuple(dict.fromkeys(kinds["multilabel"])),
        rounds_tag=FINAL if kinds["segmentation"] else CLASSES,
    )
    images = {image_id: Path(store.get_image_uri(image_id)) for image_id in sorted(store.list_images())}
    if not images:
        raise Conflict(f"studies {str(studies)!r} hold no image")
    return images


def _order(config: AnyConfig, studies: Path, costly: tuple[str, ...], device: str) -> Order:
    checkpoints = Checkpoints(config)
    version = checkpoints.served()
    if "committee" in costly and not any(one.number < version.number for one in checkpoints.versions()):
        raise Conflict(f"costly score 'committee' compares {version} with the one before, and there is none")
    return Order("score", config, version, version.weights.read_bytes(), device, folders=(studies,), costly=costly)
