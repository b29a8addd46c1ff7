"""Scores of a segmentation model that take passes of their own; computed only where a strategy goes by them.

``tta``: how much the label map changes under variations of the image that change nothing about its labels.
``committee``: how much it differs from that of the version before.
``epistemic``: MONAI Label's score, the entropy of the mean of five passes with dropout (Monte Carlo dropout, Gal and
Ghahramani, arXiv 1506.02142). There the whole network is set to training, by which batch normalisations change their
statistics, and the network has to have been trained with dropout; here nothing but dropout is on, behind each
normalisation as in MONAI's own blocks, and no tensor of the network is changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from labelrounds.config import ModelConfig
from labelrounds.inference import predict, probability_pieces
from labelrounds.sections import MIRROR_AXES, CommonConfig
from labelrounds.sliding import Run, Stopped

PASSES = 5
_VARIATIONS = 3
_DROPOUT = 0.2  # of MONAI Label's sample networks
_NORMALISATIONS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Contrast and brightness of a prepared image, whose values are about -1 to 1 or of deviation 1.
_INTENSITIES = ((0.9, 0.0), (1.1, 0.0), (1.0, 0.1))

Varied = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def variations(config: CommonConfig) -> list[Varied]:
    """Return three variations of an image ``(..., X, Y, Z)``, each with what undoes it in a label map.

    A flip along each axis that the model's configuration calls ``mirror``; then slight changes of the intensity, which
    are right for any label.
    """
    flips = [_flip(MIRROR_AXES[axis] - 3) for axis in config.mirror]
    return (flips + [_intensity(*change) for change in _INTENSITIES])[:_VARIATIONS]


def _flip(axis: int) -> Varied:
    return (lambda image: image.flip(axis)), (lambda label: label.flip(axis))


def _intensity(contrast: float, brightness: float) -> Varied:
    return (lambda image: image * contrast + brightness), (lambda label: label)


def tta(run: Run, image: torch.Tensor, label: torch.Tensor, config: ModelConfig, stopped: Stopped | None) -> float:
    """Return 1 - the mean Dice between a label map and those of three variations of its image.

    Args:
        run: the network.
        image: prepared, ``(C, X, Y, Z)``.
        label: its label map ``(X, Y, Z)``.
        config: the model.
        stopped: asked before each batch of windows whether to give up.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    found = []
    for vary, undo in variations(config):
        other = undo(predict(run, vary(image), config, stopped))
        found.append(disagreement(label, other, len(config.labels)))
    return float(np.mean(found))


def disagreement(one: torch.Tensor, other: torch.Tensor, labels: int) -> float:
    """Return 1 - the mean Dice of two label maps over the labels that either of them has; 0 where there is none."""
    same, first, second = (
        torch.bincount(voxels.flatten().long(), minlength=labels + 1)[1:].double()
        for voxels in (one[one == other], one, other)
    )
    there = first + second > 0
    if not bool(there.any()):
        return 0.0
    return float(1 - (2 * same[there] / (first + second)[there]).mean())


def epistemic(
    network: nn.Module, image: torch.Tensor, config: ModelConfig, stopped: Stopped | None = None
) -> dict[str, float]:
    """Return the mean over voxels of the entropy of the mean of five passes with dropout, and of their variance.

    The passes go through the image together, so that the probabilities of a block of each is all that is held.

    Args:
        network: not changed, nor are its buffers.
        image: prepared, ``(C, X, Y, Z)``, on the network's device.
        config: the model.
        stopped: asked before each batch of windows whether to give up.

    Returns:
        ``epistemic``, the entropy, and ``epistemic_variance``, summed over the classes.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    entropy = variance = 0.0
    with dropout_on(network):
        passes = [probability_pieces(network, image, config, stopped) for _ in range(PASSES)]
        for blocks in zip(*passes, strict=True):
            chances = torch.stack([chance for _, chance in blocks])
            entropy += float(entropy_of(chances.mean(dim=0)).sum(dtype=torch.float64))
            variance += float(chances.var(dim=0, correction=0).sum(dtype=torch.float64))
            del blocks, chances
    voxels = image[0].numel()
    return {"epistemic": entropy / voxels, "epistemic_variance": variance / voxels}


def entropy_of(chances: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats over the first axis of probabilities."""
    return torch.special.entr(chances).sum(dim=0)


@contextmanager
def dropout_on(network: nn.Module, share: float = _DROPOUT) -> Iterator[None]:
    """Leave out values at random while the block lasts: where the network does in training, else behind normalisations.

    The network is in evaluation otherwise; the same values are left out each time, so that a score is reproducible.

    Args:
        network: not changed.
        share: of the values that are left out behind a normalisation.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def leave_out(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        generator = generators.get(output.device)
        if generator is None:
            generator = generators[output.device] = torch.Generator(output.device).manual_seed(0)
        kept = 1 - (module.p if isinstance(module, _DROPOUTS) else share)
        return output * torch.empty_like(output).bernoulli_(kept, generator=generator).div_(kept)

    own = [module for module in network.modules() if isinstance(module, _DROPOUTS) and 0 < module.p < 1]
    chosen: list[nn.Module] = [*own] or [part for part in network.modules() if isinstance(part, _NORMALISATIONS)]
    hooks = [module.register_forward_hook(leave_out) for module in chosen]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
