"""U-Net of residual units (Kerfoot et al., DOI 10.1007/978-3-030-12029-0_40), as MONAI builds it.

Its first convolution halves the resolution already, so that it takes a small part of the time of the other networks.
"""

from typing import Any, Literal

import torch
from monai.networks.nets import UNet as MonaiUNet
from torch import nn

from labelrounds.networks.base import Channels, Count, SegmentationNetwork, Shape, Strides, networks, product, steps


@networks.register("residual_unet")
class ResidualUNet(SegmentationNetwork):
    """Residual units of strided convolutions down, transposed convolutions with one unit each up.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: labels and background.
        channels: features a level, from the first step down to the bottleneck.
        strides: of each step down, one fewer than channels; 2 along each axis when left out.
        units: convolutions of a residual unit.
        normalisation: ``batch``, with which an image may be segmented as a whole, or ``instance``.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128, 256],  # noqa: B006 - read, never changed
        strides: Strides = None,
        units: Count = 2,
        normalisation: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.net = MonaiUNet(
            spatial_dims=dimensions,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=channels,
            strides=steps(channels, dimensions, strides),
            num_res_units=units,
            norm=normalisation,
        )

    @property
    def bottleneck(self) -> nn.Module:
        """The unit of the lowest level."""
        level: Any = self.net.model
        while isinstance(level, nn.Sequential):  # one step down, what lies below, one step up
            level = level[1].submodule
        return level

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.net(images)

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> Shape:
        """Return the product of the strides."""
        return product(steps(options["channels"], dimensions, options["strides"]))

    @classmethod
    def sees_locally(cls, **options: Any) -> bool:
        """Tell whether statistics are those of the training, not of the image."""
        return options["normalisation"] == "batch"
