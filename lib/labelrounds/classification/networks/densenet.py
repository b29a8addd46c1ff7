"""DenseNet (Huang et al., DOI 10.1109/CVPR.2017.243), of MONAI's blocks."""

from collections import OrderedDict
from typing import Annotated, Any

from monai.networks.nets.densenet import DenseNet as MonaiDenseNet
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
from labelrounds.networks.base import Count, Shape, convolution_of


@classifiers.register("densenet")
class DenseNet(ClassificationNetwork):
    """Each layer of a block sees what all the layers before it in the block have found.

    Args:
        dimensions: 2 or 3.
        in_channels: image channels.
        out_channels: classes.
        growth_rate: features that a layer adds.
        init_features: features of the first convolution.
        block_config: layers of each block; those of DenseNet-121 when left out.
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
        growth_rate: Count = 32,
        init_features: Count = 64,
        block_config: Annotated[list[Count], Field(min_length=1)] = [6, 12, 24, 16],  # noqa: B006 - read, never changed
        stem: Stem = "full",
        squeeze_excitation: bool = False,
        dropout: Dropout = 0.0,
        slices: Slices = "attention",
    ) -> None:
        net = MonaiDenseNet(dimensions, in_channels, out_channels, init_features, growth_rate, block_config)
        layers = OrderedDict(net.features.named_children())
        if stem == "small":
            layers["conv0"] = _first_convolution(dimensions, in_channels, init_features)
            del layers["pool0"]
        if squeeze_excitation:
            layers = _with_excitation(layers, dimensions)
        layers["relu5"] = nn.ReLU()
        super().__init__(
            dimensions, nn.Sequential(layers), net.class_layers.out.in_features, out_channels, dropout, slices
        )

    @classmethod
    def smallest_input(cls, dimensions: int, **options: Any) -> Shape:
        """Return the steps of the stem and of the blocks."""
        return smallest_of(dimensions, options["stem"], len(options["block_config"]))


def _first_convolution(dimensions: int, in_channels: int, features: int) -> nn.Module:
    """Return a convolution that keeps the resolution, with first weights as MONAI draws them."""
    convolution = convolution_of(dimensions)(in_channels, features, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return convolution


def _with_excitation(layers: "OrderedDict[str, Any]", dimensions: int) -> "OrderedDict[str, Any]":
    """Return the layers with one more behind each dense block, as wide as the normalisation that follows it."""
    excited: OrderedDict[str, Any] = OrderedDict()
    before = ""
    for name, layer in layers.items():
        if before.startswith("denseblock"):
            norm = layer.norm if name.startswith("transition") else layer
            excited[before.replace("denseblock", "excitation")] = squeeze_and_excitation(dimensions, norm.num_features)
        excited[name] = layer
        before = name
    return excited
