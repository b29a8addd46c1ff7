"""What training has to know of the kind of a model: segmentation here, classification in a module of its own.

Everything else of a training (its plan, its loop, resuming, judging, publishing) is the same for both.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from numpy.typing import NDArray
from torch import nn

from labelrounds import distributed
from labelrounds.cases import PatchSampler, PreparedCase, segmentation_tensors
from labelrounds.config import AUTO
from labelrounds.devices import choose_device
from labelrounds.errors import TooLarge
from labelrounds.evaluation import Scores, segment_cases
from labelrounds.losses import supervised_loss
from labelrounds.networks.base import lowest_shape
from labelrounds.outlines import outlined_slices
from labelrounds.runtime_choice import calibration_windows, excerpts, measure
from labelrounds.runtime_measurement import machine, write_measurement
from labelrounds.runtimes import Subject, runtimes
from labelrounds.settings import server_settings
from labelrounds.splits import TRAIN, VALIDATION
from labelrounds.store import CLASSES, FINAL, LabelledCase

if TYPE_CHECKING:
    from labelrounds.learning import Outcome
    from labelrounds.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

Loss = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]
Measured = tuple[dict[str, float], torch.Tensor]


class Sampler(Protocol):
    """Draws what a step learns from."""

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images ``(B, C, X, Y, Z)`` and what is true of them, one drawn by each generator."""


@dataclass(frozen=True)
class Task:
    """What a kind of model is trained on and judged by.

    Attributes:
        label_tag: of the labels that it learns from, in the datastore.
        measure: what a case's scores are, 1 being the best.
        tensors: reads a labelled case and prepares it: ``image``, ``label``, ``spacing_mm``, any ``foreground_*``.
        obstacle: says why nothing can be learnt from cases, or None.
        remarks: says what a user should know of the training cases.
        sampler: draws from cases on a device, by weights.
        loss: makes the loss of a model from its training cases.
        shortest: the fewest voxels along the first axis that a convolution of the network sees.
        measured: yields each case's scores by label and the prediction, or why the memory does not suffice.
        groups: the network's parameters by learning rate, ``scale`` being relative to the schedule's.
        initialise: changes the weights that a training from nothing starts from.
        picture: shows predictions on cases ``(H, W, 3)``; None where there is nothing to show.
        complete: adds what belongs to a version that is being written to its folder, and to its record.
        fit: returns what takes the place of a network's training, as `labelrounds.classification.contest.fit_alone`,
            where the model's file says so, else None.
        begins_anew: whether a training in full has weights to start from that are not the served ones.
        contest: returns what does best of a trained network and what else there is, likewise `contest`.
    """

    label_tag: str
    measure: str
    tensors: Callable[[LabelledCase, Any], dict[str, torch.Tensor]]
    obstacle: Callable[[list[PreparedCase], Any], str | None]
    remarks: Callable[[list[PreparedCase], Any], list[str]]
    sampler: Callable[[list[PreparedCase], Any, torch.device, Sequence[float] | None], Sampler]
    loss: Callable[[list[PreparedCase], Any], Loss]
    shortest: Callable[[Any], int]
    measured: Callable[
        [Any, Sequence[PreparedCase], Any, torch.device, Callable[[str], None]], Iterator[Measured | TooLarge]
    ]
    groups: Callable[[nn.Module, Any], list[dict[str, Any]]]
    initialise: Callable[[nn.Module, Any], None]
    picture: Callable[[list[PreparedCase], list[torch.Tensor | None]], NDArray[Any] | None]
    complete: "Callable[[TrainingPlan, Outcome, Any, Path], dict[str, Any]]"
    fit: Callable[[Any], "Callable[..., Outcome] | None"]
    begins_anew: Callable[[Any], bool]
    contest: "Callable[..., tuple[Outcome, Scores]]"

    @property
    def key(self) -> str:
        """The measure as a key of figures."""
        return self.measure.lower().replace(" ", "_")


def task_of(config: Any) -> Task:
    """Return what training has to know of a model's kind."""
    if config.task == "segmentation":
        return SEGMENTATION
    from labelrounds.classification.task import CLASSIFICATION  # which needs what is defined here

    return CLASSIFICATION


def label_tag_of(config: Any) -> str:
    """Return the tag of the labels that a model learns from."""
    return CLASSES if config.task == "classification" else FINAL


def _obstacle(cases: list[PreparedCase], config: Any) -> str | None:
    if any(case.foreground for case in cases):
        return None
    return f"all of the {len(cases)} usable labels are empty, without a voxel of {', '.join(config.labels)}"


def _remarks(cases: list[PreparedCase], config: Any) -> list[str]:
    """Say which labels cannot be learnt, as no training case has a voxel of them, and which cases are empty."""
    present = {int(value) for case in cases for value in case.label.unique()}
    absent = [name for name, value in config.label_values.items() if value not in present]
    notes = [f"no training case has a voxel of {', '.join(absent)}"] if absent else []
    empty = [case.image_id for case in cases if not case.foreground]
    return notes + ([f"empty labels, learnt as patients without any: {', '.join(empty)}"] if empty else [])


def _picture(cases: list[PreparedCase], predictions: list[torch.Tensor | None]) -> NDArray[Any] | None:
    """Return the outlines of labels and predictions on cases."""
    shown = zip(cases, predictions, strict=False)
    outlined = [(case.image[0], case.label, found) for case, found in shown if found is not None]
    return outlined_slices(outlined) if outlined else None


def _choose_runtime(plan: "TrainingPlan", outcome: "Outcome", config: Any, folder: Path) -> dict[str, Any]:
    """Measure the runtimes of a version that is being written, and return what its record says of them.

    Nothing where that fails, or who has stopped the training waits, or the processes of a training share the cores: a
    server then measures them; nor where that is not wanted. One that is forced is only built, for what it keeps beside
    the version.
    """
    if outcome.stopped or distributed.launched():
        return {}
    device = choose_device()
    training = plan.parts[TRAIN]
    try:
        network: Any = copy.deepcopy(outcome.network).cpu()
        subject = Subject(network, config, device, folder, calibration_windows(training, config))
        if config.inference.runtime != AUTO:
            runtimes.get(config.inference.runtime)(subject)
            return {}
        if not server_settings().measure_runtimes:
            return {}
        measured, _ = measure(subject, excerpts(plan.parts[VALIDATION] or training, config))
    except Exception as error:  # whatever it is, what was trained is published
        logger.warning("The runtimes of %s are not measured: %s", config.name, error)
        return {}
    write_measurement(folder, device, measured)
    known = {"chosen": measured.chosen, **measured.summary(measured.chosen)}
    return {"runtime": {"machine": machine(device), **known}}


SEGMENTATION = Task(
    label_tag=FINAL,
    measure="Dice",
    tensors=segmentation_tensors,
    obstacle=_obstacle,
    remarks=_remarks,
    sampler=lambda cases, config, device, weights: PatchSampler(cases, config, device, weights),
    loss=lambda cases, config: lambda levels, labels: supervised_loss(levels, labels),
    shortest=lambda config: lowest_shape(config)[0],
    measured=segment_cases,
    groups=lambda network, config: [{"params": list(network.parameters()), "scale": 1.0}],
    initialise=lambda network, config: None,
    picture=_picture,
    complete=_choose_runtime,
    fit=lambda config: None,
    begins_anew=lambda config: True,
    contest=lambda plan, outcome, out_of_fold, *others: (outcome, out_of_fold),
)
