"""Stand in for Slicer's MRML widgets, which in Slicer too are found in the namespace `slicer`."""

import qt


class qMRMLWidget(qt.QWidget):
    scene = None

    def setMRMLScene(self, scene):
        self.scene = scene


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The embedded segment editor's panel; the tests edit through the segmentation logic."""

    segmentationNode = sourceVolumeNode = segmentEditorNode = None

    def setSegmentationNodeSelectorVisible(self, visible):
        pass

    def setSourceVolumeNodeSelectorVisible(self, visible):
        pass

    def setMRMLSegmentEditorNode(self, node):
        self.segmentEditorNode = node

    def setSegmentationNode(self, node):
        self.segmentationNode = node
        if self.segmentEditorNode is not None:
            self.segmentEditorNode.SetAndObserveSegmentationNode(node)

    def setSourceVolumeNode(self, node):
        self.sourceVolumeNode = node


class qSlicerScriptedLoadableModuleWidget:
    """What Slicer asks for a scripted module's Python widget."""

    def __init__(self, widget):
        self._widget = widget

    def self(self):
        return self._widget


class qSlicerMarkupsPlaceWidget(qMRMLWidget):
    """The button that places the points and boxes of interactive models."""

    buttonsVisible = True
    placeModeEnabled = False
    node = None

    def __init__(self, parent=None):
        super().__init__(parent)
        self._place, self._delete = qt.QPushButton(self), qt.QPushButton(self)

    def placeButton(self):
        return self._place

    def deleteButton(self):
        return self._delete

    def setButtonsVisible(self, visible):
        self.buttonsVisible = visible

    def setPlaceModeEnabled(self, enabled):
        self.placeModeEnabled = enabled

    def setCurrentNode(self, node):
        self.node = node

    def currentNode(self):
        return self.node
