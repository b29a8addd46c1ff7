"""Runtimes: the ways to run a trained network on windows, one registration each.

A runtime is a ``Runtime`` subclass that is built from a ``Subject``: a network, its model and a device. It says itself
whether a device has it. Which one serves a model is measured (`runtime_choice.py`), or set in the model's YAML file.
"""

from labelrounds.runtimes.base import REFERENCE, Runtime, Subject, default_runtime, runtimes

__all__ = ["REFERENCE", "Runtime", "Subject", "default_runtime", "runtimes"]
