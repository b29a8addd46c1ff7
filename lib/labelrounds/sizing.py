"""Resolution, patch, depth, widths and batch of a model: what image shapes, memory and time decide together.

The rules are nnU-Net's (DOI 10.1038/s41592-020-01008-z). On a CPU a step must also stay affordable, which costs width
and patch, and, for large images, resolution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from labelrounds.config import ModelConfig
from labelrounds.devices import free_bytes
from labelrounds.errors import BadInput
from labelrounds.fingerprint import Fingerprint
from labelrounds.footprint import Footprint, footprint_of
from labelrounds.networks import networks

Sides = tuple[int, int, int]
Spacing = tuple[float, float, float]

LOWEST_SIDE = 4
ANISOTROPIC = 3.0
LABEL_VOXELS = 300
_POOLED_TOGETHER = 2.0
_SMALLEST_POOLED_TWICE = 4 * LOWEST_SIDE
_LARGEST_PATCH = {2: 2048**2, 3: 256**3}
_MOST_BYTES = 12e9
_MEMORY_SHARE = 0.7
_CPU_SECONDS_A_STEP = 2.0
_MOST_PARTS = {"cpu": 48, "cuda": 256}  # patches in a median image; with more it takes too long to segment
_PATCH_SHARE = 0.05
_MOST_IN_BATCH = {("cpu", 3): 2, ("cpu", 2): 8, ("cuda", 3): 16, ("cuda", 2): 64}
_WIDTHS = {("cpu", 3): (16, 256), ("cpu", 2): (16, 256), ("cuda", 3): (32, 320), ("cuda", 2): (32, 512)}


@dataclass(frozen=True)
class Levels:
    """A patch and how a network goes down from it."""

    patch: Sides
    strides: list[Sides]
    kernels: list[Sides]


@dataclass(frozen=True)
class Layout:
    """What memory, time and shape decide together."""

    dimensions: int
    spacing_mm: Spacing
    median: Sides
    levels: Levels
    channels: list[int]
    batch: int
    cost: Footprint
    free_bytes: int
    coarsened: bool


def plan_layout(fingerprint: Fingerprint, network: str, device: torch.device) -> Layout:
    """Return the largest layout that the device can afford.

    Raises:
        BadInput: images too small to segment, or not enough memory for the smallest patch.
    """
    return _Planner(fingerprint, network, device).layout()


class _Planner:
    """Finds the largest patch and network that the device can afford."""

    def __init__(self, fingerprint: Fingerprint, network: str, device: torch.device) -> None:
        self._fingerprint, self._network, self._device = fingerprint, network, device
        shapes = fingerprint.shapes
        self._dimensions = 2 if fingerprint.is_flat or np.median(shapes[:, 2]) < LOWEST_SIDE else 3
        self._free_bytes = free_bytes(device)
        self._limit_bytes = min(_MOST_BYTES, _MEMORY_SHARE * self._free_bytes)

    def layout(self) -> Layout:
        """Return the layout at the target spacing, or at a coarser one where patches would be lost in the images."""
        spacing = target_spacing(self._fingerprint.spacings_mm, self._fingerprint.shapes)
        layout = self._at(spacing, coarsened=False)
        excess = math.prod(layout.median) / math.prod(layout.levels.patch) / _MOST_PARTS[self._device.type]
        if excess <= 1 or self._fingerprint.is_flat:
            return layout
        coarser = self._coarser(spacing, excess)
        return layout if coarser == spacing else self._at(coarser, coarsened=True)

    def _at(self, spacing: Sequence[float], coarsened: bool) -> Layout:
        median = _median_shape(self._fingerprint, spacing, self._dimensions)
        levels = go_down(_first_patch(median, spacing, self._dimensions), spacing)
        levels, cost = self._affordable(levels, median, spacing)
        batch, cost = self._batch(levels, cost, median)
        return Layout(
            dimensions=self._dimensions,
            spacing_mm=_spacing(spacing),
            median=median,
            levels=levels,
            channels=self._channels(levels),
            batch=batch,
            cost=cost,
            free_bytes=self._free_bytes,
            coarsened=coarsened,
        )

    def _affordable(self, levels: Levels, median: Sides, spacing: Sequence[float]) -> tuple[Levels, Footprint]:
        """Shrink the patch until a step with two of them fits, along the axis that it covers best (nnU-Net's rule)."""
        cost = self._cost(levels, 2)
        while (excess := self._excess(cost)) > 1:
            wanted = math.prod(levels.patch) / excess
            before = levels
            while math.prod(levels.patch) > wanted and (smaller := _shrunk(levels, median, spacing)) is not None:
                levels = smaller
            if levels == before:
                if cost.bytes > self._limit_bytes:
                    raise BadInput(
                        f"a training step with the smallest patch, {list(levels.patch)}, needs {cost.bytes / 1e9:.1f}"
                        f" GB, and {self._limit_bytes / 1e9:.1f} GB of {self._device} may be used: free some memory"
                    )
                break
            cost = self._cost(levels, 2)
        return levels, cost

    def _batch(self, levels: Levels, cost: Footprint, median: Sides) -> tuple[int, Footprint]:
        """Return the largest batch that is affordable and holds at most 5 % of all voxels; 2 at least."""
        voxels = math.prod(median) * len(self._fingerprint.images)
        share = round(_PATCH_SHARE * voxels / math.prod(levels.patch))
        most = max(2, min(share, _MOST_IN_BATCH[self._device.type, self._dimensions]))
        batch = max(2, min(most, int(2 / self._excess(cost))))
        return (batch, cost) if batch == 2 else (batch, self._cost(levels, batch))

    def _coarser(self, spacing: Spacing, excess: float) -> Spacing:
        """Return a spacing with so many times fewer voxels, finest axes first, at which no label gets too small."""
        sizes = [size for size in self._fingerprint.label_sizes_mm3().values() if size]
        largest_voxel = min(sizes, default=math.inf) / LABEL_VOXELS
        result, free = list(spacing), range(self._dimensions)
        before = math.prod(result)
        while math.prod(result) < before * excess and math.prod(result) * 1.05 <= largest_voxel:
            finest = min(free, key=lambda axis: result[axis])
            result[finest] *= 1.05
        return _spacing([round(value, 3) for value in result])

    def _excess(self, cost: Footprint) -> float:
        time = cost.cpu_seconds / _CPU_SECONDS_A_STEP if self._device.type == "cpu" else 0.0
        return max(cost.bytes / self._limit_bytes, time)

    def _cost(self, levels: Levels, batch: int) -> Footprint:
        return footprint_of(
            ModelConfig.model_validate(
                {
                    "name": "planned",
                    "description": "",
                    "labels": self._fingerprint.labels,
                    "channels": self._fingerprint.channels,
                    "intensity": {"kind": "zscore"},
                    "network": {
                        "name": self._network,
                        **network_options(self._network, levels, self._channels(levels)),
                    },
                    "patch_size": levels.patch,
                    "training": {"batch_size": batch},
                }
            )
        )

    def _channels(self, levels: Levels) -> list[int]:
        first, most = _WIDTHS[self._device.type, self._dimensions]
        return [min(most, first * 2**level) for level in range(len(levels.kernels))]


def target_spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> Spacing:
    """Return the median spacing; of an axis with thick slices the tenth percentile (nnU-Net's rule).

    Args:
        spacings_mm: ``(N, 3)``.
        shapes: ``(N, 3)`` voxels.
    """
    spacing, shape = np.median(spacings_mm, axis=0), np.median(shapes, axis=0)
    thick = int(np.argmax(spacing))
    others = [axis for axis in range(3) if axis != thick]
    if spacing[thick] > ANISOTROPIC * max(spacing[others]) and shape[thick] * ANISOTROPIC < min(shape[others]):
        spacing[thick] = max(np.percentile(spacings_mm[:, thick], 10), max(spacing[others]))
    return _spacing([round(float(value), 3) for value in spacing])


def go_down(patch: Sequence[int], spacing_mm: Sequence[float]) -> Levels:
    """Return strides and kernels for a patch, which is enlarged to a multiple of what they need.

    An axis is halved while it keeps 4 voxels and its voxels are at most twice as large as the finest that can still be
    halved; a kernel spans an axis from the level on at which its voxels are less than twice the finest (nnU-Net's
    rules).
    """
    size, spacing = [math.ceil(side) for side in patch], list(spacing_mm)
    kernel = [1, 1, 1]
    strides: list[Sides] = []
    kernels: list[Sides] = []
    while True:
        present = [axis for axis in range(3) if patch[axis] > 1]
        finest = min(spacing[axis] for axis in present)
        for axis in present:
            if spacing[axis] < _POOLED_TOGETHER * finest and patch[axis] >= 3:
                kernel[axis] = 3
        kernels.append(_sides(kernel))
        able = [axis for axis in range(3) if size[axis] >= 2 * LOWEST_SIDE]
        pooled = [axis for axis in able if spacing[axis] < _POOLED_TOGETHER * min(spacing[other] for other in able)]
        if not pooled or (len(pooled) == 1 and size[pooled[0]] < 3 * LOWEST_SIDE):
            break
        strides.append(_sides([2 if axis in pooled else 1 for axis in range(3)]))
        for axis in pooled:
            size[axis] = math.ceil(size[axis] / 2)
            spacing[axis] *= 2
    multiple = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    padded = [math.ceil(side / step) * step for side, step in zip(patch, multiple, strict=True)]
    return Levels(_sides(padded), strides, kernels)


def _median_shape(fingerprint: Fingerprint, spacing: Sequence[float], dimensions: int) -> Sides:
    shapes = fingerprint.shapes * fingerprint.spacings_mm / np.array(spacing)
    median = [max(1, round(float(side))) for side in np.median(shapes, axis=0)]
    if dimensions == 2:
        median[2] = round(float(np.median(fingerprint.shapes[:, 2])))
    if sum(side >= LOWEST_SIDE for side in median[:dimensions]) < 2:
        raise BadInput(
            f"the images have {' x '.join(map(str, median))} voxels (median); along two axes at least {LOWEST_SIDE}"
            " are needed"
        )
    return _sides(median)


def _first_patch(median: Sides, spacing: Sequence[float], dimensions: int) -> list[int]:
    """Return the patch to begin with: a cube in mm, no larger than the median image, at least two steps deep."""
    axes = range(dimensions)
    side_mm = (_LARGEST_PATCH[dimensions] * math.prod(spacing[axis] for axis in axes)) ** (1 / dimensions)
    patch = [1, 1, 1]
    finest = min(spacing[axis] for axis in axes if median[axis] >= LOWEST_SIDE)
    for axis in axes:
        patch[axis] = max(1, min(median[axis], round(side_mm / spacing[axis])))
        if patch[axis] >= LOWEST_SIDE and spacing[axis] < _POOLED_TOGETHER * finest:
            patch[axis] = max(patch[axis], _SMALLEST_POOLED_TWICE)
    return patch


def _shrunk(levels: Levels, median: Sides, spacing: Sequence[float]) -> Levels | None:
    """Return the next smaller patch, shorter along the axis of which it covers the largest share; None at the end."""
    multiple = [math.prod(stride[axis] for stride in levels.strides) for axis in range(3)]
    able = [axis for axis in range(3) if levels.patch[axis] - multiple[axis] >= _SMALLEST_POOLED_TWICE]
    for axis in sorted(able, key=lambda axis: levels.patch[axis] / median[axis], reverse=True):
        patch = list(levels.patch)
        patch[axis] -= multiple[axis]
        smaller = go_down(patch, spacing)
        if math.prod(smaller.patch) < math.prod(levels.patch):  # another depth may have enlarged the other sides
            return smaller
    return None


def network_options(network: str, levels: Levels, channels: list[int]) -> dict[str, Any]:
    """Return those options that the network has.

    Raises:
        BadInput: an unknown network, or one that does not let the plan choose each level's features.
    """
    known = networks.options(network).model_fields
    if "channels" not in known:
        plannable = [name for name in networks.names() if "channels" in networks.options(name).model_fields]
        raise BadInput(
            f"network {network!r} can't be planned, only {', '.join(plannable)}; write its YAML file by hand"
        )
    options = {
        "channels": channels,
        "depths": [min(3, level + 1) for level in range(len(channels))],  # the paper's, continued
        "strides": levels.strides,
        "kernels": levels.kernels,
    }
    return {key: value for key, value in options.items() if key in known}


def _sides(values: Sequence[int]) -> Sides:
    return int(values[0]), int(values[1]), int(values[2])


def _spacing(values: Sequence[float]) -> Spacing:
    return float(values[0]), float(values[1]), float(values[2])
