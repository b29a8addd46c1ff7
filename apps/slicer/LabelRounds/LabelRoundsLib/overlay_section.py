"""The panel's buttons for maps over the image: where the model is unsure, or what it has found a class by."""

from __future__ import annotations

from typing import Any

from . import overlays, segments
from .lights import GREEN
from .section import Section, chosen_in
from .translation import _


class OverlaySection(Section):
    """Asks for a map, shows it, and takes it away."""

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {
            "unsureButton": self.on_unsure,
            "explainButton": lambda: self.panel.connected(self._explain),
            "clearButton": self._clear,
        }

    def on_unsure(self) -> None:
        """Show where the model is unsure of the image that is shown."""
        self.panel.connected(self._unsure)

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""
        classifies = self.panel.logic.classifies(self.ui.modelBox.currentText)
        volume = segments.shown_volume()
        self.ui.unsureButton.setVisible(not classifies)
        self.ui.unsureButton.setEnabled(not busy)
        self.ui.explainButton.setEnabled(not busy and classifies)
        self.ui.clearButton.setEnabled(volume is not None and bool(overlays.of(volume)))

    def _unsure(self) -> None:
        self._ask({"uncertainty": True}, _("uncertainty"), _("The brighter, the less sure the model is of a voxel."))

    def _explain(self) -> None:
        name = chosen_in(self.ui.classTable)
        said = _("What the model has looked at, which need not be the disease.")
        self._ask({"explain": name or True}, name or _("likeliest class"), said)

    def _ask(self, options: dict[str, Any], name: str, said: str) -> None:
        volume = self.panel.shown_image()
        if volume is None or not self.panel.may_send(volume):
            return
        model, logic = self.ui.modelBox.currentText, self.panel.logic
        opacity = int(self.panel.settings.get("opacity", "50")) / 100
        closed = _("The image was closed in the meantime; its map is dropped.")
        self.panel.start(
            _("Computing a map"),
            lambda *ends: logic.overlay(volume, model, options, name, opacity, *ends),
            lambda node: self.panel.say(GREEN, closed if node is None else said),
        )

    def _clear(self) -> None:
        volume = segments.shown_volume()
        if volume is not None:
            overlays.remove(volume)
        self.panel.refresh()
