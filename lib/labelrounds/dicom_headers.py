"""What the header of one DICOM file says: where its image belongs, whose it is, and, checked, how its slice lies.

Of a file only the attributes that are asked for are read, and never the pixels.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.dicom_copies import COMPRESSED_SYNTAXES, PLAIN_SYNTAXES
from labelrounds.errors import BadInput, LabelRoundsError, UnsupportedMedia

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
_PLACE = "ImagePositionPatient"
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
    with _some_of_header(file, "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", _PLACE) as dataset:
        if "Rows" not in dataset or _text(dataset, "Modality") in _NO_IMAGES:
            return None
        series, instance = _text(dataset, "SeriesInstanceUID"), _text(dataset, "SOPInstanceUID")
        return Member(series, instance, bool(dataset.get(_PLACE)))


def known_of(file: Path) -> dict[str, str]:
    """Return what the datastore keeps of a series by one of its files: whose it is, its UID, its modality.

    The patient's name is not kept; a PatientID that holds a part of it is replaced by a checksum.

    Raises:
        BadInput: not readable as DICOM.
    """
    tags = ("PatientID", "SeriesInstanceUID", "Modality")
    with _some_of_header(file, *tags, "PatientName") as dataset:
        known = {tag: _text(dataset, tag) for tag in tags}
        # As bytes: what pydicom finds wrong with a name, it says with the name.
        name = getattr(dataset.get_item("PatientName"), "value", b"") or b""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    parts = [part for part in re.split(r"[\W_]+", text.casefold()) if len(part) > 2]
    if any(part in known["PatientID"].casefold() for part in parts):
        known["PatientID"] = f"patient_{hashlib.sha256(known['PatientID'].encode()).hexdigest()[:16]}"
    return {tag: value[:200] for tag, value in known.items() if value}


@contextmanager
def _some_of_header(file: Path, *tags: str) -> Iterator[Any]:
    """Give some attributes of a file; what pydicom raises, of many kinds, is `BadInput`, without the values it names.

    It parses a value when that is first asked for, which therefore belongs in the block.
    """
    import pydicom

    try:
        yield pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except OSError:
        raise
    except Exception as error:
        raise BadInput(f"{file.name}: not readable as DICOM ({type(error).__name__})") from error


def _text(dataset: Any, tag: str) -> str:
    return str(dataset.get(tag, "") or "").strip()


def read_header(file: Path) -> Any:
    """Return the attributes that make a slice, its Modality and its PatientID.

    Raises:
        UnsupportedMedia: a transfer syntax that is not read.
        BadInput: not readable as DICOM.
    """
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


def slice_of(file: Path) -> Slice | None:
    """Return the checked header, None for an object without pixels (a report, a structure set).

    Raises:
        UnsupportedMedia: several frames in the file, or a transfer syntax that is not read.
        BadInput: not readable as DICOM, or a bad attribute, which is named.
    """
    dataset = read_header(file)
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
