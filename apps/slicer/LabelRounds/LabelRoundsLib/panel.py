"""What the panel does besides answering clicks: the server's light, requests with progress and login, the case in hand.

`LabelRoundsWidget` is the only subclass; the two are apart only because each is long enough.
"""

from __future__ import annotations

from typing import Any, Callable

import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget

from . import dialogs, failures, segments
from .background import Lookout
from .case_section import CaseSection
from .class_section import ClassSection
from .editor import Editor
from .failures import Failed
from .http import Call
from .lights import GREEN, GREY, RED, YELLOW
from .logic import LabelRoundsLogic
from .overlay_section import OverlaySection
from .rounds_section import RoundsSection
from .section import Section
from .settings import Settings, name_to_send
from .training_section import TrainingSection
from .translation import _

_DELIVER_MS, _TICK_MS, _SERVER_EVERY_S = 50, 1000, 30.0


class Panel(ScriptedLoadableModuleWidget):
    """The panel; see above."""

    toolbar: Any = None
    page: Any = None

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.logic: LabelRoundsLogic | None = None
        self._call: Call | None = None
        self.sections: list[Section] = []
        self.role = ""
        self._light, self._sentence, self._part = GREY, "", 0.0
        self._shortcuts: list[Any] = []

    def setup(self) -> None:
        """Build the panel, once."""
        super().setup()
        widget = slicer.util.loadUI(self.resourcePath("UI/LabelRounds.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = LabelRoundsLogic()
        self.lookout = Lookout(self.logic.background, self._look_failed)
        self.settings = Settings()
        self.editor = Editor(self.ui.editor)
        self.ui.serverBox.setCurrentText(self.settings.get("server", "http://localhost:8000"))
        self.ui.segmentNextBox.setChecked(self.settings.is_on("segment_next"))
        self.cases, self.rounds, self.training = CaseSection(self), RoundsSection(self), TrainingSection(self)
        self.overlays, self.classes = OverlaySection(self), ClassSection(self)
        self.sections = [self.cases, self.rounds, self.training, self.overlays, self.classes]
        for slots in (self.slots(), *(section.slots() for section in self.sections)):
            for button, slot in slots.items():
                getattr(self.ui, button).connect("clicked()", slot)
        self.ui.modelBox.connect("activated(int)", lambda place: self.choose_model(self.ui.modelBox.currentText))
        self.ui.segmentNextBox.connect("toggled(bool)", lambda on: self.settings.turn("segment_next", on))
        self._timers = [self._timer(_DELIVER_MS, self.logic.background.deliver), self._timer(_TICK_MS, self._tick)]
        self.say(GREY, _("Not connected yet."))

    def enter(self) -> None:
        """Bind the shortcuts, and look for the server."""
        for key, slot in self.shortcuts().items():
            shortcut = qt.QShortcut(slicer.util.mainWindow())
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", slot)
            self._shortcuts.append(shortcut)
        if not self.logic.info and self._call is None:
            self._connect(lambda: None, aloud=False)

    def exit(self) -> None:
        """Give the shortcuts back."""
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
            shortcut.setParent(None)
        self._shortcuts = []

    def cleanup(self) -> None:
        """End all requests."""
        self.exit()
        for timer in self._timers:
            timer.stop()
        self.logic.close()

    def choose_model(self, model: str) -> None:
        """Use a model from now on, also after a restart."""
        self.ui.modelBox.setCurrentText(model)
        self.settings.set("model", model)
        for section in self.sections:
            section.model_chosen()
        self.refresh()

    def refresh(self) -> None:
        """Show what is the case, here and in the toolbar."""
        state, ui = self.state(), self.ui
        ui.lightLabel.setStyleSheet(f"color: {state['colour']}; font-size: 16px;")
        ui.lightLabel.setToolTip(state["sentence"])
        ui.statusLabel.setText(state["sentence"])
        ui.progressBar.setRange(0, state["maximum"])
        ui.progressBar.setValue(state["value"])
        for name, is_enabled in state["enabled"].items():
            getattr(ui, f"{name}Button").setEnabled(is_enabled)
        ui.trainButton.setText(state["texts"]["train"])
        ui.connectButton.setEnabled(not state["busy"])
        ui.undoButton.setEnabled(not state["busy"] and self.logic.can_undo())
        for section in self.sections:
            section.refresh(state["busy"])
        if self.toolbar is not None:
            self.toolbar.show(state)

    def state(self) -> dict[str, Any]:
        """Return what the panel and the toolbar both show."""
        busy, box = self._call is not None, self.ui.modelBox
        model = box.currentText
        segments_it = not self.logic.classifies(model)
        return {
            "colour": self._light,
            "sentence": self._sentence,
            "models": [box.itemText(place) for place in range(box.count)],
            "model": model,
            "enabled": {
                "segment": not busy,
                "next": not busy,
                "submit": not busy and segments_it,
                "train": not busy,
                "cancel": busy,
            },
            "texts": {"train": _("Stop training") if self.training.runs else _("Train")},
            "busy": busy,
            "maximum": 0 if busy and self._part is None else 100,
            "value": round(100 * (self._part or 0.0)) if busy else 0,
        }

    def connected(self, then: Callable[[], Any]) -> None:
        """Do something once the server is known, which may first have to be asked."""
        if self._call is not None:
            return
        known = self.logic.client is not None and self.logic.client.address == self._address()
        if known and self.logic.info:
            then()
        else:
            self._connect(then)

    def _connect(self, then: Callable[[], Any], aloud: bool = True) -> None:
        address = self._address()
        self.settings.set("server", address)
        if self.logic.use_server(address, self.settings.client_id()):
            self.lookout.forget()
            self.role = ""

        def connected(info: dict[str, Any]) -> None:
            self.lookout.note("server")
            self._show_server(info)
            then()

        self.start(_("Connecting"), self.logic.connect_server, connected, aloud)

    def _address(self) -> str:
        return self.ui.serverBox.currentText.strip().rstrip("/")

    def _show_server(self, info: dict[str, Any]) -> None:
        chosen = self.ui.modelBox.currentText or self.settings.get("model")
        for box, names in ((self.ui.modelBox, self.logic.models()), (self.ui.strategyBox, info.get("strategies", {}))):
            kept = box.currentText
            box.clear()
            box.addItems(list(names))
            box.setCurrentText(kept)
        self.ui.modelBox.setCurrentText(chosen)
        untrained = "" if info["models"] else _("The server has no trained model yet: submit labels, then train.")
        warning = self.logic.version_warning() or untrained
        self.say(YELLOW if warning else GREEN, warning or _("Connected to {name}.").format(name=info.get("name", "?")))
        self.lookout.ask("role", self.logic.client.role, self._note_role)
        for section in self.sections:
            section.connected()
            section.model_chosen()

    def start(self, what: str, start: Callable[..., Any], then: Callable[..., Any], aloud: bool = True) -> None:
        """Do what the user has asked for, show how far it is, and say what came of it."""

        def done(*outcome: Any) -> None:
            self._call = None
            then(*outcome)
            self.refresh()

        def failed(error: Failed) -> None:
            self._call = None
            if error.kind == "login" and self._log_in(str(error), lambda: self.start(what, start, then, aloud)):
                return
            self._say_failed(error, aloud)

        def progress(part: float | None) -> None:
            if self._call is not None:
                self._part = part
                self.refresh()

        self._part, self._sentence = 0.0, _("{what} ...").format(what=what)
        try:
            self._call = start(done, failed, progress)
        except (RuntimeError, OSError) as error:  # what Slicer says if it can't write the image or the label
            failed(failures.in_slicer(error))
        self.refresh()

    def request(self, what: str, work: Callable[[Call], Any], then: Callable[[Any], Any]) -> None:
        """Ask the server for something that needs nothing of the scene; otherwise as `start`."""
        self.start(what, lambda *ends: self.logic.background.start(work, *ends), then)

    def _log_in(self, why: str, then: Callable[[], None]) -> bool:
        """Ask for name and key, log in, and go on; False if the user does not want to."""
        answer = dialogs.log_in(why, self.settings.get("user"))
        if answer is None:
            return False
        self.settings.set("user", answer[0])
        client = self.logic.client
        self.request(_("Logging in"), lambda call: client.log_in(*answer, call), lambda _none: then())
        return True

    def _say_failed(self, error: Failed, aloud: bool) -> None:
        if error.kind == "cancelled":
            return self.say(self._light, str(error))
        lights = {"unreachable": RED, "lost": RED, "login": YELLOW, "busy": YELLOW}
        self.say(lights.get(error.kind, self._light), str(error))
        if aloud:
            slicer.util.errorDisplay(str(error), windowTitle="LabelRounds")

    def say(self, light: str, sentence: str) -> None:
        """Show the server's light and a sentence."""
        self._light, self._sentence = light, sentence
        self.refresh()

    def warn(self, sentence: str) -> None:
        """Say why nothing comes of a click."""
        self.say(self._light, sentence)
        slicer.util.warningDisplay(sentence, windowTitle="LabelRounds")

    def _look_failed(self, error: Failed) -> None:
        told = failures.in_passing(error)
        if self._call is None and told is not None:
            self._say_failed(told, aloud=False)

    def _tick(self) -> None:
        """Look once a second for what has to be asked again."""
        if self.logic.info:
            client, lookout = self.logic.client, self.lookout
            for section in self.sections:
                section.tick()
            if self._call is None and lookout.is_due("server", _SERVER_EVERY_S):
                lookout.ask("server", client.info, self._found_server)

    def _found_server(self, info: dict[str, Any]) -> None:
        self.logic.info = info
        if self._light == RED:
            self._show_server(info)

    def _note_role(self, role: str) -> None:
        self.role = role
        self.refresh()

    def shown_image(self) -> Any:
        """Return the image that the slice views show; None, with a warning, where they show none."""
        volume = segments.shown_volume()
        if volume is None:
            self.warn(_("No image is shown in the slice views: load one, or click Next case."))
        return volume

    def may_send(self, volume: Any) -> str:
        """Return the name under which an image may be sent to the server; empty if the user doesn't want it."""
        image = self.logic.image_of(volume)
        if image:
            return image
        name = name_to_send(self.settings, volume, self.logic.client.address)
        if not name:
            self.say(self._light, _("Nothing was sent."))
        return name

    def sure(self, question: str) -> bool:
        """Ask whether the user is sure."""
        return bool(slicer.util.confirmOkCancelDisplay(question, windowTitle="LabelRounds"))

    def _timer(self, every_ms: int, slot: Callable[[], None]) -> Any:
        timer = qt.QTimer()
        timer.setInterval(every_ms)
        timer.connect("timeout()", slot)
        timer.start()
        return timer
