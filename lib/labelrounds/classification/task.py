"""What training has to know of classification; see `labelrounds.tasks`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labelrounds.cases import PreparedCase
from labelrounds.classification.calibration import probabilities_of, temperature_of
from labelrounds.classification.cases import ClassLoss, ImageSampler, class_tensors, truth_of
from labelrounds.classification.config import QUICK, ClassifierConfig
from labelrounds.classification.contest import contest, fit_alone
from labelrounds.classification.metrics import class_metrics
from labelrounds.classification.outputs import logits_of, measured
from labelrounds.classification.report import write_report
from labelrounds.devices import device_of
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.evaluation import OUT_OF_FOLD
from labelrounds.splits import TEST, TRAIN, VALIDATION
from labelrounds.store import CLASSES
from labelrounds.tasks import Task
from labelrounds.version_files import task_of_served, tensors_of_served

if TYPE_CHECKING:
    from labelrounds.learning import Outcome
    from labelrounds.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

_SHOWN = 5
REPORT = "report"


def _obstacle(cases: list[PreparedCase], config: ClassifierConfig) -> str | None:
    counts = truth_of(cases).sum(0).tolist()
    if config.multilabel:
        learnable = [name for name, count in zip(config.labels, counts, strict=True) if 0 < count < len(cases)]
        return None if learnable else f"no class of {', '.join(config.labels)} has images with it and images without"
    present = [name for name, count in zip(config.labels, counts, strict=True) if count]
    if len(present) > 1:
        return None
    return f"all of the {len(cases)} usable labels are {present[0]!r}; it takes images of at least two classes"


def _remarks(cases: list[PreparedCase], config: ClassifierConfig) -> list[str]:
    counts = truth_of(cases).sum(0).tolist()
    absent = [name for name, count in zip(config.labels, counts, strict=True) if not count]
    return [f"no training case is of class {', '.join(absent)}"] if absent else []


def _groups(network: Any, config: ClassifierConfig) -> list[dict[str, Any]]:
    """Return the last layer's parameters and, unless they are left as they are, the encoder's."""
    head = list(network.head.parameters())
    known = {id(parameter) for parameter in head}
    encoder = [parameter for parameter in network.parameters() if id(parameter) not in known]
    rate = config.training.encoder_rate
    if rate == 0:
        network.frozen = True
        for parameter in encoder:
            parameter.requires_grad_(False)
        return [{"params": head, "scale": 1.0}]
    return [{"params": head, "scale": 1.0}, {"params": encoder, "scale": rate}]


def _initialise(network: nn.Module, config: ClassifierConfig) -> None:
    """Start from another model's served weights.

    Its features must be the network's, all of them. How slices are combined is taken over where both do so alike; the
    last layer, which is of other classes, never.

    Raises:
        LabelRoundsError: there is no such model, it has no weights, it segments, or its features are another network's.
    """
    source = config.training.init_from
    if source is None:
        return
    if task_of_served(source) != config.task:
        raise LabelRoundsError(
            f"training.init_from {source!r} is a segmentation model, whose features are of voxels and not of an image;"
            " only a classification model gives embeddings to start from"
        )
    own, theirs = network.state_dict(), tensors_of_served(source)
    features = sorted(name for name in own.keys() | theirs.keys() if name.startswith("features."))
    differing = [f"{name} {_unlike(own, theirs, name)}" for name in features if _unlike(own, theirs, name)]
    if differing or not features:
        shown = "; ".join(differing[:_SHOWN]) + ("; ..." if len(differing) > _SHOWN else "")
        raise LabelRoundsError(
            f"training.init_from {source!r}: {len(differing)} of its {len(features)} tensors are not those of"
            f" {config.name} ({shown}); both need the same network with the same options, dimensions and channels"
        )
    taken = [name for name in own if not name.startswith("head.") and not _unlike(own, theirs, name)]
    network.load_state_dict({**own, **{name: theirs[name] for name in taken}})
    logger.info("%s starts from %d tensors of %s", config.name, len(taken), source)


def _unlike(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], name: str) -> str:
    """Return how a tensor of another network differs from one's own, "" where it has the same place."""
    if name not in theirs:
        return "is missing"
    if name not in own:
        return "is unknown"
    found, wanted = list(theirs[name].shape), list(own[name].shape)
    return "" if found == wanted else f"has shape {found}, not {wanted}"


def _complete(plan: "TrainingPlan", outcome: "Outcome", config: ClassifierConfig, folder: Path) -> dict[str, Any]:
    """Calibrate a version that is being written, measure it and write its report; return what its record says.

    The temperature is chosen on the validation cases (else on none: it is 1), and tells nothing but how sure the model
    says to be. Test cases are measured with it, and decide nothing.
    """
    device = device_of(outcome.network)
    metrics: dict[str, Any] = {}
    unlearnt: dict[str, list[float]] = {}
    temperature = 1.0
    for part in (VALIDATION, TEST) if plan.parts[VALIDATION] else (TRAIN,):
        cases = plan.parts[part]
        if not cases:
            continue
        try:
            logits = torch.stack(list(logits_of(outcome.network, cases, device)))
        except TooLarge as error:
            plan.note(f"{part} not measured: {error}")
            continue
        truth = truth_of(cases)
        if part == VALIDATION:
            temperature = temperature_of(logits, truth, config.multilabel)
        probabilities = probabilities_of(logits, config.multilabel, temperature).numpy()
        if part != TRAIN:
            rows = probabilities.round(6).tolist()
            unlearnt |= {case.image_id: row for case, row in zip(cases, rows, strict=True)}
        metrics[part] = class_metrics(probabilities, truth.numpy(), config.labels, config.multilabel)
        _report(folder / REPORT / part, cases, probabilities, metrics[part], config, part)
    return {"temperature": round(temperature, 6), "metrics": metrics, OUT_OF_FOLD: unlearnt}


def _report(
    folder: Path,
    cases: Sequence[PreparedCase],
    probabilities: NDArray[Any],
    metrics: dict[str, Any],
    config: ClassifierConfig,
    part: str,
) -> None:
    """Write the pictures of a part's cases; a report that fails ends no training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(
            folder,
            [case.image_id for case in cases],
            probabilities,
            truth_of(cases).numpy(),
            config.labels,
            config.multilabel,
            metrics,
            lambda index: middle_slice(cases[index].image),
            f"{config.name}: {part} cases",
        )
    except Exception as error:
        logger.warning("No report on the %s cases of %s: %s", part, config.name, error)


def middle_slice(image: torch.Tensor) -> NDArray[np.float32]:
    """Return the middle slice of an image ``(C, X, Y, Z)`` in RAS order as it is looked at: anterior up, right left."""
    plane = image[0, :, :, image.shape[3] // 2].float().cpu().numpy()
    return np.ascontiguousarray(plane[::-1, ::-1].T)


CLASSIFICATION = Task(
    label_tag=CLASSES,
    measure="Quadratic score",
    tensors=class_tensors,
    obstacle=_obstacle,
    remarks=_remarks,
    sampler=ImageSampler,
    loss=ClassLoss,
    # In bfloat16 oneDNN garbles the gradients of 3-D kernels that are longer than what they see, as some layers' are.
    shortest=lambda config: 1 if config.dimensions == 3 else config.input_size[0],
    measured=measured,
    groups=_groups,
    initialise=_initialise,
    picture=lambda cases, predictions: None,
    complete=_complete,
    fit=lambda config: fit_alone if config.training.classifier in QUICK else None,
    begins_anew=lambda config: config.training.classifier not in QUICK or config.training.init_from is not None,
    contest=contest,
)
