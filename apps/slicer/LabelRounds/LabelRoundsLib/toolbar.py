"""The toolbar of Slicer's main window: the panel's main buttons, in reach whichever module is open.

It does nothing by itself: it clicks the panel, and shows what the panel shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt

from .translation import _

_ICONS = Path(__file__).parent.parent / "Resources" / "Icons"


class Toolbar:
    """The toolbar.

    Args:
        window: Slicer's main window.
        panel: the module's widget.
    """

    def __init__(self, window: Any, panel: Any) -> None:
        self._panel = panel
        self.bar = qt.QToolBar("LabelRounds")
        self.bar.setObjectName("LabelRoundsToolBar")
        self.light = qt.QLabel("\u25cf")
        self.bar.addWidget(self.light)
        self.models = qt.QComboBox()
        self.models.setToolTip(_("The model that segments; it is remembered"))
        self.models.connect("activated(int)", lambda place: self._panel.choose_model(self.models.currentText))
        self.bar.addWidget(self.models)
        self.actions = {
            "segment": self._action("segment", _("Segment"), _("Segment the image that the slice views show")),
            "next": self._action("next", _("Next case"), _("Open the case that is most worth labelling")),
            "submit": self._action(
                "submit", _("Submit"), _("Submit the segmentation of the image that the slice views show")
            ),
            "train": self._action("train", _("Train"), _("Train the model with all labels submitted so far")),
            "cancel": self._action("cancel", _("Cancel"), _("Cancel what the server is doing for you")),
        }
        self.progress = qt.QProgressBar()
        self.progress.setMaximumWidth(120)
        self._shown = self.bar.addWidget(self.progress)
        self._shown.setVisible(False)
        window.addToolBar(self.bar)

    def show(self, state: dict[str, Any]) -> None:
        """Show a state of the panel; see ``LabelRoundsWidget.state``."""
        self.light.setStyleSheet(f"color: {state['colour']}; font-size: 16px; padding: 0 4px;")
        self.light.setToolTip(state["sentence"])
        names = [self.models.itemText(place) for place in range(self.models.count)]
        if names != state["models"]:
            self.models.clear()
            self.models.addItems(state["models"])
        self.models.setCurrentText(state["model"])
        for name, action in self.actions.items():
            action.setEnabled(state["enabled"][name])
            action.setText(state["texts"].get(name, action.text))
        self._shown.setVisible(state["busy"])
        self.progress.setRange(0, state["maximum"])
        self.progress.setValue(state["value"])

    def _action(self, name: str, text: str, tip: str) -> Any:
        action = qt.QAction(qt.QIcon(str(_ICONS / f"{name}.png")), text, self.bar)
        action.setToolTip(tip)
        action.connect("triggered()", lambda: getattr(self._panel, f"on_{name}")())
        self.bar.addAction(action)
        return action
