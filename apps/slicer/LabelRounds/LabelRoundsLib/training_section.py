"""The panel's section on training: how far it is, what each label has reached, and the versions that came of it."""

from __future__ import annotations

from typing import Any

from . import wording
from .client import is_running
from .lights import GREEN
from .section import Section, chosen_in, fill
from .translation import _

_EVERY_S = 2.0


class TrainingSection(Section):
    """Trains, stops, and serves an older version again."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._task: dict[str, Any] | None = None
        self._served: int | None = None
        self.ui.versionTable.connect("itemSelectionChanged()", lambda: self.refresh(panel.state()["busy"]))

    @property
    def runs(self) -> bool:
        """Whether a training runs or waits, as far as is known."""
        return is_running(self._task)

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {"trainButton": self.on_train, "rollbackButton": self.on_rollback}

    def on_train(self) -> None:
        """Start a training, or stop the one that runs."""
        self.panel.connected(self._stop if self.runs else self._train)

    def on_rollback(self) -> None:
        """Serve the version that is chosen in the table."""
        self.panel.connected(self._roll_back)

    def connected(self) -> None:
        """Look whether a training runs."""
        self._ask()

    def tick(self) -> None:
        """Look how far a running training is."""
        if self.runs and self.panel.lookout.is_due("training", _EVERY_S):
            self._ask()

    def model_chosen(self) -> None:
        """Show the versions of the model that is chosen now."""
        self._served = None
        fill(self.ui.versionTable, [], [])
        self._ask_versions()

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""
        chosen = chosen_in(self.ui.versionTable)
        other = chosen.isdigit() and int(chosen) != self._served
        may = self.panel.role == "admin"
        self.ui.rollbackButton.setVisible(may)
        self.ui.rollbackButton.setEnabled(not busy and may and other)

    def _ask(self) -> None:
        self.panel.lookout.ask("training", self.panel.logic.client.training, self._note)

    def _ask_versions(self) -> None:
        model, client = self.ui.modelBox.currentText, self.panel.logic.client
        if model and client is not None and self.panel.logic.info:
            self.panel.lookout.ask("versions", lambda call: client.versions(model, call), self._show_versions)

    def _train(self) -> None:
        model, client = self.ui.modelBox.currentText, self.panel.logic.client
        self.panel.request(_("Starting a training"), lambda call: client.train(model, call), self._note)

    def _stop(self) -> None:
        if self.panel.sure(_("Stop the training with the best so far?")):
            self.panel.request(
                _("Stopping the training"),
                self.panel.logic.client.stop_training,
                lambda _none: self.panel.say(GREEN, _("The training is told to stop.")),
            )

    def _note(self, task: dict[str, Any] | None) -> None:
        ran, self._task = self.runs, task
        text = wording.training(task or {}, ran)
        if text:
            self.ui.trainLabel.setText(text)
        told = (task or {}).get("progress") or {}
        if text and "measure_key" in told:
            scores = told.get(told["measure_key"]) or {}
            rows = [[label, wording.score(value)] for label, value in scores.items()]
            fill(self.ui.trainTable, [_("Label"), told["measure"]], rows)
        if ran and not self.runs:
            self._ask_versions()
        self.panel.refresh()

    def _show_versions(self, told: dict[str, Any]) -> None:
        if told["model"] != self.ui.modelBox.currentText:  # another one was chosen meanwhile
            return self._ask_versions()
        self._served = told["served"]
        rows = [
            [
                str(each["version"]),
                _("served") if each["version"] == self._served else "",
                wording.score(each.get("best_metric")),
                wording.by_label(each.get("by_label") or {}),
                str(each.get("judged_on") or each.get("judged_by") or ""),
                str(each.get("created", ""))[:16].replace("T", " "),
            ]
            for each in reversed(told["versions"])
        ]
        measure = told.get("measure", "Dice")
        columns = [_("Version"), "", measure, _("By label"), _("Judged on"), _("Made")]
        fill(self.ui.versionTable, columns, rows)
        self.panel.refresh()

    def _roll_back(self) -> None:
        model, number = self.ui.modelBox.currentText, int(chosen_in(self.ui.versionTable))
        question = _("Serve version {number} of {model} to everybody from now on?")
        if not self.panel.sure(question.format(number=number, model=model)):
            return
        client = self.panel.logic.client

        def done(told: dict[str, Any]) -> None:
            served = _("Version {number} of {model} is served from now on.")
            self.panel.say(GREEN, served.format(number=told["served"], model=model))
            self._ask_versions()

        self.panel.request(_("Changing the version"), lambda call: client.roll_back(model, number, call), done)
