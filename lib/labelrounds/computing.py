"""What a device's thread does for a request: prepare the image, predict, bring the label map to the image's own grid.

On the way of inference, between ``inferer.py``, which reads and writes, and ``inference.py``.

Memory: where a device's does not suffice, the other images that are kept there give up their place; then one window is
computed at a time; then, on a GPU, the image and all that is summed lie in the machine's memory, and the GPU holds no
more than the network and a window. None of this changes the answer, but that of a model that sees the image as a
whole while the memory suffices. What does not fit even then is for the CPU.

A label map is restored where it was computed, so that one byte a voxel is all that leaves a GPU. One that is cleaned is
restored on the CPU, in the request's own thread: components are found there anyway, and the device has the next image
to compute by then.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from labelrounds.checkpoints import Version
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, complete, is_out_of_memory, settle, to_host
from labelrounds.errors import TooLarge
from labelrounds.geometry import Affine
from labelrounds.inference import predict
from labelrounds.memory_cache import Memory
from labelrounds.reading import Image
from labelrounds.served import ServedNetworks
from labelrounds.sliding import Run, Stopped
from labelrounds.transforms import Grid, clean, prepare, restore, restore_values
from labelrounds.tuning import Tuning
from labelrounds.uncertainty import uncertainty

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class PreparedImage:
    """An image as a model sees it, and what it takes to bring the answer back.

    Attributes:
        voxels: ``(C, X, Y, Z)`` float32 on the network's grid, on the device.
        grid: from the image's own grid to the network's, and back.
        affine: ``(4, 4)``, the image's own.
        shape: the image's own.
    """

    voxels: torch.Tensor
    grid: Grid
    affine: Affine
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Computed:
    """What a device has made of an image; `Computing.finish` makes the label map of it.

    Attributes:
        version: that has answered.
        runtime: that ran it.
        label: ``(X, Y, Z)`` uint8 on the image's own grid, or on the network's where the model cleans its labels.
        grid: between the two.
        affine: ``(4, 4)``, the image's own.
        note: what is to be said of how it was computed, or nothing.
        unsure: whether ``label`` is the map of the model's uncertainty, on the image's own grid.
    """

    version: Version
    runtime: str
    label: np.ndarray
    grid: Grid
    affine: Affine
    note: str
    unsure: bool = False


class LacksMemory(Exception):
    """A device has not the memory for an image in any way; it refers to no tensor of the attempts.

    Args:
        device: which.
        shape: of the image.
        reason: what the device said at last.
    """

    def __init__(self, device: torch.device, shape: tuple[int, int, int], reason: str) -> None:
        voxels = " x ".join(str(side) for side in shape)
        super().__init__(f"an image of {voxels} voxels can't be segmented in the memory of {device}: {reason}")
        self.device = device


@dataclass(frozen=True)
class _Way:
    """How an image is computed.

    Attributes:
        note: what a user is told of it.
        most_at_once: how many windows are computed together; as many as pay when None.
        on_host: whether all but the network and a window is in the machine's memory.
    """

    note: str = ""
    most_at_once: int | None = None
    on_host: bool = False


class Computing:
    """Computes the label maps of one model.

    Args:
        config: the model.
        networks: its networks.
        memory: where prepared images are kept.
        tuning: chooses the versions' runtimes by what is computed; without it they run as they are loaded.
    """

    def __init__(
        self, config: ModelConfig, networks: ServedNetworks, memory: Memory, tuning: Tuning | None = None
    ) -> None:
        self._model = config
        self._networks = networks
        self._memory = memory
        self._tuning = tuning

    def compute(
        self,
        device: torch.device,
        source: Image | PreparedImage,
        key: Hashable,
        timed: Timed,
        stopped: Stopped,
        unsure: bool = False,
    ) -> Computed:
        """Compute an image in the first way that the device has the memory for; called in the device's thread.

        Args:
            device: where.
            source: the image, or as it was prepared on that device before.
            key: what the prepared image is kept by.
            timed: takes the time of a stage: ``load``, ``prepare``, ``segment`` or ``restore``.
            stopped: asked before each batch of windows whether to give up.
            unsure: whether the map of the model's uncertainty is wanted in place of the label map.

        Raises:
            LacksMemory: there is no such way.
            TooLarge: the image is larger at the model's spacing than any is that is read.
            Cancelled: ``stopped`` said so.
        """
        settle(device)
        grid = Grid.of(source, self._model) if isinstance(source, Image) else source.grid
        reason = ""
        for way in self._ways(device, key):
            try:
                computed = self._compute(way, device, source, grid, key, timed, stopped, unsure)
                if way.note:
                    logger.warning("Model %s: %s", self._model.name, way.note)
                return computed
            except Exception as error:
                if not lacks_memory(error):
                    raise
                reason = str(error)
            # Out here, where the error is gone and holds no tensor of the attempt any more.
            logger.warning("Model %s: out of memory on %s: %s", self._model.name, device, reason)
        raise LacksMemory(device, source.shape, reason)

    def warm_up(self, device: torch.device, stopped: Stopped) -> None:
        """Load the network and compute one window of nothing, on a GPU also a batch; called in the device's thread.

        Raises:
            Cancelled: ``stopped`` said so.
            LabelRoundsError: there are no weights, or they do not fit.
        """
        settle(device)
        network = self._networks.get(device)
        shapes = [self._model.patch_size]
        if device.type == "cuda":  # cuDNN chooses for each shape
            x, y, z = self._model.patch_size
            shapes.append((x + 1, y, z))
        for shape in shapes:
            predict(network, torch.zeros(self._model.channels, *shape, device=device), self._model, stopped)

    def finish(self, computed: Computed) -> np.ndarray:
        """Return the label map ``(X, Y, Z)`` uint8 on the image's own grid; called in the request's thread."""
        if computed.unsure or not self._model.cleaning:
            return computed.label
        return restore(
            torch.from_numpy(clean(computed.label, self._model)), computed.grid, self._model.inference.restore
        )

    def _ways(self, device: torch.device, key: Hashable) -> Iterator[_Way]:
        """Yield ways to compute an image, each to be tried where the one before lacks memory."""
        yield _Way()
        if self._memory.images(device).clear(but=key):
            yield _Way()
        said = f"out of memory on {device}: segmented one window at a time"
        yield _Way(said, most_at_once=1)
        if device.type != "cpu":
            self._memory.images(device).clear()
            yield _Way(f"{said}, the image in the machine's memory", most_at_once=1, on_host=True)

    def _compute(
        self,
        way: _Way,
        device: torch.device,
        source: Image | PreparedImage,
        grid: Grid,
        key: Hashable,
        timed: Timed,
        stopped: Stopped,
        unsure: bool,
    ) -> Computed:
        with timed("load"):
            network = self._networks.get(device)
        if isinstance(source, PreparedImage):
            prepared = source
        else:
            prepared = self._prepared(source, grid, CPU if way.on_host else device, key, timed)
        run: Run = network
        voxels = prepared.voxels
        if way.on_host:
            run, voxels = _on(device, network), prepared.voxels.cpu()
        with timed("segment"):
            label = (uncertainty if unsure else predict)(run, voxels, self._model, stopped, way.most_at_once)
            complete(label.device)
        with timed("restore"):
            if unsure:
                restored = restore_values(label, grid)
            elif not self._model.cleaning:
                restored = restore(label, grid, self._model.inference.restore)
            else:
                restored = to_host(label).numpy()
        if self._tuning is not None and not way.note and not unsure:
            self._tuning.add(self._networks, network.version, device, voxels, label)
        return Computed(network.version, network.runtime, restored, grid, prepared.affine, way.note, unsure)

    def _prepared(self, image: Image, grid: Grid, device: torch.device, key: Hashable, timed: Timed) -> PreparedImage:
        """Return an image prepared on a device, where it is kept."""
        kept: PreparedImage | None = self._memory.images(device).get(key)
        if kept is not None:
            return kept
        with timed("prepare"):
            voxels = prepare(image, self._model, grid, device)
            complete(device)
        prepared = PreparedImage(voxels, grid, image.affine, image.shape)
        self._memory.images(device).put(key, prepared, voxels.nbytes)
        return prepared


def lacks_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory does not suffice, found out by trying or beforehand."""
    return isinstance(error, TooLarge) or is_out_of_memory(error)


def _on(device: torch.device, network: Run) -> Run:
    """Return a network on a device as one that takes and returns tensors in the machine's memory."""

    def run(windows: torch.Tensor) -> torch.Tensor:
        with autocast(device):
            return to_host(network(windows.to(device)))

    return run
