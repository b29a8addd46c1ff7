"""What a model's one pass has said of an image, kept for as long as image, preparation and weights are the same."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCORES = ("margin", "entropy", "top_entropy", "mean_entropy", "self_dice")


@dataclass(frozen=True)
class CaseScores:
    """What is known of an image by one pass of a version.

    Attributes:
        values: by name, each the higher the less sure the model is: those of `SCORES`, and of
            `labelrounds.scoring.COSTLY` what was asked for. ``self_dice`` is 1 - the Dice of the probabilities with
            their own maximum; of a whole image's classes ``margin`` is 1 - (p1 - p2).
        by_label: by name of a measure, then by the model's label: ``entropy`` (the entropy where the label is
            likely), ``presence`` (0..1, how sure the model is that the image has the label; of a classification
            model the class's probability), of a segmentation also ``volume_ml`` and ``components``.
        embedding: ``(D,)`` float32, the average of the network's bottleneck.
        version: number of the version that has said so.
    """

    values: Mapping[str, float]
    by_label: Mapping[str, Mapping[str, float]]
    embedding: NDArray[np.float32]
    version: int = 0
