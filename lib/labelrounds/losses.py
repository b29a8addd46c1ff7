"""What training minimises: soft Dice over the batch plus cross entropy, at each supervised resolution."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from labelrounds import distributed

_SMOOTH = 1e-5


def supervised_loss(levels: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of the losses of all levels, each level counting half of the finer one.

    Deep supervision as in nnU-Net (DOI 10.1038/s41592-020-01008-z).

    Args:
        levels: logits ``(B, K, X, Y, Z)``, full resolution first, the others coarser by whole factors.
        labels: ``(B, X, Y, Z)`` int64.
    """
    weights = [0.5**level for level in range(len(levels))]
    losses = [dice_cross_entropy(logits, _coarser(labels, logits.shape[2:])) for logits in levels]
    return sum(
        (weight * loss for weight, loss in zip(weights, losses, strict=True)),
        start=labels.new_zeros((), dtype=torch.float32),
    ) / sum(weights)


def dice_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return 1 - soft Dice plus cross entropy.

    The Dice (Milletari et al., DOI 10.1109/3DV.2016.79, without the squares) is that of the whole batch, label by
    label and without the background, so that a label missing from one patch does not spoil it. Where several
    processes share a batch, the sums run over all of them, and the mean of their gradients is the batch's.

    Args:
        logits: ``(B, K, X, Y, Z)``.
        labels: ``(B, X, Y, Z)`` int64, below ``K``.
    """
    logarithms = functional.log_softmax(logits.float(), dim=1)
    entropy = functional.nll_loss(logarithms, labels, reduction="sum")
    probabilities = logarithms.exp()[:, 1:]
    truth = torch.zeros_like(logarithms).scatter_(1, labels[:, None], 1.0)[:, 1:]
    others = [0, *range(2, logits.ndim)]
    overlap = (probabilities * truth).sum(others)
    size = probabilities.sum(others) + truth.sum(others)
    overlap, size = distributed.total(torch.stack((overlap, size)))
    dice = (2 * overlap + _SMOOTH) / (size + _SMOOTH)
    voxels = distributed.total(torch.tensor(float(labels.numel()), device=logits.device))
    return 1 - dice.mean() + entropy * distributed.processes() / voxels


def _coarser(labels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the labels at the middle of each coarser voxel."""
    for axis, side in enumerate(shape, start=1):
        step = labels.shape[axis] // side
        if step > 1:
            labels = labels.index_select(axis, torch.arange(step // 2, labels.shape[axis], step, device=labels.device))
    return labels
