"""SegResNet (Myronenko, DOI 10.1007/978-3-030-11726-9_28) without its auto-encoder branch, as MONAI builds it."""

from typing import Annotated, Any

import torch
from monai.networks.nets import SegResNet as MonaiSegResNet
from pydantic import Field
from torch import nn

from labelrounds.networks.base import Count, SegmentationNetwork, Shape, networks

_GROUPS = 8


@networks.register("segresnet")
class SegResNet(SegmentationNetwork):
    """A deep residual encoder and a shallow decoder that interpolates, with group normalisation.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: labels and background.
        filters: features at full resolution, doubled at each step down; a multiple of 8.
        blocks_down: residual blocks of each level, from full resolution to the bottleneck.
        blocks_up: residual blocks of each level of the decoder, one fewer than ``blocks_down``.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        filters: Annotated[int, Field(ge=_GROUPS, multiple_of=_GROUPS)] = 16,
        blocks_down: Annotated[list[Count], Field(min_length=2)] = [1, 2, 2, 4],  # noqa: B006 - read, never changed
        blocks_up: list[Count] = [1, 1, 1],  # noqa: B006 - read, never changed
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.net = MonaiSegResNet(
            spatial_dims=dimensions,
            init_filters=filters,
            in_channels=in_channels,
            out_channels=out_channels,
            norm=("GROUP", {"num_groups": _GROUPS}),
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )

    @property
    def bottleneck(self) -> nn.Module:
        """The residual blocks of the lowest level."""
        return self.net.down_layers[-1]

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of images of the network's own dimensions."""
        return self.net(images)

    @classmethod
    def divisor(cls, dimensions: int, **options: Any) -> Shape:
        """Return 2 for each step down.

        Raises:
            ValueError: the decoder has not one level fewer than the encoder.
        """
        down, up = options["blocks_down"], options["blocks_up"]
        if len(up) != len(down) - 1:
            raise ValueError(f"blocks_up has {len(up)} entries, expected {len(down) - 1}, one fewer than blocks_down")
        step = 2 ** len(up)
        return step, step, step if dimensions == 3 else 1
