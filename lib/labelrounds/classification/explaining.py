"""Why an image is of a class: which of its parts the network has found it by, as a map of 0 to 1.

Neither method says that what it shows is the disease: they show what the network has looked at.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from labelrounds.classification.calibration import probabilities_of
from labelrounds.errors import Cancelled

METHODS = ("gradcam", "occlusion")
_PARTS = 7  # along each axis that is occluded
_AT_ONCE = 16
Stopped = Callable[[], bool]


def _never() -> bool:
    return False


def explain(
    network: Any, image: torch.Tensor, label: int, method: str, multilabel: bool, stopped: Stopped = _never
) -> torch.Tensor:
    """Return what speaks for a class ``(X, Y, Z)`` float32, from 0 to 1, where it speaks most; 0 where nothing does.

    Args:
        network: a `ClassificationNetwork`, for inference.
        image: prepared, ``(C, X, Y, Z)``, on the network's device.
        label: the class, by its place among the labels.
        method: one of `METHODS`.
        multilabel: whether the model's classes are told apart one by one.
        stopped: asked before each batch of covered images whether to give up.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    if method == "gradcam":
        found = grad_cam(network, image, label)
    else:
        found = occlusion(network, image, label, multilabel, stopped)
    highest = found.max()
    return found / highest if highest > 0 else torch.zeros_like(found)


def grad_cam(network: Any, image: torch.Tensor, label: int) -> torch.Tensor:
    """Return the features of the last map, each by how much the class's logit rises with it, where they are positive.

    Selvaraju et al., DOI 10.1109/ICCV.2017.74. Of a 2-D network each slice has a map of its own.
    """
    with torch.enable_grad(), _features(network.maps) as seen:
        logits = network(image[None].clone().requires_grad_(True))
        features = seen[0]
        (gradient,) = torch.autograd.grad(logits[0, label], features)
    axes = tuple(range(2, features.ndim))
    maps = functional.relu((features * gradient.mean(axes, keepdim=True)).sum(1)).detach()  # (slices or 1, x, y[, z])
    x, y, z = image.shape[1:]
    if network.dimensions == 3:
        return functional.interpolate(maps[None], size=(x, y, z), mode="trilinear", align_corners=False)[0, 0]
    flat = functional.interpolate(maps[:, None], size=(x, y), mode="bilinear", align_corners=False)
    return flat[:, 0].permute(1, 2, 0)


@torch.inference_mode()
def occlusion(
    network: Any, image: torch.Tensor, label: int, multilabel: bool, stopped: Stopped = _never
) -> torch.Tensor:
    """Return by how much the class's probability falls when a part of the image is covered with its lowest value.

    Zeiler and Fergus, DOI 10.1007/978-3-319-10590-1_53. Of a 2-D network a part is of one slice.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    sides = [max(1, -(-side // _PARTS)) for side in image.shape[1:]]
    if network.dimensions == 2:
        sides[2] = 1
    boxes = [
        tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        for corner in _corners(image.shape[1:], sides)
    ]
    before = probabilities_of(network(image[None]).float(), multilabel)[0, label]
    lowest = image.amin((1, 2, 3), keepdim=True)
    found = torch.zeros(image.shape[1:], device=image.device)
    for first in range(0, len(boxes), _AT_ONCE):
        if stopped():
            raise Cancelled(f"stopped after {first} of {len(boxes)} covered parts: the client has gone, or others wait")
        some = boxes[first : first + _AT_ONCE]
        covered = image.expand(len(some), *image.shape).clone()
        for one, box in zip(covered, some, strict=True):
            one[:, box[0], box[1], box[2]] = lowest
        after = probabilities_of(network(covered).float(), multilabel)[:, label]
        for box, probability in zip(some, after, strict=True):
            found[box] = functional.relu(before - probability)
    return found


def _corners(shape: torch.Size, sides: list[int]) -> list[tuple[int, ...]]:
    axes = [range(0, length, side) for length, side in zip(shape, sides, strict=True)]
    return [(x, y, z) for x in axes[0] for y in axes[1] for z in axes[2]]


@contextmanager
def _features(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Keep what a module returns while the block lasts."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()
