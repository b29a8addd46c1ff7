"""Clean copies of DICOM files for ITK's reader.

GDCM believes every length that it finds: a header of 4 kB makes it take gigabytes. So it never sees an untrusted file,
but a copy that holds nothing but the tags that make an image, written anew by pydicom, with the pixels' length checked.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.pictures import check_plausible

PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# JPEG, JPEG-LS, JPEG 2000 and RLE. Not the deflated one: unpacking it would have no limit.
COMPRESSED_SYNTAXES = (
    *(f"1.2.840.10008.1.2.4.{kind}" for kind in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
)
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagerPixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    "PixelData",
]


@contextmanager
def clean_copies(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Give copies of checked DICOM files, in the same order, that last as long as the block.

    Raises:
        BadInput: a file whose pixels are missing, cut or damaged.
        OutOfSpace: no room in the folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="labelrounds-") as folder:
        copies = [Path(folder) / f"{index:06d}.dcm" for index in range(len(files))]
        for file, copy in zip(files, copies, strict=True):
            with disk_errors(file):
                _write_clean(file, copy)
        yield copies


def _write_clean(file: Path, copy: Path) -> None:
    import pydicom

    try:
        dataset = pydicom.dcmread(file, specific_tags=_TAGS)
        _check_pixels(dataset, file)
        if str(dataset.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1":
            dataset.PhotometricInterpretation = "MONOCHROME2"  # the reader inverts, `labelrounds.dicom.with_air_dark`
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
        meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or pydicom.uid.SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or pydicom.uid.generate_uid()
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.save_as(copy, enforce_file_format=True)
    except (LabelRoundsError, OSError):
        raise
    except Exception as error:  # values are parsed when they are written
        raise BadInput(f"{file.name}: a damaged DICOM file: {error}") from error


def _check_pixels(dataset: Any, file: Path) -> None:
    from pydicom.encaps import encapsulate, generate_frames

    if "PixelData" not in dataset:
        raise BadInput(f"{file.name}: no PixelData")
    bits = (
        int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1) * int(dataset.BitsAllocated)
    )
    if dataset.file_meta.TransferSyntaxUID in COMPRESSED_SYNTAXES:
        check_plausible(file, bits // 8)
        dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=1)))
        dataset["PixelData"].is_undefined_length = True
    elif len(dataset.PixelData) < bits // 8:
        have = len(dataset.PixelData)
        raise BadInput(f"{file.name}: the file is cut; {have} bytes of pixels, {bits // 8} are needed")
    elif len(dataset.PixelData) >= 2 * max(2, bits // 8):  # less is padding
        have = len(dataset.PixelData)
        raise BadInput(f"{file.name}: {have} bytes of pixels, its Rows and Columns take {bits // 8}; one slice is read")
