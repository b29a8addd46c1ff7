"""What a network makes of prepared cases, in batches: logits, embeddings, and the scores of its probabilities."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from labelrounds.cases import PreparedCase
from labelrounds.classification.calibration import probabilities_of
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.metrics import quadratic_score
from labelrounds.devices import is_out_of_memory
from labelrounds.errors import TooLarge

_AT_ONCE = 32

Compute = Callable[[torch.Tensor], torch.Tensor]
Scored = tuple[dict[str, float], torch.Tensor]


def logits_of(network: nn.Module, cases: Sequence[PreparedCase], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the logits ``(K,)`` float32 of each case, computed in batches of images of one shape.

    Raises:
        TooLarge: not even one image fits into the device's memory.
    """
    return _in_batches(network.eval(), cases, device)


def embeddings_of(network: Any, cases: Sequence[PreparedCase], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield what a `ClassificationNetwork` hands its last layer of each case, ``(D,)`` float32, likewise.

    Raises:
        TooLarge: not even one image fits into the device's memory.
    """
    return _in_batches(network.eval().embed, cases, device)


def measured(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    config: ClassifierConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> Iterator[Scored | TooLarge]:
    """Yield each case's scores by class and the probabilities ``(K,)``."""
    for case, logits in zip(cases, logits_of(network, cases, device), strict=True):
        probabilities = probabilities_of(logits[None], config.multilabel)[0]
        scores = quadratic_score(probabilities.numpy(), case.label.numpy(), config.labels, config.multilabel)
        yield scores, probabilities


def _in_batches(compute: Compute, cases: Sequence[PreparedCase], device: torch.device) -> Iterator[torch.Tensor]:
    first = 0
    while first < len(cases):
        shape = cases[first].image.shape
        batch = []
        for case in cases[first : first + _AT_ONCE]:
            if case.image.shape != shape:
                break
            batch.append(case)
        yield from _of_batch(compute, batch, device)
        first += len(batch)


@torch.inference_mode()
def _of_batch(compute: Compute, cases: Sequence[PreparedCase], device: torch.device) -> torch.Tensor:
    try:
        return compute(torch.stack([case.image for case in cases]).to(device)).float().cpu()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(cases) == 1:
            raise TooLarge(f"{cases[0].image_id} does not fit into the memory of {device}: {error}") from error
    half = len(cases) // 2
    return torch.cat([_of_batch(compute, part, device) for part in (cases[:half], cases[half:])])
