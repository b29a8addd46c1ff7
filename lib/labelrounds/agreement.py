"""How well the server's prediction agreed with the label that an annotator made of it.

At the end of a round: each submission in the ledger is compared with what the served version says of the image, in a
thread that waits while users' requests compute. For a label map that is the Dice of each label
(DOI 10.2307/1932409), for classes that of the two sets of classes, which for an image of one class is 1 where it was
right and 0 where not.

Concurrency and crash: a submission never waits for this. Each gets one entry of the event ``agreement``, with the
reason in words where there is nothing to compare; those without one are taken up again at the next start. A version
that has learnt from the label in the meantime is not asked: it would agree too well.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelrounds.backlog import Backlog
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import AnyConfig
from labelrounds.errors import Cancelled, LabelRoundsError, NotFound, OutOfSpace, Overloaded
from labelrounds.labels import by_position, on_grid_of
from labelrounds.ledger import Ledger
from labelrounds.metrics import dice
from labelrounds.policies import learnt_from
from labelrounds.reading import read_geometry, read_label
from labelrounds.store import CLASSES, FINAL, StudyStore

logger = logging.getLogger(__name__)

_AGAIN_AFTER_S = 0.5  # where a user's request came first
_PAUSE_S = 10.0  # where the disk or the database takes nothing: each try is a whole prediction
_LIKELY = 0.5  # from which on a class is predicted where an image may have several


class Predicting(Protocol):
    """What is asked of the app."""

    @property
    def configs(self) -> Mapping[str, AnyConfig]:
        """The models by name."""

    def datastore(self) -> Any:
        """Return the datastore."""

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return ``file``, which the caller removes, and ``params`` of a prediction; see `LabelRoundsApp.infer`."""


class NothingToCompare(LabelRoundsError):
    """There is no fair prediction to compare a label with; the message says why."""


class Agreement:
    """Compares submissions with predictions, one after the other, in a thread that starts with the first.

    Args:
        app: predicts.
        ledger: which is read and written.
    """

    def __init__(self, app: Predicting, ledger: Ledger) -> None:
        self._app, self._ledger = app, ledger
        self._backlog = Backlog("agreement", self._do)

    def resume(self) -> None:
        """Compare all submissions that were not compared yet."""
        with self._backlog.changed:  # what is noted in between must not be added again
            self._backlog.add({(one["id"], one["label"]): one for one in self._ledger.without_agreement()})

    def close(self) -> None:
        """Begin no further comparison; wait a few seconds for the end of what is under way."""
        self._backlog.close()

    def _do(self, submission: dict[str, Any]) -> float | None:
        """Compare one, now or after so many seconds."""
        try:
            self._note(submission)
        except Cancelled:
            return _AGAIN_AFTER_S
        except NotFound as error:  # of a database that was lost meanwhile
            logger.warning("%s: not compared with a prediction: %s", submission["image"], error)
        except LabelRoundsError as error:
            logger.warning("Not compared yet with a prediction: %s: %s", submission["image"], error)
            return _PAUSE_S
        return None

    def _note(self, submission: dict[str, Any]) -> None:
        """Compare, and write what was found into the ledger."""
        try:
            value, details = compare(self._app, submission)
        except NothingToCompare as error:
            value, details = None, {"why": str(error)}
        except (Cancelled, Overloaded, OutOfSpace):  # another time
            raise
        except LabelRoundsError as error:  # as an image that was removed meanwhile
            logger.warning("%s: not compared with a prediction: %s", submission["image"], error)
            value, details = None, {"why": str(error)[:500]}
        except Exception as error:  # one label must not keep the others from being compared
            logger.exception("%s: not compared with a prediction", submission["image"])
            value, details = None, {"why": f"the comparison failed: {error}"[:500]}
        self._ledger.note_agreement(submission["id"], submission["label"], value, details)


def compare(app: Predicting, submission: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """Compare a submission with what the served version predicts.

    Returns:
        the Dice, the mean over the labels that either has, None where neither has any; and ``model``, ``version``,
        ``present`` (the labels that the submission has), ``per_label`` or ``predicted`` and ``right``.

    Raises:
        NothingToCompare: no trained version, one that knows the label already, or a label that was replaced since.
        Cancelled: a user's request was in the way.
    """
    config, store = app.configs.get(submission["model"] or ""), app.datastore()
    if config is None or submission["version"] is None:
        raise NothingToCompare("there was no trained version to predict with")
    image, tag = submission["image"], FINAL if config.task == "segmentation" else CLASSES
    entry = store.entries.get(image)
    label = entry.labels.get(tag) if entry is not None else None
    if label is None or label.info.get("sha256") != submission["label"]:
        raise NothingToCompare("the label was replaced or removed before it was compared")
    served = Checkpoints(config).current()
    if image in learnt_from(served):
        raise NothingToCompare(f"{served} has learnt from a label of this image")
    request = {"model": config.name, "image": image, "background": True, "client_id": "agreement"}
    found = app.infer({**request, "json": config.task != "segmentation", "result_extension": ".nrrd"})
    about = {"model": config.name, "version": found["params"]["version"]}
    if config.task != "segmentation":
        agreed, details = _of_classes(found["params"]["prediction"], label.info, bool(getattr(config, "multilabel", 0)))
        return agreed, {**about, **details}
    try:
        value, details = _of_label_maps(store, image, Path(found["file"]), label.info, config.labels)
    finally:
        Path(found["file"]).unlink(missing_ok=True)
    return value, {**about, **details}


def _of_label_maps(
    store: StudyStore, image: str, prediction: Path, info: Mapping[str, Any], labels: Sequence[str]
) -> tuple[float | None, dict[str, Any]]:
    geometry = read_geometry(Path(store.get_image_uri(image)))

    def read(file: Path) -> NDArray[np.uint8]:
        return on_grid_of(read_label(file), geometry.shape, geometry.affine, geometry.is_flat, file.name)

    said, truth = read(prediction), read(Path(store.get_label_uri(image, FINAL)))
    values: Mapping[str, int] = info.get("labels") or by_position(labels)
    per_label = {}
    for predicted, name in enumerate(labels, start=1):
        if name in values:
            both = np.where(truth == values[name], 1, 0), np.where(said == predicted, 1, 0)
            per_label[name] = dice(both[1], both[0], 1)
    finite = {name: round(value, 4) for name, value in per_label.items() if not math.isnan(value)}
    present = [name for name, value in values.items() if np.any(truth == value)]
    mean = round(sum(finite.values()) / len(finite), 4) if finite else None
    return mean, {"present": present, "per_label": finite}


def _of_classes(
    prediction: Sequence[Mapping[str, Any]], info: Mapping[str, Any], multilabel: bool
) -> tuple[float, dict[str, Any]]:
    likely = [str(one["label"]) for one in prediction if one["score"] >= _LIKELY]
    predicted = set(likely if multilabel else [str(prediction[0]["label"])])
    truth = set(info.get("classes") or ())
    size = len(predicted) + len(truth)
    value = 2 * len(predicted & truth) / size if size else 1.0  # of none both said none
    details = {"present": sorted(truth), "predicted": sorted(predicted), "right": predicted == truth}
    return round(value, 4), details
