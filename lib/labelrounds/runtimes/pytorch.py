"""PyTorch as it comes: in float32, in mixed precision, and with the weights themselves in bfloat16."""

from typing import ClassVar

import torch

from labelrounds.devices import low_precision
from labelrounds.networks.serving import for_inference
from labelrounds.runtimes.base import REFERENCE, Runtime, Subject, runtimes


@runtimes.register(REFERENCE)
class Eager(Runtime):
    """Float32, by which the others are judged.

    Attributes:
        network: what runs, for hooks that look into it (`scoring.py`).
    """

    weights: ClassVar[torch.dtype] = torch.float32
    mixed: ClassVar[bool] = False

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return None: every device has it."""
        return None

    def __init__(self, subject: Subject) -> None:
        self.network = for_inference(subject.network, subject.device, subject.config.dimensions, self.weights)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits; in bfloat16 where that is the arithmetic."""
        with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            logits: torch.Tensor = self.network(windows)
        return logits


@runtimes.register("bfloat16")
class Bfloat16(Eager):
    """Mixed precision: convolutions in bfloat16, whatever needs it in float32."""

    mixed = True

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why not, where bfloat16 is not in hardware."""
        return None if low_precision(device.type) else f"{device} has no bfloat16 in hardware"


@runtimes.register("bfloat16_weights")
class Bfloat16Weights(Eager):
    """Everything in bfloat16, so that a CPU converts nothing."""

    weights = torch.bfloat16

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why not, where bfloat16 is not in hardware or costs nothing to convert to."""
        if device.type != "cpu":
            return "it is for CPUs alone"
        return Bfloat16.obstacle(device)
