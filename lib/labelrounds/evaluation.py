"""How well a network segments labelled cases: whole cases on the network's grid, by the Dice of each label."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import device_of, is_out_of_memory, place
from labelrounds.errors import TooLarge
from labelrounds.inference import predict
from labelrounds.metrics import dice_per_label
from labelrounds.networks import SegmentationNetwork

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
# Key of a version's record: by image, the classes' probabilities of cases that it has not learnt from.
OUT_OF_FOLD = "out_of_fold"

Scores = dict[str, dict[str, float]]
"""Dice per label of cases, by image id; nan where a label is neither in the prediction nor in the truth."""


def segment_cases(
    network: SegmentationNetwork,
    cases: Sequence[PreparedCase],
    config: ModelConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[tuple[dict[str, float], torch.Tensor] | TooLarge]:
    """Yield each case's Dice per label and its prediction, or why the machine has not the memory for it."""
    for case in cases:
        try:
            yield evaluate_case(network, case, config, device, note)
        except TooLarge as error:
            yield error


def evaluate(
    network: Any,
    cases: list[PreparedCase],
    config: Any,
    note: Callable[[str], None],
    measured: Callable[..., Iterator[tuple[dict[str, float], torch.Tensor] | TooLarge]] = segment_cases,
) -> Scores:
    """Return the scores of cases, measured where the network is; what no memory suffices for is left out, and noted.

    Args:
        network: the network to measure.
        cases: the cases to measure it on.
        config: the model.
        note: takes what a user should know of the cases that are left out.
        measured: yields each case's scores, as its task measures them (`labelrounds.tasks`).
    """
    found: Scores = {}
    results = measured(network, cases, config, device_of(network), logger.warning)
    for case, result in zip(cases, results, strict=True):
        if isinstance(result, TooLarge):
            note(not_measured(result))
        else:
            found[case.image_id] = result[0]
    return found


def evaluate_case(
    network: SegmentationNetwork,
    case: PreparedCase,
    config: ModelConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> tuple[dict[str, float], torch.Tensor]:
    """Return a case's Dice per label, nan where a label is in neither, and its prediction ``(X, Y, Z)`` uint8.

    A case that a GPU has not the memory for is segmented on the CPU, which ``note`` is told.

    Raises:
        TooLarge: the machine has not the memory either.
    """
    prediction = _segment(network, case, config, device, note)
    return dice_per_label(prediction.numpy(), case.label.numpy(), config.labels), prediction


def _segment(
    network: SegmentationNetwork,
    case: PreparedCase,
    config: ModelConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> torch.Tensor:
    network.eval()
    try:
        return predict(network, case.image.to(device), config).cpu()
    except Exception as error:
        if not isinstance(error, TooLarge) and not is_out_of_memory(error):
            raise
        if device.type == "cpu":
            raise TooLarge(f"{case.image_id} can't be segmented in the memory of the machine: {error}") from error
    note(f"cases that {device} has not the memory for are segmented on the CPU")
    return _segment(place(copy.deepcopy(network), _CPU, config.dimensions), case, config, _CPU, note)


def mean_dice(scores: list[dict[str, float]]) -> dict[str, float]:
    """Return each label's mean over the cases in which it was present or predicted; nan where it never was."""
    means = {}
    for label in scores[0] if scores else ():
        values = [score[label] for score in scores if not math.isnan(score[label])]
        means[label] = sum(values) / len(values) if values else math.nan
    return means


def mean_of(dice: dict[str, float]) -> float:
    """Return the mean over the labels that have one; nan where none has."""
    values = [value for value in dice.values() if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def not_measured(error: TooLarge) -> str:
    """Return the note of a case that could not be segmented to measure a network on it."""
    return f"not measured: {error}"


def scores_as_json(scores: Scores) -> dict[str, dict[str, float | None]]:
    """Return scores as JSON knows them, null for nan."""
    return {
        image: {label: None if math.isnan(dice) else round(dice, 6) for label, dice in score.items()}
        for image, score in scores.items()
    }


def scores_from_json(content: dict[str, dict[str, float | None]]) -> Scores:
    """Return the scores of which ``scores_as_json`` made the content."""
    return {
        image: {label: math.nan if dice is None else dice for label, dice in score.items()}
        for image, score in content.items()
    }
