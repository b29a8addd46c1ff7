"""What every segmentation network offers to inference, training and active learning."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import nn

from labelrounds.registry import Registry

if TYPE_CHECKING:
    from labelrounds.config import ModelConfig

Count = Annotated[int, Field(ge=1)]
Channels = Annotated[list[Count], Field(min_length=3)]
FlatLevels = Annotated[int, Field(ge=0)]


class SegmentationNetwork(nn.Module, ABC):
    """Logits ``(B, K, X, Y, Z)`` for images ``(B, C, X, Y, Z)``; of a 2-D network the ``Z`` is 1.

    The 2-D networks see ``(B, C, X, Y)``: the slice axis is taken off before them and put back behind, so that
    the rest of the package knows one layout alone.
    """

    dimensions: int

    @property
    @abstractmethod
    def bottleneck(self) -> nn.Module:
        """The deepest module, whose output ``(B, D, ...)`` averages to the embedding."""

    @abstractmethod
    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""

    @classmethod
    @abstractmethod
    def divisor(cls, dimensions: int, **options: Any) -> tuple[int, int, int]:
        """Return what each side of a patch must be a multiple of, given the constructor's options.

        Raises:
            ValueError: the options do not go together.
        """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K, X, Y, Z)`` of images ``(B, C, X, Y, Z)``."""
        if self.dimensions == 2:
            return self.segment(images.squeeze(-1)).unsqueeze(-1)
        return self.segment(images)

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the bottleneck's global average, ``(B, D)``, the network's summary of each image."""
        seen: list[torch.Tensor] = []
        hook = self.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            self(images)
        finally:
            hook.remove()
        return seen[0].flatten(2).mean(dim=2)


networks: Registry[type[SegmentationNetwork]] = Registry("network", "labelrounds.networks")


def build_network(config: "ModelConfig") -> SegmentationNetwork:
    """Build the untrained network that a model's configuration describes."""
    options = networks.options(config.network.name).model_validate(config.network.options, strict=False)
    network = networks.get(config.network.name)
    return network(config.dimensions, config.channels, len(config.labels) + 1, **dict(options))


def lowest_shape(config: "ModelConfig") -> tuple[int, ...]:
    """Return a patch's shape at the network's lowest level."""
    options = networks.options(config.network.name).model_validate(config.network.options, strict=False)
    divisor = networks.get(config.network.name).divisor(config.dimensions, **dict(options))
    return tuple(side // step for side, step in zip(config.patch_size, divisor, strict=True))


def steps(levels: int, dimensions: int, flat_levels: int = 0) -> list[tuple[int, ...]]:
    """Return the stride of each of ``levels`` resolution steps, the first ``flat_levels`` of them in-plane only.

    Raises:
        ValueError: more flat levels than steps.
    """
    if flat_levels > levels:
        raise ValueError(f"flat_levels {flat_levels} is not one of 0 to {levels}, the number of steps")
    last = [1 if level < flat_levels else 2 for level in range(levels)]
    return [(2, 2, z) if dimensions == 3 else (2, 2) for z in last]


def product(strides: list[tuple[int, ...]]) -> tuple[int, int, int]:
    """Return how far a chain of strides shrinks each of three axes (1 along the slices for 2-D)."""
    total = [1, 1, 1]
    for stride in strides:
        for axis, step in enumerate(stride):
            total[axis] *= step
    return total[0], total[1], total[2]
