"""A folder of DICOM files, or a single one, as one volume.

The headers are read first, without the pixels: one series, one orientation, even gaps, a size under the limit. Only
then does ITK (GDCM) read the pixels, in the order along the slices' normal.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.dicom_headers import Slice, read_header, slice_of
from labelrounds.errors import BadInput, TooLarge, UnsupportedMedia
from labelrounds.formats import is_dicom
from labelrounds.geometry import Affine, ras_affine

_MAX_FILES = 20_000


def dicom_slices(path: Path, max_voxels: int) -> list[Slice]:
    """Return the slices of the one series in a folder (or of one file), sorted along their normal.

    Raises:
        UnsupportedMedia: no DICOM image there, or one with several frames in a file.
        BadInput: several series, a missing or bad tag, several orientations, uneven gaps.
        TooLarge: more voxels than ``max_voxels``, or too many files.
    """
    slices = [found for file in _dicom_files(path) if (found := slice_of(file)) is not None]
    if not slices:
        raise UnsupportedMedia(f"{path.name}: no DICOM image in it")
    _check_one_series(slices, path.name)
    first = slices[0]
    voxels = first.rows * first.columns * first.samples * len(slices)
    if voxels > max_voxels:
        raise TooLarge(f"{path.name}: {first.columns} x {first.rows} x {len(slices)} is over {max_voxels} values")
    return _sorted_evenly(slices, path.name) if len(slices) > 1 else slices


def slices_affine(slices: Sequence[Slice]) -> Affine:
    """Return the voxel-to-RAS affine of two or more sorted slices, from their headers alone."""
    first, last = slices[0], slices[-1]
    if first.orientation is None or first.spacing_mm is None or first.position is None or last.position is None:
        raise BadInput(f"{first.path.name}: no position, orientation or spacing")
    step = np.subtract(last.position, first.position) / (len(slices) - 1)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    return ras_affine((row * first.spacing_mm[1], column * first.spacing_mm[0], step), first.position)


def patient_id(path: Path) -> str | None:
    """Return the PatientID of the first DICOM file there, None where it is missing or empty."""
    for file in _dicom_files(path):
        return str(read_header(file).get("PatientID", "") or "").strip() or None
    return None


def modality(path: Path) -> str:
    """Return the Modality of the first DICOM file there, "" where it is missing."""
    for file in _dicom_files(path):
        return str(read_header(file).get("Modality", "") or "").strip()
    return ""


def varying_rescale(slices: Sequence[Slice]) -> bool:
    """Tell whether the slices' rescaling differs or is fractional, as in PET, so that only floats hold the values."""
    rescales = {found.rescale for found in slices}
    return len(rescales) > 1 or any(not value.is_integer() for rescale in rescales for value in rescale)


def with_air_dark(array: NDArray[Any], slices: Sequence[Slice]) -> NDArray[Any]:
    """Invert the slices that are MONOCHROME1, each value within the range that its file can store.

    So air is dark in every radiograph, whichever way its detector wrote it. GDCM inverts all bits that are allocated,
    and so far beyond the range of 12 bits stored in 16; it is given MONOCHROME2 (`labelrounds.dicom_copies`).

    Args:
        array: ``(C, X, Y, Z)`` after rescaling, changed in place.
        slices: its slices along Z.
    """
    for index, found in enumerate(slices):
        if found.stored_sum is not None:
            slope, intercept = found.rescale
            whole = slope * found.stored_sum + 2 * intercept
            plane = array[..., index]
            if array.dtype.kind == "f":
                np.subtract(whole, plane, out=plane)
            else:  # bits beyond the stored ones may hold anything
                limits = np.iinfo(array.dtype)
                plane[...] = np.clip(int(whole) - plane.astype(np.int64), limits.min, limits.max)
    return array


def _dicom_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if len(files) > _MAX_FILES:
        raise TooLarge(f"{path.name}: {len(files)} files, at most {_MAX_FILES} are read")
    return [file for file in files if file.name.upper() != "DICOMDIR" and is_dicom(file)]


def _check_one_series(slices: Sequence[Slice], name: str) -> None:
    series: dict[str, list[Slice]] = {}
    for found in slices:
        series.setdefault(found.series, []).append(found)
    if len(series) > 1:
        listed = "; ".join(f"{uid} ({len(members)} files)" for uid, members in series.items())
        raise BadInput(f"{name}: {len(series)} series, exactly one is read: {listed[:1000]}")
    first = slices[0]
    for found in slices[1:]:
        if (found.rows, found.columns, found.samples) != (first.rows, first.columns, first.samples):
            sizes = f"{found.columns} x {found.rows}, the first is {first.columns} x {first.rows}"
            raise BadInput(f"{name}: {found.path.name} is {sizes}; all slices must be alike")


def _sorted_evenly(slices: Sequence[Slice], name: str) -> list[Slice]:
    first = slices[0]
    for found in slices:
        if found.position is None or found.orientation is None:
            raise BadInput(f"{found.path.name}: ImagePositionPatient or ImageOrientationPatient is missing")
        if np.abs(np.subtract(found.orientation, first.orientation)).max() > 1e-3:  # type: ignore[arg-type]
            raise BadInput(
                f"{name}: several orientations in one series: {found.path.name} has {list(found.orientation)}"
            )
        if found.spacing_mm is not None and not np.allclose(found.spacing_mm, first.spacing_mm, rtol=1e-3):  # type: ignore[arg-type]
            raise BadInput(
                f"{name}: several PixelSpacing in one series: {found.path.name} has {list(found.spacing_mm)}"
            )
    positions = np.array([found.position for found in slices], dtype=np.float64)
    order = np.argsort(positions @ first.normal, kind="stable")
    _check_gaps(positions[order], first.normal, name)
    return [slices[index] for index in order]


def _check_gaps(positions: NDArray[np.float64], normal: NDArray[np.float64], name: str) -> None:
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    gap = float(np.median(gaps))
    # Positions are often written to 0.01 mm only.
    allowed = max(0.01 * gap, 0.011)
    if gaps.min() < 1e-4:
        raise BadInput(f"{name}: several slices at one position (a time series?); one volume is read")
    if np.abs(gaps - gap).max() > allowed:
        raise BadInput(
            f"{name}: uneven gaps between slices, {gaps.min():.4f} to {gaps.max():.4f} mm; a slice may be missing"
        )
    if np.linalg.norm(steps - np.outer(gaps, normal), axis=1).max() > allowed:
        raise BadInput(f"{name}: the slices are shifted sideways (a tilted gantry); resample the series first")
