"""Where a voxel lies: affines in RAS and mm, and their checks.

Inside the package an affine maps a voxel index ``(i, j, k)`` to RAS in mm. ITK speaks LPS with origin, spacing and
direction cosines; the two meet only here.
"""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.errors import BadInput

Affine = NDArray[np.float64]
GRID_TOLERANCE_MM = 1e-3
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Float32 headers of oblique scans are orthogonal to about 1e-6; a shear that matters is far above.
_ORTHOGONAL = 1e-3


def affine_of(itk_image: Any) -> Affine:
    """Return the ``(4, 4)`` voxel-to-RAS affine of an ITK image of three dimensions or more."""
    direction = np.asarray(itk_image.GetDirection())[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(itk_image.GetSpacing())[:3]
    affine[:3, 3] = np.asarray(itk_image.GetOrigin())[:3]
    return _LPS_TO_RAS @ affine


def affine_of_header(io: Any) -> Affine:
    """Return the ``(4, 4)`` voxel-to-RAS affine that an ITK reader found in a file's header."""
    count = min(3, io.GetNumberOfDimensions())
    affine = np.eye(4)
    for axis in range(count):
        affine[:count, axis] = np.asarray(io.GetDirection(axis))[:count] * io.GetSpacing(axis)
        affine[axis, 3] = io.GetOrigin(axis)
    return _LPS_TO_RAS @ affine


def ras_affine(axes: Any, origin: Any) -> Affine:
    """Return the ``(4, 4)`` voxel-to-RAS affine of three LPS step vectors in mm and an LPS origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack(list(axes))
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine


def set_affine(itk_image: Any, affine: Affine) -> None:
    """Give a three-dimensional ITK image the geometry of a voxel-to-RAS affine."""
    lps = _LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    itk_image.SetSpacing([float(value) for value in spacing])
    itk_image.SetOrigin([float(value) for value in lps[:3, 3]])
    itk_image.SetDirection(np.ascontiguousarray(lps[:3, :3] / spacing))


def check_affine(affine: Affine, what: str) -> None:
    """Refuse an affine that no scanner makes.

    Args:
        affine: ``(4, 4)``, or only its ``(3, 3)`` part.
        what: The name of the file and of its field, for the message.

    Raises:
        BadInput: a value is not finite, an axis has no length, or the axes are not perpendicular.
    """
    if not np.isfinite(affine).all():
        raise BadInput(f"{what}: {_short(affine)} has values that are not finite")
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not ((spacing > 1e-9) & (spacing < 1e9)).all():
        raise BadInput(f"{what}: {_short(affine)} has voxels of {_short(spacing)} mm; each must be above 0")
    cosines = axes / spacing
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > _ORTHOGONAL:
        raise BadInput(f"{what}: {_short(affine)} is sheared or singular; the axes must be perpendicular")


def corners(affine: Affine, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the RAS positions in mm, ``(8, 3)``, of the corner voxels of a grid ``(X, Y, Z)``."""
    index = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape[:3]))], dtype=np.float64)
    return (index @ affine.T)[:, :3]


def grid_distance_mm(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart, in mm, two affines put the corners of a grid ``(X, Y, Z)``; at least one voxel is assumed.

    The grid is taken one voxel larger, so that a differing spacing shows on an axis of a single voxel too.
    """
    grown = tuple(size + 1 for size in shape[:3])
    return float(np.linalg.norm(corners(one, grown) - corners(other, grown), axis=1).max())


def _short(values: Any) -> str:
    return np.array2string(np.asarray(values), precision=4, suppress_small=True, separator=", ").replace("\n", "")
