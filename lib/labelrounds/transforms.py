"""From a checked image to what the network sees, and from its answer back to the image's own grid.

Shared by inference and training, so that both see the same voxels. An image is only permuted and flipped to the
orientation closest to RAS and resampled along its own axes, never rotated: an oblique image stays oblique, and
the way back is exact.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import nibabel
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from labelrounds.config import LabelCleaning, ModelConfig
from labelrounds.devices import to_host
from labelrounds.errors import BadInput, TooLarge
from labelrounds.reading import MAX_VOXELS, Image
from labelrounds.sections import WindowIntensity, ZScoreIntensity

Restoring = Literal["nearest", "linear"]

_PERCENTILE_SAMPLES = 1_000_000
# That are interpolated at a time: as many as stay in a CPU's cache, and as keep a GPU busy.
_PLANES, _PLANES_ON_GPU = 16, 128
# What goes to a GPU as it is.
_SENT = {"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32}


@dataclass(frozen=True)
class Grid:
    """How an image's own grid and the network's belong together.

    Attributes:
        axes: the image's axis that becomes each axis of the network's grid.
        flips: whether that axis is reversed.
        oriented_shape: the image's shape after permutation, before resampling.
        shape: the network's grid.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, ...]
    oriented_shape: tuple[int, int, int]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, image: Image, config: ModelConfig) -> "Grid":
        """Choose the network's grid for an image: closest to RAS, at the configured spacing.

        Raises:
            TooLarge: at that spacing the image would have more voxels than are ever read.
        """
        axes, flips = closest_to_ras(image)
        source = np.array(image.shape)[list(axes)]
        spacing = np.array(image.spacing_mm)[list(axes)]
        target = source.astype(float)
        if config.spacing_mm is not None:
            target = np.maximum(1, np.round(source * spacing / np.array(config.spacing_mm)))
        if config.dimensions == 2:
            target[2] = source[2]
        if target.prod() > MAX_VOXELS:
            raise TooLarge(
                f"the image of {list(source)} voxels has {target.prod():.3g} at the {list(config.spacing_mm or ())} mm"
                f" of model {config.name}, over {MAX_VOXELS}"
            )
        return cls(axes, flips, _triple(source), _triple(target))

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Permute and flip the last three axes of an array from the image's grid to the network's orientation."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.flip(turned, axis=[lead + axis for axis, flip in enumerate(self.flips) if flip])

    def backward(self, array: np.ndarray) -> np.ndarray:
        """Undo ``forward`` for an array ``(X, Y, Z)``."""
        turned = np.flip(array, axis=[axis for axis, flip in enumerate(self.flips) if flip])
        return turned.transpose(np.argsort(self.axes))


def closest_to_ras(image: Image) -> tuple[tuple[int, int, int], tuple[bool, ...]]:
    """Return which axis of an image runs nearest to each axis of RAS, and whether it runs the other way."""
    orientation = nibabel.orientations.io_orientation(image.affine)
    axes = np.argsort(orientation[:, 0]).astype(int)
    return _triple(axes), tuple(bool(flip) for flip in orientation[axes, 1] < 0)


