"""Stand in for CTK: the widgets that the module's panel names, and message boxes that record what they would show."""

import qt

shown = []  # one ctkMessageBox per message, oldest first
confirm = True  # what the annotator answers to "Are you sure?"


class ctkMessageBox:
    """Record a message and answer at once, where the annotator would read it and click."""

    text = detailedText = windowTitle = ""
    icon = qt.QMessageBox.NoIcon
    standardButtons = qt.QMessageBox.Ok

    def __init__(self, parent=None):
        self.parent = parent

    def exec_(self):
        shown.append(self)
        return qt.QMessageBox.Ok if confirm else qt.QMessageBox.Cancel

    def deleteLater(self):
        pass


class ctkCollapsibleButton(qt.QWidget):
    contentsCollapsed = qt.Signal(bool)
    _collapsed = False

    def _set_collapsed(self, collapsed):
        self._collapsed = collapsed
        self.contentsCollapsed.emit(collapsed)

    collapsed = qt.Property(bool, lambda self: self._collapsed, _set_collapsed)


class ctkComboBox(qt.QComboBox):
    pass


class ctkPathLineEdit(qt.QWidget):
    currentPath = ""


class ctkSliderWidget(qt.QWidget):
    valueChanged = qt.Signal(float)
    value = 10.0


class ctkSettingsPanel(qt.QWidget):
    """A base class of the extension's settings page, which opens with Slicer's main window only."""
