"""Small pictures of images, for pages and clients: the middle slice, as a radiologist reads it, in PNG.

Kept in memory for as long as the file is the same; what is not kept takes as long as the image takes to be read.
"""

import base64
import logging
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from labelrounds.errors import LabelRoundsError
from labelrounds.memory_cache import identity_of
from labelrounds.outlines import as_read
from labelrounds.reading import read_image
from labelrounds.transforms import closest_to_ras

logger = logging.getLogger(__name__)

SIDE = 96
_SHOWN_PERCENTILES = (1.0, 99.0)


def thumbnail(path: Path) -> str | None:
    """Return a picture of an image as a ``data:`` address; None where it can't be read."""
    try:
        return _drawn(path, identity_of(path))
    except (LabelRoundsError, OSError) as error:
        logger.warning("No thumbnail of %s: %s", path.name, error)
        return None


@lru_cache(maxsize=512)
def _drawn(path: Path, identity: str) -> str:
    image = read_image(path)
    axes, flips = closest_to_ras(image)
    array = np.transpose(image.array[0], axes)
    spacing = [image.spacing_mm[axis] for axis in axes]
    for axis, flip in enumerate(flips):
        array = np.flip(array, axis) if flip else array
    plane = array[:, :, array.shape[2] // 2].astype(np.float32)
    shown = as_read(_scaled(plane, spacing[0], spacing[1]))
    buffer = BytesIO()
    imsave(buffer, shown, format="png", cmap="gray", vmin=0, vmax=255)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _scaled(plane: NDArray[np.float32], wide_mm: float, deep_mm: float) -> NDArray[np.uint8]:
    """Return grey values 0 to 255 of a plane whose longer side, in mm, is that of a thumbnail."""
    low, high = np.percentile(plane, _SHOWN_PERCENTILES)
    grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1) * 255
    extent = np.array(plane.shape) * (wide_mm, deep_mm)
    sides = np.maximum(1, np.round(SIDE * extent / extent.max())).astype(int)
    for axis, side in enumerate(sides):
        grey = _resampled(grey, axis, int(side))
    return np.asarray(np.round(grey), np.uint8)


def _resampled(plane: NDArray[np.floating], axis: int, side: int) -> NDArray[np.floating]:
    """Return a plane with another number of rows along an axis, each the mean of what it covers."""
    edges = np.linspace(0, plane.shape[axis], side + 1)
    padded = np.cumsum(np.insert(np.moveaxis(plane, axis, 0).astype(np.float64), 0, 0, axis=0), axis=0)
    whole = np.floor(edges).astype(int)
    ends = np.minimum(whole + 1, plane.shape[axis])
    sums = padded[whole] + (edges - whole)[:, None] * (padded[ends] - padded[whole])
    means = np.diff(sums, axis=0) / np.diff(edges)[:, None]
    return np.moveaxis(means, 0, axis)
