"""What the Slicer extension's library asks of the desktop program, on Slicer's core alone."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import slicer
from PIL import Image
from trame_slicer.core import SlicerApp

__all__ = ["CoreIOManager", "Modules", "install"]


_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_GREY = ("L", "I", "I;16", "I;16B", "F")  # of Pillow


class CoreIOManager:
    """Reads and writes volumes with the storage nodes that Slicer uses."""

    def __init__(self, core: SlicerApp) -> None:
        self._core = core

    def loadNodes(self, file_type: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        """Load a file into the scene; ``loaded`` gets the node."""
        path, is_labelmap = properties["fileName"], int(bool(properties.get("labelmap")))
        name = Path(path).name
        if name.lower().endswith(_PICTURES):
            node = self._picture(path)
        else:
            node = self._core.volumes_logic.AddArchetypeVolume(path, name.split(".")[0], is_labelmap)
        if node:
            loaded.AddItem(node)
        return bool(node)

    def _picture(self, path: str) -> Any:
        """Load a PNG, JPEG or TIFF, for which Slicer's core has no reader, in shades of grey.

        Its first row is the first of the image, as the server reads it, and so a label's voxels are the picture's.

        Raises:
            OSError: the file is cut, or no picture.
        """
        with Image.open(path) as picture:
            pixels = np.asarray(picture if picture.mode in _GREY else picture.convert("L"))
        node = self._core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        node.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
        slicer.util.updateVolumeFromArray(node, pixels[None].astype(pixels.dtype.newbyteorder("=")))
        node.CreateDefaultDisplayNodes()
        return node

    def fileWriterFileType(self, node: Any) -> str:
        """Return the only kind of file that is written."""
        return "VolumeFile"

    def saveNodes(self, file_type: str, properties: dict[str, Any], messages: Any) -> bool:
        """Write a node into a file."""
        node = self._core.scene.GetNodeByID(properties["nodeID"])
        storage = node.CreateDefaultStorageNode()
        storage.UnRegister(None)
        storage.SetFileName(properties["fileName"])
        return bool(storage.WriteData(node))


class Modules:
    """The modules of which the library asks the logic."""

    def __init__(self, core: SlicerApp) -> None:
        self.segmentations = SimpleNamespace(logic=lambda: core.segmentations_logic)
        self.volumes = SimpleNamespace(logic=lambda: core.volumes_logic)

    def module(self, name: str) -> Any:
        """Return a module by its name in any case; None where there is none."""
        return getattr(self, name.lower(), None)


def install(core: SlicerApp) -> None:
    """Give the library what it asks for; before it is imported."""
    manager = CoreIOManager(core)
    slicer.app = SimpleNamespace(
        temporaryPath=tempfile.gettempdir(), coreIOManager=lambda: manager, layoutManager=lambda: None
    )
    slicer.modules, slicer.mrmlScene = Modules(core), core.scene
    scripted = ModuleType("slicer.ScriptedLoadableModule")
    scripted.ScriptedLoadableModuleLogic = object
    sys.modules[scripted.__name__] = scripted
