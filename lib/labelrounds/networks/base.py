"""What every segmentation network offers to inference, training and active learning."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from labelrounds.registry import Registry

if TYPE_CHECKING:
    from labelrounds.config import ModelConfig
    from labelrounds.sections import CommonConfig

Count = Annotated[int, Field(ge=1)]
Channels = Annotated[list[Count], Field(min_length=3)]
Strides = list[tuple[Literal[1, 2], Literal[1, 2], Literal[1, 2]]] | None
Kernels = list[tuple[Literal[1, 3, 5, 7], Literal[1, 3, 5, 7], Literal[1, 3, 5, 7]]] | None
Shape = tuple[int, int, int]


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

    @classmethod
    def sees_locally(cls, **options: Any) -> bool:
        """Tell whether a voxel's logits follow from its surroundings alone, however large the image around them is.

        Not so where features are normalised over all of what the network sees at once.
        """
        return False

    def segment_levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits at full resolution and those of lower ones that training supervises too.

        A network without heads at its lower levels has the full resolution alone.
        """
        return [self.segment(images)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K, X, Y, Z)`` of images ``(B, C, X, Y, Z)``."""
        if self.dimensions == 2:
            return self.segment(images.squeeze(-1)).unsqueeze(-1)
        return self.segment(images)

    def forward_levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what training compares with the labels: logits of full resolution, then of each supervised level."""
        if self.dimensions == 2:
            return [logits.unsqueeze(-1) for logits in self.segment_levels(images.squeeze(-1))]
        return self.segment_levels(images)

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


def build_network(config: "CommonConfig") -> Any:
    """Build the untrained network that a model's configuration describes, of whichever kind it is."""
    return config.network.builder(config.dimensions, config.channels, config.outputs, **config.network.checked)


def divisor_of(config: "ModelConfig") -> Shape:
    """Return what each side of a model's patch must be a multiple of.

    Raises:
        ValueError: the network's options do not go together.
    """
    divisor: Shape = config.network.builder.divisor(config.dimensions, **config.network.checked)
    return divisor


def lowest_shape(config: "ModelConfig") -> tuple[int, ...]:
    """Return a patch's shape at the network's lowest level."""
    return tuple(side // step for side, step in zip(config.patch_size, divisor_of(config), strict=True))


def steps(channels: Sequence[int], dimensions: int, strides: Strides) -> list[tuple[int, ...]]:
    """Return the stride of each step down, one fewer than there are levels; 2 along each axis where none is chosen.

    Raises:
        ValueError: not one stride for each step, a step that goes nowhere, or one across the slices of a 2-D network.
    """
    if strides is None:
        return [(2,) * dimensions] * (len(channels) - 1)
    if len(strides) != len(channels) - 1:
        raise ValueError(f"strides has {len(strides)} entries, expected {len(channels) - 1}, one fewer than channels")
    for stride in strides:
        if max(stride) == 1:
            raise ValueError(f"strides has {list(stride)}, which keeps the resolution along each axis")
    return [_in_plane(stride, dimensions, "strides") for stride in strides]


def kernel_sizes(channels: Sequence[int], dimensions: int, kernels: Kernels) -> list[tuple[int, ...]]:
    """Return the convolution kernel of each level; 3 along each axis where none is chosen.

    Raises:
        ValueError: not one kernel for each level, or one across the slices of a 2-D network.
    """
    if kernels is None:
        return [(3,) * dimensions] * len(channels)
    if len(kernels) != len(channels):
        raise ValueError(f"kernels has {len(kernels)} entries, expected {len(channels)}, one for each of the channels")
    return [_in_plane(kernel, dimensions, "kernels") for kernel in kernels]


def supervised_levels(channels: Sequence[int]) -> range:
    """Return the lower levels whose output training supervises: all but the two lowest, as in nnU-Net."""
    return range(1, len(channels) - 2)


def convolution_of(dimensions: int) -> Any:
    """Return the convolution of 2 or 3 dimensions."""
    return nn.Conv3d if dimensions == 3 else nn.Conv2d


def product(strides: list[tuple[int, ...]]) -> Shape:
    """Return how far a chain of strides shrinks each of three axes (1 along the slices for 2-D)."""
    total = [1, 1, 1]
    for stride in strides:
        for axis, step in enumerate(stride):
            total[axis] *= step
    return total[0], total[1], total[2]


def _in_plane(triple: tuple[int, ...], dimensions: int, what: str) -> tuple[int, ...]:
    if dimensions == 2 and triple[2] != 1:
        raise ValueError(f"{what} has {list(triple)}, whose third number must be 1 in a 2-D network")
    return triple[:dimensions]
