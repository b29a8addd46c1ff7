"""V-Net (Milletari et al., DOI 10.1109/3DV.2016.79) with widths, depths and kernel of one's choice.

MONAI's VNet has fixed widths and 45.6 million parameters, too many for a training on a hospital's workstation.
This one keeps the paper's residual stages, its convolutions of stride 2 in place of pooling and its skip
connections, and adds instance normalisation, without which batches of two do not train reliably.
"""

from typing import Any

import torch
from torch import nn

from labelrounds.networks.base import (
    Channels,
    Count,
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


class ResidualStage(nn.Module):
    """``depth`` convolutions whose sum with their input is passed on."""

    def __init__(self, dimensions: int, in_channels: int, channels: int, depth: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        convolution = convolution_of(dimensions)
        normalisation: Any = nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
        padding = tuple(side // 2 for side in kernel)
        layers: list[nn.Module] = []
        for index in range(depth):
            source = in_channels if index == 0 else channels
            layers += [convolution(source, channels, kernel, padding=padding, bias=False)]
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
        strides: of each step down, one fewer than channels; 2 along each axis when left out.
        kernels: of each level's convolutions, as many as channels; 3 along each axis when left out, the paper's are 5.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Channels = [16, 32, 64, 128],  # noqa: B006 - read, never changed
        depths: list[Count] = [1, 2, 3, 3],  # noqa: B006 - read, never changed
        strides: Strides = None,
        kernels: Kernels = None,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        convolution = convolution_of(dimensions)
        transposed: Any = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d
        pairs = list(zip(channels[:-1], channels[1:], steps(channels, dimensions, strides), strict=True))
        sizes = kernel_sizes(channels, dimensions, kernels)
        self.first = ResidualStage(dimensions, in_channels, channels[0], depths[0], sizes[0])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(upper, lower, stride, stride), nn.PReLU(lower)) for upper, lower, stride in pairs
        )
        self.encoder = nn.ModuleList(
            ResidualStage(dimensions, width, width, depth, kernel)
            for width, depth, kernel in zip(channels[1:], depths[1:], sizes[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(transposed(lower, upper, stride, stride), nn.PReLU(upper)) for upper, lower, stride in pairs
        )
        self.decoder = nn.ModuleList(
            ResidualStage(dimensions, 2 * width, width, depth, kernel)
            for width, depth, kernel in zip(channels[:-1], depths[:-1], sizes[:-1], strict=True)
        )
        self.head = convolution(channels[0], out_channels, 1)
        self.heads = nn.ModuleList(
            convolution(channels[level], out_channels, 1) for level in supervised_levels(channels)
        )

    @property
    def bottleneck(self) -> nn.Module:
        """The encoder's last stage."""
        return self.encoder[-1]

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.head(self._decode(images)[0])

    def segment_levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits at full resolution and at each supervised level."""
        full, *lower = self._decode(images)
        return [self.head(full), *(head(features) for head, features in zip(self.heads, lower, strict=False))]

    def _decode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the decoder's features, full resolution first."""
        levels = [self.first(images)]
        for down, stage in zip(self.down, self.encoder, strict=True):
            levels.append(stage(down(levels[-1])))
        decoded = [levels.pop()]
        for up, stage in zip(reversed(self.up), reversed(self.decoder), strict=True):
            decoded.insert(0, stage(torch.cat((up(decoded[0]), levels.pop()), dim=1)))
        return decoded

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> Shape:
        """Return the product of the strides."""
        channels, depths = options["channels"], options["depths"]
        if len(depths) != len(channels):
            raise ValueError(f"depths has {len(depths)} entries, expected one for each of the {len(channels)} channels")
        kernel_sizes(channels, dimensions, options["kernels"])
        return product(steps(channels, dimensions, options["strides"]))
