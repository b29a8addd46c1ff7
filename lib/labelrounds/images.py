"""What reading a file gives: a checked image, or only where its voxels lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.formats import PICTURES
from labelrounds.geometry import Affine

# The most values of an image, all channels counted.
MAX_VOXELS = 2**30


@dataclass(frozen=True)
class Image:
    """A checked image.

    Attributes:
        array: ``(C, X, Y, Z)`` in the file's own type; float64 and 64-bit integers become float32.
        affine: ``(4, 4)`` float64, voxel index to RAS in mm.
        source: The format it came from: dicom, jpeg, nifti, nrrd, png or tiff.
        segments: Name to voxel value, for a segmentation file (``.seg.nrrd``); otherwise None.
        layered: True where the segments lay on several layers; the values are then their places in the file's list.
    """

    array: NDArray[Any]
    affine: Affine
    source: str
    segments: Mapping[str, int] | None = None
    layered: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(X, Y, Z)``."""
        x, y, z = self.array.shape[1:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along ``(X, Y, Z)`` in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def is_flat(self) -> bool:
        """True for a picture (PNG, JPEG, TIFF), whose geometry means nothing."""
        return self.source in PICTURES


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie.

    Attributes:
        shape: Voxels along ``(X, Y, Z)``.
        affine: ``(4, 4)`` float64, voxel index to RAS in mm.
        is_flat: True for a picture (PNG, JPEG, TIFF), whose affine means nothing.
    """

    shape: tuple[int, int, int]
    affine: Affine
    is_flat: bool
