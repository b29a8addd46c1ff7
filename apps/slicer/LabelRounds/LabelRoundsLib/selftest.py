"""The self-test for desktop Slicer: a whole round against a real server, by the panel's own buttons.

Run it from the Python console, with ``labelrounds start`` running on this machine::

    slicer.util.selectModule("LabelRounds"); slicer.modules.labelrounds.widgetRepresentation().self().onReloadAndTest()

Another address is taken from the environment variable ``LABELROUNDS_SERVER``.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from . import overlays, segments

_PATIENCE_S = 300


class LabelRoundsTest(ScriptedLoadableModuleTest):
    """Plays a round: next case, segment, see what is unsure, correct, submit, open again."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_round()

    def test_round(self) -> None:
        """A whole round leaves the corrected segments on the server."""
        panel = slicer.util.getModuleWidget("LabelRounds")
        panel.ui.serverBox.setCurrentText(os.environ.get("LABELROUNDS_SERVER", "http://localhost:8000"))
        self._click(panel, panel.on_connect)
        self.assertTrue(panel.logic.info, panel.ui.statusLabel.text)

        self._click(panel, panel.on_next)
        volume = segments.shown_volume()
        self.assertIsNotNone(volume, panel.ui.statusLabel.text)
        image = panel.logic.image_of(volume)
        self.assertTrue(image)

        self._click(panel, panel.on_segment)
        (node,) = segments.segmentations_of(volume)
        names = list(segments.segment_ids(node))
        self.assertEqual(names, panel.logic.info["models"][panel.ui.modelBox.currentText]["labels"])
        self.assertEqual(segments.drawn_by_hand(node), [])

        self._click(panel, panel.overlays.on_unsure)
        (unsure,) = overlays.of(volume)
        self.assertEqual(slicer.util.arrayFromVolume(unsure).shape, slicer.util.arrayFromVolume(volume).shape)
        self.assertGreater(slicer.util.arrayFromVolume(unsure).max(), 0)
        overlays.remove(volume)

        before = self._correct(node, volume, names[0])
        self.assertEqual(segments.drawn_by_hand(node), names[:1])

        self._click(panel, panel.on_submit)
        self.assertIn(image, panel.ui.statusLabel.text)
        self.assertTrue(segments.is_submitted(node))

        self._wait(lambda: panel.ui.labelledBox.findText(image) >= 0)
        panel.ui.labelledBox.setCurrentText(image)
        self._click(panel, panel.cases.on_reopen)
        again = segments.shown_volume()
        (reopened,) = segments.segmentations_of(again)
        self.assertEqual(list(segments.segment_ids(reopened)), names)
        after = slicer.util.arrayFromSegmentBinaryLabelmap(reopened, segments.segment_ids(reopened)[names[0]], again)
        self.assertTrue(np.array_equal(before > 0, after > 0))

    def _correct(self, node: Any, volume: Any, name: str) -> np.ndarray:
        """Add a box of voxels to a segment by hand; return all of its voxels."""
        key = segments.segment_ids(node)[name]
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume).copy()
        voxels[1:4, 1:4, 1:4] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, key, volume)
        return voxels

    def _click(self, panel: Any, slot: Any) -> None:
        slot()
        self._wait(lambda: not panel.state()["busy"])

    def _wait(self, is_so: Any) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not is_so():
            self.assertLess(time.monotonic(), deadline, "the server did not answer in time")
            slicer.app.processEvents()
            time.sleep(0.02)
