"""The least agreement of a model with itself on mirrored or turned images (test-time augmentation)."""

from labelrounds.strategies.base import strategies
from labelrounds.strategies.by_score import ByScore


@strategies.register("tta")
class AugmentationDisagreement(ByScore):
    """Orders by 1 - the mean Dice between the predictions of an image and of its augmentations."""

    description = "Test-time augmentation: where mirroring or turning the image changes the prediction"
    measure = "tta"
    costly = ("tta",)
    why = "it contradicts itself when the image is mirrored or turned"
