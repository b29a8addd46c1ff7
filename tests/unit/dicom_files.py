"""Small DICOM files as scanners write them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

SHAPE = (6, 5)
SPACING_MM, GAP_MM = (0.7, 0.9), 2.5


def write_slice(
    path: Path, series: str, number: int, *, placed: bool = True, patient: str = "P1", name: str = "Doe^Jane", **tags
) -> Path:
    """Write one slice of a series, its voxels of its own; ``tags`` replace what stands in it."""
    rows, columns = SHAPE
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, f"{series}.{number}"
    data.SeriesInstanceUID, data.StudyInstanceUID = series, "1.2.3"
    data.PatientID, data.PatientName, data.Modality = patient, name, "MR"
    data.Rows, data.Columns, data.SamplesPerPixel = rows, columns, 1
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.PhotometricInterpretation = 15, 1, "MONOCHROME2"
    data.PixelSpacing = list(SPACING_MM)
    if placed:
        data.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]
        data.ImagePositionPatient = [10.5, -20.25 - 0.6 * GAP_MM * number, 0.8 * GAP_MM * number]
    noise = np.random.default_rng(number).integers(-900, 900, SHAPE).astype("<i2")
    data.PixelData = noise.tobytes()
    for tag, value in tags.items():
        setattr(data, tag, value)
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
