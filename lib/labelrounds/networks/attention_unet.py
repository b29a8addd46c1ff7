"""Attention U-Net (Oktay et al., DOI 10.48550/arXiv.1804.03999), as MONAI builds it."""

from typing import Any

import torch
from monai.networks.nets import AttentionUnet
from torch import nn

from labelrounds.networks.base import (
    Channels,
    SegmentationNetwork,
    Shape,
    Strides,
    networks,
    product,
    steps,
)


@networks.register("attention_unet")
class AttentionUNet(SegmentationNetwork):
    """A U-Net whose skip connections pass through additive attention gates.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: labels and background.
        channels: features a level, from full resolution to the bottleneck.
        strides: of each step down, one fewer than channels; 2 along each axis when left out.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128],  # noqa: B006 - read, never changed
        strides: Strides = None,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.net = AttentionUnet(
            spatial_dims=dimensions,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            strides=steps(channels, dimensions, strides),
        )

    @property
    def bottleneck(self) -> nn.Module:
        """The convolutions of the lowest level, at the end of MONAI's nested levels."""
        level = self.net.model[1]
        while isinstance(level.submodule, nn.Sequential):
            level = level.submodule[1]
        return level.submodule

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.net(images)

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> Shape:
        """Return the product of the strides."""
        return product(steps(options["channels"], dimensions, options["strides"]))
