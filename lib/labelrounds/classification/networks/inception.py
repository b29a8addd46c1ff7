"""Inception network (Szegedy et al., DOI 10.1109/CVPR.2016.308), in 2-D and 3-D, of MONAI's convolution blocks."""

from typing import Annotated, Any

import torch
from monai.networks.blocks.convolutions import Convolution
from pydantic import Field
from torch import nn

from labelrounds.classification.networks.base import (
    ClassificationNetwork,
    Dropout,
    Stem,
    classifiers,
    smallest_of,
    squeeze_and_excitation,
)
from labelrounds.classification.networks.slices import Slices
from labelrounds.networks.base import Count, Shape


@classifiers.register("inception")
class Inception(ClassificationNetwork):
    """Blocks of parallel branches, which see surroundings of different sizes.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: classes.
        width: features of the first level; they double from level to level, where the resolution halves.
        blocks: blocks of each level.
        stem: ``full`` has a quarter of the resolution left before the first block; ``small``, for small pictures, all.
        squeeze_excitation: weigh the channels that a block hands on.
        dropout: share of the embedding that training leaves out.
        slices: how a 2-D network combines the slices of a volume.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        width: Annotated[int, Field(ge=4)] = 64,
        blocks: Annotated[list[Count], Field(min_length=1)] = [2, 2, 2, 2],  # noqa: B006 - read, never changed
        stem: Stem = "full",
        squeeze_excitation: bool = False,
        dropout: Dropout = 0.0,
        slices: Slices = "attention",
    ) -> None:
        layers = _stem(dimensions, in_channels, width, stem)
        for level, count in enumerate(blocks):
            if level > 0:
                layers.append(_Reduction(dimensions, width))
                width *= 2
            for _ in range(count):
                layers.append(_Block(dimensions, width))
                if squeeze_excitation:
                    layers.append(squeeze_and_excitation(dimensions, width))
        super().__init__(dimensions, nn.Sequential(*layers), width, out_channels, dropout, slices)

    @classmethod
    def smallest_input(cls, dimensions: int, **options: Any) -> Shape:
        """Return the steps of the stem and of the levels."""
        return smallest_of(dimensions, options["stem"], len(options["blocks"]))


class _Block(nn.Module):
    """Four branches of a quarter of the features each: 1, 3 and 5 voxels wide, and a mean of 3 voxels.

    The 5 are two convolutions of 3 (figure 5 of the paper).
    """

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        part = width // 4
        self.branches = nn.ModuleList(
            [
                _convolution(dimensions, width, part, 1),
                nn.Sequential(_convolution(dimensions, width, part, 1), _convolution(dimensions, part, part)),
                nn.Sequential(
                    _convolution(dimensions, width, part, 1),
                    _convolution(dimensions, part, part),
                    _convolution(dimensions, part, part),
                ),
                nn.Sequential(
                    *_averages(dimensions),
                    _convolution(dimensions, width, width - 3 * part, 1),
                ),
            ]
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return as many features of the same resolution."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class _Reduction(nn.Module):
    """Half the resolution and twice the features: a strided convolution beside a pooling (figure 10 of the paper)."""

    def __init__(self, dimensions: int, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(dimensions, width, width, stride=2)
        self.pool = _halving_pool(dimensions)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return twice as many features of half the resolution."""
        return torch.cat([self.convolution(features), self.pool(features)], dim=1)


def _stem(dimensions: int, in_channels: int, width: int, stem: Stem) -> list[nn.Module]:
    """Return the layers before the first block."""
    if stem == "small":
        return [_convolution(dimensions, in_channels, width)]
    return [
        _convolution(dimensions, in_channels, width, stride=2),
        _convolution(dimensions, width, width),
        _halving_pool(dimensions),
    ]


def _averages(dimensions: int) -> list[nn.Module]:
    """Return the layers of the mean of 3 voxels along each axis; torch's own padding refuses maps smaller than that."""
    if dimensions == 3:
        return [nn.ConstantPad3d(1, 0.0), nn.AvgPool3d(3, stride=1)]
    return [nn.ConstantPad2d(1, 0.0), nn.AvgPool2d(3, stride=1)]


def _halving_pool(dimensions: int) -> nn.Module:
    return (nn.MaxPool3d if dimensions == 3 else nn.MaxPool2d)(3, stride=2, padding=1)


def _convolution(dimensions: int, incoming: int, outgoing: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution with batch normalisation and a ReLU."""
    return Convolution(
        spatial_dims=dimensions,
        in_channels=incoming,
        out_channels=outgoing,
        kernel_size=kernel,
        strides=stride,
        bias=False,
        norm="batch",
        act=("relu", {"inplace": True}),
    )
