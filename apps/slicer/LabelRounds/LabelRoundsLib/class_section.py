"""The panel's section on a model that classifies whole images: what it says, and what the user says instead."""

from __future__ import annotations

from typing import Any

from .lights import GREEN
from .section import Section, fill
from .translation import _


class ClassSection(Section):
    """Shows the classes' probabilities, and submits a class."""

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {"submitClassButton": lambda: self.panel.connected(self._submit)}

    def model_chosen(self) -> None:
        """Offer the classes of the model that is chosen now, also of one that nobody has trained yet."""
        fill(self.ui.classTable, [], [])
        self._offer(self.panel.logic.classes(self.ui.modelBox.currentText))

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""
        self.ui.classSection.setVisible(self.panel.logic.classifies(self.ui.modelBox.currentText))
        self.ui.submitClassButton.setEnabled(not busy and self.ui.classBox.count > 0)

    def show(self, classes: dict[str, float]) -> None:
        """Show the probabilities of an image's classes, the likeliest first."""
        rows = [[name, f"{100 * probability:.1f} %"] for name, probability in classes.items()]
        fill(self.ui.classTable, [_("Class"), _("Probability")], rows)
        self._offer(list(classes))
        likeliest = next(iter(classes.items()), ("?", 0.0))
        self.panel.say(GREEN, _("{name}, {percent:.0f} %").format(name=likeliest[0], percent=100 * likeliest[1]))

    def _offer(self, classes: list[str]) -> None:
        self.ui.classBox.clear()
        self.ui.classBox.addItems(classes)

    def _submit(self) -> None:
        panel, chosen = self.panel, self.ui.classBox.currentText
        volume = panel.shown_image()
        name = volume is not None and panel.may_send(volume)
        if name:
            panel.start(
                _("Submitting"), lambda *ends: panel.logic.submit_class(volume, chosen, name, *ends), panel.submitted
            )
