"""From a checked image to what a classification network sees: one tensor of a set size for the whole image.

Shared by training and inference, so that both see the same pixels. The orientation is that of segmentation
(`labelrounds.transforms`): axes permuted and flipped to the order closest to RAS, never rotated. A picture and an
upright DICOM radiograph of it so come out alike, and a drawing of the tensor in radiological convention is what a
viewer shows.
"""

import math

import numpy as np
import torch
from torch.nn import functional

from labelrounds.errors import BadInput, TooLarge
from labelrounds.formats import PICTURES
from labelrounds.reading import MAX_VOXELS, Image
from labelrounds.sections import RangeIntensity, WindowIntensity, ZScoreIntensity
from labelrounds.transforms import Grid, closest_to_ras, on_device, percentiles, standardised, windowed

SMALLEST_SIDE = 2  # of a single pixel neither size nor contrast can be told
Triple = tuple[int, int, int]


Intensity = WindowIntensity | ZScoreIntensity | RangeIntensity


def prepare_image(
    image: Image,
    *,
    input_size: Triple,
    spacing_mm: tuple[float, float, float] | None,
    intensity: Intensity,
    dimensions: int,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return an image as a classification network sees it, ``(C, X, Y, Z)`` float32 of ``input_size``.

    For 2 dimensions a volume gives slices of its own, evenly spaced and never interpolated, as many as
    ``input_size[2]`` says or as it has: Z is the smaller of the two, and 1 for a picture. A single slice is taken as it
    lies, whichever way that is.

    What the image does not reach is filled with each channel's lowest value: around a body lies air or nothing, which
    is dark, and an edge as bright as tissue would be a finding. Intensities are scaled before that, so that how much
    is filled changes nothing in the image.

    Args:
        image: the checked image; each channel is scaled for itself, colours by `RangeIntensity` together.
        input_size: along left-right, posterior-anterior and inferior-superior, as all triples here.
        spacing_mm: size of a voxel to resample to before the middle is cut out or padded; for 2 dimensions the third
            means nothing. With None the whole image is scaled until it just fits, at its own aspect ratio in mm.
        intensity: how values are scaled. A constant image becomes 0, but for a window, which gives it its place there.
        dimensions: 2 or 3, of the network.
        device: where the result is computed and lies.

    Raises:
        BadInput: the image is smaller than 2 x 2 pixels, or flat where the network has 3 dimensions.
        TooLarge: at that spacing the image would have more voxels than are ever read.
    """
    grid = _grid(image, input_size, spacing_mm, dimensions)
    array = grid.forward(image.array)
    if dimensions == 2:
        array = array[..., _evenly_spaced(array.shape[3], grid.shape[2])]
    tensor = _rescaled(on_device(array, torch.device(device)), grid.shape)
    colours = image.source in (*PICTURES, "dicom")
    scaled = _scaled(tensor.contiguous(), intensity, together=colours)
    return _centred(scaled, (*input_size[:2], grid.shape[2] if dimensions == 2 else input_size[2]))


def _grid(image: Image, input_size: Triple, spacing_mm: tuple[float, float, float] | None, dimensions: int) -> Grid:
    """Return the way from the image to the network's orientation, and its size there before it is cut or padded."""
    axes, flips = closest_to_ras(image)
    if dimensions == 2 and image.shape.count(1) == 1:  # a single slice, perhaps a sagittal or a coronal one
        thin = axes.index(image.shape.index(1))
        order = sorted(range(3), key=lambda axis: axis == thin)
        x, y, z = (axes[axis] for axis in order)
        axes, flips = (x, y, z), tuple(flips[axis] for axis in order)
    x, y, z = (image.shape[axis] for axis in axes)
    _check_shape(image, (x, y, z), dimensions)
    spacing = [image.spacing_mm[axis] for axis in axes]
    extent_mm = np.array((x, y, z)) * spacing
    if spacing_mm is None:
        target = extent_mm * (np.array(input_size) / extent_mm)[:dimensions].min()
    else:
        target = extent_mm / spacing_mm
    if dimensions == 2:
        target[2] = min(input_size[2], z)
    target = np.maximum(1, np.round(target))
    if target.prod() > MAX_VOXELS:
        wanted = list(spacing_mm or ())
        raise TooLarge(f"the image of {[x, y, z]} voxels has {target.prod():.3g} at {wanted} mm, over {MAX_VOXELS}")
    return Grid(axes, flips, (x, y, z), (int(target[0]), int(target[1]), int(target[2])))


def onto_image(
    values: torch.Tensor,
    image: Image,
    input_size: Triple,
    spacing_mm: tuple[float, float, float] | None,
    dimensions: int,
) -> np.ndarray:
    """Bring values of a prepared image back to the image's own voxels, the way of `prepare_image` reversed.

    What was cut off gets 0; a slice of a volume that a 2-D network has not seen gets those of the nearest that it has.

    Args:
        values: ``(X, Y, Z)`` float32, one for each voxel of the prepared image.
        image: that it was prepared from.
        input_size: as it was prepared.
        spacing_mm: the same.
        dimensions: the same.

    Returns:
        ``(X, Y, Z)`` float32 on the grid of the image.
    """
    grid = _grid(image, input_size, spacing_mm, dimensions)
    for axis, wanted in enumerate(grid.shape):
        have = values.shape[axis]
        if have > wanted:
            values = values.narrow(axis, (have - wanted) // 2, wanted)
        elif have < wanted:
            before = (wanted - have) // 2
            around = [0] * 6
            around[2 * (2 - axis)], around[2 * (2 - axis) + 1] = before, wanted - have - before
            values = functional.pad(values, around)
    x, y, z = grid.oriented_shape
    if dimensions == 2:
        nearest = np.array(_evenly_spaced(z, grid.shape[2]))
        values = values[..., np.abs(np.arange(z)[:, None] - nearest).argmin(1)]
    size = functional.interpolate(values[None, None].float(), size=(x, y, z), mode="trilinear")
    return np.ascontiguousarray(grid.backward(size[0, 0].cpu().numpy()))


def _check_shape(image: Image, shape: Triple, dimensions: int) -> None:
    """Refuse an image too small along an axis of the network.

    Raises:
        BadInput: so it is.
    """
    if min(shape[:2]) < SMALLEST_SIDE:
        smallest = f"{SMALLEST_SIDE} x {SMALLEST_SIDE}"
        raise BadInput(f"{image.source}: {shape[0]} x {shape[1]} pixels are smaller than {smallest} pixels")
    if dimensions == 3 and (image.is_flat or shape[2] < SMALLEST_SIDE):
        what = "a flat picture" if image.is_flat else f"{shape[2]} slice"
        raise BadInput(f"{image.source}: {what}; a 3-D model takes volumes of at least {SMALLEST_SIDE} slices")


def _evenly_spaced(slices: int, count: int) -> list[int]:
    """Return the middle slice of each of ``count`` equal parts."""
    return [(2 * part + 1) * slices // (2 * count) for part in range(count)]


def _rescaled(tensor: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Resample ``(C, X, Y, Z)`` linearly; where it shrinks, over all that a new voxel covers (antialiased)."""
    if tensor.shape[1:] == shape:
        return tensor
    # About the middle of their range values lose least to rounding, and a constant image stays constant.
    middle = tensor.amin((1, 2, 3), keepdim=True) / 2 + tensor.amax((1, 2, 3), keepdim=True) / 2
    x, y, z = shape
    slices = (tensor - middle).permute(0, 3, 1, 2)
    if slices.shape[2:] != (x, y):
        slices = functional.interpolate(slices, size=(x, y), mode="bilinear", antialias=True)
    if slices.shape[1] != z:  # as a picture of which one axis stays: torch has no antialiasing of volumes
        columns = slices.flatten(2)[None]
        columns = functional.interpolate(columns, size=(z, x * y), mode="bilinear", antialias=True)
        slices = columns[0].unflatten(2, (x, y))
    return slices.permute(0, 2, 3, 1) + middle


def _scaled(tensor: torch.Tensor, intensity: Intensity, *, together: bool) -> torch.Tensor:
    if isinstance(intensity, WindowIntensity):
        return windowed(tensor, intensity)
    if isinstance(intensity, ZScoreIntensity):
        return standardised(tensor, intensity)
    # Scaled each for itself, colours would change their hue.
    parts = tensor[None] if together else tensor
    return torch.stack([_ranged(part, intensity) for part in parts]).view_as(tensor)


def _ranged(values: torch.Tensor, intensity: RangeIntensity) -> torch.Tensor:
    """Clip to two percentiles and scale them to -1..1; 0 where they are equal."""
    low, high = percentiles(values, intensity.low_percentile, intensity.high_percentile)
    half = (high / 2 - low / 2).masked_fill(low >= high, math.inf)
    return ((values.clamp(low, high) - (low / 2 + high / 2)) / half).clamp_(-1, 1)


def _centred(tensor: torch.Tensor, shape: Triple) -> torch.Tensor:
    """Cut the middle out of ``(C, X, Y, Z)``, or pad around it with each channel's lowest value."""
    for axis, wanted in enumerate(shape, start=1):
        if tensor.shape[axis] > wanted:
            tensor = tensor.narrow(axis, (tensor.shape[axis] - wanted) // 2, wanted)
    if tensor.shape[1:] == shape:
        return tensor.contiguous()
    padded = tensor.amin(dim=(1, 2, 3), keepdim=True).expand(-1, *shape).contiguous()
    middle = padded
    for axis, (have, wanted) in enumerate(zip(tensor.shape[1:], shape, strict=True), start=1):
        middle = middle.narrow(axis, (wanted - have) // 2, have)
    middle.copy_(tensor)
    return padded
