"""Slicer's segmentation classes, under the name that they have beside Slicer's own Python."""

from slicer_core.vtkSegmentationCore import *  # noqa: F403
