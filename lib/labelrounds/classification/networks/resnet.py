"""ResNet (He et al., DOI 10.1109/CVPR.2016.90), of MONAI's blocks."""

from collections import OrderedDict
from typing import Any, Literal

from monai.networks.nets.resnet import ResNet as MonaiResNet
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

_BLOCKS = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}
_LEVELS = ("layer1", "layer2", "layer3", "layer4")


@classifiers.register("resnet")
class ResNet(ClassificationNetwork):
    """Blocks of convolutions, each of which adds to what came in; the resolution halves from level to level.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: classes.
        depth: convolutions on the way, and the head; with 50 each block has three (a bottleneck), else two.
        width: features of the first level; they double from level to level.
        stem: ``full`` has a quarter of the resolution left before the first block; ``small``, for small pictures, all.
        squeeze_excitation: weigh the channels of what a block adds.
        dropout: share of the embedding that training leaves out.
        slices: how a 2-D network combines the slices of a volume.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        *,
        depth: Literal[10, 18, 34, 50] = 18,
        width: Count = 64,
        stem: Stem = "full",
        squeeze_excitation: bool = False,
        dropout: Dropout = 0.0,
        slices: Slices = "attention",
    ) -> None:
        net = MonaiResNet(
            block="bottleneck" if depth == 50 else "basic",
            layers=_BLOCKS[depth],
            block_inplanes=[width, 2 * width, 4 * width, 8 * width],
            spatial_dims=dimensions,
            n_input_channels=in_channels,
            conv1_t_size=7 if stem == "full" else 3,
            conv1_t_stride=2 if stem == "full" else 1,
            shortcut_type="B",  # MONAI's "A" takes the shortcut's gradient away
            feed_forward=False,
            bias_downsample=False,
        )
        if squeeze_excitation:
            _excite(net, dimensions)
        names = ("conv1", "bn1", "act", *(("maxpool",) if stem == "full" else ()), *_LEVELS)
        features = nn.Sequential(OrderedDict((name, net.get_submodule(name)) for name in names))
        super().__init__(dimensions, features, net.in_planes, out_channels, dropout, slices)

    @classmethod
    def smallest_input(cls, dimensions: int, **options: Any) -> Shape:
        """Return the steps of the stem and of the four levels."""
        return smallest_of(dimensions, options["stem"], len(_LEVELS))


def _excite(net: nn.Module, dimensions: int) -> None:
    """Weigh channels behind the last normalisation of each block, before its sum with what came in."""
    for level in _LEVELS:
        for block in net.get_submodule(level).children():
            last = "bn3" if hasattr(block, "bn3") else "bn2"
            norm: Any = block.get_submodule(last)
            setattr(block, last, nn.Sequential(norm, squeeze_and_excitation(dimensions, norm.num_features)))
