"""Random variation of training patches: where their voxels come from, and what their intensities become.

The strengths and probabilities are nnU-Net's (DOI 10.1038/s41592-020-01008-z; its ``nnUNetTrainer``), the way is
another: rotation, scale, mirroring and cropping are one interpolation from the whole case on the training device, and
intensities vary for a batch at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from labelrounds.config import ModelConfig
from labelrounds.sections import MIRROR_AXES

_ROTATED, _SCALED = 0.2, 0.2
_NOISY, _BLURRED, _BRIGHTENED, _CONTRASTED, _COARSENED, _GAMMA, _INVERTED_GAMMA = 0.1, 0.2, 0.15, 0.15, 0.25, 0.3, 0.1
_BLUR_RADIUS = 3
_THICK = 3.0
_UNMIXED = 1e-3


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
    low, high = training.scale_range
    scale = low + (high - low) * torch.rand(1, generator=generator)
    rotated, scaled = torch.rand(2, generator=generator).tolist()
    if rotated >= _ROTATED:
        angles = torch.zeros(3)
    if scaled >= _SCALED:
        scale = torch.ones(1)
    across = _across_slices(spacing_mm, config)
    if across is not None:
        angles = torch.where(torch.arange(3) == across, angles, torch.zeros(3))
    matrix = _rotation(angles) * scale
    if across is not None:
        matrix[across, across] = 1
    for axis in config.mirror:
        if torch.rand(1, generator=generator) < 0.5:
            matrix[:, MIRROR_AXES[axis]] *= -1
    half_patch = torch.tensor(config.patch_size) / 2 * torch.tensor(spacing_mm)
    half_case = torch.tensor(source) / 2 * torch.tensor(spacing_mm)
    linear = (matrix * half_patch[None, :]) / half_case[:, None]
    shift = (torch.tensor(centre) + 0.5) / torch.tensor(source) * 2 - 1
    return torch.cat((linear, shift[:, None]), dim=1).flip(0)[:, [2, 1, 0, 3]]


def _across_slices(spacing_mm: Sequence[float], config: ModelConfig) -> int | None:
    """Return the axis across slices that must not be mixed: a 2-D model's, or that of thick slices as in nnU-Net."""
    if config.dimensions == 2:
        return 2
    _, second, thickest = sorted(spacing_mm)
    return list(spacing_mm).index(thickest) if thickest > _THICK * second else None


