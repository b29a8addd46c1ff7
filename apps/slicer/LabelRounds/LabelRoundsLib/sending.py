"""The files that are sent to the server: an image without what DICOM or Slicer says of it besides, and label maps."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import slicer


def written(volume, folder: Path) -> Path:
    """Write an image's voxels and grid, and nothing else that is known of it; on the main thread.

    By way of another node, as saving the image itself would make Slicer believe that it is kept in that file.
    """
    file = folder / "image.nii"
    plain = slicer.mrmlScene.AddNewNodeByClass(volume.GetClassName(), "image")
    try:
        plain.SetAndObserveImageData(volume.GetImageData())
        plain.CopyOrientation(volume)
        slicer.util.saveNode(plain, str(file))
    finally:
        slicer.mrmlScene.RemoveNode(plain)
    return file


def compressed(file: Path) -> Path:
    """Return a file compressed; in the request's thread, as it may take seconds."""
    packed = file.with_name(file.name + ".gz")
    with file.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return packed
