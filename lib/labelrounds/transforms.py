"""From a checked image to what the network sees, and from its answer back to the image's own grid.

Shared by inference and training, so that both see the same voxels. An image is only permuted and flipped to the
orientation closest to RAS and resampled along its own axes, never rotated: an oblique image stays oblique, and
the way back is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from labelrounds.config import MIRROR_AXES, LabelCleaning, ModelConfig, WindowIntensity
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


def random_mapping(
    source: Sequence[int],
    spacing_mm: Sequence[float],
    centre: Sequence[float],
    config: ModelConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw where the voxels of a training patch come from: a rotated, scaled, mirrored box in the case.

    Args:
        source: the case's shape on the network's grid.
        spacing_mm: voxel size of that grid, so that a rotation is one in millimetres.
        centre: the voxel of the case at the patch's middle.
        config: patch size, mirror axes, rotation and scale.
        generator: source of all randomness.

    Returns:
        the ``(3, 4)`` matrix from a patch's normalised coordinates (z, y, x order reversed as ``grid_sample``
        wants them) to the case's.
    """
    training = config.training
    angles = (torch.rand(3, generator=generator) * 2 - 1) * np.deg2rad(training.rotation_degrees)
    if config.dimensions == 2:
        angles[:2] = 0
    low, high = training.scale_range
    scale = low + (high - low) * torch.rand(1, generator=generator)
    matrix = _rotation(angles) * scale
    if config.dimensions == 2:
        matrix[2, 2] = 1
    for axis in config.mirror:
        if torch.rand(1, generator=generator) < 0.5:
            matrix[:, MIRROR_AXES[axis]] *= -1
    half_patch = torch.tensor(config.patch_size) / 2 * torch.tensor(spacing_mm)
    half_case = torch.tensor(source) / 2 * torch.tensor(spacing_mm)
    linear = (matrix * half_patch[None, :]) / half_case[:, None]
    shift = (torch.tensor(centre) + 0.5) / torch.tensor(source) * 2 - 1
    return torch.cat((linear, shift[:, None]), dim=1).flip(0)[:, [2, 1, 0, 3]]


def sample_patch(
    image: torch.Tensor, label: torch.Tensor, mapping: torch.Tensor, patch_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the mapped patch out of a case in one interpolation: image ``(C, X, Y, Z)`` linear, label nearest.

    Beyond the case's border both repeat the border's values, as inference pads.
    """
    where = functional.affine_grid(mapping[None].to(image), [1, 1, *patch_size], align_corners=False)
    patch = functional.grid_sample(image[None], where, padding_mode="border", align_corners=False)
    truth = functional.grid_sample(
        label[None, None].to(image.dtype), where, mode="nearest", padding_mode="border", align_corners=False
    )
    return patch[0], truth[0, 0].long()


def vary_intensity(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary noise, brightness, contrast and gamma of a batch ``(B, C, X, Y, Z)``, each image for itself."""
    batch = images.shape[0]

    def draw(low: float, high: float, probability: float, neutral: float) -> torch.Tensor:
        value = low + (high - low) * torch.rand(batch, generator=generator)
        used = torch.rand(batch, generator=generator) < probability
        return torch.where(used, value, torch.full_like(value, neutral)).to(images).view(-1, 1, 1, 1, 1)

    mean = images.mean(dim=(2, 3, 4), keepdim=True)
    images = (images - mean) * draw(0.75, 1.25, 0.3, 1.0) + mean + draw(-0.2, 0.2, 0.3, 0.0)
    low, high = images.amin(dim=(2, 3, 4), keepdim=True), images.amax(dim=(2, 3, 4), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    images = ((images - low) / span).pow(draw(0.7, 1.5, 0.3, 1.0)) * span + low
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + noise * draw(0.0, 0.15, 0.3, 0.0)


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Return the rotation about x, then y, then z by the given angles (radians)."""
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles).tolist(), torch.sin(angles).tolist()
    about_x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


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
