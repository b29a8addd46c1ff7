"""The LabelRounds module of 3D Slicer: segment, correct, submit and retrain on a LabelRounds server.

This file holds what Slicer looks for by name; the panel's answers to clicks are here, what they do to the scene in
``LabelRoundsLib.logic``, what they ask of the server in ``LabelRoundsLib.client``.
"""

from __future__ import annotations

from typing import Any

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModule

from LabelRoundsLib import dialogs, segments, translation
from LabelRoundsLib.client import Prediction
from LabelRoundsLib.lights import GREEN
from LabelRoundsLib.logic import LabelRoundsLogic
from LabelRoundsLib.panel import Panel
from LabelRoundsLib.selftest import LabelRoundsTest
from LabelRoundsLib.settings_page import SettingsPage
from LabelRoundsLib.toolbar import Toolbar
from LabelRoundsLib.translation import _

__all__ = ["LabelRounds", "LabelRoundsLogic", "LabelRoundsTest", "LabelRoundsWidget"]


class LabelRounds(ScriptedLoadableModule):
    """What Slicer lists, and the toolbar."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        translation.install()
        parent.title = "LabelRounds"
        parent.categories = ["Active Learning"]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["LabelRounds"]
        parent.helpText = _("Segment, correct, submit and retrain on a LabelRounds server, round after round.")
        parent.acknowledgementText = _("For research; it is not a medical device.")
        if not slicer.app.commandOptions().noMainWindow:
            slicer.app.connect("startupCompleted()", self._add_toolbar)

    def _add_toolbar(self) -> None:
        panel = slicer.util.getModuleWidget("LabelRounds")
        panel.toolbar = Toolbar(slicer.util.mainWindow(), panel)
        panel.page = SettingsPage(panel)
        slicer.app.settingsDialog().addPanel("LabelRounds", panel.page)
        panel.refresh()


class LabelRoundsWidget(Panel):
    """The panel's answers to clicks."""

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {
            "connectButton": self.on_connect,
            "segmentButton": self.on_segment,
            "undoButton": self.on_undo,
            "cancelButton": self.on_cancel,
            "submitButton": self.on_submit,
        }

    def shortcuts(self) -> dict[str, Any]:
        """Return what each key does while the module is open."""
        return {
            "Ctrl+Shift+G": self.on_segment,
            "Ctrl+Shift+N": self.on_next,
            "Ctrl+Shift+U": self.on_submit,
            "Ctrl+Shift+Backspace": self.on_undo,
        }

    # What the user clicks; the toolbar and the shortcuts call the same.

    def on_connect(self) -> None:
        """Ask the server for what it has."""
        self.logic.info = {}
        self._connect(lambda: None)

    def on_segment(self) -> None:
        """Segment or classify the image that is shown."""
        self.connected(self._segment)

    def on_next(self) -> None:
        """Open the next case."""
        self.cases.on_next()

    def on_submit(self) -> None:
        """Submit the segmentation of the image that is shown."""
        self.connected(self._submit)

    def on_train(self) -> None:
        """Start a training, or stop the one that runs."""
        self.training.on_train()

    def on_cancel(self) -> None:
        """Cancel the request that runs."""
        if self._call is not None:
            self._call.cancel()

    def on_undo(self) -> None:
        """Take the last prediction back."""
        if not self.logic.can_undo() or self._call is not None:
            return
        node = self.logic.prediction_node()
        if segments.drawn_by_hand(node) and not self.sure(_("Take the prediction back, and what was drawn since?")):
            return
        self.editor.open(self.logic.undo())
        self.say(GREEN, _("The last prediction was taken back."))

    # What follows from it.

    def _segment(self) -> None:
        volume = self.shown_image()
        if volume is None or not self.may_send(volume):
            return
        model = self.ui.modelBox.currentText
        self.start(
            _("Segmenting"),
            lambda *ends: self.logic.predict(volume, model, *ends),
            lambda prediction: self._predicted(volume, prediction),
        )

    def _predicted(self, volume: Any, prediction: Prediction) -> None:
        if slicer.mrmlScene.GetNodeByID(volume.GetID() or "") is not volume:
            return self.say(GREEN, _("The image was closed in the meantime; its prediction is dropped."))
        if prediction.file is None:
            return self.classes.show(prediction.classes)
        node = self.editor.segmentation_of(volume)
        drawn = segments.drawn_by_hand(node) if node is not None else []
        keep: list[str] = []
        if drawn:
            choice = self._ask_about_edits(drawn)
            if choice is None:
                return self.say(GREEN, _("The prediction was dropped; your segments are as they were."))
            keep, node = (drawn if choice == 0 else []), (None if choice == 2 else node)
        self.editor.open(self.logic.put_prediction(volume, node, prediction, keep))
        found = _("{model}, version {version}, has segmented {image}.")
        self.say(GREEN, found.format(model=prediction.model, version=prediction.version, image=volume.GetName()))

    def _ask_about_edits(self, drawn: list[str]) -> int | None:
        text = _("These segments were changed by hand: {names}. What shall become of the new prediction?")
        choices = [
            _("Merge: keep what was changed by hand, put the rest"),
            _("Replace what was changed by hand"),
            _("Put it into a new segmentation"),
        ]
        chosen = dialogs.choose(_("New prediction"), text.format(names=", ".join(drawn)), choices)
        return None if chosen is None else chosen[0]

    def _submit(self) -> None:
        volume = self.shown_image()
        if volume is None:
            return
        node = self.editor.segmentation_of(volume)
        if node is None:
            return self.warn(_("{image} has no segmentation yet: segment it first.").format(image=volume.GetName()))
        twice = segments.named_twice(node)
        if twice:
            told = _("Several segments are named {names}; give each its own name, or merge them. Nothing was sent.")
            return self.warn(told.format(names=", ".join(twice)))
        name = self.may_send(volume)
        if name:
            self.start(_("Submitting"), lambda *ends: self.logic.submit(volume, node, name, *ends), self.submitted)

    def submitted(self, image: str, answer: dict[str, Any]) -> None:
        """Say what the server has made of a submission."""
        ignored = ", ".join(answer.get("unknown_labels") or [])
        more = _(" No model knows {names}, which will not be learnt.").format(names=ignored) if ignored else ""
        if answer.get("overlap"):
            more += _(" Segments that overlap are kept so; a training takes the later one of the list there.")
        self.say(GREEN, _("{image} is submitted.").format(image=image) + more)
        self.cases.submitted(image, self.logic.ends_case(answer))
        self.rounds.look()

    def model_of_rounds(self) -> str:
        """Return for which model a case is asked; a server of both kinds of models hands out cases to segment."""
        model = self.ui.modelBox.currentText
        return "" if self.logic.classifies(model) else model
