"""What a classification model's pass says of how sure it is of an image.

With ``p`` the calibrated probabilities: ``margin`` is 1 - (p1 - p2), ``entropy`` that of p in nats. Where an image may
have any number of classes each is a question of its own: ``margin`` is then that of the least sure class (BinMin,
Brinker 2006, DOI 10.1007/3-540-31314-1_24), 1 - |2p - 1|, and ``entropy`` the sum of all classes', their joint one as
far as they are independent.
"""

from collections.abc import Sequence

import torch
from torch.special import entr

from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.served import Ready, classify
from labelrounds.costly_scores import PASSES, dropout_on, entropy_of, variations


def looked_at(ready: Ready, voxels: torch.Tensor, config: ClassifierConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities ``(K,)`` of a prepared image ``(C, X, Y, Z)`` and its embedding ``(D,)``, on the CPU.

    The embedding is what the last layer of the same pass is given.
    """
    given: list[torch.Tensor] = []
    hook = ready.network.head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    try:
        chances = classify(ready, voxels[None], config)[0]
    finally:
        hook.remove()
    return chances, given[0][0].float().cpu()


def class_scores(
    chances: torch.Tensor, labels: Sequence[str], multilabel: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return an image's scores by name, and by label its probability (``presence``) and that question's entropy."""
    chances = chances.double()
    each = entr(chances) + entr(1 - chances)
    if multilabel:
        margin, entropy = float((1 - (2 * chances - 1).abs()).max()), float(each.sum())
    else:
        first, second = chances.topk(2).values.tolist()
        margin, entropy = 1 - (first - second), float(entr(chances).sum())
    by_label = {"presence": chances, "entropy": each}
    return (
        {"margin": margin, "entropy": entropy},
        {name: dict(zip(labels, values.tolist(), strict=True)) for name, values in by_label.items()},
    )


def class_tta(ready: Ready, voxels: torch.Tensor, chances: torch.Tensor, config: ClassifierConfig) -> float:
    """Return how far the probabilities move under three variations of the image, 0 to 1."""
    moved = [distance(chances, classify(ready, vary(voxels)[None], config)[0]) for vary, _ in variations(config)]
    return sum(moved) / len(moved)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return how far two versions' probabilities are apart, 0 to 1: the largest difference in any class."""
    return float((one - other).abs().max())


def class_epistemic(ready: Ready, voxels: torch.Tensor, config: ClassifierConfig) -> dict[str, float]:
    """Return the entropy of the mean of five passes with dropout, and their variance; see `costly_scores.epistemic`."""
    with dropout_on(ready.network):
        passes = torch.stack([classify(ready, voxels[None], config)[0] for _ in range(PASSES)])
    mean = passes.mean(dim=0)
    entropy = entropy_of(mean) + (entropy_of(1 - mean) if config.multilabel else 0)
    return {"epistemic": float(entropy), "epistemic_variance": float(passes.var(dim=0, correction=0).sum())}
