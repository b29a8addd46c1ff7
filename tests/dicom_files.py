"""Small DICOM files as scanners write them."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

SHAPE = (6, 5)
SPACING_MM, GAP_MM = (0.7, 0.9), 2.5


def dicom_slice(series: str, number: int, **tags: Any) -> Dataset:
    """Return one slice of a series, its voxels of its own; ``tags`` replace what stands in it, or are added."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"{series}.{number}"
    data.SeriesInstanceUID, data.StudyInstanceUID = series, "1.2.3"
    data.PatientID, data.PatientName, data.Modality = "P1", "Doe^Jane", "MR"
    data.Rows, data.Columns, data.SamplesPerPixel = *SHAPE, 1
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 15, 1, "MONOCHROME2"
    data.PixelSpacing = list(SPACING_MM)
    data.PixelData = np.random.default_rng(number).integers(-900, 900, SHAPE).astype("<i2").tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
    return with_file_meta(data)


def with_file_meta(data: Dataset) -> Dataset:
    """Give a dataset what stands before it in a file."""
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def write_slice(path: Path, series: str, number: int, *, placed: bool = True, **tags: Any) -> Path:
    """Write one slice of a series, which has a place in space or none."""
    place = {
        "ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6],
        "ImagePositionPatient": [10.5, -20.25 - 0.6 * GAP_MM * number, 0.8 * GAP_MM * number],
    }
    data = dicom_slice(series, number, **{**(place if placed else {}), **tags})
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, series: str, count: int = 4, ending: str = ".dcm", first: int = 0, **tags) -> list[Path]:
    """Write the slices of a series."""
    return [
        write_slice(folder / f"{series}_{number:03d}{ending}", series, number, **tags)
        for number in range(first, first + count)
    ]


def write_segmentation(path: Path, series: str) -> Path:
    """Write what is DICOM with pixels, but no image."""
    return write_slice(path, series, 1, placed=False, Modality="SEG", SOPClassUID=SegmentationStorage)
