"""U-Net, 2-D and 3-D (Ronneberger et al., DOI 10.1007/978-3-319-24574-4_28; Cicek et al., DOI
10.1007/978-3-319-46723-8_49), in the form that nnU-Net gave it (DOI 10.1038/s41592-020-01008-z).
"""

from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import nn

from labelrounds.networks.base import Channels, FlatLevels, SegmentationNetwork, networks, product, steps


@networks.register("unet")
class UNet(SegmentationNetwork):
    """MONAI's DynUNet: two 3x3x3 convolutions a level, strided convolutions down, transposed ones up.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: labels and background.
        channels: features a level, from full resolution to the bottleneck.
        flat_levels: how many of the first steps keep the slice resolution, for anisotropic images; their
            convolutions are 3x3x1.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128],  # noqa: B006 - read, never changed
        flat_levels: FlatLevels = 0,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        strides = steps(len(channels) - 1, dimensions, flat_levels)
        flat = (3, 3, 1)
        kernels = [
            flat if dimensions == 3 and level < flat_levels else (3,) * dimensions for level in range(len(channels))
        ]
        self.net = DynUNet(
            spatial_dims=dimensions,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernels,
            strides=[(1,) * dimensions, *strides],
            upsample_kernel_size=strides,
            filters=channels,
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        )

    @property
    def bottleneck(self) -> nn.Module:
        """DynUNet's own bottleneck block."""
        return self.net.bottleneck

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.net(images)

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> tuple[int, int, int]:
        """Return the product of the strides."""
        return product(steps(len(options["channels"]) - 1, dimensions, options["flat_levels"]))
