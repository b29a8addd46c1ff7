"""What a segmentation model's probabilities say of how sure it is, summed up while they are computed.

On the way of a round, between ``inference.py``, which gives the logits block by block, and ``scoring.py``. The
probabilities of all classes are never held for more than a block; of each voxel no more is kept than its label.

With ``p`` the probabilities of a voxel's classes, ``H = -sum p ln p`` (in nats), ``w = 1 - p[background]``, and ``p1``
and ``p2`` the two largest::

    margin       sum w (1 - (p1 - p2)) / sum w     how close the two likeliest classes are, where there is foreground
    entropy      sum w H / sum w
    top_entropy  mean of the largest 1 % of H
    mean_entropy mean of H
    self_dice    1 - the mean over labels of the Dice of p with the label map that it gives

Where no label is likely anywhere, ``w`` is small everywhere and the averages are over whatever is nearest to being one:
an image in which the model has almost seen something ranks as unsure, one in which all is background with certainty as
sure; a sum of exactly 0 gives 0. The Dice of a label counts one voxel more on both sides (a Laplace correction): of a
label that is nowhere likely it is 1, also where not a single voxel is given to it.
"""

import math
from collections.abc import Mapping, Sequence

import cc3d
import numpy as np
import torch

# Values of all classes that are summed up at a time: as many as stay in a CPU's cache, and as keep a GPU busy.
_VALUES, _VALUES_ON_GPU = 2**18, 2**25
_TOP_SHARE = 0.01


class VoxelSums:
    """Sums over the voxels of an image; call `add` for blocks that make it up, then ask.

    Args:
        classes: labels and background, the background first.
        voxels: of the image.
        device: where the blocks lie.
    """

    def __init__(self, classes: int, voxels: int, device: torch.device) -> None:
        self._classes, self._voxels = classes, voxels
        self._of_voxels = torch.zeros(4, dtype=torch.float64, device=device)  # w, w (1 - (p1 - p2)), w H, H
        # Of each class: the sum of p, that over the voxels which it is the likeliest of, and the sum of p H.
        self._mass, self._agreed, self._entropy = torch.zeros(3, classes, dtype=torch.float64, device=device)
        self._peak = torch.zeros(classes, device=device)  # largest p
        self._top = torch.zeros(0, device=device)
        self._step = max(1, (_VALUES_ON_GPU if device.type == "cuda" else _VALUES) // classes)

    def add(self, logits: torch.Tensor, label: torch.Tensor) -> None:
        """Add a block of logits ``(K, *block)`` float32 and write its likeliest classes into ``label``, uint8."""
        found = []
        entropies = []
        for values in logits.reshape(self._classes, -1).split(self._step, dim=1):
            likeliest, entropy = self._add(values.contiguous())
            found.append(likeliest.to(torch.uint8))
            entropies.append(entropy)
        label.copy_(torch.cat(found).view(label.shape))
        top = torch.cat([self._top, *entropies])
        most = math.ceil(_TOP_SHARE * self._voxels)
        self._top = top.topk(most, sorted=False).values if len(top) > most else top

    def _add(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add logits ``(K, N)``; return the likeliest class and the entropy of each voxel, ``(N,)``."""
        largest, likeliest = values.max(dim=0)
        below = values - largest
        chances = below.exp()
        total = chances.sum(dim=0)  # that of the likeliest is 1 of it
        # ln(total) - sum p (z - z1): one exponential a class and no logarithm of it.
        entropy = total.log() - (below.mul_(chances)).sum(dim=0) / total
        entropy.clamp_(min=0)
        chances.div_(total)
        mass = chances.sum(dim=1)
        self._peak = torch.maximum(self._peak, chances.amax(dim=1))
        self._entropy += chances.mv(entropy)
        foreground = chances[1:].sum(dim=0)  # as 1 - p[0], which loses what is small
        chances.scatter_(0, likeliest[None], 0)
        unsure = 1 - total.reciprocal() + chances.amax(dim=0)
        self._mass += mass
        self._agreed += mass - chances.sum(dim=1)
        sums = [foreground.sum(), foreground.dot(unsure), foreground.dot(entropy), entropy.sum()]
        self._of_voxels += torch.stack(sums)
        return likeliest, entropy

    def values(self, voxels: Sequence[int]) -> dict[str, float]:
        """Return the scores of the image, the higher the less sure.

        Args:
            voxels: of each class in the label map.
        """
        weight, margin, entropy, total = self._of_voxels.tolist()
        agreed, mass = self._agreed.tolist()[1:], self._mass.tolist()[1:]
        sides = zip(agreed, mass, voxels[1:], strict=True)
        dice = [(2 * both + 1) / (likely + given + 1) for both, likely, given in sides]
        return {
            "margin": _ratio(margin, weight),
            "entropy": _ratio(entropy, weight),
            "top_entropy": float(self._top.double().mean()),
            "mean_entropy": total / self._voxels,
            "self_dice": min(1.0, max(0.0, 1 - sum(dice) / len(dice))),
        }

    def by_label(self, labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the entropy where each label is likely, and its largest probability anywhere."""
        sums = zip(self._entropy.tolist()[1:], self._mass.tolist()[1:], strict=True)
        entropy = [_ratio(sum_, mass) for sum_, mass in sums]
        peaks = self._peak.tolist()[1:]
        return {
            "entropy": dict(zip(labels, entropy, strict=True)),
            "presence": {label: min(1.0, peak) for label, peak in zip(labels, peaks, strict=True)},
        }


def extents(label: np.ndarray, labels: Sequence[str], voxel_ml: float) -> Mapping[str, Mapping[str, float]]:
    """Return the volume and the number of connected parts (by faces) of each label of a map ``(X, Y, Z)`` uint8."""
    voxels = np.bincount(label.ravel(), minlength=len(labels) + 1)
    parts, count = cc3d.connected_components(label, connectivity=6, return_N=True)
    seen = label > 0
    label_of = np.zeros(count + 1, np.uint8)
    label_of[parts[seen]] = label[seen]
    components = np.bincount(label_of[1:], minlength=len(labels) + 1)
    return {
        "volume_ml": {name: float(voxels[value]) * voxel_ml for value, name in enumerate(labels, start=1)},
        "components": {name: float(components[value]) for value, name in enumerate(labels, start=1)},
    }


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0
