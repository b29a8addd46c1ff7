"""Classification networks, one small file each with one registration.

A network is a ``ClassificationNetwork`` subclass. Its constructor takes ``dimensions`` (2 or 3), ``in_channels``
and ``out_channels`` (classes), and its keyword-only parameters are what the ``network`` section of a model's YAML
file may set.
"""

from labelrounds.classification.networks.base import ClassificationNetwork, classifiers

__all__ = ["ClassificationNetwork", "classifiers"]
