"""Use LabelRounds' own Slicer module as an annotator does: its toolbar, its panel, its questions.

Runs in the process that `slicer_process` starts, as `slicer_user` does for MONAI Label's module. While a method waits,
Slicer's event loop runs; how long it ever stood still is measured.
"""

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
from LabelRounds import LabelRounds, LabelRoundsTest, LabelRoundsWidget
from LabelRoundsLib import segments
from observed import Message, Volume
from slicer_user import MESSAGE_KINDS, _image, _segments

PATIENCE_S = 120


class ExtensionUser:
    def __init__(self, folder: Path, server: str, settings: dict):
        self._uncaught: list[str] = []
        sys.excepthook = lambda *error: self._uncaught.append("".join(traceback.format_exception(*error)))
        slicers = {key: settings.pop(key) for key in ("language", "Internationalization/Enabled") if key in settings}
        own = {f"LabelRounds/{key}": value for key, value in {"server": server, **settings}.items()}
        panel = application.start(folder, {**slicers, **own})
        self._module = LabelRounds(panel)
        self._widget = LabelRoundsWidget(panel)
        self._widget.setup()
        slicer.modules.labelrounds = application.ScriptedModule(self._widget)
        slicer.app.complete_startup()
        self._toolbar = self._widget.toolbar
        self._ui = self._widget.ui
        self._answers: list[str] = []
        self.questions: list[str] = []
        self._answering = qt.QTimer()
        self._answering.timeout.connect(self._answer)
        self._answering.start(20)
        self._stood_still_s = 0.0

    def answer_with(self, *answers: str) -> None:
        """Give these answers to the next dialogs: a button's text, or ``name/key`` to log in."""
        self._answers = list(answers)

    def enter(self) -> list[Message]:
        return self._do(self._widget.enter)

    def exit(self) -> None:
        self._widget.exit()

    def click(self, button: str) -> list[Message]:
        """Click one of the panel's buttons and wait until the module is done."""
        return self._do(lambda: self._press(getattr(self._ui, button)))

    def tool(self, name: str) -> list[Message]:
        """Click one of the toolbar's buttons and wait until the module is done."""
        return self._do(lambda: self._trigger(name))

    def begin(self, name: str) -> None:
        """Click one of the toolbar's buttons, and do not wait."""
        self._trigger(name)

    def wait(self) -> list[Message]:
        """Wait until the module is done."""
        return self._do(lambda: None)

    def press(self, keys: str) -> list[Message]:
        """Press a shortcut's keys."""
        (shortcut,) = [one for one in self._widget._shortcuts if one.key == qt.QKeySequence(keys)]
        return self._do(shortcut.activated.emit)

    def shortcuts(self) -> list[str]:
        window = slicer.util.mainWindow()
        return [one.key().toString() for one in window.findChildren(qt.QShortcut) if one.isEnabled()]

    def longest_standstill_s(self) -> float:
        """Return for how long at most the event loop has not run while a method waited."""
        return self._stood_still_s

    def take_uncaught_errors(self) -> list[str]:
        taken, self._uncaught = self._uncaught, []
        return taken

    def enter_server_address(self, address: str) -> None:
        self._ui.serverBox.setCurrentText(address)

    def choose(self, selector: str, text: str) -> None:
        box = getattr(self._ui, selector)
        box.setCurrentIndex(box.findText(text))
        assert box.currentText == text, [box.itemText(place) for place in range(box.count)]
        box.activated.emit(box.currentIndex)

    def text(self, widget: str) -> str:
        shown = getattr(self._ui, widget)
        return shown.currentText if hasattr(shown, "currentText") else shown.text

    def type(self, edit: str, text: str) -> None:
        getattr(self._ui, edit).setText(text)

    def let_lease_pass(self, seconds: float) -> None:
        """Have the case in hand as if it had been for so long."""
        self._widget.cases._hand._ends -= seconds

    def wait_for_text(self, widget: str, text: str) -> None:
        """Let Slicer run until a widget shows a text."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.text(widget):
            if time.monotonic() > deadline:
                raise AssertionError(f"{widget} shows {self.text(widget)!r}, not {text!r}")
            slicer.app.processEvents()
            time.sleep(0.05)

    def choices(self, selector: str) -> list[str]:
        box = getattr(self._ui, selector)
        return [box.itemText(place) for place in range(box.count)]

    def table(self, name: str) -> list[list[str]]:
        """Return the texts of a table's rows."""
        table = getattr(self._ui, name)
        columns = range(table.columnCount)
        return [[table.item(row, column).text() for column in columns] for row in range(table.rowCount)]

    def choose_row(self, name: str, first: str) -> None:
        """Choose the row of a table that begins with a text."""
        getattr(self._ui, name).selectRow([row[0] for row in self.table(name)].index(first))

    def unfold(self, section: str) -> list[Message]:
        """Open a section of the panel, and wait until it shows what there is."""
        return self._do(lambda: setattr(getattr(self._ui, section), "collapsed", False))

    def queue(self) -> list[tuple[str, bool]]:
        """Return the text of each case that comes next, and whether it has a picture."""
        items = [self._ui.queueList.item(row) for row in range(self._ui.queueList.count)]
        return [(item.text(), not item.icon().isNull()) for item in items]

    def plots(self) -> list[dict[str, tuple]]:
        """Return the series of each chart in the scene, by name, as pairs of x and y."""
        found = []
        for chart in slicer.util.getNodesByClass("vtkMRMLPlotChartNode"):
            all_series = [chart.GetNthPlotSeriesNode(number) for number in range(chart.GetNumberOfPlotSeriesNodes())]
            found.append({series.GetName(): _pairs(series) for series in all_series})
        return found

    def settings_page(self):
        return slicer.app.settingsDialog().pages["LabelRounds"]

    def tick(self, option: str, on: bool) -> None:
        """Tick an option of the settings page, or untick it."""
        getattr(self.settings_page(), option).setChecked(on)

    def is_ticked(self, box: str) -> bool:
        return getattr(self._ui, box).checked

    def icon_colours(self) -> set[str]:
        """Return the colours of the toolbar's icons where they are opaque."""
        images = [action.icon.pixmap(64, 64).toImage() for action in self._toolbar.actions.values()]
        pixels = [image.pixelColor(x, y) for image in images for x in range(0, 64, 2) for y in range(0, 64, 2)]
        return {pixel.name() for pixel in pixels if pixel.alpha() == 255}

    def can_click(self, button: str) -> bool:
        """Tell whether a button is there and enabled."""
        return not getattr(self._ui, button).isHidden() and getattr(self._ui, button).enabled

    def state(self) -> dict:
        return self._widget.state()

    def toolbar(self) -> dict:
        """Return what the toolbar shows."""
        actions = self._toolbar.actions
        return {
            "enabled": {name: action.enabled for name, action in actions.items()},
            "texts": {name: action.text for name, action in actions.items()},
            "icons": {name: not action.icon.isNull() for name, action in actions.items()},
            "models": [self._toolbar.models.itemText(place) for place in range(self._toolbar.models.count)],
            "model": self._toolbar.models.currentText,
            "sentence": self._toolbar.light.toolTip,
        }

    def picture(self, file: Path, width: int, height: int) -> None:
        """Draw toolbar and panel as Qt shows them here; around them desktop Slicer has more, and its own style."""
        window = self._toolbar.bar.parentWidget()
        window.setCentralWidget(self._widget.parent)
        window.resize(width, height)
        window.show()
        slicer.app.processEvents()
        window.grab().save(str(file))

    def load_volume(self, path: Path) -> None:
        """Load an image of the annotator's own and show it, as File > Add Data does."""
        slicer.util.setSliceViewerLayers(background=slicer.util.loadVolume(str(path)))

    def image(self) -> Volume | None:
        """Return the image that the slice views show."""
        volume = segments.shown_volume()
        return None if volume is None else _image(volume)

    def overlay(self) -> Volume | None:
        """Return the map that the slice views show over the image."""
        view = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
        node = slicer.mrmlScene.GetNodeByID(view.GetForegroundVolumeID() or "")
        return None if node is None else _image(node)

    def volumes(self) -> int:
        """Return how many images and label maps the scene has."""
        return len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))

    def image_name(self) -> str:
        return segments.shown_volume().GetName()

    def image_id(self) -> str:
        return self._widget.logic.image_of(segments.shown_volume())

    def segmentations(self) -> list[dict[str, Volume]]:
        """Return the segments of each segmentation of the image that is shown, by name in order."""
        return [_segments(node) for node in segments.segmentations_of(segments.shown_volume())]

    def looks(self) -> dict[str, tuple]:
        """Return each segment's colour, and whether it is shown in slices and has a surface in 3-D."""
        node = self._node()
        display, segmentation = node.GetDisplayNode(), node.GetSegmentation()
        surfaces = segmentation.ContainsRepresentation("Closed surface")
        shown = bool(display.GetVisibility())
        return {
            name: (
                segmentation.GetSegment(key).GetColor(),
                shown and display.GetSegmentVisibility(key) and display.GetSegmentVisibility2DFill(key),
                surfaces and display.GetSegmentVisibility3D(key) and self._points(node, key),
            )
            for name, key in segments.segment_ids(node).items()
        }

    def terms(self) -> dict[str, str]:
        """Return what Slicer's terminologies read of each segment's term: modifier and type."""
        found, logic = {}, slicer.vtkSlicerTerminologiesModuleLogic()
        segmentation = self._node().GetSegmentation()
        for name, key in segments.segment_ids(self._node()).items():
            text, entry = vtk.reference(""), slicer.vtkSlicerTerminologyEntry()
            segmentation.GetSegment(key).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
            assert logic.DeserializeTerminologyEntry(str(text), entry), str(text)
            meanings = entry.GetTypeModifierObject().GetCodeMeaning(), entry.GetTypeObject().GetCodeMeaning()
            found[name] = " ".join(filter(None, meanings))
        return found

    def drawn_by_hand(self) -> list[str]:
        return segments.drawn_by_hand(self._node())

    def fill_box(self, segment: str, corner: tuple[int, int, int], size: tuple[int, int, int]) -> None:
        """Add a box of voxels of the shown image to a segment by hand."""
        node, volume = self._node(), segments.shown_volume()
        key = segments.segment_ids(node)[segment]
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume).copy()
        x, y, z = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
        voxels[z, y, x] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, key, volume)

    def add_segment(self, name: str) -> None:
        """Add an empty segment, as the segment editor's button does."""
        self._node().GetSegmentation().AddEmptySegment("", name)

    def layers(self) -> int:
        """Return how many layers Slicer keeps the segments on; more than one where they overlap."""
        return self._node().GetSegmentation().GetNumberOfLayers()

    def load_segmentation(self, path: Path) -> dict[str, np.ndarray]:
        """Load a segmentation file as File > Add Data does; return its segments' voxels on the shown image by name."""
        storage, node = slicer.vtkMRMLSegmentationStorageNode(), slicer.vtkMRMLSegmentationNode()
        slicer.mrmlScene.AddNode(node)
        storage.SetFileName(str(path))
        assert storage.ReadData(node)
        volume = segments.shown_volume()
        found = {name: segments.voxels_on(volume, node, key).T for name, key in segments.named(node)}
        slicer.mrmlScene.RemoveNode(node)
        return found

    def export(self) -> np.ndarray:
        """Return the label map that Slicer's own export makes of the segments, on the shown image's voxels."""
        node, labelmap = slicer.vtkMRMLLabelMapVolumeNode(), self._node()
        slicer.mrmlScene.AddNode(node)
        chosen = vtk.vtkStringArray()
        for key in labelmap.GetSegmentation().GetSegmentIDs():
            chosen.InsertNextValue(key)
        logic = slicer.modules.segmentations.logic()
        logic.ExportSegmentsToLabelmapNode(labelmap, chosen, node, segments.shown_volume())
        voxels = slicer.util.arrayFromVolume(node).T.copy()
        slicer.mrmlScene.RemoveNode(node)
        return voxels

    def finish(self, segment: str) -> None:
        """Give a segment the status Completed, as the segment editor's list does."""
        node = self._node()
        one = node.GetSegmentation().GetSegment(segments.segment_ids(node)[segment])
        slicer.vtkSlicerSegmentationsModuleLogic.SetSegmentStatus(one, 2)

    def play_self_test(self, server: str) -> None:
        """Run the module's own self-test."""
        import os

        os.environ["LABELROUNDS_SERVER"] = server
        LabelRoundsTest().test_round()

    def close_scene(self) -> None:
        slicer.mrmlScene.Clear(0)

    def _node(self):
        return self._widget.editor.segmentation_of(segments.shown_volume())

    def _points(self, node, key) -> int:
        surface = slicer.vtkPolyData() if hasattr(slicer, "vtkPolyData") else __import__("vtk").vtkPolyData()
        node.GetClosedSurfaceRepresentation(key, surface)
        return surface.GetNumberOfPoints()

    def _press(self, button) -> None:
        if not button.enabled:
            raise AssertionError(f"{button.objectName} is disabled")
        button.click()

    def _trigger(self, name: str) -> None:
        action = self._toolbar.actions[name]
        if not action.enabled:
            raise AssertionError(f"{name} is disabled")
        action.trigger()

    def _do(self, act) -> list[Message]:
        before = len(ctk.shown)
        act()
        deadline, last = time.monotonic() + PATIENCE_S, time.monotonic()
        while self._widget.logic.background.busy:
            slicer.app.processEvents()
            time.sleep(0.01)
            now = time.monotonic()
            self._stood_still_s, last = max(self._stood_still_s, now - last), now
            if now > deadline:
                raise AssertionError(f"not done after {PATIENCE_S} s: {self._widget.state()}")
        return [Message(MESSAGE_KINDS[box.icon], box.text, box.detailedText) for box in ctk.shown[before:]]

    def asked(self) -> list[str]:
        """Return the questions that dialogs have asked, and forget them."""
        asked, self.questions = self.questions, []
        return asked

    def _answer(self) -> None:
        dialog = qt.QApplication.activeModalWidget()
        if dialog is None:
            return
        self._answering.stop()  # an error here would come back for ever
        self.questions.append(dialog.findChildren(qt.QLabel)[0].text)
        answer = self._answers.pop(0) if self._answers else "Cancel"
        edits = dialog.findChildren(qt.QLineEdit)
        if edits and "/" in answer:
            for edit, text in zip(edits, answer.split("/"), strict=True):
                edit.setText(text)
            answer = "Log in"
        for box in dialog.findChildren(qt.QCheckBox):
            if answer.startswith("untick, "):
                box.setChecked(False)
        answer = answer.removeprefix("untick, ")
        buttons = [one for one in dialog.findChildren(qt.QPushButton) if one.text.startswith(answer)]
        self._answering.start(20)
        if not buttons:
            dialog.done(0)
            raise AssertionError(f"no button {answer!r}")
        buttons[0].click()


def _pairs(series) -> tuple:
    table = series.GetTableNode().GetTable()
    columns = [table.GetColumnByName(name) for name in (series.GetXColumnName(), series.GetYColumnName())]
    return tuple(tuple(column.GetValue(row) for column in columns) for row in range(table.GetNumberOfRows()))
