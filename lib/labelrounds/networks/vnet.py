"""V-Net (Milletari et al., DOI 10.1109/3DV.2016.79) with widths, depths and kernel of one's choice.

MONAI's VNet has fixed widths and 45.6 million parameters, too many for a training on a hospital's workstation.
This one keeps the paper's residual stages, its convolutions of stride 2 in place of pooling and its skip
connections, and adds instance normalisation, without which batches of two do not train reliably.
"""

from typing import Any

import torch
from torch import nn

from labelrounds.networks.base import Channels, Count, FlatLevels, SegmentationNetwork, networks, product, steps


class ResidualStage(nn.Module):
    """``depth`` convolutions whose sum with their input is passed on."""

    def __init__(self, dimensions: int, in_channels: int, channels: int, depth: int, kernel: int) -> None:
        super().__init__()
        convolution, normalisation = _layers(dimensions)
        layers: list[nn.Module] = []
        for index in range(depth):
            source = in_channels if index == 0 else channels
            layers += [convolution(source, channels, kernel, padding=kernel // 2, bias=False)]
            layers += [normalisation(channels, affine=True)]
            if index < depth - 1:
                layers += [nn.PReLU(channels)]
        self.convolutions = nn.Sequential(*layers)
        # The paper adds the input as it is; where the widths differ (first stage, decoder) it has to be fitted.
        self.shortcut = nn.Identity() if in_channels == channels else convolution(in_channels, channels, 1, bias=False)
        self.activation = nn.PReLU(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features of the same spatial shape."""
        return self.activation(self.convolutions(features) + self.shortcut(features))


@networks.register("vnet")
class VNet(SegmentationNetwork):
    """Residual encoder and decoder with strided convolutions between their levels.

    With the paper's widths, depths and kernel it has 44 million parameters.

    Args:
        dimensions: 3; V-Net is defined for volumes, and 2 is accepted for the same network on slices.
        in_channels: image channels.
        out_channels: labels and background.
        channels: features a level, from full resolution to the bottleneck; the paper's are 16 to 256.
        depths: convolutions of each level's stage; the paper's are 1, 2, 3, 3, 3.
        kernel: side of each stage's convolutions; the paper's is 5.
        flat_levels: how many of the first steps keep the slice resolution, for anisotropic images.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128],  # noqa: B006 - read, never changed
        depths: list[Count] = [1, 2, 3, 3],  # noqa: B006 - read, never changed
        kernel: Count = 3,
        flat_levels: FlatLevels = 0,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        convolution, _ = _layers(dimensions)
        transposed: Any = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d
        strides = steps(len(channels) - 1, dimensions, flat_levels)
        pairs = list(zip(channels[:-1], channels[1:], strides, strict=True))
        self.first = ResidualStage(dimensions, in_channels, channels[0], depths[0], kernel)
        self.down = nn.ModuleList(
            nn.Sequential(convolution(upper, lower, stride, stride), nn.PReLU(lower)) for upper, lower, stride in pairs
        )
        self.encoder = nn.ModuleList(
            ResidualStage(dimensions, width, width, depth, kernel)
            for width, depth in zip(channels[1:], depths[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(transposed(lower, upper, stride, stride), nn.PReLU(upper)) for upper, lower, stride in pairs
        )
        self.decoder = nn.ModuleList(
            ResidualStage(dimensions, 2 * width, width, depth, kernel)
            for width, depth in zip(channels[:-1], depths[:-1], strict=True)
        )
        self.head = convolution(channels[0], out_channels, 1)

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's last stage."""
        return self.encoder[-1]

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        levels = [self.first(images)]
        for down, stage in zip(self.down, self.encoder, strict=True):
            levels.append(stage(down(levels[-1])))
        features = levels.pop()
        for up, stage in zip(reversed(self.up), reversed(self.decoder), strict=True):
            features = stage(torch.cat((up(features), levels.pop()), dim=1))
        return self.head(features)

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> tuple[int, int, int]:
        """Return the product of the strides."""
        channels, depths, kernel = options["channels"], options["depths"], options["kernel"]
        if len(depths) != len(channels):
            raise ValueError(f"depths has {len(depths)} entries, expected one for each of the {len(channels)} channels")
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} must be odd")
        return product(steps(len(channels) - 1, dimensions, options["flat_levels"]))


def _layers(dimensions: int) -> tuple[Any, Any]:
    return (nn.Conv3d, nn.InstanceNorm3d) if dimensions == 3 else (nn.Conv2d, nn.InstanceNorm2d)
