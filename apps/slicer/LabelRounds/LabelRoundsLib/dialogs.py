"""The module's questions; each returns what was answered, or None where the dialog was closed."""

from __future__ import annotations

import qt
import slicer

from .translation import _


def choose(title: str, text: str, choices: list[str], option: str = "") -> tuple[int, bool] | None:
    """Let the user choose.

    Args:
        title: of the dialog.
        text: the question.
        choices: one button each; the first one is the default.
        option: a box to tick, ticked at first.

    Returns:
        the choice's index, and whether the box is ticked.
    """
    dialog, layout = _dialog(title, text)
    box = qt.QCheckBox(option, dialog)
    box.setChecked(bool(option))
    box.setVisible(bool(option))
    layout.addWidget(box)
    for place, choice in enumerate(choices, 1):
        button = qt.QPushButton(choice, dialog)
        button.connect("clicked()", lambda place=place: dialog.done(place))
        layout.addWidget(button)
    _add_cancel(dialog, layout)
    place = dialog.exec_()
    return (place - 1, box.checked) if place else None


def log_in(text: str, name: str) -> tuple[str, str] | None:
    """Ask for a name and a key; the key is kept nowhere."""
    dialog, layout = _dialog(_("Log in"), text)
    edits = []
    for label, content in ((_("User name"), name), (_("Key or password"), "")):
        layout.addWidget(qt.QLabel(label, dialog))
        edits.append(qt.QLineEdit(content, dialog))
        layout.addWidget(edits[-1])
    edits[1].setEchoMode(qt.QLineEdit.Password)
    button = qt.QPushButton(_("Log in"), dialog)
    button.setDefault(True)
    button.connect("clicked()", lambda: dialog.done(1))
    layout.addWidget(button)
    _add_cancel(dialog, layout)
    return (edits[0].text, edits[1].text) if dialog.exec_() else None


def _add_cancel(dialog, layout) -> None:
    button = qt.QPushButton(_("Cancel"), dialog)
    button.connect("clicked()", lambda: dialog.done(0))
    layout.addWidget(button)


def _dialog(title: str, text: str):
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.setWindowTitle(title)
    layout = qt.QVBoxLayout(dialog)
    label = qt.QLabel(text, dialog)
    label.setWordWrap(True)
    layout.addWidget(label)
    return dialog, layout
