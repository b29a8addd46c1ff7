"""Use MONAI Label's own Slicer module as an annotator does: click its buttons, look at the scene, read its messages.

Runs in the process that `slicer_process` starts. Whatever a method returns is plain data, so that it can cross to the
test's process.
"""

import os
import sys
import time
import traceback
from pathlib import Path

import application
import ctk
import numpy as np
import qt
import slicer
import vtk
from MONAILabel import LoginDialog, MONAILabelWidget
from observed import Message, Scene, Training, Volume
from vtk.util.numpy_support import vtk_to_numpy

MESSAGE_KINDS = {
    qt.QMessageBox.Information: "info",
    qt.QMessageBox.Warning: "warning",
    qt.QMessageBox.Critical: "error",
    qt.QMessageBox.Question: "question",
}


class SlicerUser:
    def __init__(self, folder: Path, server: str, settings: dict):
        self._uncaught: list[str] = []
        # Qt slots and VTK observers print an exception and go on.
        sys.excepthook = lambda *error: self._uncaught.append("".join(traceback.format_exception(*error)))
        panel = application.start(folder, {f"MONAILabel/{key}": value for key, value in settings.items()})
        self._widget = MONAILabelWidget(panel)
        self._widget.setup()
        self._widget.enter()
        self._ui = self._widget.ui
        self.enter_server_address(server)

    def click(self, button: str) -> list[Message]:
        """Click one of the panel's buttons and return the messages that it led to."""
        widget = getattr(self._ui, button)
        if not widget.enabled:
            raise AssertionError(f"{button} is disabled")
        before = len(ctk.shown)
        widget.click()
        return [Message(MESSAGE_KINDS[box.icon], box.text, box.detailedText) for box in ctk.shown[before:]]

    def fetch(self) -> list[Message]:
        return self.click("fetchServerInfoButton")

    def next_sample(self) -> list[Message]:
        return self.click("nextSampleButton")

    def run(self) -> list[Message]:
        return self.click("segmentationButton")

    def submit(self) -> list[Message]:
        return self.click("saveLabelButton")

    def log_in_as(self, name: str, password: str) -> None:
        """Fill in the extension's login dialog whenever it opens."""

        def fill_in() -> None:
            dialog = qt.QApplication.activeModalWidget()
            if isinstance(dialog, LoginDialog):
                dialog.ui.username.setText(name)
                dialog.ui.password.setText(password)
                dialog.ui.loginButton.click()

        self._filling_in = qt.QTimer()
        self._filling_in.timeout.connect(fill_in)
        self._filling_in.start(50)

    def take_uncaught_errors(self) -> list[str]:
        """Return the tracebacks that Slicer's Python console would show, and forget them."""
        taken, self._uncaught = self._uncaught, []
        return taken

    def current_image(self) -> str:
        return self._widget.current_sample["id"]

    def choices(self, selector: str) -> list[str]:
        box = getattr(self._ui, selector)
        return [box.itemText(index) for index in range(box.count)]

    def choose(self, selector: str, text: str) -> None:
        box = getattr(self._ui, selector)
        index = box.findText(text)
        if index < 0:
            raise AssertionError(f"{selector} offers {self.choices(selector)}, not {text!r}")
        box.setCurrentIndex(index)

    def enabled(self, *buttons: str) -> list[bool]:
        return [getattr(self._ui, button).enabled for button in buttons]

    def bar(self, name: str) -> int:
        return getattr(self._ui, name).value

    def set_option(self, section: str, name: str, key: str, value: str) -> None:
        """Type a value into the panel's table of options."""
        self.choose("optionsSection", section)
        self.choose("optionsName", name)
        table = self._ui.configTable
        keys = [table.item(row, 0).text() for row in range(table.rowCount)]
        table.item(keys.index(key), 1).setText(value)

    def watch_training(self, timeout_s: float) -> Training:
        """Watch the bars and buttons, which the module refreshes by a timer, until it sees that the training ended."""
        self._widget.timer.setInterval(200)
        seen = Training([], [], [])
        deadline = time.monotonic() + timeout_s
        while self._widget.timer is not None:
            self._observe(seen)
            if time.monotonic() > deadline:
                raise AssertionError(f"training still runs after {timeout_s} s: {seen}")
            slicer.app.processEvents()
            time.sleep(0.05)
        self._observe(seen)
        return seen

    def see_no_files_of(self, folder: Path) -> None:
        """Work at another computer than the server: what lies in a folder of the server's isn't here."""
        exists = os.path.exists
        os.path.exists = lambda path: not Path(path).is_relative_to(folder) and exists(path)

    def enter_server_address(self, address: str) -> None:
        self._ui.serverComboBox.setCurrentText(address)

    def remember_model(self, name: str) -> None:
        """Select a model that the server had when Fetch was clicked, and has no more."""
        self._widget.models[name] = dict(next(iter(self._widget.models.values())))
        self._ui.segmentationModelSelector.addItem(name)
        self.choose("segmentationModelSelector", name)

    def load_volume(self, path: Path) -> None:
        """Load an image of the annotator's own, as File > Add Data does."""
        slicer.util.loadVolume(path)

    def fill_box(self, segment: str, corner: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Correct a segment by hand: add a box of voxels of the shown image to it."""
        segmentation_node = self._widget._segmentNode
        segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegmentName(segment)
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, segment_id).copy()
        x, y, z = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
        voxels[z, y, x] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, segmentation_node, segment_id)

    def add_segment(self, name: str) -> None:
        self._widget._segmentNode.GetSegmentation().AddEmptySegment(name, name)

    def remove_segment(self, name: str) -> None:
        """Take a segment out of the list, as the segment editor's Remove does."""
        segmentation = self._widget._segmentNode.GetSegmentation()
        segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName(name))

    def clear_segment(self, segment: str) -> None:
        segmentation_node = self._widget._segmentNode
        segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegmentName(segment)
        segmentation_node.GetSegmentation().ClearSegment(segment_id)

    def scene(self) -> Scene:
        images = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        labelmaps = slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")
        segmentations = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        if len(segmentations) > 1:
            raise AssertionError(f"{len(segmentations)} segmentations in the scene")
        return Scene(
            {node.GetName(): _image(node) for node in images if node not in labelmaps},
            {name: volume for node in segmentations for name, volume in _segments(node).items()},
            [node.GetName() for node in labelmaps],
        )

    def _observe(self, seen: Training) -> None:
        for values, value in (
            (seen.progress, self.bar("trainingProgressBar")),
            (seen.accuracy, self.bar("accuracyProgressBar")),
            (seen.buttons, tuple(self.enabled("trainingButton", "stopTrainingButton"))),
        ):
            if not values or values[-1] != value:
                values.append(value)


def _image(node) -> Volume:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return Volume(slicer.util.arrayFromVolume(node).T.copy(), slicer.util.arrayFromVTKMatrix(matrix))


def _segments(node) -> dict[str, Volume]:
    segmentation = node.GetSegmentation()
    segments = {}
    for segment_id in segmentation.GetSegmentIDs():
        labelmap = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segment_id, labelmap)
        segments[segmentation.GetSegment(segment_id).GetName()] = _labelmap(labelmap)
    return segments


def _labelmap(labelmap) -> Volume:
    """Read a segment's voxels; its matrix maps indices that begin at the labelmap's own extent."""
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    image_to_world = slicer.util.arrayFromVTKMatrix(matrix)
    if labelmap.IsEmpty():
        return Volume(np.zeros((0, 0, 0), np.uint8), image_to_world)
    offset = np.eye(4)
    offset[:3, 3] = labelmap.GetExtent()[::2]
    voxels = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions(), order="F")
    return Volume(voxels.copy(), image_to_world @ offset)
