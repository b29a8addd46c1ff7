"""Small pictures and volumes of noise with a bright blob or without, and a model that learns to tell within seconds."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image as Picture
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from labelrounds.classification.config import ClassifierConfig
from labelrounds.store import LabelledCase

CLASSES = ("none", "blob")


def classifier(**changes: Any) -> ClassifierConfig:
    """A small 2-D model; keyword arguments replace keys, and in ``training`` and ``network`` add to them."""
    content: dict[str, Any] = {
        "name": "blobs",
        "description": "a blob or none",
        "labels": list(CLASSES),
        "input_size": [16, 16, 1],
        "intensity": {"kind": "zscore"},
        "network": {"name": "densenet", "stem": "small", "growth_rate": 4, "init_features": 8, "block_config": [2, 2]},
        "training": {"epochs": 4, "iterations_per_epoch": 10, "batch_size": 8, "learning_rate": 0.01},
    }
    for key in ("training", "network"):
        changes[key] = {**content[key], **changes.get(key, {})}
    return ClassifierConfig.model_validate_json(json.dumps({**content, **changes}))


def voxels(seed: int, blob: bool, shape: tuple[int, ...], centre: tuple[int, ...] | None = None) -> np.ndarray:
    """Noise, with a bright blob of a radius of 3 at a centre or anywhere."""
    random = np.random.default_rng(seed)
    values = random.normal(80, 10, size=shape)
    if blob:
        middle = centre or tuple(int(random.integers(4, side - 4)) for side in shape)
        distance = sum((grid - at) ** 2 for grid, at in zip(np.indices(shape), middle, strict=True))
        values[distance <= 9] += 120
    return values.clip(0, 255)


def picture(folder: Path, name: str, seed: int, blob: bool, centre: tuple[int, ...] | None = None) -> Path:
    """Write a PNG of 16 x 16 pixels; the centre is in rows and columns."""
    folder.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(voxels(seed, blob, (16, 16), centre).astype(np.uint8)).save(folder / f"{name}.png")
    return folder / f"{name}.png"


def volume(folder: Path, name: str, seed: int, blob: bool, centre: tuple[int, ...] | None = None) -> Path:
    """Write a NIfTI volume of 16 x 16 x 16 voxels of 1 mm in RAS order."""
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(voxels(seed, blob, (16, 16, 16), centre).astype(np.float32), np.eye(4)),
        folder / f"{name}.nii.gz",
    )
    return folder / f"{name}.nii.gz"


def labelled(folder: Path, count: int, write: Any = picture) -> list[LabelledCase]:
    """Write so many images, every second with a blob, with their labels."""
    cases = []
    for number in range(count):
        name = f"image_{number:02d}"
        image, label = write(folder, name, number, number % 2 == 1), folder / f"{name}.json"
        label.write_text(json.dumps({"label": CLASSES[number % 2]}))
        cases.append(LabelledCase(name, image, label, None, name))
    return cases


def write_dicom(path: Path, series: str, at_mm: float | None = None) -> None:
    """Write a picture of 16 x 16 pixels as a DICOM file of a series, as a slice at a place where one is given."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    content.SOPClassUID, content.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    content.SeriesInstanceUID, content.Rows, content.Columns = series, 16, 16
    content.BitsAllocated = content.BitsStored = 8
    content.HighBit, content.PixelRepresentation, content.SamplesPerPixel = 7, 0, 1
    content.PhotometricInterpretation, content.PixelSpacing = "MONOCHROME2", [1, 1]
    if at_mm is not None:
        content.ImageOrientationPatient, content.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, at_mm]
    content.PixelData = voxels(0, True, (16, 16)).astype(np.uint8).tobytes()
    content.save_as(path, enforce_file_format=True)
