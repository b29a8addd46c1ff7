"""The networks that classify: of each model the version that is served, in memory, one a device.

On the way of inference, behind ``inferer.py``; any thread may call.
"""

from dataclasses import dataclass
from typing import Any

import torch

from labelrounds.checkpoints import Version
from labelrounds.classification.calibration import probabilities_of
from labelrounds.classification.config import ClassifierConfig
from labelrounds.devices import autocast, place
from labelrounds.loaded import LoadedNetworks


@dataclass(frozen=True)
class Ready:
    """A version's network on a device, and the temperature that its logits are divided by."""

    version: Version
    network: Any
    temperature: float


class ReadyClassifiers(LoadedNetworks[Ready]):
    """The networks of one classification model in memory."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self._config = config

    def load(self, version: Version, device: torch.device) -> Ready:
        """Return a version's network, loaded anew.

        Raises:
            Conflict, BadInput: its weights are not this model's.
        """
        network = place(self.checkpoints.network(version).eval(), device, self._config.dimensions)
        return Ready(version, network, temperature_in(version))


def temperature_in(version: Version) -> float:
    """Return the temperature that was fitted for a version; 1 where none was."""
    return float(version.record.get("temperature", 1.0))


@torch.inference_mode()
def classify(ready: Ready, images: torch.Tensor, config: ClassifierConfig) -> torch.Tensor:
    """Return the probabilities ``(B, K)`` float32, on the CPU, of prepared images ``(B, C, X, Y, Z)``."""
    device = images.device
    with autocast(device, sound=device.type != "cpu"):  # on a CPU what is gained in bfloat16 are milliseconds
        logits = ready.network(images)
    return probabilities_of(logits.float(), config.multilabel, ready.temperature).cpu()