def prepare(image: Image, config: ModelConfig, grid: Grid, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the image as the network sees it, ``(C, X, Y, Z)`` float32 in the network's orientation.

    Raises:
        BadInput: the image has another number of channels than the model.
    """
    channels = image.array.shape[0]
    if channels != config.channels:
        raise BadInput(f"{image.source}: has {channels} channels, model {config.name} takes {config.channels}")
    tensor = on_device(grid.forward(image.array), torch.device(device))
    if grid.shape != grid.oriented_shape:
        tensor = _trilinear(tensor, grid.shape)
    return normalise(tensor.contiguous(), config)


def prepare_label(label: np.ndarray, grid: Grid) -> torch.Tensor:
    """Return a label array ``(X, Y, Z)`` on the network's grid, uint8, by nearest neighbour."""
    array = np.ascontiguousarray(grid.forward(label), dtype=np.uint8)
    tensor = torch.from_numpy(array)
    sides = zip(grid.oriented_shape, grid.shape, strict=True)
    return _picked(tensor, [_nearest(source, wanted, tensor.device) for source, wanted in sides])


def restore(label: torch.Tensor, grid: Grid, method: Restoring = "nearest") -> np.ndarray:
    """Return a label map ``(X, Y, Z)`` of the network's grid on the image's own grid, uint8.

    It is computed on the label's device; in memory the first axis changes fastest, as in a file.

    Args:
        label: ``(X, Y, Z)`` on the network's grid.
        grid: between the two.
        method: ``nearest`` takes the nearest voxel's label; ``linear`` does so where the image's grid is not finer
            along any axis, else it interpolates each label for itself and takes the largest: borders are smooth.
    """
    finer = any(wanted > source for source, wanted in zip(grid.shape, grid.oriented_shape, strict=True))
    linear = method == "linear" and finer
    find = _between_centres if linear else _nearest
    places = []
    for source, wanted, flip in zip(grid.shape, grid.oriented_shape, grid.flips, strict=True):
        place = find(source, wanted, label.device)
        places.append(place.flip(0) if flip else place)
    backward = [int(axis) for axis in np.argsort(grid.axes)[::-1]]
    turned = label.to(torch.uint8).permute(backward)
    places = [places[axis] for axis in backward]
    return to_host((_interpolated if linear else _picked)(turned, places)).numpy().T


def restore_values(values: torch.Tensor, grid: Grid) -> np.ndarray:
    """Return values ``(X, Y, Z)`` of the network's grid on the image's own grid, rounded to uint8, by interpolation."""
    fine = values[None].float()
    if grid.shape != grid.oriented_shape:
        fine = _trilinear(fine, grid.oriented_shape)
    return np.asfortranarray(grid.backward(to_host(fine[0].round().to(torch.uint8)).numpy()))


def normalise(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Scale intensities as the model's configuration says, each channel ``(C, X, Y, Z)`` for itself."""
    intensity = config.intensity
    return windowed(tensor, intensity) if isinstance(intensity, WindowIntensity) else standardised(tensor, intensity)


def windowed(tensor: torch.Tensor, intensity: WindowIntensity) -> torch.Tensor:
    """Clip to a window and scale it to -1..1."""
    middle, half = (intensity.high + intensity.low) / 2, (intensity.high - intensity.low) / 2
    return tensor.clamp(intensity.low, intensity.high).sub_(middle).div_(half)


def standardised(tensor: torch.Tensor, intensity: ZScoreIntensity) -> torch.Tensor:
    """Clip each channel ``(C, X, Y, Z)`` to its percentiles, to mean 0 and deviation 1; a constant one becomes 0."""
    scaled = torch.empty_like(tensor)
    for channel, clipped in zip(tensor, scaled, strict=True):
        low, high = percentiles(channel, intensity.low_percentile, intensity.high_percentile)
        torch.clamp(channel, low, high, out=clipped)
        deviation, mean = torch.std_mean(clipped, correction=0)
        # Of a constant channel the mean is off by a rounding, which a tiny deviation would make large.
        clipped.sub_(mean).div_(deviation.clamp_min(1e-8).masked_fill(low >= high, math.inf))
    return scaled


def percentiles(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return two percentiles of the values, on their device.

    Of a subsample, where there are many: exact enough, and torch.quantile has an input limit.
    """
    sample = values.flatten()[:: _stride(values.numel())]
    if sample.device.type == "cpu":  # there a partition takes a sixth of the time of torch's sorting
        return torch.from_numpy(np.percentile(sample.numpy(), [low, high]).astype(np.float32))
    return torch.quantile(sample, torch.tensor([low / 100, high / 100], device=sample.device))


def clean(label: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Apply each label's configured cleaning to a label map ``(X, Y, Z)``; the input is not changed."""
    result = label.copy()
    if not config.cleaning:
        return result
    boxes = ndimage.find_objects(label, max_label=len(config.labels))
    for name, cleaning in config.cleaning.items():
        value = config.label_values[name]
        box = boxes[value - 1]
        if box is not None:
            part = result[box]
            mask = label[box] == value
            kept = _clean_mask(mask, cleaning, config.dimensions)
            part[mask & ~kept] = 0
            part[kept & (part == 0)] = value
    return result


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array ``(C, X, Y, Z)`` to a device, as float32, its axes in the order in which they lie in memory.

    Turning its memory round takes longer than resampling, and is less after it. To a GPU it goes by way of pinned
    memory and in its own type, which is converted there.
    """
    dtype = torch.float32
    if device.type == "cuda":
        dtype = _SENT.get(array.dtype.name, dtype)
    strides = np.empty_like(array, dtype=np.uint8, order="K").strides
    copy = torch.empty_strided(array.shape, strides, dtype=dtype, pin_memory=device.type == "cuda")
    np.copyto(copy.numpy(), array)
    return copy.to(device, non_blocking=True).float()


def _trilinear(tensor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Resample ``(C, X, Y, Z)``, axes in the order in which they lie in memory."""
    order = sorted(range(3), key=lambda axis: -tensor.stride(axis + 1))
    turned = tensor.permute(0, *(axis + 1 for axis in order))
    resampled = functional.interpolate(turned[None], size=[shape[axis] for axis in order], mode="trilinear")[0]
    return resampled.permute(0, *(order.index(axis) + 1 for axis in range(3)))


def _nearest(source: int, wanted: int, device: torch.device) -> torch.Tensor:
    """Return which of ``source`` voxels lies nearest to each of ``wanted`` ones over the same length."""
    return (2 * torch.arange(wanted, device=device) + 1) * source // (2 * wanted)


def _picked(label: torch.Tensor, indices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the voxels of a label map ``(X, Y, Z)`` at some indices along each axis.

    The last axis first: what is copied there one by one is least then.
    """
    x, y, z = indices
    # As index_select, which takes five times as long along the last axis.
    label = label.gather(2, z.expand(*label.shape[:2], -1))
    return label.index_select(1, y).index_select(0, x)


def _between_centres(source: int, wanted: int, device: torch.device) -> torch.Tensor:
    """Return where each of ``wanted`` voxels lies among ``source`` ones over the same length, within their centres."""
    centres = torch.arange(wanted, dtype=torch.float64, device=device) + 0.5
    return (centres * source / wanted - 0.5).clamp_(0, source - 1)


def _interpolated(label: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the label with the largest share at some places along each axis of a label map ``(X, Y, Z)``.

    Some planes at a time, and of each label no more than the box in which it has a share.
    """
    boxes = dict(_boxes(label))
    result = torch.zeros([len(place) for place in places], dtype=torch.uint8, device=label.device)
    step = _PLANES if label.device.type == "cpu" else _PLANES_ON_GPU
    for planes, first in zip(result.split(step), places[0].split(step), strict=True):
        largest = torch.zeros(planes.shape, device=label.device)
        background = torch.ones(planes.shape, device=label.device)
        reach = slice(int(first.min()), int(first.max()) + 2)  # the planes between which they lie
        for value, (x, y, z) in boxes.items():
            box = (slice(max(x.start, reach.start), min(x.stop, reach.stop)), y, z)
            around = (first, places[1], places[2])
            here = tuple(_touching(place, side) for place, side in zip(around, box, strict=True))
            if any(part.start == part.stop for part in here):
                continue
            share = (label[box] == value).float()
            for axis in (2, 1, 0):  # the last takes longest, and has least to do before the others
                share = _between(share, around[axis][here[axis]] - box[axis].start, axis)
            background[here].sub_(share)
            planes[here].masked_fill_(share > largest[here], value)
            torch.maximum(largest[here], share, out=largest[here])
        planes.masked_fill_(background > largest, 0)
    return result


def _boxes(label: torch.Tensor) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Yield each label of a map ``(X, Y, Z)``, and the box around it."""
    mask = torch.empty(label.shape, dtype=torch.bool, device=label.device)
    for value in range(1, int(label.max()) + 1):
        found = torch.eq(label, value, out=mask).view(torch.uint8)  # of which a maximum is found faster than of bool
        planes = found.amax(dim=2)
        sides = [side.nonzero().flatten() for side in (planes.amax(dim=1), planes.amax(dim=0), found.amax(dim=(0, 1)))]
        if len(sides[0]):
            x, y, z = (slice(int(side[0]), int(side[-1]) + 1) for side in sides)
            yield value, (x, y, z)


def _touching(place: torch.Tensor, side: slice) -> slice:
    """Return which places in order, or in reverse, lie less than a voxel from a box."""
    found = ((place > side.start - 1) & (place < side.stop)).nonzero().flatten()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _between(values: torch.Tensor, place: torch.Tensor, axis: int) -> torch.Tensor:
    """Interpolate linearly along an axis; beyond its ends lies 0."""
    padded = functional.pad(values, [int(other == axis) for other in (2, 1, 0) for _ in range(2)])
    low = place.floor()
    share = (place - low).float().view([-1 if other == axis else 1 for other in range(3)])
    index = low.long() + 1
    return torch.lerp(padded.index_select(axis, index), padded.index_select(axis, index + 1), share)


def _stride(voxels: int) -> int:
    """Return a step that meets all parts of a volume: one that divides a side would keep to a plane of it."""
    stride = max(1, voxels // _PERCENTILE_SAMPLES)
    while math.gcd(stride, voxels) > 1:
        stride += 1
    return stride


def _clean_mask(mask: np.ndarray, cleaning: LabelCleaning, dimensions: int) -> np.ndarray:
    kept = mask
    if cleaning.largest_component:
        parts, count = cc3d.connected_components(mask, connectivity=6, binary_image=True, return_N=True)
        if count > 1:
            kept = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    if cleaning.fill_holes:
        neighbours = ndimage.generate_binary_structure(3, 1)
        if dimensions == 2:  # each slice for itself: across the slices its holes are open
            neighbours[:, :, [0, 2]] = False
        kept = ndimage.binary_fill_holes(kept, neighbours)
    return kept


def _triple(values: np.ndarray) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])
