"""Segmentation networks, one small file each with one registration.

A network is a ``SegmentationNetwork`` subclass. Its constructor takes ``dimensions`` (2 or 3), ``in_channels``
and ``out_channels`` (labels and background), and its keyword-only parameters are what the ``network`` section
of a model's YAML file may set.
"""

from labelrounds.networks.base import SegmentationNetwork, build_network, networks

__all__ = ["SegmentationNetwork", "build_network", "networks"]
