"""What the LabelRounds module is made of; only the modules that draw or show something need Slicer."""

VERSION = "0.1.0"
