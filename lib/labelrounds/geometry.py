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


def ras_to_lps(affine: Affine) -> Affine:
    """Return the ``(4, 4)`` voxel-to-LPS affine of a voxel-to-RAS one."""
    return _LPS_TO_RAS @ affine


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


def onto_grid(array: NDArray[Any], affine: Affine, shape: tuple[int, int, int], wanted: Affine) -> NDArray[Any]:
    """Return the voxels of one grid in the order of another that has its voxels at the same places.

    3D Slicer keeps no left-handed voxel order: it turns the slices of such an image round when it reads it, and the
    label that it submits then differs from the image file by a flip of an axis.

    Args:
        array: ``(X, Y, Z)``.
        affine: Where its voxels lie, ``(4, 4)``.
        shape: The other grid's size.
        wanted: Where the other grid's voxels lie, ``(4, 4)``.

    Raises:
        BadInput: after the best flips and permutation of axes, the size differs or a corner lies further away than
            ``GRID_TOLERANCE_MM``.
    """
    steps = np.linalg.inv(wanted)[:3, :3] @ affine[:3, :3]
    axes = np.argmax(np.abs(steps), axis=1)
    if sorted(axes) != [0, 1, 2]:
        raise BadInput("its axes are not those of the image; export it on the image's grid")
    turned, grid = array.transpose(axes), affine.copy()
    grid[:3, :3] = affine[:3, axes]
    for axis in range(3):
        if steps[axis, axes[axis]] < 0:
            turned = np.flip(turned, axis)
            grid[:3, 3] += grid[:3, axis] * (turned.shape[axis] - 1)
            grid[:3, axis] *= -1
    if turned.shape != tuple(shape):
        raise BadInput(f"{turned.shape} voxels, the image has {tuple(shape)}; export it on the image's grid")
    distance = grid_distance_mm(grid, wanted, shape)
    if distance > GRID_TOLERANCE_MM:
        raise BadInput(
            f"lies {distance:.4g} mm beside the image; at most {GRID_TOLERANCE_MM} mm is allowed."
            " Export it on the image's grid"
        )
    return turned


def _short(values: Any) -> str:
    return np.array2string(np.asarray(values), precision=4, suppress_small=True, separator=", ").replace("\n", "")
