"""From an image to its label map: prepare, sliding window, argmax, clean, restore; and the networks that do it.

The weights are loaded by the first request and again when another version has been published in between.
"""

import math
import threading

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, free_bytes, place
from labelrounds.errors import BadInput, Conflict, TooLarge
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.reading import Image
from labelrounds.transforms import Grid, clean, prepare, restore

_WINDOWS_AT_ONCE = 2


@torch.inference_mode()
def predict(network: SegmentationNetwork, image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the label map ``(X, Y, Z)`` uint8 of a prepared image ``(C, X, Y, Z)``, on the image's device."""
    return _logits(network, image, config).argmax(dim=0).to(torch.uint8)


@torch.inference_mode()
def probabilities(network: SegmentationNetwork, image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the softmax ``(K, X, Y, Z)`` float32 of which `predict` takes the largest; its first is the background."""
    return _logits(network, image, config).float().softmax(dim=0)


def _logits(network: SegmentationNetwork, image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the logits ``(K, X, Y, Z)`` of a prepared image ``(C, X, Y, Z)``, on the image's device."""
    _check_memory(image, config)
    with autocast(image.device):
        logits = sliding_window_inference(
            image[None],
            roi_size=config.patch_size,
            sw_batch_size=_WINDOWS_AT_ONCE,
            predictor=network,
            overlap=config.overlap,
            mode="gaussian",
            padding_mode="replicate",
        )
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"network {config.network.name} returned {type(logits).__name__}, expected a tensor")
    return logits[0]


def _check_memory(image: torch.Tensor, config: ModelConfig) -> None:
    """Refuse an image whose logits would not fit into memory, before the machine has to kill the server.

    Raises:
        TooLarge: what it needs and what is free.
    """
    voxels = math.prod(max(side, patch) for side, patch in zip(image.shape[1:], config.patch_size, strict=True))
    # The sum of the windows' float32 logits and its division by their weights are both held at once.
    needed = voxels * 4 * (2 * (len(config.labels) + 1) + config.channels + 1)
    free = free_bytes(image.device)
    if needed > free:
        shape = " x ".join(str(side) for side in image.shape[1:])
        raise TooLarge(
            f"at the model's spacing the image has {shape} voxels, which needs {needed / 1e9:.1f} GB for"
            f" {len(config.labels)} labels; {free / 1e9:.1f} GB are free"
        )


def segment(network: SegmentationNetwork, image: Image, config: ModelConfig, device: torch.device) -> np.ndarray:
    """Return the label map ``(X, Y, Z)`` of an image on the image's own grid.

    Raises:
        BadInput: the image has another number of channels than the model.
    """
    channels = image.array.shape[0]
    if channels != config.channels:
        raise BadInput(f"{image.source}: has {channels} channels, model {config.name} takes {config.channels}")
    grid = Grid.of(image, config)
    label = predict(network, prepare(image, config, grid, device), config)
    return restore(torch.from_numpy(clean(label.cpu().numpy(), config)), grid)


class ServedNetworks:
    """The networks of one model in memory, one a device, always of the version that is served."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.checkpoints = Checkpoints(config)
        self._loading = threading.Lock()
        self._loaded: dict[str, tuple[Version, SegmentationNetwork]] = {}

    def get(self, device: torch.device) -> tuple[Version, SegmentationNetwork]:
        """Return the served version and its network, loading it where it is not in memory yet.

        Raises:
            Conflict: there is no trained version yet.
        """
        with self._loading:
            version = self.checkpoints.current()
            if version is None:
                raise Conflict(
                    f"model {self.config.name} has no trained version yet: submit labels, then start a training"
                )
            known = self._loaded.get(str(device))
            if known is not None and known[0].weights == version.weights:
                return known
            network = build_network(self.config)
            self.checkpoints.load(version, network)
            place(network, device, self.config.dimensions).eval()
            self._loaded[str(device)] = (version, network)
            return version, network
