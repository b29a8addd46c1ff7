"""One DICOM file after the other: read, de-identified by `labelrounds.privacy.profile`, and written anew."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelrounds.atomic import replacing
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, UnsupportedMedia
from labelrounds.privacy.profile import Changes, deidentify
from labelrounds.privacy.pseudonyms import Pseudonyms

_DEFLATED = "1.2.840.10008.1.2.1.99"  # unpacking it would have no limit
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
_OFTEN_WRITTEN_ON = ("US", "IVUS", "ES", "XC", "OT", "DOC", "SC", "GM", "OP")


@dataclass(frozen=True)
class Cleaned:
    """What became of a file.

    Attributes:
        path: The new file.
        warnings: What a person should look at.
    """

    path: Path
    changes: Changes
    warnings: list[str] = field(default_factory=list)


class NotAnImage(LabelRoundsError):
    """A report, a structure set, a document: what its profile would have to clean is free text."""


def clean_dicom(
    file: Path, output: Path, pseudonyms: Pseudonyms, shift_dates: bool, with_burned_in: bool = False
) -> Cleaned:
    """Write a de-identified copy of a DICOM image to ``output/SERIES/INSTANCE.dcm``, both UIDs being new.

    Args:
        file: the image, which is only read.
        output: an existing folder.
        pseudonyms: of the run's key.
        shift_dates: move dates back instead of emptying them.
        with_burned_in: also write an image that says that text is burned into its pixels.

    Raises:
        NotAnImage: it holds no pixels.
        UnsupportedMedia: burned-in text, or a transfer syntax that is not read.
        Conflict: the copy is there already.
        BadInput: it can't be read; without a value of it in the message.
        OutOfSpace: the disk is full.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(file)
        _check(dataset, with_burned_in)
        warnings = burned_in(dataset)
        changes = deidentify(dataset, pseudonyms, shift_dates)
        if _cut_padding(dataset):
            changes.done["removed"].add("bytes behind PixelData")
        series, instance = str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
        if not series.startswith("2.25.") or not instance.startswith("2.25."):
            raise BadInput("SeriesInstanceUID or SOPInstanceUID is empty")
        path = output / series / f"{instance}.dcm"
        if path.exists():
            raise Conflict("an image of the same SOPInstanceUID was written already")
        _write(dataset, path)
    except (LabelRoundsError, OSError):
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files, with the values in their texts
        raise BadInput(f"not readable as DICOM ({type(error).__name__})") from error
    return Cleaned(path, changes, warnings)


def burned_in(dataset: Any) -> list[str]:
    """Return why text, such as a name, may stand in the pixels; empty where the header gives no reason to think so.

    Pixels are not looked at.
    """
    if str(dataset.get("BurnedInAnnotation") or "") == "NO":
        return []
    reasons = []
    if dataset.get("BurnedInAnnotation"):
        reasons.append("BurnedInAnnotation is not NO")
    if str(dataset.get("SOPClassUID") or "").startswith(_CAPTURES) or dataset.get("ConversionType"):
        reasons.append("secondary capture")
    if (modality := str(dataset.get("Modality") or "")) in _OFTEN_WRITTEN_ON:
        reasons.append(f"modality {modality}")
    if any("SCREEN" in str(part).upper() for part in dataset.get("ImageType") or ()):
        reasons.append("a screen save")
    return [f"look for text in the pixels: {', '.join(reasons)}"] if reasons else []


def _check(dataset: Any, with_burned_in: bool) -> None:
    kind = dataset.get("SOPClassUID")
    if not kind:
        raise BadInput("SOPClassUID is missing: the file is cut or damaged")
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if "Image Storage" in kind.name:
            raise BadInput("an image without pixels: the file is cut or damaged")
        raise NotAnImage("no image: reports, structure sets and documents are not de-identified")
    if str(dataset.file_meta.get("TransferSyntaxUID", "")) == _DEFLATED:
        raise UnsupportedMedia("a deflated transfer syntax is not read")
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES" and not with_burned_in:
        raise UnsupportedMedia("BurnedInAnnotation is YES: text stands in the pixels (--with-burned-in writes it)")


def _cut_padding(dataset: Any) -> bool:
    """Drop what follows the pixels in their element, where anything could stand; tell whether there was anything.

    Raises:
        BadInput: fewer pixels than the header claims.
    """
    if "PixelData" not in dataset or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return False
    bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    bits *= int(dataset.get("NumberOfFrames") or 1) * int(dataset.BitsAllocated)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3
    size = (bits + 7) // 8
    if len(dataset.PixelData) < size:
        raise BadInput(f"the file is cut: {len(dataset.PixelData)} bytes of pixels, {size} are needed")
    if len(dataset.PixelData) <= size + size % 2:
        return False
    dataset.PixelData = dataset.PixelData[:size] + b"\0" * (size % 2)
    return True


def _write(dataset: Any, path: Path) -> None:
    """Write with a new file meta information and an empty preamble, where names may stand as well."""
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as target:
        dataset.save_as(target, enforce_file_format=True)
