"""One embedding for the slices of a volume, of which a 2-D network sees each by itself.

All of these return the slice's own embedding where there is one slice alone, and none looks at the slices' order.
"""

from typing import Literal

import torch
from torch import nn

Slices = Literal["attention", "max", "mean"]
_HIDDEN = 128  # as in the paper


class GatedAttention(nn.Module):
    """The mean of the slices, weighted by what a small network thinks of each (Ilse et al., arXiv 1802.04712, eq. 9).

    Args:
        size: features of an embedding.
        hidden: features between.
    """

    def __init__(self, size: int, hidden: int = _HIDDEN) -> None:
        super().__init__()
        self.content = nn.Linear(size, hidden)
        self.gate = nn.Linear(size, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # the softmax takes no notice of a bias

    def weights(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the weight ``(B, Z)`` of each slice, with a sum of 1, for embeddings ``(B, Z, D)``."""
        scores = self.score(torch.tanh(self.content(embeddings)) * torch.sigmoid(self.gate(embeddings)))
        return scores.squeeze(-1).softmax(dim=1)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean ``(B, D)`` of embeddings ``(B, Z, D)``."""
        return (self.weights(embeddings).unsqueeze(-1) * embeddings).sum(dim=1)


class Maximum(nn.Module):
    """Each feature where it is strongest."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the maxima ``(B, D)`` of embeddings ``(B, Z, D)``."""
        return embeddings.amax(dim=1)


class Mean(nn.Module):
    """Each slice counts the same."""

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the means ``(B, D)`` of embeddings ``(B, Z, D)``."""
        return embeddings.mean(dim=1)


def aggregation(slices: Slices, size: int) -> nn.Module:
    """Return the module that makes one embedding ``(B, size)`` of those of the slices, ``(B, Z, size)``."""
    if slices == "attention":
        return GatedAttention(size)
    return Maximum() if slices == "max" else Mean()
