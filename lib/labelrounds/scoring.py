"""One pass of a version over an image, and all that it says: scores, and the embedding of the network's bottleneck.

On the way of a round: `labelrounds.pool_scoring` scores the pool in the background, `labelrounds.scores` keeps what
comes of it, and strategies choose by it. What the scores of voxels are is defined in ``voxel_scores.py``, for whole
images in ``classification/scoring.py``, and those that take passes of their own in ``costly_scores.py``.

Runtime: scores are computed by PyTorch, in the arithmetic that inference has on that device (bfloat16 where it is in
hardware), also where OpenVINO or a recorded CUDA graph serves the model: the embedding is noted by a hook on the
bottleneck in the same pass, and those have no modules to put a hook on. A second pass for it would cost more than they
save.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.classification.cases import prepared as prepared_class_image
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.scoring import class_epistemic, class_scores, class_tta, distance, looked_at
from labelrounds.classification.served import Ready, temperature_in
from labelrounds.config import AUTO, AnyConfig, ModelConfig
from labelrounds.costly_scores import disagreement, epistemic, tta
from labelrounds.devices import is_out_of_memory, place, settle, to_host
from labelrounds.errors import Conflict, LabelRoundsError, TooLarge
from labelrounds.inference import logit_pieces, predict, windows_of
from labelrounds.memory_cache import identity_of
from labelrounds.reading import Image, read_image
from labelrounds.runtime_measurement import read_measurement
from labelrounds.runtimes import Subject, default_runtime, runtimes
from labelrounds.runtimes.pytorch import Eager
from labelrounds.scores import CaseScores
from labelrounds.sliding import Stopped, Windows
from labelrounds.transforms import Grid, prepare
from labelrounds.voxel_scores import VoxelSums, extents

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

COSTLY = ("tta", "committee", "epistemic")


@dataclass(frozen=True)
class Prepared:
    """An image as the network sees it.

    Attributes:
        identity: of its file when it was read (`memory_cache.identity_of`).
        voxels: ``(C, X, Y, Z)`` float32 in the machine's memory.
        voxel_ml: the volume of a voxel of them.
        shape: the image's own voxels.
    """

    identity: str
    voxels: torch.Tensor
    voxel_ml: float
    shape: tuple[int, int, int]


class Scorer:
    """Scores images by one version of a model, whose weights it loads once a device.

    `read` may be called by any thread, the next image being read while one is scored; `score` and `score_prepared` by
    one at a time.

    Args:
        config: the model, of either kind.
        version: the one that is served where none is named.

    Attributes:
        version: by which it scores.

    Raises:
        Conflict: there is no trained version yet.
        BadInput: the weights are damaged or those of another network.
    """

    def __init__(self, config: AnyConfig, version: Version | None = None) -> None:
        checkpoints = Checkpoints(config)
        found = version or checkpoints.current()
        if found is None:
            raise Conflict(f"model {config.name} has no trained version yet: there is nothing to score images by")
        self.version = found
        self._kind: _Kind = (
            _Classes(config, checkpoints, found)
            if isinstance(config, ClassifierConfig)
            else _Voxels(config, checkpoints, found)
        )

    def able(self, costly: Collection[str]) -> tuple[str, ...]:
        """Return which of some costly scores can be computed: ``committee`` needs a version before this one."""
        return tuple(name for name in COSTLY if name in costly and (name != "committee" or self._kind.before))

    def read(self, image_path: Path) -> Prepared:
        """Read and prepare an image.

        Raises:
            LabelRoundsError: it can't be used.
        """
        identity = identity_of(image_path)
        image = read_image(image_path, channels=self._kind.config.channels)
        voxels, voxel_ml = self._kind.prepare(image)
        return Prepared(identity, voxels, voxel_ml, image.shape)

    def score(
        self,
        image_path: Path,
        device: torch.device,
        costly: Collection[str] = (),
        stopped: Stopped | None = None,
    ) -> CaseScores:
        """Read and score an image; see `score_prepared`."""
        return self.score_prepared(self.read(image_path), device, costly, stopped)

    def score_prepared(
        self,
        prepared: Prepared,
        device: torch.device,
        costly: Collection[str] = (),
        stopped: Stopped | None = None,
    ) -> CaseScores:
        """Score an image that was read; called in the device's thread.

        Args:
            prepared: as `read` has returned it.
            device: where.
            costly: names of `COSTLY` that are wanted too; those that are not `able` are left out.
            stopped: asked before each batch of windows whether to give up.

        Raises:
            TooLarge: the device has not the memory, not even for one window at a time.
            Cancelled: ``stopped`` said so.
            ValueError: a name that is not one of `COSTLY`.
        """
        unknown = set(costly) - set(COSTLY)
        if unknown:
            raise ValueError(f"costly score {min(unknown)!r} is not one of {', '.join(COSTLY)}")
        settle(device)
        reason = ""
        for most_at_once in (None, 1):
            try:
                return self._kind.score(prepared, device, self.able(costly), stopped, most_at_once)
            except Exception as error:
                if not (isinstance(error, TooLarge) or is_out_of_memory(error)):
                    raise
                reason = str(error)
            # Out here, where the error is gone and holds no tensor of the attempt any more.
            if device.type == "cuda":
                torch.cuda.empty_cache()
        voxels = " x ".join(str(side) for side in prepared.shape)
        raise TooLarge(f"an image of {voxels} voxels can't be scored in the memory of {device}: {reason}")


class _Kind(ABC):
    """What scoring has to know of the kind of a model."""

    def __init__(self, config: Any, checkpoints: Checkpoints, version: Version) -> None:
        self.config, self.version = config, version
        self.checkpoints = checkpoints
        self.network = self._loaded(version)
        self._made: dict[tuple[str, str], Any] = {}  # by what it is for, and the device

    @abstractmethod
    def prepare(self, image: Image) -> tuple[torch.Tensor, float]:
        """Return the image as the network sees it, and the volume of a voxel in ml."""

    @abstractmethod
    def score(
        self,
        prepared: Prepared,
        device: torch.device,
        costly: Collection[str],
        stopped: Stopped | None,
        most_at_once: int | None,
    ) -> CaseScores:
        """Return all that one pass says, and the costly scores."""

    @cached_property
    def before(self) -> tuple[Version, Any] | None:
        """The version before this one and its network; None where there is none that can be used."""
        older = [one for one in self.checkpoints.versions() if one.number < self.version.number]
        for version in reversed(older):
            try:
                return version, self._loaded(version)
            except LabelRoundsError as error:
                logger.info("%s is not compared with %s: %s", self.version, version, error)
        return None

    def _loaded(self, version: Version) -> Any:
        return self.checkpoints.network(version).eval()

    def _once(self, what: str, device: torch.device, make: Callable[[], Made]) -> Made:
        """Return what was made for a device before, or is now."""
        key = (what, str(device))
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made


class _Watched:
    """A segmentation network that notes the average of its bottleneck for each window that it is given."""

    def __init__(self, run: Eager) -> None:
        self._run = run
        self._seen: torch.Tensor | None = None
        self._averages: list[torch.Tensor] = []
        run.network.bottleneck.register_forward_hook(self._note)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        logits = self._run(windows)
        seen, self._seen = cast(torch.Tensor, self._seen), None
        self._averages.append(seen.float().flatten(2).mean(dim=2))
        return logits

    def begin(self) -> None:
        """Forget what was noted."""
        self._averages.clear()

    def embedding(self, windows: Windows) -> NDArray[np.float32]:
        """Return the windows' average, each as heavy as the voxels that lie nearest to its centre, ``(D,)``."""
        total = torch.zeros(self._averages[0].shape[1], device=self._averages[0].device)
        for corners, averages in zip(windows.batches(), self._averages, strict=True):
            own = [math.prod(part.stop - part.start for part in windows.owned(corner)) for corner in corners]
            weights = torch.tensor(own, dtype=torch.float32, device=total.device) / math.prod(windows.shape)
            total += weights @ averages[: len(corners)]  # behind them a batch may be filled up
        return total.cpu().numpy()

    def _note(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self._seen = output


class _Voxels(_Kind):
    """Segmentation."""

    def prepare(self, image: Image) -> tuple[torch.Tensor, float]:
        grid = Grid.of(image, self.config)
        finer = math.prod(grid.oriented_shape) / math.prod(grid.shape)
        return prepare(image, self.config, grid), math.prod(image.spacing_mm) * finer / 1000

    def score(
        self,
        prepared: Prepared,
        device: torch.device,
        costly: Collection[str],
        stopped: Stopped | None,
        most_at_once: int | None,
    ) -> CaseScores:
        config: ModelConfig = self.config
        run = self._once("run", device, lambda: _Watched(self._runtime(self.network, self.version, device)))
        voxels = prepared.voxels.to(device)
        windows = windows_of(voxels, config, most_at_once)
        sums = VoxelSums(config.outputs, voxels[0].numel(), device)
        label = torch.empty(windows.shape, dtype=torch.uint8, device=device)
        run.begin()
        for block, logits in logit_pieces(run, voxels, windows, config, stopped):
            sums.add(logits, label[block])
            del logits  # not held while the next windows are computed
        values = self._costly(costly, voxels, label, device, stopped)
        found = to_host(label).numpy()
        extent = extents(found, config.labels, prepared.voxel_ml)
        counts = np.bincount(found.ravel(), minlength=config.outputs)
        return CaseScores(
            values={**sums.values(counts.tolist()), **values},
            by_label={**sums.by_label(config.labels), **extent},
            embedding=run.embedding(windows),
            version=self.version.number,
        )

    def _costly(
        self,
        wanted: Collection[str],
        voxels: torch.Tensor,
        label: torch.Tensor,
        device: torch.device,
        stopped: Stopped | None,
    ) -> dict[str, float]:
        values: dict[str, float] = {}
        if "tta" in wanted:
            run = self._once("tta", device, lambda: self._runtime(self.network, self.version, device))
            values["tta"] = tta(run, voxels, label, self.config, stopped)
        if "committee" in wanted and self.before is not None:
            version, network = self.before
            run = self._once("before", device, lambda: self._runtime(network, version, device))
            other = predict(run, voxels, self.config, stopped)
            values["committee"] = disagreement(label, other, len(self.config.labels))
        if "epistemic" in wanted:
            # As it was built: in the served form batch normalisations are folded, and dropout would have no place.
            bare = self._once("bare", device, lambda: place(deepcopy(self.network), device, self.config.dimensions))
            values |= epistemic(bare, voxels, self.config, stopped)
        return values

    def _runtime(self, network: Any, version: Version, device: torch.device) -> Eager:
        """Return PyTorch's runtime that serves the version, or would if no other did."""
        folder = self.checkpoints.runtimes_folder(version)
        name = self.config.inference.runtime
        if name == AUTO:
            measured = read_measurement(folder, self.config, device)
            name = measured.chosen if measured is not None else default_runtime(device)
        if not issubclass(runtimes.get(name), Eager) or runtimes.get(name).obstacle(device):
            name = default_runtime(device)
        return cast(Eager, runtimes.get(name)(Subject(network, self.config, device, folder)))


class _Classes(_Kind):
    """Classification."""

    def prepare(self, image: Image) -> tuple[torch.Tensor, float]:
        return prepared_class_image(image, self.config), 0.0

    def score(
        self,
        prepared: Prepared,
        device: torch.device,
        costly: Collection[str],
        stopped: Stopped | None,
        most_at_once: int | None,
    ) -> CaseScores:
        config: ClassifierConfig = self.config
        ready = self._once("run", device, lambda: self._ready(self.network, self.version, device))
        voxels = prepared.voxels.to(device)
        chances, embedding = looked_at(ready, voxels, config)
        values, by_label = class_scores(chances, config.labels, config.multilabel)
        if "tta" in costly:
            values["tta"] = class_tta(ready, voxels, chances, config)
        if "committee" in costly and self.before is not None:
            version, network = self.before
            other = self._once("before", device, lambda: self._ready(network, version, device))
            values["committee"] = distance(chances, looked_at(other, voxels, config)[0])
        if "epistemic" in costly:
            values |= class_epistemic(ready, voxels, config)
        return CaseScores(values, by_label, embedding.numpy(), self.version.number)

    def _ready(self, network: Any, version: Version, device: torch.device) -> Ready:
        placed = place(deepcopy(network), device, self.config.dimensions)
        return Ready(version, placed, temperature_in(version))
