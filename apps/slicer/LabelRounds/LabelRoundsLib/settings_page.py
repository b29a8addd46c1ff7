"""The module's page in Slicer's application settings; a change counts at once, and is kept."""

from __future__ import annotations

from typing import Any

import ctk
import qt

from .translation import _


class SettingsPage(ctk.ctkSettingsPanel):
    """The page.

    Args:
        panel: the module's widget, which shows the same settings.
    """

    def __init__(self, panel: Any) -> None:
        ctk.ctkSettingsPanel.__init__(self)
        self._panel, settings = panel, panel.settings
        form = qt.QFormLayout(self)
        self.server = qt.QLineEdit(settings.get("server", "http://localhost:8000"))
        self.server.connect("editingFinished()", lambda: panel.ui.serverBox.setCurrentText(self.server.text))
        self.server.connect("editingFinished()", lambda: settings.set("server", self.server.text))
        form.addRow(_("Server address"), self.server)
        self.segment_next = self._box(form, _("Segment each next case at once"), "segment_next")
        self.segment_next.connect("toggled(bool)", panel.ui.segmentNextBox.setChecked)
        panel.ui.segmentNextBox.connect("toggled(bool)", self.segment_next.setChecked)
        plain = _("Toolbar icons in the colour of the text, for high contrast")
        self.plain_icons = self._box(form, plain, "plain_icons")
        self.plain_icons.connect("toggled(bool)", lambda on: panel.toolbar.tint(on))
        self.opacity = qt.QSpinBox()
        self.opacity.setRange(10, 100)
        self.opacity.setValue(int(settings.get("opacity", "50")))
        self.opacity.connect("valueChanged(int)", lambda percent: settings.set("opacity", str(percent)))
        form.addRow(_("Opacity of maps over an image, %"), self.opacity)
        self.forget = qt.QPushButton(_("Ask again before images are sent to a server"))
        self.forget.connect("clicked()", lambda: settings.set("consent", ""))
        form.addRow(self.forget)

    def _box(self, form: Any, text: str, key: str) -> Any:
        settings, box = self._panel.settings, qt.QCheckBox(text)
        box.setChecked(settings.is_on(key))
        box.connect("toggled(bool)", lambda on: settings.turn(key, on))
        form.addRow(box)
        return box
