"""The segment editor within the panel."""

from __future__ import annotations

from typing import Any

import slicer

from . import segments


class Editor:
    """The editor, which closing the scene leaves as it is.

    Args:
        widget: a ``qMRMLSegmentEditorWidget``.
    """

    def __init__(self, widget: Any) -> None:
        self._widget, self._node = widget, _editor_node()
        widget.setMRMLScene(slicer.mrmlScene)
        widget.setMRMLSegmentEditorNode(self._node)

    def open(self, node: Any) -> None:
        """Open a segmentation, or none."""
        self._widget.setSegmentationNode(node)
        if node is not None:
            self._widget.setSourceVolumeNode(segments.volume_of(node))

    def segmentation_of(self, volume: Any) -> Any:
        """Return the segmentation that is edited, or else the newest one of the image."""
        nodes, edited = segments.segmentations_of(volume), self._node.GetSegmentationNode()
        return edited if edited in nodes else next(reversed(nodes), None)


def _editor_node() -> Any:
    node = slicer.mrmlScene.GetSingletonNode("LabelRounds", "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        node.UnRegister(None)
        node.SetSingletonTag("LabelRounds")
        node = slicer.mrmlScene.AddNode(node)
    return node
