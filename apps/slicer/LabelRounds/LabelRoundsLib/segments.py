"""Segmentations of an image: where predictions go, what was drawn by hand, and what is submitted.

A segment was drawn by hand if it is no more what a prediction had put there. What that was is kept as a checksum of
each segment in an attribute of the segmentation, and so in a saved scene too. Main thread only.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from . import looks
from .translation import _

PREDICTED, SUBMITTED = "LabelRounds.predicted", "LabelRounds.submitted"
_GEOMETRY = "referenceImageGeometryRef"
_COMPLETED = 2  # vtkSlicerSegmentationsModuleLogic's SegmentStatus


def shown_volume():
    """Return the image that the slice views show, None where they show none."""
    views = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    for view in sorted(views, key=lambda view: view.GetLayoutName() != "Red"):
        volume = slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID() or "")
        if volume is not None and volume.IsA("vtkMRMLScalarVolumeNode"):
            return volume
    return None


def segmentations_of(volume) -> list:
    """Return the segmentations of an image, the newest last."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node for node in nodes if node.GetNodeReferenceID(_GEOMETRY) == volume.GetID()]


def volume_of(node):
    """Return the image that a segmentation is of, None if it is gone."""
    return node.GetNodeReference(_GEOMETRY)


def new_segmentation(volume):
    """Add a segmentation of an image to the scene."""
    name = slicer.mrmlScene.GenerateUniqueName(_("{image} segmentation").format(image=volume.GetName()))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    return node


def named(node) -> list[tuple[str, str]]:
    """Return the segments' names and ids, in their order; Slicer lets two have the same name."""
    segmentation = node.GetSegmentation()
    return [(segmentation.GetSegment(key).GetName(), key) for key in segmentation.GetSegmentIDs()]


def segment_ids(node) -> dict[str, str]:
    """Return the segments' ids by name, in their order; of two of the same name the last one's."""
    return dict(named(node))


def named_twice(node) -> list[str]:
    """Return the names that several segments have, which a label can't tell apart."""
    names = [name.strip() for name, _key in named(node)]
    return sorted({name for name in names if names.count(name) > 1})


def drawn_by_hand(node) -> list[str]:
    """Return the names of the segments that a prediction did not put there as they are now; also of those removed."""
    predicted, found = json.loads(node.GetAttribute(PREDICTED) or "{}"), checksums(node)
    return [name for name in {**found, **predicted} if found.get(name, "") != predicted.get(name, "")]


def note_predicted(node, names: Iterable[str]) -> None:
    """Note that the segments of these names are a prediction's as they are now."""
    predicted, found = json.loads(node.GetAttribute(PREDICTED) or "{}"), checksums(node)
    predicted.update({name: found[name] for name in names if name in found})
    node.SetAttribute(PREDICTED, json.dumps(predicted))


def note_submitted(node, sent: Mapping[str, str]) -> None:
    """Note that somebody stands by all of the segments, so that none is a mere prediction any more.

    Args:
        node: the segmentation.
        sent: their `checksums` when they were written; what was drawn since then is not submitted.
    """
    node.SetAttribute(PREDICTED, "{}")
    node.SetAttribute(SUBMITTED, json.dumps(sent))


def is_submitted(node) -> bool:
    """Tell whether a segmentation is as it was submitted."""
    return json.loads(node.GetAttribute(SUBMITTED) or "null") == checksums(node)


def is_unsaved(node) -> bool:
    """Tell whether a segment is neither as it was submitted nor as a prediction has put it there since."""
    submitted, predicted = (json.loads(node.GetAttribute(key) or "{}") for key in (SUBMITTED, PREDICTED))
    found, known = checksums(node), {**submitted, **predicted}
    return any(found.get(name, "") != known.get(name, "") for name in {**found, **known})


def is_empty(node) -> bool:
    """Tell whether no segment has a voxel."""
    return not any(checksums(node).values())


def put_labels(
    node,
    volume,
    file: Path,
    values: Mapping[str, int],
    keep: Iterable[str] = (),
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """Put the labels of a file into a segmentation, in place of the segments of the same names.

    Segments that are kept, and those with the status Completed, stay as they are, and no label grows into them.

    Args:
        node: the segmentation.
        volume: its image.
        file: a label map on the image's grid.
        values: voxel value by name.
        keep: names of segments that stay.
        known: of each label its look; see `looks.of`.

    Returns:
        the names that were put.
    """
    kept = {*keep, *_completed(node)}
    put = {name: value for name, value in values.items() if name not in kept}
    labelmap = slicer.util.loadLabelVolume(str(file), {"show": False})
    try:
        labelmap.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        _leave_only(labelmap, put.values(), node, kept)
        for name, key in named(node):
            if name in put:
                node.GetSegmentation().RemoveSegment(key)
        _import(labelmap, node, put, known or {})
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)
    return list(put)


