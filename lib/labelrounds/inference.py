"""From an image to its label map: prepare, sliding window, argmax, clean, restore."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from labelrounds import heap, sliding
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, free_bytes
from labelrounds.errors import TooLarge
from labelrounds.footprint import answering_bytes
from labelrounds.networks.base import divisor_of
from labelrounds.reading import Image
from labelrounds.sliding import Blend, Block, Run, Stopped, Windows
from labelrounds.transforms import Grid, clean, prepare, restore


@torch.inference_mode()
def predict(
    run: Run,
    image: torch.Tensor,
    config: ModelConfig,
    stopped: Stopped | None = None,
    most_at_once: int | None = None,
) -> torch.Tensor:
    """Return the label map ``(X, Y, Z)`` uint8 of a prepared image ``(C, X, Y, Z)``, on the image's device.

    Args:
        run: a network, or another way to the logits ``(B, K, *patch)`` of windows ``(B, C, *patch)``.
        image: as `transforms.prepare` returns it.
        config: the model.
        stopped: asked before each batch of windows whether to give up.
        most_at_once: how many windows are computed together; as many as pay when None.

    Raises:
        TooLarge: it would not fit into the device's memory.
        Cancelled: ``stopped`` said so.
    """
    windows = windows_of(image, config, most_at_once)
    _check_memory(windows, image.device, config, kept_bytes=1)
    with autocast(image.device):
        return sliding.label_map(run, image, windows, _blend(config), stopped)


@torch.inference_mode()
def probabilities(run: Run, image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the softmax ``(K, X, Y, Z)`` float32 of which `predict` takes the largest; its first is the background.

    Raises:
        TooLarge: it would not fit into the device's memory.
    """
    windows = windows_of(image, config)
    _check_memory(windows, image.device, config, kept_bytes=4 * (len(config.labels) + 1))
    with autocast(image.device):
        return sliding.softmax(run, image, windows, _blend(config))


@torch.inference_mode()
def probability_pieces(
    run: Run,
    image: torch.Tensor,
    config: ModelConfig,
    stopped: Stopped | None = None,
    most_at_once: int | None = None,
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield blocks that make up the image and their softmax ``(K, *block)`` float32, of which no two are held at once.

    Args:
        run: as for `predict`, and so are the others.
        image: as `transforms.prepare` returns it.
        config: the model.
        stopped: asked before each batch of windows whether to give up.
        most_at_once: how many windows are computed together; as many as pay when None.

    Raises:
        TooLarge: it would not fit into the device's memory.
        Cancelled: ``stopped`` said so.
    """
    windows = windows_of(image, config, most_at_once)
    _check_memory(windows, image.device, config, kept_bytes=1)
    yield from sliding.softmax_pieces(_in_autocast(run), image, windows, _blend(config), stopped)


@torch.inference_mode()
def logit_pieces(
    run: Run, image: torch.Tensor, windows: Windows, config: ModelConfig, stopped: Stopped | None = None
) -> Iterator[tuple[Block, torch.Tensor]]:
    """Yield the logits of which `probability_pieces` gives the softmax, of windows that `windows_of` gave.

    Raises:
        TooLarge: it would not fit into the device's memory.
        Cancelled: ``stopped`` said so.
    """
    _check_memory(windows, image.device, config, kept_bytes=1)
    yield from sliding.logit_pieces(_in_autocast(run), image, windows, _blend(config), stopped)


def _in_autocast(run: Run) -> Run:
    """Return what runs in mixed precision, and leaves it to whoever asks for the pieces how he goes on with them."""

    def computed(windows: torch.Tensor) -> torch.Tensor:
        with autocast(windows.device):
            return run(windows)

    return computed


def windows_of(image: torch.Tensor, config: ModelConfig, most_at_once: int | None = None) -> Windows:
    """Return the windows of an image: a single one where the model sees it as a whole, and the memory suffices."""
    shape, filled = image.shape[1:], image.device.type == "cuda"
    if config.inference.blend == "whole" and most_at_once is None:
        x, y, z = (step * math.ceil(side / step) for side, step in zip(shape, divisor_of(config), strict=True))
        # A 2-D network sees each slice as a whole.
        windows = Windows.over(shape, (x, y, z if config.dimensions == 3 else 1), 0.0, 1)
        needed = answering_bytes(config, windows.patch_size)
        if needed <= _free_bytes(image.device, needed):
            return windows
    return Windows.over(shape, config.patch_size, config.inference.overlap, most_at_once, filled)


def _blend(config: ModelConfig) -> Blend:
    return "owner" if config.inference.blend == "owner" else "gaussian"


def _check_memory(windows: Windows, device: torch.device, config: ModelConfig, kept_bytes: int) -> None:
    """Refuse an image that would not fit into memory, before the machine has to kill the server.

    Args:
        windows: those of the image.
        device: where it is computed.
        config: the model.
        kept_bytes: what is kept of each voxel until the end.

    Raises:
        TooLarge: what it needs and what is free.
    """
    classes = len(config.labels) + 1
    needed = windows.bytes(config.channels, classes, _blend(config)) + math.prod(windows.shape) * kept_bytes
    free = _free_bytes(device, needed)
    if needed > free:
        shape = " x ".join(str(side) for side in windows.shape)
        raise TooLarge(
            f"at the model's spacing the image has {shape} voxels, which needs {needed / 1e9:.1f} GB for"
            f" {len(config.labels)} labels; {free / 1e9:.1f} GB are free"
        )


def _free_bytes(device: torch.device, needed: int) -> int:
    """Return how much memory is free on a device, after what is kept was given back where it would not suffice."""
    free = free_bytes(device)
    if free < needed and device.type == "cpu":
        heap.give_back()
        free = free_bytes(device)
    return free


def segment(
    run: Run, image: Image, config: ModelConfig, device: torch.device, stopped: Stopped | None = None
) -> np.ndarray:
    """Return the label map ``(X, Y, Z)`` of an image on the image's own grid.

    Raises:
        BadInput: the image has another number of channels than the model.
        Cancelled: ``stopped`` said so.
    """
    grid = Grid.of(image, config)
    label = predict(run, prepare(image, config, grid, device), config, stopped)
    if config.cleaning:
        label = torch.from_numpy(clean(label.cpu().numpy(), config)).to(device)
    return restore(label, grid, config.inference.restore)
