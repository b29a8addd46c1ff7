"""Segmentation as the host asks for it: read, prepare, sliding window, argmax, restore, clean, write.

The inferer is built once a process and shared by all requests. Concurrency: one request at a time computes on a
device, the others wait their turn; the HTTP routes never wait, as they run elsewhere. The weights are loaded by
the first request and again when another version has been published in between.
"""

import logging
import math
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from labelrounds import sliding
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, available_devices, choose_device, free_bytes, is_out_of_memory, place
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, TooLarge
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.reading import Image, read_image
from labelrounds.sliding import Run, Stopped, Windows
from labelrounds.transforms import Grid, clean, prepare, restore
from labelrounds.writing import write_label

logger = logging.getLogger(__name__)

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".seg.nrrd")


@torch.inference_mode()
def predict(run: Run, image: torch.Tensor, config: ModelConfig, stopped: Stopped | None = None) -> torch.Tensor:
    """Return the label map ``(X, Y, Z)`` uint8 of a prepared image ``(C, X, Y, Z)``, on the image's device.

    Args:
        run: a network, or another way to the logits ``(B, K, *patch)`` of windows ``(B, C, *patch)``.
        image: as `transforms.prepare` returns it.
        config: the model.
        stopped: asked before each batch of windows whether to give up.

    Raises:
        TooLarge: it would not fit into the device's memory.
        Cancelled: ``stopped`` said so.
    """
    windows = Windows.over(image.shape[1:], config.patch_size, config.inference.overlap)
    _check_memory(windows, image.device, config, kept_bytes=1)
    with autocast(image.device):
        return sliding.label_map(run, image, windows, config.inference.blend, stopped)


@torch.inference_mode()
def probabilities(run: Run, image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the softmax ``(K, X, Y, Z)`` float32 of which `predict` takes the largest; its first is the background.

    Raises:
        TooLarge: it would not fit into the device's memory.
    """
    windows = Windows.over(image.shape[1:], config.patch_size, config.inference.overlap)
    _check_memory(windows, image.device, config, kept_bytes=4 * (len(config.labels) + 1))
    with autocast(image.device):
        return sliding.softmax(run, image, windows, config.inference.blend)


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
    needed = windows.bytes(config.channels, classes, config.inference.blend) + math.prod(windows.shape) * kept_bytes
    free = free_bytes(device)
    if needed > free:
        shape = " x ".join(str(side) for side in windows.shape)
        raise TooLarge(
            f"at the model's spacing the image has {shape} voxels, which needs {needed / 1e9:.1f} GB for"
            f" {len(config.labels)} labels; {free / 1e9:.1f} GB are free"
        )


def segment(
    run: Run, image: Image, config: ModelConfig, device: torch.device, stopped: Stopped | None = None
) -> np.ndarray:
    """Return the label map ``(X, Y, Z)`` of an image on the image's own grid.

    Raises:
        BadInput: the image has another number of channels than the model.
        Cancelled: ``stopped`` said so.
    """
    channels = image.array.shape[0]
    if channels != config.channels:
        raise BadInput(f"{image.source}: has {channels} channels, model {config.name} takes {config.channels}")
    grid = Grid.of(image, config)
    label = predict(run, prepare(image, config, grid, device), config, stopped)
    if config.cleaning:
        label = torch.from_numpy(clean(label.cpu().numpy(), config)).to(device)
    return restore(label, grid)


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


class SegmentationInferer(InferTask):
    """One served segmentation model.

    Args:
        config: the model.
        turn: the lock that lets one request at a time compute, shared by all models of a process.
    """

    def __init__(self, config: ModelConfig, turn: threading.Lock) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=list(config.labels),
            dimension=3,  # what a client is handed is a volume, even where the network sees slices
            description=config.description,
            config={"device": available_devices()},
        )
        self._networks = ServedNetworks(config)
        self._turn = turn

    def is_valid(self) -> bool:
        """Tell whether there is something trained to serve; what is not is no model in a client's list.

        A damaged version is served, in that a request for it is told what is wrong.
        """
        try:
            return self._networks.checkpoints.current() is not None
        except LabelRoundsError as error:
            logger.warning("Model %s: %s", self._networks.config.name, error)
            return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]`` (a path) and write the result beside nothing else, in a temporary file.

        Args:
            request: ``image``; optional ``device`` and ``result_extension``.

        Returns:
            the written file, and what the client reads: ``label_names`` (name to voxel value), ``version``,
            ``device`` that it was computed on, ``note`` where that is not the one asked for, ``latencies`` in seconds.

        Raises:
            LabelRoundsError: a device, extension or image that can't be used; no trained version; too little memory.
        """
        config = self._networks.config
        wanted = choose_device(_first(request.get("device")))
        extension = _extension(request.get("result_extension"))
        started = time.perf_counter()
        image = read_image(Path(request["image"]), channels=config.channels)
        read = time.perf_counter()
        with self._turn:
            turn = time.perf_counter()
            version, device, label = self._segment(image, wanted)
        segmented = time.perf_counter()
        handle, file = tempfile.mkstemp(prefix="labelrounds-", suffix=extension)
        os.close(handle)
        try:
            write_label(label, image.affine, Path(file), config.labels)
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise
        return file, {
            "label_names": config.label_values,
            "version": version.number,
            "device": str(device),
            **({"note": _moved(wanted)} if device != wanted else {}),
            "latencies": {
                "read": round(read - started, 3),
                "wait": round(turn - read, 3),
                "segment": round(segmented - turn, 3),
                "write": round(time.perf_counter() - segmented, 3),
                "total": round(time.perf_counter() - started, 3),
            },
        }

    def _segment(self, image: Image, device: torch.device) -> tuple[Version, torch.device, np.ndarray]:
        """Segment on a device, or on the CPU where a GPU has not the memory; return the one that did.

        Raises:
            TooLarge: the machine has not the memory either.
        """
        try:
            version, network = self._networks.get(device)
            return version, device, segment(network, image, self._networks.config, device)
        except Exception as error:
            if not isinstance(error, TooLarge) and not is_out_of_memory(error):
                raise
            if device.type == "cpu":
                shape = " x ".join(str(side) for side in image.shape)
                raise TooLarge(
                    f"an image of {shape} voxels can't be segmented in the memory of the machine: {error}"
                ) from error
        # Only now, when the error holds no tensor of the failed attempt any more.
        logger.warning("%s: %s", self._networks.config.name, _moved(device))
        torch.cuda.empty_cache()
        return self._segment(image, torch.device("cpu"))


def _moved(wanted: torch.device) -> str:
    return f"segmented on the CPU: out of memory on {wanted}"


def _first(value: object) -> object:
    """Return a choice's value; a client that sends the whole list of choices means its first."""
    return value[0] if isinstance(value, list) and value else value


def _extension(wanted: object) -> str:
    if wanted in (None, ""):
        return ".nrrd"
    if wanted not in RESULT_EXTENSIONS:
        raise BadInput(f"result_extension {wanted!r} is not one of {', '.join(RESULT_EXTENSIONS)}")
    return str(wanted)
