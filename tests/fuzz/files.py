"""Small valid files of each format, and mutations of their headers that are the same on every machine."""

import gzip
import io
import random
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
from PIL import Image as Picture

SHAPE = (11, 9, 7)
# By ending: how many bytes at the beginning count as the header, None for all.
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".dcm", ".tif")


def voxels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Make values that differ from each other, and from those of a file that is cut or shifted."""
    return np.random.default_rng(1).integers(0, 1000, shape).astype(np.int16)


def nifti() -> bytes:
    """Make a NIfTI with a sheared-looking but sound geometry: oblique, left-handed and anisotropic."""
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7, 0.9, 2.5)
    affine[:3, 3] = (-120.5, 80.25, -900.75)
    return nib.Nifti1Image(voxels(), affine).to_bytes()


def write_nrrd(path: Path) -> None:
    """Make an uncompressed NRRD as Slicer writes it."""
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.7, 0.9, 2.5]),
        "space origin": np.array([-120.5, 80.25, -900.75]),
        "kinds": ["domain"] * 3,
        "encoding": "raw",
    }
    nrrd.write(str(path), voxels(), header, index_order="F")


def write_slice(path: Path) -> None:
    """Make a DICOM slice with a sequence in it."""
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.MRImageStorage, "1.2.3.4"
    data.SeriesInstanceUID, data.SeriesDescription, data.PatientID = "1.2.3", "T1", "P7"
    data.Modality, data.Rows, data.Columns, data.PixelSpacing = "MR", 6, 8, [0.5, 0.75]
    item = pydicom.Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.5"
    data.ReferencedImageSequence = pydicom.Sequence([item])
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [1, 2, 3]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelData = np.arange(100, 148, dtype=np.uint16).tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


def valid(ending: str, folder: Path) -> tuple[bytes, int]:
    """Return a valid file's content, before it is compressed, and the length of its header."""
    if ending in (".nii", ".nii.gz"):
        return nifti(), 348
    if ending == ".tif":
        picture = io.BytesIO()
        Picture.fromarray(voxels((20, 30)).astype(np.uint8)).save(picture, "TIFF")
        return picture.getvalue(), len(picture.getvalue())
    path = folder / f"valid{ending}"
    (write_nrrd if ending == ".nrrd" else write_slice)(path)
    content = path.read_bytes()
    return content, content.index(b"\n\n") + 2 if ending == ".nrrd" else len(content) - 96


def mutations(content: bytes, header: int, count: int) -> Iterator[bytes]:
    """Give copies with one to eight bytes of the header changed, cut out or put in."""
    chance = random.Random(7)
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 4, 8])):
            place, kind = chance.randrange(min(header, len(mutated))), chance.random()
            if kind < 0.45:
                mutated[place] ^= 1 << chance.randrange(8)
            elif kind < 0.9:
                mutated[place] = chance.choice([0, 1, 127, 128, 255, *b"0129.-:(,"])
            elif kind < 0.95:
                del mutated[place]
            else:
                mutated.insert(place, chance.randrange(256))
        yield bytes(mutated)


def mutated_files(ending: str, count: int, folder: Path) -> Iterator[Path]:
    """Write one mutated file after the other, under the same name."""
    content, header = valid(ending, folder)
    path = folder / f"mutated{ending}"
    for mutated in mutations(content, header, count):
        path.write_bytes(gzip.compress(mutated, 1) if ending.endswith(".gz") else mutated)
        yield path
