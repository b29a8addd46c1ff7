"""A folder of DICOM files, or a single one, as one volume.

The headers are read first, without the pixels: one series, one orientation, even gaps, a size under the limit. Only
then does ITK (GDCM) read the pixels, in the order along the slices' normal.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.dicom_copies import COMPRESSED_SYNTAXES, PLAIN_SYNTAXES
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge, UnsupportedMedia
from labelrounds.formats import is_dicom
from labelrounds.geometry import Affine, ras_affine

MAX_FILES = 20_000
_TAGS = [
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
]
_NO_IMAGES = ("SEG", "SR", "PR", "KO", "REG", "FID", "DOC", "ANN", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD")
# Projection radiographs: their detector's spacing stands for the patient's.
_PROJECTIONS = ("CR", "DX", "MG", "RG")


@dataclass(frozen=True)
class Slice:
    """The header of one file, checked; positions are LPS in mm.

    Attributes:
        stored_sum: The lowest and the highest value that the file can store, added, where the lowest is shown white
            (MONOCHROME1); None where it is shown black.
    """

    path: Path
    series: str
    rows: int
    columns: int
    samples: int
    spacing_mm: tuple[float, float] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    rescale: tuple[float, float]
    stored_sum: int | None = None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slice."""
        across = np.cross(self.orientation[:3], self.orientation[3:]) if self.orientation else np.array([0.0, 0.0, 1.0])
        return across / np.linalg.norm(across)


@dataclass(frozen=True)
class Member:
    """What a DICOM image in a file says of where it belongs.

    Attributes:
        series: its SeriesInstanceUID.
        instance: its SOPInstanceUID.
        placed: whether it has a place in space, and so may be a slice of a volume.
    """

    series: str
    instance: str
    placed: bool

    @property
    def fields(self) -> tuple[str, str, bool]:
        """All of it, as the constructor takes it."""
        return self.series, self.instance, self.placed


def member_of(file: Path) -> Member | None:
    """Return where the image in a DICOM file belongs; None where it holds no image, as a report or a segmentation.

    Raises:
        BadInput: not readable as DICOM.
    """
    import pydicom

    tags = ["SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "ImagePositionPatient"]
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
        if "Rows" not in dataset or str(dataset.get("Modality", "") or "").strip() in _NO_IMAGES:
            return None
        series, instance = (str(dataset.get(tag, "") or "").strip() for tag in ("SeriesInstanceUID", "SOPInstanceUID"))
        return Member(series, instance, bool(dataset.get("ImagePositionPatient")))
    except OSError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise BadInput(f"{file.name}: not readable as DICOM: {error}") from error


def known_of(file: Path) -> dict[str, str]:
    """Return what the datastore keeps of a series by one of its files: whose it is, its UID, its modality.

    The patient's name is not kept; a PatientID that holds a part of it is replaced by a checksum.
    """
    import pydicom

    tags = ["PatientID", "SeriesInstanceUID", "Modality"]
    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*tags, "PatientName"])
    known = {tag: str(dataset.get(tag, "") or "").strip() for tag in tags}
    # As bytes: what pydicom finds wrong with a name, it says with the name.
    name = getattr(dataset.get_item("PatientName"), "value", b"") or b""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    parts = [part for part in re.split(r"[\W_]+", text.casefold()) if len(part) > 2]
    if any(part in known["PatientID"].casefold() for part in parts):
        known["PatientID"] = f"patient_{hashlib.sha256(known['PatientID'].encode()).hexdigest()[:16]}"
    return {tag: value[:200] for tag, value in known.items() if value}


def dicom_slices(path: Path, max_voxels: int) -> list[Slice]:
    """Return the slices of the one series in a folder (or of one file), sorted along their normal.

    Raises:
        UnsupportedMedia: no DICOM image there, or one with several frames in a file.
        BadInput: several series, a missing or bad tag, several orientations, uneven gaps.
        TooLarge: more voxels than ``max_voxels``, or too many files.
    """
    slices = [found for file in _dicom_files(path) if (found := _slice_of(file)) is not None]
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
        return str(_dataset(file).get("PatientID", "") or "").strip() or None
    return None


