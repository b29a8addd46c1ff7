"""The LabelRounds module of 3D Slicer: segment, correct, submit and retrain on a LabelRounds server.

This file holds what Slicer looks for by name; the panel's answers to clicks are here, what they do to the scene in
``LabelRoundsLib.logic``, what they ask of the server in ``LabelRoundsLib.client``.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModule

from LabelRoundsLib import dialogs, segments
from LabelRoundsLib.case_in_hand import CaseInHand
from LabelRoundsLib.client import Case, Prediction, is_running
from LabelRoundsLib.logic import LabelRoundsLogic
from LabelRoundsLib.panel import GREEN, Panel
from LabelRoundsLib.selftest import LabelRoundsTest
from LabelRoundsLib.toolbar import Toolbar
from LabelRoundsLib.translation import _

__all__ = ["LabelRounds", "LabelRoundsLogic", "LabelRoundsTest", "LabelRoundsWidget"]

_DEFER_H = 24.0


class LabelRounds(ScriptedLoadableModule):
    """What Slicer lists, and the toolbar."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "LabelRounds"
        parent.categories = [_("Active Learning")]
        parent.dependencies = ["Segmentations"]
        parent.contributors = ["LabelRounds"]
        parent.helpText = _("Segment, correct, submit and retrain on a LabelRounds server, round after round.")
        parent.acknowledgementText = _("For research; it is not a medical device.")
        if not slicer.app.commandOptions().noMainWindow:
            slicer.app.connect("startupCompleted()", self._add_toolbar)

    def _add_toolbar(self) -> None:
        panel = slicer.util.getModuleWidget("LabelRounds")
        panel.toolbar = Toolbar(slicer.util.mainWindow(), panel)
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
            "nextButton": self.on_next,
            "submitButton": self.on_submit,
            "submitClassButton": self.on_submit_class,
            "reopenButton": self.on_reopen,
            "deferButton": self.on_defer,
            "skipButton": self.on_skip,
            "trainButton": self.on_train,
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
        self._connected(self._segment)

    def on_next(self) -> None:
        """Open the next case."""
        self._connected(self._next)

    def on_submit(self) -> None:
        """Submit the segmentation of the image that is shown."""
        self._connected(self._submit)

    def on_submit_class(self) -> None:
        """Submit what the image that is shown is."""
        self._connected(self._submit_class)

    def on_train(self) -> None:
        """Start a training, or stop the one that runs."""
        self._connected(self._stop_training if is_running(self._training) else self._train)

    def on_cancel(self) -> None:
        """Cancel the request that runs."""
        if self._call is not None:
            self._call.cancel()

    def on_undo(self) -> None:
        """Take the last prediction back."""
        if not self.logic.can_undo() or self._call is not None:
            return
        node = self.logic.prediction_node()
        if segments.drawn_by_hand(node) and not self._sure(_("Take the prediction back, and what was drawn since?")):
            return
        self._edit(self.logic.undo())
        self._say(GREEN, _("The last prediction was taken back."))

    def on_reopen(self) -> None:
        """Open a submitted case again."""
        image = self.ui.labelledBox.currentText
        self._connected(
            lambda: self._start(_("Opening"), lambda *ends: self.logic.reopen(image, *ends), self._reopened)
        )

    def on_defer(self) -> None:
        """Hand the case out to nobody for a day."""
        self._put_aside(_DEFER_H)

    def on_skip(self) -> None:
        """Hand the case out no more."""
        self._put_aside(None)

    # What follows from it.

    def _segment(self) -> None:
        volume = self._volume()
        if volume is None or not self._may_send(volume):
            return
        model = self.ui.modelBox.currentText
        self._start(
            _("Segmenting"),
            lambda *ends: self.logic.predict(volume, model, *ends),
            lambda prediction: self._predicted(volume, prediction),
        )

    def _predicted(self, volume: Any, prediction: Prediction) -> None:
        if slicer.mrmlScene.GetNodeByID(volume.GetID() or "") is not volume:
            return self._say(GREEN, _("The image was closed in the meantime; its prediction is dropped."))
        if prediction.file is None:
            return self._show_classes(prediction.classes)
        node = self._segmentation(volume)
        drawn = segments.drawn_by_hand(node) if node is not None else []
        keep: list[str] = []
        if drawn:
            choice = self._ask_about_edits(drawn)
            if choice is None:
                return self._say(GREEN, _("The prediction was dropped; your segments are as they were."))
            keep, node = (drawn if choice == 0 else []), (None if choice == 2 else node)
        self._edit(self.logic.put_prediction(volume, node, prediction, keep))
        found = _("{model}, version {version}, has segmented {image}.")
        self._say(
            GREEN, found.format(model=self.ui.modelBox.currentText, version=prediction.version, image=volume.GetName())
        )

    def _ask_about_edits(self, drawn: list[str]) -> int | None:
        text = _("These segments were changed by hand: {names}. What shall become of the new prediction?")
        choices = [
            _("Merge: keep what was changed by hand, put the rest"),
            _("Replace what was changed by hand"),
            _("Put it into a new segmentation"),
        ]
        chosen = dialogs.choose(_("New prediction"), text.format(names=", ".join(drawn)), choices)
        return None if chosen is None else chosen[0]

    def _show_classes(self, classes: dict[str, float]) -> None:
        table = self.ui.classTable
        table.setColumnCount(2)
        table.setRowCount(len(classes))
        table.setHorizontalHeaderLabels([_("Class"), _("Probability")])
        for place, (name, probability) in enumerate(classes.items()):
            table.setItem(place, 0, qt.QTableWidgetItem(name))
            table.setItem(place, 1, qt.QTableWidgetItem(f"{100 * probability:.1f} %"))
        self.ui.classBox.clear()
        self.ui.classBox.addItems(list(classes))
        likeliest = next(iter(classes.items()), ("?", 0.0))
        self._say(GREEN, _("{name}, {percent:.0f} %").format(name=likeliest[0], percent=100 * likeliest[1]))

    def _next(self) -> None:
        strategy, model = self.ui.strategyBox.currentText or "auto", self._model_of_rounds()
        self._start(
            _("Fetching the next case"), lambda *ends: self.logic.next_case(strategy, model, *ends), self._opened
        )

    def _opened(self, case: Case | str, volume: Any) -> None:
        if volume is None:
            self._hand = None
            return self._say(GREEN, case or _("There is no case left to label."))
        self._hand = CaseInHand(case)
        self._say(GREEN, _("{image}: {reason}.").format(image=case.image, reason=case.told.get("reason", "")))
        if self.ui.segmentNextBox.checked:
            self._segment()

    def _reopened(self, case: Case, volume: Any, node: Any) -> None:
        self._hand = None
        self._edit(node)
        self._say(GREEN, _("{image} is open with its submitted label.").format(image=case.image))

    def _submit(self) -> None:
        volume = self._volume()
        if volume is None:
            return
        node = self._segmentation(volume)
        if node is None:
            return self._warn(_("{image} has no segmentation yet: segment it first.").format(image=volume.GetName()))
        overlap = _("Some voxels are in two segments; a label map keeps the later one there. Submit it so?")
        if segments.overlapping(node) and not self._sure(overlap):
            return
        name = self._may_send(volume)
        if name:
            self._start(_("Submitting"), lambda *ends: self.logic.submit(volume, node, name, *ends), self._submitted)

    def _submit_class(self) -> None:
        volume, chosen = self._volume(), self.ui.classBox.currentText
        name = volume is not None and self._may_send(volume)
        if name:
            self._start(
                _("Submitting"), lambda *ends: self.logic.submit_class(volume, chosen, name, *ends), self._submitted
            )

    def _submitted(self, image: str, answer: dict[str, Any]) -> None:
        if self._hand is not None and self._hand.case.image == image:
            self._hand = None
        ignored = ", ".join(answer.get("unknown_labels") or [])
        more = _(" No model knows {names}, which will not be learnt.").format(names=ignored) if ignored else ""
        self._say(GREEN, _("{image} is submitted.").format(image=image) + more)
        self._ask_labelled()

    def _put_aside(self, hours: float | None) -> None:
        if self._hand is None:
            return
        image, reason, client = self._hand.case.image, self.ui.reasonEdit.text, self.logic.client

        def over(_none: Any) -> None:
            self._hand = None
            self.ui.reasonEdit.setText("")
            self._say(GREEN, _("{image} is put aside.").format(image=image))

        def work(call: Any) -> None:
            client.put_aside(image, reason, hours, call)

        self._start(_("Putting aside"), lambda *ends: self.logic.background.start(work, *ends), over)

    def _train(self) -> None:
        model, client = self.ui.modelBox.currentText, self.logic.client
        self._start(
            _("Starting a training"),
            lambda *ends: self.logic.background.start(lambda call: client.train(model, call), *ends),
            self._note_training,
        )

    def _stop_training(self) -> None:
        if self._sure(_("Stop the training with the best so far?")):
            client = self.logic.client
            self._start(
                _("Stopping the training"),
                lambda *ends: self.logic.background.start(client.stop_training, *ends),
                lambda _none: self._say(GREEN, _("The training is told to stop.")),
            )

    def _note_training(self, training: dict[str, Any] | None) -> None:
        ran, self._training = is_running(self._training), training
        progress = (training or {}).get("progress") or {}
        if is_running(training):
            shown = {"epoch": progress.get("epoch", 0), "epochs": progress.get("total_epochs", "?")}
            text = (
                _("Waiting for another training.")
                if progress.get("status") == "waiting"
                else _("Epoch {epoch} of {epochs}.")
            )
            self.ui.trainLabel.setText(text.format(**shown) + _best(progress))
        elif ran:
            ended = (
                _("The training failed: {why}")
                if training and training.get("status") == "ERROR"
                else _("The training has ended.")
            )
            self.ui.trainLabel.setText(
                ended.format(why=" / ".join((training or {}).get("details", [])[-1:])) + _best(progress)
            )
        self.refresh()

    def _model_of_rounds(self) -> str:
        """Return for which model a case is asked; a server of both kinds of models hands out cases to segment."""
        model = self.ui.modelBox.currentText
        return "" if self.logic.classifies(model) else model


def _best(progress: dict[str, Any]) -> str:
    best = progress.get("best_metric")
    return _(" Dice {best:.2f}.").format(best=best) if best else ""
