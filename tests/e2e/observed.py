"""What a test sees of Slicer and of the server's files: plain data, and geometry worked out without either of them."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np


@dataclass
class Message:
    """A message box: its kind (info, warning, error or question), its text, and the details below it."""

    kind: str
    text: str
    details: str


@dataclass
class Volume:
    """Voxels of shape (X, Y, Z) and the 4x4 matrix from their indices to RAS mm."""

    voxels: np.ndarray
    ijk_to_ras: np.ndarray

    def centres_mm(self) -> np.ndarray:
        """Return the world position of each voxel's centre, (N, 3), in C order of the voxels."""
        indices = np.indices(self.voxels.shape).reshape(3, -1)
        return (self.ijk_to_ras[:3, :3] @ indices + self.ijk_to_ras[:3, 3:]).T

    def on_grid_of(self, image: "Volume", tolerance_mm: float = 1e-3) -> np.ndarray:
        """Return the voxels in the order of `image`, whichever way round either is stored; 0 where there are none.

        Raises:
            AssertionError: If a voxel's centre is further than `tolerance_mm` from the one of `image` next to it.
        """
        centres = self.centres_mm()
        indices = np.linalg.solve(image.ijk_to_ras[:3, :3], (centres - image.ijk_to_ras[:3, 3]).T)
        nearest = np.rint(indices).astype(int)
        error_mm = np.abs(image.ijk_to_ras[:3, :3] @ nearest + image.ijk_to_ras[:3, 3:] - centres.T)
        assert error_mm.max(initial=0) <= tolerance_mm, f"voxel centres are {error_mm.max()} mm apart"
        voxels = np.zeros(image.voxels.shape, self.voxels.dtype)
        voxels[tuple(nearest)] = self.voxels.ravel()
        return voxels


@dataclass
class Scene:
    """What the scene holds: images by node name, the segments of its one segmentation by name in order, labelmaps."""

    images: dict[str, Volume]
    segments: dict[str, Volume]
    labelmaps: list[str]

    @property
    def image(self) -> Volume:
        (image,) = self.images.values()
        return image


@dataclass
class Training:
    """What the panel showed while a training ran: each value of its bars, and of its buttons (Train, Stop), in turn."""

    progress: list[int]
    accuracy: list[int]
    buttons: list[tuple[bool, bool]]


def read_nifti(path: Path) -> Volume:
    image = nib.load(path)
    return Volume(np.asarray(image.dataobj), image.affine)


def read_nrrd(path: Path) -> Volume:
    voxels, header = nrrd.read(str(path))
    assert header["space"] == "left-posterior-superior", header["space"]
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, :3] = header["space directions"].T
    ijk_to_lps[:3, 3] = header["space origin"]
    return Volume(voxels, np.diag([-1, -1, 1, 1]) @ ijk_to_lps)
