"""LabelRounds: segmentation models that 3D Slicer users label, correct and retrain round after round."""

__version__ = "0.1.0"
