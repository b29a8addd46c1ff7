"""From a checked image to what the network sees, and from its answer back to the image's own grid.

Shared by inference and training, so that both see the same voxels. An image is only permuted and flipped to the
orientation closest to RAS and resampled along its own axes, never rotated: an oblique image stays oblique, and
the way back is exact.
"""

import math
from dataclasses import dataclass

import nibabel
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from labelrounds.config import LabelCleaning, ModelConfig, WindowIntensity
from labelrounds.errors import TooLarge
from labelrounds.reading import MAX_VOXELS, Image

_PERCENTILE_SAMPLES = 1_000_000


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
        orientation = nibabel.orientations.io_orientation(image.affine)
        axes = np.argsort(orientation[:, 0]).astype(int)
        flips = orientation[axes, 1] < 0
        source = np.array(image.shape)[axes]
        spacing = np.array(image.spacing_mm)[axes]
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
        return cls(_triple(axes), tuple(bool(flip) for flip in flips), _triple(source), _triple(target))

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Permute and flip the last three axes of an array from the image's grid to the network's orientation."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.flip(turned, axis=[lead + axis for axis, flip in enumerate(self.flips) if flip])

    def backward(self, array: np.ndarray) -> np.ndarray:
        """Undo ``forward`` for an array ``(X, Y, Z)``."""
        turned = np.flip(array, axis=[axis for axis, flip in enumerate(self.flips) if flip])
        return turned.transpose(np.argsort(self.axes))


def prepare(image: Image, config: ModelConfig, grid: Grid, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the image as the network sees it, ``(C, X, Y, Z)`` float32 in the network's orientation."""
    array = np.ascontiguousarray(grid.forward(image.array), dtype=np.float32)
    tensor = torch.from_numpy(array).to(device)
    if grid.shape != grid.oriented_shape:
        tensor = functional.interpolate(tensor[None], size=grid.shape, mode="trilinear")[0]
    return normalise(tensor, config)


def prepare_label(label: np.ndarray, grid: Grid) -> torch.Tensor:
    """Return a label array ``(X, Y, Z)`` on the network's grid, uint8, by nearest neighbour."""
    array = np.ascontiguousarray(grid.forward(label), dtype=np.uint8)
    return _nearest(torch.from_numpy(array), grid.shape)


def restore(label: torch.Tensor, grid: Grid) -> np.ndarray:
    """Return a label map ``(X, Y, Z)`` of the network's grid on the image's own grid, uint8."""
    on_source = _nearest(label.to(torch.uint8), grid.oriented_shape).cpu().numpy()
    return np.ascontiguousarray(grid.backward(on_source))


def normalise(tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Scale intensities as the model's configuration says, each channel ``(C, X, Y, Z)`` for itself."""
    intensity = config.intensity
    if isinstance(intensity, WindowIntensity):
        middle, half = (intensity.high + intensity.low) / 2, (intensity.high - intensity.low) / 2
        return tensor.clamp(intensity.low, intensity.high).sub(middle).div(half)
    scaled = []
    for channel in tensor:
        # Percentiles of a subsample: exact enough, and torch.quantile has an input limit.
        sample = channel.flatten()[:: _stride(channel.numel())].cpu().numpy()
        low, high = np.percentile(sample, [intensity.low_percentile, intensity.high_percentile])
        clipped = channel.clamp(float(low), float(high))
        scaled.append((clipped - clipped.mean()) / clipped.std(correction=0).clamp_min(1e-8))
    return torch.stack(scaled)


def clean(label: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Apply each label's configured cleaning to a label map ``(X, Y, Z)``; the input is not changed."""
    result = label.copy()
    for name, cleaning in config.cleaning.items():
        value = config.label_values[name]
        mask = label == value
        if mask.any():
            kept = _clean_mask(mask, cleaning, config.dimensions)
            result[mask & ~kept] = 0
            result[kept & (result == 0)] = value
    return result


def _nearest(label: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Resample a label map by nearest neighbour, centre to centre."""
    if tuple(label.shape) == shape:
        return label
    return functional.interpolate(label[None, None], size=shape, mode="nearest-exact")[0, 0]


def _stride(voxels: int) -> int:
    """Return a step that meets all parts of a volume: one that divides a side would keep to a plane of it."""
    stride = max(1, voxels // _PERCENTILE_SAMPLES)
    while math.gcd(stride, voxels) > 1:
        stride += 1
    return stride


def _clean_mask(mask: np.ndarray, cleaning: LabelCleaning, dimensions: int) -> np.ndarray:
    kept = mask
    if cleaning.largest_component:
        parts, count = ndimage.label(mask)
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
