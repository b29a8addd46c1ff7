"""What training has to know of classification; see `labelrounds.tasks`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import tensors_of_served
from labelrounds.classification.calibration import probabilities_of, temperature_of
from labelrounds.classification.cases import ClassLoss, ImageSampler, class_tensors, truth_of
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.metrics import class_metrics, quadratic_score
from labelrounds.classification.report import write_report
from labelrounds.devices import device_of, is_out_of_memory
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.evaluation import OUT_OF_FOLD
from labelrounds.splits import TEST, TRAIN, VALIDATION
from labelrounds.store import CLASSES
from labelrounds.tasks import Measured, Task

if TYPE_CHECKING:
    from labelrounds.learning import Outcome
    from labelrounds.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

_AT_ONCE = 32
REPORT = "report"


def logits_of(network: nn.Module, cases: Sequence[PreparedCase], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the logits ``(K,)`` float32 of each case, computed in batches of images of one shape.

    Raises:
        TooLarge: not even one image fits into the device's memory.
    """
    network.eval()
    first = 0
    while first < len(cases):
        shape = cases[first].image.shape
        batch = []
        for case in cases[first : first + _AT_ONCE]:
            if case.image.shape != shape:
                break
            batch.append(case)
        yield from _batch_logits(network, batch, device)
        first += len(batch)


@torch.inference_mode()
def _batch_logits(network: nn.Module, cases: Sequence[PreparedCase], device: torch.device) -> torch.Tensor:
    try:
        logits: torch.Tensor = network(torch.stack([case.image for case in cases]).to(device))
        return logits.float().cpu()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(cases) == 1:
            raise TooLarge(f"{cases[0].image_id} does not fit into the memory of {device}: {error}") from error
    half = len(cases) // 2
    return torch.cat([_batch_logits(network, part, device) for part in (cases[:half], cases[half:])])


def _measured(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    config: ClassifierConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[Measured | TooLarge]:
    """Yield each case's scores by class and the probabilities ``(K,)``."""
    for case, logits in zip(cases, logits_of(network, cases, device), strict=True):
        probabilities = probabilities_of(logits[None], config.multilabel)[0]
        scores = quadratic_score(probabilities.numpy(), case.label.numpy(), config.labels, config.multilabel)
        yield scores, probabilities


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
    """Start from another model's served weights, as far as their names and shapes are the network's.

    Raises:
        LabelRoundsError: there is no such model, it has no weights, or none of them fits.
    """
    source = config.training.init_from
    if source is None:
        return
    tensors = tensors_of_served(source)
    own = network.state_dict()
    fitting = {name: value for name, value in tensors.items() if name in own and own[name].shape == value.shape}
    shared = [name for name in fitting if not name.startswith("head.")]
    if not shared:
        raise LabelRoundsError(
            f"training.init_from {source!r}: none of its tensors fits the network of {config.name}; both need the same"
            " network with the same options"
        )
    network.load_state_dict({**own, **{name: fitting[name] for name in shared}})
    logger.info("%s starts from %d tensors of %s", config.name, len(shared), source)


def _complete(plan: "TrainingPlan", outcome: "Outcome", config: ClassifierConfig, folder: Path) -> dict[str, Any]:
    """Calibrate a version that is being written, measure it and write its report; return what its record says.

    The temperature is chosen on the validation cases (else on none: it is 1), and tells nothing but how sure the model
    says to be. Test cases are measured with it, and decide nothing.
    """
    device = device_of(outcome.network)
    measured: dict[str, Any] = {}
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
        measured[part] = class_metrics(probabilities, truth.numpy(), config.labels, config.multilabel)
        _report(folder / REPORT / part, cases, probabilities, measured[part], config, part)
    return {"temperature": round(temperature, 6), "metrics": measured, OUT_OF_FOLD: unlearnt}


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
    measured=_measured,
    groups=_groups,
    initialise=_initialise,
    picture=lambda cases, predictions: None,
    complete=_complete,
)
