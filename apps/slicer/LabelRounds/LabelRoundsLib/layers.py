"""Overlapping segments as the layers of a segmentation file (``.seg.nrrd``), as a label map can't hold them.

The format is Slicer's own, and Slicer reads it. It is written here, as Slicer would choose a grid by the segments and
add whatever tags they have, also those that came from DICOM: here it is the image's grid, and names and colours alone.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from . import looks, segments
from .translation import _

_MOST = 255  # segments, as a voxel has a byte
_HEADER_BYTES = 2**20


def of(node, volume) -> Layers | None:
    """Return a segmentation's layers; None where no two segments overlap, so that a label map holds them."""
    if node.GetSegmentation().GetNumberOfLayers() <= 1:
        return None
    found = Layers(node, volume)
    return found if found.count > 1 else None


class Layers:
    """All segments of a segmentation on its image's grid; made in the main thread, written in any.

    Attributes:
        names: of the segments, in their order.
    """

    def __init__(self, node, volume) -> None:
        found = segments.named(node)
        if len(found) > _MOST:
            raise RuntimeError(
                _("there are {count} segments; at most {most} can be submitted").format(count=len(found), most=_MOST)
            )
        self.names = [name for name, _key in found]
        self._layers: list[np.ndarray] = []
        about = []
        for value, (name, key) in enumerate(found, 1):
            layer = self._add(segments.voxels_on(volume, node, key), value)
            colour = node.GetSegmentation().GetSegment(key).GetColor()
            about.append({"ID": f"Segment_{value}", "Name": name.strip(), "Layer": layer, "LabelValue": value})
            about[-1]["Color"] = " ".join(f"{part:.6g}" for part in colour)
        self._header = _header(volume, self.count, about)

    @property
    def count(self) -> int:
        """How many layers it takes."""
        return len(self._layers)

    def write(self, file: Path) -> Path:
        """Write them, compressed; return the file."""
        with file.open("wb") as target:
            target.write(self._header)
            with gzip.GzipFile(filename="", mode="wb", fileobj=target, compresslevel=1, mtime=0) as packed:
                for slices in zip(*self._layers):
                    packed.write(np.stack(slices, axis=-1).tobytes())
        return file

    def _add(self, voxels: np.ndarray, value: int) -> int:
        """Put a segment on the first layer on which it covers nothing; return which."""
        free = (number for number, layer in enumerate(self._layers) if not layer[voxels].any())
        place = next(free, self.count)
        if place == self.count:
            self._layers.append(np.zeros(voxels.shape, np.uint8))
        self._layers[place][voxels] = value
        return place


def must_read(file: Path, is_named: bool) -> bool:
    """Tell whether a label has to be read as a segmentation file.

    Args:
        file: the label; a segmentation file may have come to the server under any name that ends in ``.nrrd``.
        is_named: whether the server says what its values mean. A segmentation file that somebody put into the server's
            folder says so itself; a file with layers always does, as it is no label map.
    """
    if not file.name.lower().endswith(".nrrd"):
        return False
    with file.open("rb") as source:
        lines = source.read(_HEADER_BYTES).replace(b"\r\n", b"\n").partition(b"\n\n")[0].split(b"\n")
    return b"dimension: 4" in lines or (not is_named and any(line.startswith(b"Segment0_") for line in lines))


def put(node, volume, file: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the segments of a segmentation file into a new segmentation of an image.

    Args:
        node: the segmentation, which is empty.
        volume: its image.
        file: see `must_read`.
        known: of each label its look; see `looks.of`.

    Raises:
        RuntimeError: Slicer can't read the file.
    """
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(file))
    if not storage.ReadData(node):
        raise RuntimeError(_("the segments of {file} can't be read").format(file=file.name))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, key in segments.named(node):
        looks.dress(node.GetSegmentation().GetSegment(key), name, known.get(name, {}))


def _header(volume, layers: int, about: list[dict[str, Any]]) -> bytes:
    """Return the header of the file; ``about`` has what is said of each segment."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ slicer.util.arrayFromVTKMatrix(matrix)
    x, y, z = volume.GetImageData().GetDimensions()
    lines = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {layers} {x} {y} {z}",
        "space directions: none " + " ".join(_vector(to_lps[:3, axis]) for axis in range(3)),
        "kinds: list domain domain domain",
        "encoding: gzip",
        "space origin: " + _vector(to_lps[:3, 3]),
    ]
    for number, one in enumerate(about):
        lines += [f"Segment{number}_{key}:={_escaped(str(value))}" for key, value in one.items()]
        lines.append(f"Segment{number}_Extent:=0 {x - 1} 0 {y - 1} 0 {z - 1}")
    lines += ["Segmentation_ContainedRepresentationNames:=Binary labelmap|"]
    lines += ["Segmentation_MasterRepresentation:=Binary labelmap", "Segmentation_ReferenceImageExtentOffset:=0 0 0"]
    return "\n".join([*lines, "", ""]).encode()


def _escaped(text: str) -> str:
    """Return a value as NRRD writes it."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(repr(float(value)) for value in values) + ")"
