"""Deterministic CT-like studies of an invented abdomen, for a whole round with no data of one's own.

Each study is a sum of ellipsoids in the manner of Shepp and Logan (DOI 10.1109/TNS.1974.6499235), in three
dimensions and for the abdomen. The anatomy is a function of the place in the patient (RAS, mm) and of nothing
else; it is evaluated at the voxel centres of the chosen grid, so one patient has the same organs at the same
places whichever way the scan is stored.

What makes a study look like CT: tissue at its usual HU without contrast agent (liver, spleen and the spread from
scanner to scanner: DOI 10.2214/AJR.12.10037; other tissue from its composition: DOI 10.1088/0031-9155/41/1/009)
moved by a share of the portal venous enhancement that differs from patient to patient, a smooth deformation, blur
over the voxel, cupping and slow shading, and noise. Liver, spleen, muscle, pancreas and bowel overlap in HU, ribs
are as bright as the spine, and the kidneys are near mirror images: neither a threshold nor a network that ignores
left and right solves them.

Used by ``labelrounds demo`` and by the tests; no image of a real person is involved.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from labelrounds.errors import BadInput
from labelrounds.phantom_anatomy import AIR_HU, BODY_MM, LABELS, Array, anatomy, waves

__all__ = ["GEOMETRIES", "LABELS", "Phantom", "make_phantom", "write_studies", "write_truth"]

# Extent of the field of view along R, A and S, in mm.
_FIELD_MM = (320.0, 280.0, 192.0)


@dataclass(frozen=True)
class _Storage:
    """How a scan lies on disk: where its voxel axes point, and its spacing in mm (drawn from a range)."""

    axes: str
    in_plane_mm: tuple[float, float]
    slice_mm: tuple[float, float]
    rotation_deg: tuple[float, float] = (0.0, 0.0)


_STORAGE = {
    "axial": _Storage("RAS", (3.8, 4.4), (3.2, 4.0)),
    "flipped": _Storage("LPS", (3.8, 4.4), (3.2, 4.0)),
    "permuted": _Storage("PIR", (3.8, 4.4), (3.6, 4.2)),
    "oblique": _Storage("LAS", (3.8, 4.4), (3.2, 4.0), (5.0, 20.0)),
    "anisotropic": _Storage("RAS", (3.4, 3.7), (6.0, 6.0)),
}
GEOMETRIES = tuple(_STORAGE)


@dataclass(frozen=True)
class Phantom:
    """One study.

    Attributes:
        name: ``phantom_`` and the seed, three digits.
        image: ``(X, Y, Z)`` int16, HU.
        label: ``(X, Y, Z)`` uint8; 0 is background, k is ``LABELS[k - 1]``.
        affine: ``(4, 4)``, from voxel indices to RAS mm.
        geometry: The member of ``GEOMETRIES`` by which it is stored.
    """

    name: str
    image: npt.NDArray[np.int16]
    label: npt.NDArray[np.uint8]
    affine: Array
    geometry: str


def make_phantom(seed: int, geometry: str | None = None) -> Phantom:
    """Make the study of one invented patient.

    Args:
        seed: The patient; 0 or more. The same seed gives the same study on every machine.
        geometry: A member of ``GEOMETRIES``; by default they take turns with the seed. The anatomy in RAS mm
            does not depend on it, only the grid and the noise do.

    Raises:
        BadInput: For a negative seed or an unknown geometry.
    """
    if seed < 0:
        raise BadInput(f"phantom seed {seed} is negative; it must be 0 or more")
    geometry = GEOMETRIES[seed % len(GEOMETRIES)] if geometry is None else geometry
    if geometry not in _STORAGE:
        raise BadInput(f"phantom geometry {geometry!r} is not one of {', '.join(GEOMETRIES)}")
    # Two streams: what is drawn for the scan must not move the anatomy.
    patient, scan = (np.random.Generator(np.random.PCG64([seed, stream])) for stream in (0, 1))
    isocentre_mm = patient.uniform((-40, -60, -900), (40, 60, -300))
    shape, affine = _grid(_STORAGE[geometry], isocentre_mm, scan)
    places = _voxel_centres(shape, affine, isocentre_mm)
    hu, label = anatomy(places, patient)
    image = _acquire(hu.reshape(shape), places, patient, scan)
    return Phantom(f"phantom_{seed:03d}", image, label.reshape(shape), affine, geometry)


def write_studies(folder: Path, count: int, first_seed: int = 0) -> list[Path]:
    """Write the images of ``count`` phantoms as ``phantom_000.nii.gz`` and so on, numbered by seed; return the paths.

    Raises:
        BadInput: For a negative seed.
    """
    return [_write(folder, each, each.image) for each in _phantoms(count, first_seed)]


def write_truth(folder: Path, count: int, first_seed: int = 0) -> list[Path]:
    """Write the labels that belong to ``write_studies`` under the same names; return the paths.

    Raises:
        BadInput: For a negative seed.
    """
    return [_write(folder, each, each.label) for each in _phantoms(count, first_seed)]


def _phantoms(count: int, first_seed: int) -> Iterator[Phantom]:
    return (make_phantom(seed) for seed in range(first_seed, first_seed + count))


def _write(folder: Path, phantom: Phantom, voxels: npt.NDArray[np.generic]) -> Path:
    nifti = nib.Nifti1Image(voxels, phantom.affine)
    nifti.set_qform(phantom.affine, code=1)
    nifti.set_sform(phantom.affine, code=1)
    nifti.header.set_xyzt_units("mm")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{phantom.name}.nii.gz"
    nib.save(nifti, path)
    return path


# The grid ------------------------------------------------------------------------------------------------------------


def _grid(storage: _Storage, centre_mm: Array, scan: np.random.Generator) -> tuple[tuple[int, int, int], Array]:
    """Lay a voxel grid over the field of view; return its shape and its affine (RAS mm)."""
    in_plane_mm, slice_mm = scan.uniform(*storage.in_plane_mm), scan.uniform(*storage.slice_mm)
    spacing_mm = (in_plane_mm, in_plane_mm, slice_mm)
    rotation = _rotation(scan.uniform(-1, 1, 3), scan.uniform(*storage.rotation_deg))
    affine, shape = np.eye(4), []
    for column, (letter, step) in enumerate(zip(storage.axes, spacing_mm, strict=True)):
        axis = next(axis for axis, letters in enumerate(("RL", "AP", "SI")) if letter in letters)
        affine[:3, column] = rotation[:, axis] * (step if letter in "RAS" else -step)
        shape.append(round(_FIELD_MM[axis] / step))
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return (shape[0], shape[1], shape[2]), affine


def _rotation(axis: Array, angle_deg: float) -> Array:
    """Return the ``(3, 3)`` matrix of a rotation about ``axis`` (Rodrigues)."""
    x, y, z = axis / np.sqrt((axis * axis).sum())
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(angle_deg)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def _voxel_centres(shape: tuple[int, int, int], affine: Array, centre_mm: Array) -> Array:
    """Return the ``(3, X * Y * Z)`` voxel centres, in RAS mm from the isocentre."""
    places = (affine[:3, 3] - centre_mm)[:, None, None, None]
    for column, grid in enumerate(np.ogrid[tuple(slice(size) for size in shape)]):
        places = places + affine[:3, column, None, None, None] * grid
    return places.reshape(3, -1)


# The scan ------------------------------------------------------------------------------------------------------------


def _acquire(
    hu: Array, places: Array, patient: np.random.Generator, scan: np.random.Generator
) -> npt.NDArray[np.int16]:
    """Return what a scanner would make of ``(X, Y, Z)`` HU: blurred over the voxel, shaded, noisy."""
    blurred = gaussian_filter(hu, 0.45)
    radius_squared = (places[0] / BODY_MM[0]) ** 2 + (places[1] / BODY_MM[1]) ** 2
    # Beam hardening lowers the middle of the body: the beam that arrives there is already the harder part.
    shading = patient.uniform(4, 14) * (np.minimum(radius_squared, 1) - 0.5) + 6 * waves(places, patient, (200, 400))
    noise = gaussian_filter(scan.standard_normal(hu.shape), 0.5)
    noise *= scan.uniform(9, 15) / noise.std()
    # Air has nothing to shade.
    seen = np.clip((blurred - AIR_HU) / -AIR_HU, 0, 1) * shading.reshape(hu.shape)
    return np.rint(np.clip(blurred + seen + noise, -1024, 3071)).astype(np.int16)
