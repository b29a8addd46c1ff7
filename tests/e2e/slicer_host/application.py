"""Stand in for the running program: `slicer.app`, `slicer.modules` and the scene, on slicer-core's logics."""

from types import SimpleNamespace

import qt
import slicer
from labelrounds_viewer.host import CoreIOManager, Modules
from trame_slicer.core.slicer_app import SlicerApp


class SlicerApplication:
    """The application object: Qt's event loop, a main window, and reading and writing of nodes."""

    applicationName = "Slicer"

    def __init__(self, folder):
        self.temporaryPath = str(folder)
        self._qt = qt.QApplication([])
        self._main_window = qt.QMainWindow()
        self._main_window.setObjectName("qSlicerMainWindow")
        self._core = SlicerApp()
        self._io = CoreIOManager(self._core)
        self.modules = Modules(self._core)
        self._started = []
        self._settings_dialog = SettingsDialog()

    @property
    def scene(self):
        return self._core.scene

    def settingsDialog(self):
        return self._settings_dialog

    def coreIOManager(self):
        return self._io

    def topLevelWidgets(self):
        return [self._main_window]

    def processEvents(self):
        self._qt.processEvents()

    def commandOptions(self):
        return SimpleNamespace(noMainWindow=False)

    def connect(self, signature, slot):
        if signature != "startupCompleted()":
            raise NotImplementedError(signature)
        self._started.append(slot)

    def complete_startup(self):
        """Tell those who wait for the end of the start, and show images in three slice views as Slicer does."""
        for name in ("Red", "Green", "Yellow"):
            view = slicer.vtkMRMLSliceCompositeNode()
            view.SetLayoutName(name)
            self.scene.AddNode(view)
        for slot in self._started:
            slot()

    def layoutManager(self):
        return None

    def moduleManager(self):
        return self.modules

    def testingEnabled(self):
        return False


class SettingsDialog:
    """The application's settings, which have a page for each module that wants one."""

    def __init__(self):
        self.pages = {}

    def addPanel(self, label, page):
        self.pages[label] = page


class ScriptedModule:
    """A scripted module with its one panel."""

    def __init__(self, widget):
        self._representation = slicer.qSlicerScriptedLoadableModuleWidget(widget)

    def widgetRepresentation(self):
        return self._representation


class ModulePanel(qt.QWidget):
    """The panel in which Slicer shows a module that the user has entered."""

    isEntered = True

    def __init__(self):
        super().__init__()
        self.setLayout(qt.QVBoxLayout())


def start(folder, settings):
    """Start the program once in this process, with its own settings, and open the module's panel."""
    qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
    qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, str(folder))
    slicer.app = SlicerApplication(folder)
    slicer.modules = slicer.app.modules
    slicer.mrmlScene = slicer.app.scene
    for key, value in settings.items():
        qt.QSettings().setValue(key, value)
    return ModulePanel()
