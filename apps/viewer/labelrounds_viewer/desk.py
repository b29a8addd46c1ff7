"""The case on the screen: its image in the four views, and the segmentation that is edited. Main thread only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import slicer
from trame_slicer.core import SlicerApp, VolumeWindowLevel
from trame_slicer.segmentation import Segmentation
from undo_stack import UndoCommand

from LabelRoundsLib import looks, segments


class PredictionStep(UndoCommand):
    """A prediction that was put into a segmentation, as one step of the editor's undo."""

    def __init__(self, segmentation: Segmentation, put: Callable[[], Any]) -> None:
        super().__init__()
        self._segmentation = segmentation
        self._before = self._state()
        put()
        self._after = self._state()

    def undo(self) -> None:
        """Take the prediction back."""
        self._restore(*self._before)

    def redo(self) -> None:
        """Put it again."""
        self._restore(*self._after)

    def _state(self) -> tuple[Any, str]:
        kept = slicer.vtkSegmentation()
        kept.DeepCopy(self._segmentation.segmentation)
        return kept, self._segmentation.segmentation_node.GetAttribute(segments.PREDICTED) or "{}"

    def _restore(self, kept: Any, predicted: str) -> None:
        self._segmentation.segmentation.DeepCopy(kept)
        self._segmentation.segmentation_node.SetAttribute(segments.PREDICTED, predicted)
        self._segmentation.trigger_modified()


class Desk:
    """What lies on the desk: one image with one segmentation, or nothing.

    Attributes:
        node: the segmentation's node; None where there is none.
    """

    def __init__(self, core: SlicerApp) -> None:
        self._core, self._editor = core, core.segmentation_editor
        self._volume: Any = None
        self.node: Any = None
        self._chosen = ""
        self._editor.active_segment_id_changed.connect(self._note_chosen)
        self._editor.segmentation_modified.connect(self._keep_chosen)

    @property
    def volume(self) -> Any:
        """Return the image's node; None where there is none, or it has left the scene."""
        there = self._volume is not None and slicer.mrmlScene.IsNodePresent(self._volume)
        return self._volume if there else None

    def show(self, volume: Any, node: Any, labels: Mapping[str, Mapping[str, Any]]) -> None:
        """Show an image and edit a segmentation of it; for None, a new one with an empty segment for each label.

        What else there is leaves the scene.
        """
        if node is None:
            node = segments.new_segmentation(volume)
            _add_empty(node, labels)
        self._volume, self.node = volume, node
        self._editor.set_active_segmentation(node, volume)
        self._editor.set_surface_representation_enabled(True)
        segments.show(node)
        for kind in ("vtkMRMLSegmentationNode", "vtkMRMLScalarVolumeNode"):
            for other in slicer.util.getNodesByClass(kind):
                if other not in (volume, node):
                    slicer.mrmlScene.RemoveNode(other)
        self.set_brightness(*VolumeWindowLevel.get_volume_auto_min_max_range(volume))
        self._core.display_manager.show_volume_in_slice_background(volume)
        self._core.display_manager.reset_views()

    def offer(self, labels: Mapping[str, Mapping[str, Any]]) -> None:
        """Offer segments of other labels to draw on, where nothing is drawn yet."""
        if labels and self.volume is not None and segments.is_empty(self.node):
            self.node.GetSegmentation().RemoveAllSegments()
            _add_empty(self.node, labels)
            self._keep_chosen()

    def put(self, put: Callable[[], Any]) -> None:
        """Have a prediction put into the segmentation, as one step of undo."""
        self._editor.undo_stack.push(PredictionStep(self._editor.active_segmentation, put))
        self._keep_chosen()
        for view in self._core.view_manager.get_threed_views():
            view.reset_view()

    def is_unsaved(self) -> bool:
        """Tell whether something was drawn or erased by hand that the server doesn't know of."""
        return self.volume is not None and segments.is_unsaved(self.node)

    def brightness(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the image's lowest and highest value, and those that are shown black and white."""
        whole = VolumeWindowLevel.get_volume_scalar_range(self.volume)
        return whole, VolumeWindowLevel.get_volume_display_range(self.volume)

    def set_brightness(self, low: float, high: float) -> None:
        """Show one value black and another one white."""
        VolumeWindowLevel.set_volume_node_display_min_max_range(self.volume, low, high)

    def _note_chosen(self, key: str) -> None:
        segment = self._editor.get_segment(key)
        self._chosen = segment.GetName() if segment is not None else self._chosen

    def _keep_chosen(self) -> None:
        """Choose the segment of the same name again where its id has gone, as after a prediction or undo."""
        if self.node is None or self._editor.active_segment_id in self.node.GetSegmentation().GetSegmentIDs():
            return
        ids = segments.segment_ids(self.node)
        if ids:
            self._editor.set_active_segment_id(ids.get(self._chosen, next(iter(ids.values()))))


def _add_empty(node: Any, labels: Mapping[str, Mapping[str, Any]]) -> None:
    segmentation = node.GetSegmentation()
    for name, look in labels.items():
        looks.dress(segmentation.GetSegment(segmentation.AddEmptySegment("", name)), name, look)
