"""The networks that classify: of each model the version that is served, in memory, one a device.

On the way of inference, behind ``inferer.py``; any thread may call.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.classification.calibration import probabilities_of
from labelrounds.classification.config import ClassifierConfig
from labelrounds.devices import autocast, place
from labelrounds.networks import build_network


@dataclass(frozen=True)
class Ready:
    """A version's network on a device, and the temperature that its logits are divided by."""

    version: Version
    network: Any
    temperature: float


class ReadyClassifiers:
    """The networks of one model in memory, one a device, always of the version that is served."""

    def __init__(self, config: ClassifierConfig) -> None:
        self.checkpoints = Checkpoints(config)
        self._config = config
        self._loading = threading.Lock()
        self._loaded: dict[str, Ready] = {}

    def get(self, device: torch.device) -> Ready:
        """Return the served version's network, loading it where it is not in memory yet.

        Raises:
            Conflict: there is no trained version yet.
        """
        with self._loading:
            version = self.checkpoints.served()
            known = self._loaded.get(str(device))
            if known is None or known.version.weights != version.weights:
                network = build_network(self._config)
                self.checkpoints.load(version, network)
                network = place(network.eval(), device, self._config.dimensions)
                known = Ready(version, network, float(version.record.get("temperature", 1.0)))
                self._loaded[str(device)] = known
            return known


@torch.inference_mode()
def classify(ready: Ready, images: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
    """Return the probabilities ``(B, K)`` float32, on the CPU, of prepared images ``(B, C, X, Y, Z)``."""
    device = images.device
    with autocast(device, sound=device.type != "cpu"):  # on a CPU what is gained in bfloat16 are milliseconds
        logits = ready.network(images)
    return probabilities_of(logits.float(), config.multilabel, ready.temperature).cpu()