def show(node) -> None:
    """Show a segmentation in slices and in 3-D."""
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetVisibility(True)
    node.CreateClosedSurfaceRepresentation()


def write_labels(node, volume, file: Path) -> list[str]:
    """Write all segments as a label map on their image's grid; return the names of its values 1, 2, ...

    Raises:
        RuntimeError: there is no segment, or the file can't be written.
    """
    segmentation, chosen = node.GetSegmentation(), vtk.vtkStringArray()
    if not segmentation.GetNumberOfSegments():
        raise RuntimeError("there is no segment; add one named as its label, even if nothing is drawn on it")
    for key in segmentation.GetSegmentIDs():
        chosen.InsertNextValue(key)
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    try:
        slicer.modules.segmentations.logic().ExportSegmentsToLabelmapNode(node, chosen, labelmap, volume)
        if not slicer.util.saveNode(labelmap, str(file)):
            raise RuntimeError("the label map can't be written; is the disk full?")
    finally:
        slicer.mrmlScene.RemoveNode(labelmap)
    return [name for name, _key in named(node)]


def voxels_on(volume, node, key: str) -> np.ndarray:
    """Return where a segment is on an image's grid, (Z, Y, X)."""
    if not _voxels(node, key)[0].any():  # Slicer exports no empty one
        return np.zeros(slicer.util.arrayFromVolume(volume).shape[:3], bool)
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume) > 0


def _completed(node) -> list[str]:
    status, segmentation = slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus, node.GetSegmentation()
    return [name for name, key in named(node) if status(segmentation.GetSegment(key)) == _COMPLETED]


def _leave_only(labelmap, values: Iterable[int], node, kept: set[str]) -> None:
    """Clear a label map but for some values, and where kept segments are."""
    voxels = slicer.util.arrayFromVolume(labelmap)
    voxels[~np.isin(voxels, list(values))] = 0
    for name, key in named(node):
        if name in kept:
            voxels[voxels_on(labelmap, node, key)] = 0
    slicer.util.arrayFromVolumeModified(labelmap)


def _import(labelmap, node, values: Mapping[str, int], known: Mapping[str, Mapping[str, Any]]) -> None:
    """Add each value as a segment of its name; an absent one as an empty segment."""
    segmentation = node.GetSegmentation()
    before = set(segmentation.GetSegmentIDs())
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labelmap, node)
    added = [segmentation.GetSegment(key) for key in segmentation.GetSegmentIDs() if key not in before]
    by_value = {segment.GetLabelValue(): segment for segment in added}
    for name, value in values.items():
        segment = by_value.get(value)
        if segment is None:
            segment = segmentation.GetSegment(segmentation.AddEmptySegment("", name))
        looks.dress(segment, name, known.get(name, {}))


def _voxels(node, key: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a segment's voxels (Z, Y, X), and the extent that they fill."""
    labelmap = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(key, labelmap)
    if labelmap.IsEmpty():
        return np.zeros((0, 0, 0), bool), ()
    scalars = vtk_to_numpy(labelmap.GetPointData().GetScalars())
    return scalars.reshape(labelmap.GetDimensions()[::-1]) > 0, labelmap.GetExtent()


def checksums(node) -> dict[str, str]:
    """Return a text by segment that is another one where its voxels are; empty for none.

    Of several segments of the same name it tells all, so that none of them changes unseen.
    """
    found: dict[str, list[str]] = {}
    for name, key in named(node):
        found.setdefault(name, []).append(_checksum(node, key))
    return {name: " ".join(filter(None, texts)) for name, texts in found.items()}


def _checksum(node, key: str) -> str:
    """Return a number that tells a segment's voxels and their place in any extent; empty for none."""
    voxels, extent = _voxels(node, key)
    if not voxels.any():
        return ""
    place = []
    for axis in range(3):
        used = np.flatnonzero(voxels.any(axis=tuple(other for other in range(3) if other != axis)))
        voxels = voxels.take(range(used[0], used[-1] + 1), axis=axis)
        place.append(int(used[0]) + extent[2 * (2 - axis)])
    return f"{place} {voxels.shape} {zlib.crc32(np.packbits(voxels).tobytes())}"