def modality(path: Path) -> str:
    """Return the Modality of the first DICOM file there, "" where it is missing."""
    for file in _dicom_files(path):
        return str(_dataset(file).get("Modality", "") or "").strip()
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
    if len(files) > MAX_FILES:
        raise TooLarge(f"{path.name}: {len(files)} files, at most {MAX_FILES} are read")
    return [file for file in files if file.name.upper() != "DICOMDIR" and is_dicom(file)]


def _dataset(file: Path) -> Any:
    import pydicom

    try:
        syntax = str(pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID", ""))
        if syntax not in (*PLAIN_SYNTAXES, *COMPRESSED_SYNTAXES):
            raise UnsupportedMedia(f"{file.name}: the transfer syntax {syntax!r} is not read")
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except LabelRoundsError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise BadInput(f"{file.name}: not readable as DICOM: {error}") from error


def _slice_of(file: Path) -> Slice | None:
    """Return the checked header, None for an object without pixels (a report, a structure set)."""
    dataset = _dataset(file)
    try:
        if "Rows" not in dataset:
            return None
        _check_size(dataset, file)
        return Slice(
            path=file,
            series=str(dataset.get("SeriesInstanceUID", "") or ""),
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            samples=int(dataset.get("SamplesPerPixel", 1) or 1),
            spacing_mm=_spacing(dataset, file.name),
            orientation=_orientation(dataset, file.name),
            position=_numbers(dataset, "ImagePositionPatient", 3, file.name),
            rescale=(
                _number(dataset, "RescaleSlope", 1.0, file.name),
                _number(dataset, "RescaleIntercept", 0.0, file.name),
            ),
            stored_sum=_stored_sum(dataset),
        )
    except LabelRoundsError:
        raise
    except Exception as error:  # values are parsed when they are asked for
        raise BadInput(f"{file.name}: a damaged DICOM header: {error}") from error


def _check_size(dataset: Any, file: Path) -> None:
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise UnsupportedMedia(f"{file.name}: {frames} frames in one file; only one slice a file is read")
    for tag in ("Rows", "Columns"):
        if not 1 <= int(dataset.get(tag, 0) or 0) <= 65535:
            raise BadInput(f"{file.name}: {tag} {dataset.get(tag)!r} is not between 1 and 65535")
    bits = int(dataset.get("BitsAllocated", 0) or 0)
    if bits not in (1, 8, 16, 32, 64):
        raise BadInput(f"{file.name}: BitsAllocated {bits} is not one of 1, 8, 16, 32, 64")


def _stored_sum(dataset: Any) -> int | None:
    if str(dataset.get("PhotometricInterpretation", "") or "").strip() != "MONOCHROME1":
        return None
    if int(dataset.get("PixelRepresentation", 0) or 0):
        return -1
    allocated = int(dataset.BitsAllocated)
    return int(2 ** min(int(dataset.get("BitsStored") or allocated), allocated) - 1)


def _spacing(dataset: Any, name: str) -> tuple[float, float] | None:
    tag = "PixelSpacing"
    if tag not in dataset and dataset.get("Modality") in _PROJECTIONS:
        tag = "ImagerPixelSpacing"
    values = _numbers(dataset, tag, 2, name)
    if values is None:
        raise BadInput(f"{name}: {tag} is missing; without it nothing can be measured")
    if min(values) <= 0:
        raise BadInput(f"{name}: {tag} {list(values)} is not above 0")
    return values[0], values[1]


def _orientation(dataset: Any, name: str) -> tuple[float, ...] | None:
    values = _numbers(dataset, "ImageOrientationPatient", 6, name)
    if values is None:
        return None
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(row @ column)) > 1e-2:
        raise BadInput(f"{name}: ImageOrientationPatient {list(values)} is not two perpendicular unit vectors")
    return values


def _numbers(dataset: Any, tag: str, count: int, name: str) -> tuple[float, ...] | None:
    value = dataset.get(tag)
    if value is None or value == "":
        return None
    values = tuple(float(part) for part in value)
    if len(values) != count or not all(math.isfinite(part) for part in values):
        raise BadInput(f"{name}: {tag} {value!r} is not {count} finite numbers")
    return values


def _number(dataset: Any, tag: str, default: float, name: str) -> float:
    value = dataset.get(tag)
    number = default if value is None or value == "" else float(value)
    if not math.isfinite(number):
        raise BadInput(f"{name}: {tag} {value!r} is not finite")
    return number


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