def sample_patch(
    image: torch.Tensor, label: torch.Tensor, mapping: torch.Tensor, patch_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the mapped patch out of a case in one interpolation: image ``(C, X, Y, Z)`` linear, label nearest.

    Beyond the case's border both repeat the border's values, as inference pads.
    """
    whole = _whole_voxels(label.shape, mapping, patch_size)
    if whole is not None:
        for axis, index in enumerate(whole):
            index = index.to(label.device)
            image, label = image.index_select(axis + 1, index), label.index_select(axis, index)
        return image, label.long()
    image, label, mapping = _boxed(image, label, mapping)
    where = functional.affine_grid(mapping[None].to(image), [1, 1, *patch_size], align_corners=False)
    patch = functional.grid_sample(image[None], where, padding_mode="border", align_corners=False)
    truth = functional.grid_sample(
        label[None, None].to(image.dtype), where, mode="nearest", padding_mode="border", align_corners=False
    )
    return patch[0], truth[0, 0].long()


def _whole_voxels(source: Sequence[int], mapping: torch.Tensor, patch_size: Sequence[int]) -> list[torch.Tensor] | None:
    """Return the case's voxels along each axis that a mapping takes unmixed, at most mirrored; None where it mixes.

    Most patches are neither turned nor scaled, and picking voxels is many times faster than interpolating them.
    """
    linear = mapping[:, :3]
    if bool((linear - torch.diag(linear.diagonal())).any()):
        return None
    found = []
    for axis, (side, length) in enumerate(zip(source, patch_size, strict=True)):
        scale, shift = float(mapping[2 - axis, 2 - axis]), float(mapping[2 - axis, 3])
        step = scale * side / length
        first = ((scale * (1 / length - 1) + shift + 1) * side - 1) / 2
        if abs(abs(step) - 1) * length > _UNMIXED or abs(first - round(first)) > _UNMIXED:
            return None
        found.append((round(first) + round(step) * torch.arange(length)).clamp(0, side - 1))
    return found


def _boxed(
    image: torch.Tensor, label: torch.Tensor, mapping: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut the box out of a case that a mapping reads from, so that the rest of a large one costs nothing."""
    mapping = mapping.clone()
    for axis, side in enumerate(label.shape):
        row = mapping[2 - axis]  # grid_sample names the axes from the last to the first
        reach = float(row[:3].abs().sum())
        first, last = (((float(row[3]) + sign * reach + 1) * side - 1) / 2 for sign in (-1, 1))
        start = min(max(math.floor(first) - 1, 0), side - 1)
        stop = min(max(math.ceil(last) + 2, start + 1), side)
        image, label = image.narrow(axis + 1, start, stop - start), label.narrow(axis, start, stop - start)
        row *= side / (stop - start)
        row[3] += (side - 2 * start) / (stop - start) - 1
    return image, label, mapping


@dataclass(frozen=True)
class IntensityDraw:
    """What is done to the intensities of one patch; a deviation of 0 and a factor or exponent of 1 change nothing.

    Attributes:
        noise: standard deviation of Gaussian noise, and the seed that draws it.
        blur: standard deviation of a Gaussian filter, in voxels.
        brightness: factor.
        contrast: factor about the mean, within the patch's range.
        coarseness: factor by which the resolution is lowered, and the patch enlarged again.
        gamma: exponents for the inverted and for the plain intensities.
    """

    noise: tuple[float, int]
    blur: float
    brightness: float
    contrast: float
    coarseness: float
    gamma: tuple[float, float]


def draw_intensity(generator: torch.Generator) -> IntensityDraw:
    """Draw what is done to a patch's intensities."""

    def draw(low: float, high: float, probability: float, neutral: float) -> float:
        value, chance = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return low + (high - low) * value if chance < probability else neutral

    def bend(probability: float) -> float:
        below = float(torch.rand(1, generator=generator)) < 0.5
        return draw(0.7, 1.0, probability, 1.0) if below else draw(1.0, 1.5, probability, 1.0)

    seed = int(torch.randint(2**31, (1,), generator=generator))
    return IntensityDraw(
        noise=(draw(0.0, 0.1, _NOISY, 0.0), seed),
        blur=draw(0.5, 1.0, _BLURRED, 0.0),
        brightness=draw(0.75, 1.25, _BRIGHTENED, 1.0),
        contrast=draw(0.75, 1.25, _CONTRASTED, 1.0),
        coarseness=draw(0.5, 1.0, _COARSENED, 1.0),
        gamma=(bend(_INVERTED_GAMMA), bend(_GAMMA)),
    )


def vary_intensity(images: torch.Tensor, draws: Sequence[IntensityDraw]) -> torch.Tensor:
    """Vary noise, sharpness, brightness, contrast, resolution and gamma of a batch ``(B, C, X, Y, Z)``, in this order.

    Returns:
        the varied images; the input is not changed.
    """
    images = images.clone()
    for image, draw in zip(images, draws, strict=True):
        strength, seed = draw.noise
        if strength:
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
            image += strength * noise.to(image)
        if draw.blur:
            image.copy_(_blurred(image, draw.blur))
    images *= _column([draw.brightness for draw in draws], images)
    images = _contrasted(images, _column([draw.contrast for draw in draws], images))
    for image, draw in zip(images, draws, strict=True):
        if draw.coarseness < 1:
            image.copy_(_coarsened(image, draw.coarseness))
    inverted, plain = zip(*(draw.gamma for draw in draws), strict=True)
    return _bent(-_bent(-images, inverted), plain)


def _column(values: Sequence[float], images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=images.dtype).to(images.device).view(-1, 1, 1, 1, 1)


def _contrasted(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Scale each channel's distance to its mean, without leaving its range."""
    mean, low, high = _statistics(images)
    return ((images - mean) * factors + mean).clamp(low, high)


def _bent(images: torch.Tensor, exponents: Sequence[float]) -> torch.Tensor:
    """Raise intensities, scaled to 0..1, to a power; mean and deviation of each channel stay as they were."""
    if all(exponent == 1 for exponent in exponents):
        return images
    mean, low, high = _statistics(images)
    spread = images.std(dim=(2, 3, 4), keepdim=True, correction=0)
    bent = ((images - low) / (high - low).clamp_min(1e-6)).pow(_column(exponents, images))
    centred = bent - bent.mean(dim=(2, 3, 4), keepdim=True)
    restored = centred / bent.std(dim=(2, 3, 4), keepdim=True, correction=0).clamp_min(1e-6) * spread + mean
    return torch.where(_column(exponents, images) == 1, images, restored)


def _statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = (2, 3, 4)
    return images.mean(axes, keepdim=True), images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)


def _blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Filter ``(C, X, Y, Z)`` with a Gaussian along each axis that has more than one voxel.

    Shifted sums, as a convolution of few channels is slow on the CPU.
    """
    taps = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(_BLUR_RADIUS + 1)]
    whole = taps[0] + 2 * sum(taps[1:])
    for axis in (1, 2, 3):
        side = image.shape[axis]
        if side > 1:
            index = torch.arange(-_BLUR_RADIUS, side + _BLUR_RADIUS, device=image.device).clamp(0, side - 1)
            padded = image.index_select(axis, index)
            image = image * (taps[0] / whole)
            for offset in range(1, _BLUR_RADIUS + 1):
                near = padded.narrow(axis, _BLUR_RADIUS - offset, side) + padded.narrow(
                    axis, _BLUR_RADIUS + offset, side
                )
                image += near * (taps[offset] / whole)
    return image


def _coarsened(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Take every so-manyth voxel of ``(C, X, Y, Z)`` and interpolate between them."""
    shape = image.shape[1:]
    coarse = [max(1, round(side * factor)) for side in shape]
    small = functional.interpolate(image[None], size=coarse, mode="nearest-exact")
    return functional.interpolate(small, size=shape, mode="trilinear")[0]


def _rotation(angles: torch.Tensor) -> torch.Tensor:
    """Return the rotation about x, then y, then z by the given angles (radians)."""
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles).tolist(), torch.sin(angles).tolist()
    about_x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
