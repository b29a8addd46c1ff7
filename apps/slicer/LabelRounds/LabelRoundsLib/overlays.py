"""A map of values over an image, as how unsure the model is: a volume of its own in the slice views' foreground."""

from __future__ import annotations

from pathlib import Path

import slicer

OVER = "LabelRounds.over"
_COLOURS = ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeRainbow")


def of(volume) -> list:
    """Return the maps over an image."""
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [node for node in nodes if node.GetNodeReferenceID(OVER) == volume.GetID()]


def show(volume, file: Path, name: str, opacity: float):
    """Show a map over its image, in place of an earlier one; what is near 0 stays clear.

    Args:
        volume: the image.
        file: the map, on the image's grid; from 0 up, by whatever it is measured.
        name: what it shows.
        opacity: 0 to 1.
    """
    remove(volume)
    node = slicer.util.loadVolume(str(file), {"show": False})
    node.SetName(f"{volume.GetName()}: {name}")
    node.SetNodeReferenceID(OVER, volume.GetID())
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    if node.GetStorageNode() is not None:  # of a temporary file, which will be gone
        slicer.mrmlScene.RemoveNode(node.GetStorageNode())
    node.CreateDefaultDisplayNodes()
    display, highest = node.GetDisplayNode(), float(slicer.util.arrayFromVolume(node).max()) or 1.0
    colours = next((key for key in _COLOURS if slicer.mrmlScene.GetNodeByID(key)), None)
    if colours is not None:
        display.SetAndObserveColorNodeID(colours)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, highest)
    display.SetThreshold(0.1 * highest, highest)
    display.ApplyThresholdOn()
    slicer.util.setSliceViewerLayers(foreground=node, foregroundOpacity=opacity)
    return node


def remove(volume) -> None:
    """Take the maps over an image away."""
    for node in of(volume):
        slicer.mrmlScene.RemoveNode(node)
