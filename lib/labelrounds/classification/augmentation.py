"""Random variation of whole images in the training of a classification: their geometry and their intensities.

A batch is varied at once, but every random number of an image comes from its own generator, so that an image is varied
alike in whichever batch it comes. Intensities vary as in segmentation (`labelrounds.augmentation`, nnU-Net's, DOI
10.1038/s41592-020-01008-z).
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from labelrounds.augmentation import draw_intensity, vary_intensity


def augment(
    images: torch.Tensor,
    generators: Sequence[torch.Generator],
    *,
    dimensions: int,
    mirror_axes: Sequence[int],
    rotation_degrees: float,
    scale_range: tuple[float, float],
    shift_fraction: float,
    shear_degrees: float,
    intensity: bool,
) -> torch.Tensor:
    """Turn, enlarge, shift, shear and mirror each image, then vary its intensities.

    What comes from beyond an image has its channel's lowest value, as where `prepare_image` pads. Angles are in voxels.

    Args:
        images: ``(B, C, X, Y, Z)``; not changed.
        generators: one on the CPU for each image.
        dimensions: 2 varies all slices of an image alike and mixes none, 3 turns about all three axes.
        mirror_axes: 0 for X, 1 for Y, 2 for Z; along each an image is mirrored by chance 1/2.
        rotation_degrees: the largest angle, either way.
        scale_range: the least and the largest factor by which an image is enlarged, between them even in their
            logarithm.
        shift_fraction: the furthest shift, either way, as a share of each side.
        shear_degrees: the largest angle by which an axis leans over, either way.
        intensity: whether brightness, contrast, gamma, noise and sharpness vary.

    Returns:
        ``(B, C, X, Y, Z)`` on the images' device, finite where the images are.
    """
    draws = torch.stack([torch.rand(13, generator=generator) for generator in generators])
    turn, zoom, shift, lean, mirrored = draws.split((3, 1, 3, 3, 3), dim=1)
    matrix = _shears(_even(lean) * math.radians(shear_degrees))
    if dimensions == 2:
        turn = turn.index_fill(1, torch.tensor([0, 1]), 0.5)
    matrix = _rotations(_even(turn) * math.radians(rotation_degrees)) @ matrix
    low, high = (math.log(factor) for factor in scale_range)
    matrix = matrix * torch.exp(-(low + (high - low) * zoom))[:, :, None]
    # Of a 2-D image the slices go along as channels, each varied as the others and none mixed with another.
    folded = images.movedim(4, 2).flatten(1, 2)[..., None] if dimensions == 2 else images
    varied = _mapped(folded, matrix, 2 * shift_fraction * _even(shift), dimensions)
    if intensity:
        varied = vary_intensity(varied, [draw_intensity(generator) for generator in generators])
    if dimensions == 2:
        varied = varied[..., 0].unflatten(1, (images.shape[1], images.shape[4])).movedim(2, 4)
    return _mirrored(varied, mirrored, mirror_axes)


def _even(draws: torch.Tensor) -> torch.Tensor:
    """Spread numbers of 0..1 over -1..1."""
    return draws * 2 - 1


def _mapped(images: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Return images ``(B, C, X, Y, Z)`` whose voxels come from elsewhere in them, in one interpolation.

    Args:
        images: of one slice for 2 dimensions.
        matrix: ``(B, 3, 3)``, from where a voxel is, about the middle and in voxels, to where its value comes from.
        shift: ``(B, 3)``, added to that, of which 1 is half a side.
        dimensions: 2 or 3.
    """
    matrix, shift = matrix[:, :dimensions, :dimensions], shift[:, :dimensions]
    if not shift.any() and torch.equal(matrix, torch.eye(dimensions).expand_as(matrix)):
        return images.clone()
    half = torch.tensor(images.shape[2 : 2 + dimensions]) / 2
    linear = matrix * half / half[:, None]
    # grid_sample names the axes from the last to the first
    theta = torch.cat((linear.flip(1, 2), shift.flip(1)[..., None]), dim=2).to(images)
    source = images[..., 0] if dimensions == 2 else images
    lowest = source.flatten(2).amin(dim=2).view(*source.shape[:2], *[1] * dimensions)
    where = functional.affine_grid(theta, list(source.shape), align_corners=False)
    mapped = functional.grid_sample(source - lowest, where, padding_mode="zeros", align_corners=False) + lowest
    return mapped.view_as(images)


def _mirrored(images: torch.Tensor, draws: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Mirror images ``(B, C, X, Y, Z)`` along those of the axes of which their number in ``(B, 3)`` is below 1/2."""
    result = images.contiguous()
    for image, numbers in zip(result, draws.tolist(), strict=True):
        turned = [axis + 1 for axis in axes if numbers[axis] < 0.5]
        if turned:
            image.copy_(image.flip(turned))
    return result


def _rotations(angles: torch.Tensor) -> torch.Tensor:
    """Return the rotations about x, then y, then z by angles ``(B, 3)`` in radians."""
    result = torch.eye(3).expand(len(angles), 3, 3)
    for axis in range(3):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, one, one] = turn[:, other, other] = torch.cos(angles[:, axis])
        turn[:, one, other], turn[:, other, one] = -torch.sin(angles[:, axis]), torch.sin(angles[:, axis])
        result = turn @ result
    return result


def _shears(angles: torch.Tensor) -> torch.Tensor:
    """Return the shears by which y leans towards x, z towards x and z towards y, by angles ``(B, 3)`` in radians."""
    result = torch.eye(3).repeat(len(angles), 1, 1)
    result[:, 0, 1], result[:, 0, 2], result[:, 1, 2] = torch.tan(angles).unbind(1)
    return result
