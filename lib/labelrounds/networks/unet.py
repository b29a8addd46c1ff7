"""U-Net, 2-D and 3-D (Ronneberger et al., DOI 10.1007/978-3-319-24574-4_28; Cicek et al., DOI
10.1007/978-3-319-46723-8_49), in the form that nnU-Net gave it (DOI 10.1038/s41592-020-01008-z).
"""

from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import nn

from labelrounds.networks.base import (
    Channels,
    Kernels,
    SegmentationNetwork,
    Shape,
    Strides,
    convolution_of,
    kernel_sizes,
    networks,
    product,
    steps,
    supervised_levels,
)


@networks.register("unet")
class UNet(SegmentationNetwork):
    """The blocks of MONAI's DynUNet: two convolutions a level, strided convolutions down, transposed ones up.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: labels and background.
        channels: features a level, from full resolution to the bottleneck.
        strides: of each step down, one fewer than channels; 2 along each axis when left out.
        kernels: of each level's convolutions, as many as channels; 3 along each axis when left out.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128],  # noqa: B006 - read, never changed
        strides: Strides = None,
        kernels: Kernels = None,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        down = steps(channels, dimensions, strides)
        self.net = DynUNet(
            spatial_dims=dimensions,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_sizes(channels, dimensions, kernels),
            strides=[(1,) * dimensions, *down],
            upsample_kernel_size=down,
            filters=channels,
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        )
        # A second tree of the same blocks, by which DynUNet finds its way; in a file each tensor would have two names.
        del self.net.skip_layers
        self.heads = nn.ModuleList(
            convolution_of(dimensions)(channels[level], out_channels, 1) for level in supervised_levels(channels)
        )

    @property
    def bottleneck(self) -> nn.Module:
        """DynUNet's own bottleneck block."""
        return self.net.bottleneck

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.net.output_block(self._decode(images)[0])

    def segment_levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits at full resolution and at each supervised level."""
        full, *lower = self._decode(images)
        heads = [head(features) for head, features in zip(self.heads, lower, strict=False)]
        return [self.net.output_block(full), *heads]

    def _decode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the decoder's features, full resolution first."""
        levels = [self.net.input_block(images)]
        for block in self.net.downsamples:
            levels.append(block(levels[-1]))
        decoded = [self.net.bottleneck(levels[-1])]
        for block, skipped in zip(self.net.upsamples, reversed(levels), strict=True):
            decoded.insert(0, block(decoded[0], skipped))
        return decoded

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> Shape:
        """Return the product of the strides."""
        kernel_sizes(options["channels"], dimensions, options["kernels"])
        return product(steps(options["channels"], dimensions, options["strides"]))
