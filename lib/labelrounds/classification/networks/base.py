"""What every classification network offers to inference, training and what a user sees of a class."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import torch
from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from pydantic import Field
from torch import nn

from labelrounds.classification.networks.slices import Slices, aggregation
from labelrounds.networks.base import Shape
from labelrounds.registry import Registry

Dropout = Annotated[float, Field(ge=0, lt=1)]
Stem = Literal["full", "small"]


class ClassificationNetwork(nn.Module, ABC):
    """Logits ``(B, K)`` for images ``(B, C, X, Y, Z)``.

    A 3-D network sees the volume. A 2-D network sees each slice along ``Z`` by itself, and what it makes of the slices
    is combined into one embedding.

    Args:
        dimensions: 2 or 3.
        features: from images of these dimensions to the last feature map ``(B, embedding_size, ...)``.
        embedding_size: features of that map.
        out_channels: classes.
        dropout: share of the embedding's features that training leaves out before the head.
        slices: how a 2-D network combines slices: by gated attention, or the maximum or the mean of each feature. A
            3-D network has no use for it.
    """

    def __init__(
        self,
        dimensions: int,
        features: nn.Module,
        embedding_size: int,
        out_channels: int,
        dropout: float,
        slices: Slices,
    ) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.features = features
        self.slices = aggregation(slices, embedding_size) if dimensions == 2 else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embedding_size, out_channels)
        self.frozen = False

    def train(self, mode: bool = True) -> "ClassificationNetwork":
        """Switch between training and inference; what is frozen keeps also its batch normalisations' statistics."""
        super().train(mode)
        if self.frozen:
            for name, child in self.named_children():
                if name not in ("head", "dropout"):
                    child.eval()
        return self

    @classmethod
    @abstractmethod
    def smallest_input(cls, dimensions: int, **options: Any) -> Shape:
        """Return the shortest sides of an image, given the constructor's options.

        They are the steps between the voxels of the last feature map, which has one voxel then.
        """

    @property
    def embedding_size(self) -> int:
        """The features of an embedding."""
        return self.head.in_features

    @property
    def maps(self) -> nn.Module:
        """The module whose output is the last feature map: ``(B, D, ...)``, of a 2-D network ``(B * Z, D, ...)``.

        Of a 2-D network the slices of the first image come first.
        """
        return self.features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, K)`` of images ``(B, C, X, Y, Z)``."""
        return self.head(self.dropout(self._embedding(images)))

    def forward_levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what training compares with the classes: the logits alone."""
        return [self(images)]

    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the global average of the last feature map, ``(B, D)``, with the slices of an image combined."""
        return self._embedding(images)

    def _embedding(self, images: torch.Tensor) -> torch.Tensor:
        if self.slices is None:
            return self.features(images).flatten(2).mean(dim=2)
        pictures = images.movedim(-1, 1).flatten(0, 1)
        averages = self.features(pictures).flatten(2).mean(dim=2)
        return self.slices(averages.unflatten(0, (-1, images.shape[-1])))


classifiers: Registry[type[ClassificationNetwork]] = Registry("network", "labelrounds.classification.networks")


def smallest_of(dimensions: int, stem: Stem, levels: int) -> Shape:
    """Return the steps of a stem and of as many levels, each but the first at half the resolution of the one before."""
    side = (4 if stem == "full" else 1) * 2 ** (levels - 1)
    return side, side, side if dimensions == 3 else 1


def squeeze_and_excitation(dimensions: int, channels: int) -> nn.Module:
    """Return a layer that weighs channels by their averages (Hu et al., DOI 10.1109/CVPR.2018.00745).

    It reduces them by 16 as in the paper, but not to fewer than 8: of one or two hidden units none may be alive.
    """
    return ChannelSELayer(spatial_dims=dimensions, in_channels=channels, r=max(1, min(16, channels // 8)))
