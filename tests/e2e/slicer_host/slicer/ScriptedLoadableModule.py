"""Stand in for the base classes of scripted modules, as far as MONAI Label's module calls them."""

import sys
import unittest
from pathlib import Path

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


class ScriptedLoadableModule:
    """What Slicer lists as a module."""

    def __init__(self, parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent):
        self.parent = parent
        self.layout = parent.layout()

    def setup(self):
        pass

    def resourcePath(self, filename):
        return str(Path(sys.modules[type(self).__module__].__file__).parent / "Resources" / filename)


class ScriptedLoadableModuleLogic:
    """Keep a module's parameters in the scene, in one node that closing the scene doesn't remove."""

    def getParameterNode(self):
        import slicer

        module = type(self).__name__.removesuffix("Logic")
        node = slicer.mrmlScene.GetSingletonNode(module, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(module)
            node.SetModuleName(module)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The base class of self-tests, which is a test case in Slicer too."""
