"""What every runtime offers to inference."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from labelrounds.networks.base import SegmentationNetwork
from labelrounds.registry import Registry

if TYPE_CHECKING:
    from labelrounds.config import ModelConfig

REFERENCE = "eager"
# What serves without a measurement, the first of them that a device has; the reference is everywhere.
_DEFAULTS = ("bfloat16_weights", "bfloat16", REFERENCE)


@dataclass(frozen=True)
class Subject:
    """What a runtime is built from.

    Attributes:
        network: trained, in float32; it is not changed.
        config: its model.
        device: where it will answer.
        folder: the version's, where a runtime keeps what it can't make again.
        windows: prepared training windows ``(1, C, *patch)`` to calibrate with; none where there are no cases.
    """

    network: SegmentationNetwork
    config: "ModelConfig"
    device: torch.device
    folder: Path
    windows: Sequence[torch.Tensor] = ()


class Runtime(ABC):
    """Logits ``(B, K, *patch)`` for windows ``(B, C, *patch)`` float32 on the device; called by one thread at a time.

    It sets its arithmetic itself, whatever the mixed precision it is called under.

    Attributes:
        instant: whether it is built in no time; else it is built in the background, while another one serves.
        any_size: whether it takes windows of any size; else of the model's patch alone.
    """

    instant: ClassVar[bool] = True
    any_size: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why a device has it not; None where it has."""

    @abstractmethod
    def __init__(self, subject: Subject) -> None: ...

    @abstractmethod
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits."""


runtimes: Registry[type[Runtime]] = Registry("runtime", "labelrounds.runtimes")


def default_runtime(device: torch.device) -> str:
    """Return the name of what serves on a device where nothing was measured."""
    return next(name for name in _DEFAULTS if runtimes.get(name).obstacle(device) is None)
