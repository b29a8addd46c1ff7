"""Images with their classes as training sees them: prepared once, drawn in batches, augmented on the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from labelrounds.cases import PreparedCase
from labelrounds.classification.augmentation import augment
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.images import prepare_image
from labelrounds.classification.labels import read_class_label
from labelrounds.devices import free_bytes
from labelrounds.errors import LabelRoundsError
from labelrounds.reading import Image, read_image
from labelrounds.sections import MIRROR_AXES
from labelrounds.store import LabelledCase

_SHARE_OF_MEMORY = 0.5


def prepared(image: Image, config: ClassifierConfig, device: torch.device | None = None) -> torch.Tensor:
    """Return an image as a model sees it: ``(C, X, Y, Z)`` float32, of a 2-D model ``Z`` slices."""
    return prepare_image(
        image,
        input_size=config.seen_size,
        spacing_mm=config.spacing_mm,
        intensity=config.intensity,
        dimensions=config.dimensions,
        device=device or torch.device("cpu"),
    )


def class_tensors(case: LabelledCase, config: ClassifierConfig) -> dict[str, torch.Tensor]:
    """Read an image and its classes; return what ``PreparedCase`` holds, as the cache keeps it.

    Raises:
        LabelRoundsError: a file can't be used, or the label names a class that the model does not know.
    """
    label = read_class_label(case.label)
    unknown = [name for name in label.classes if name not in config.labels]
    if unknown:
        raise LabelRoundsError(f"its class {unknown[0]!r} is not one of the model's: {', '.join(config.labels)}")
    if not config.multilabel and len(label.classes) != 1:
        raise LabelRoundsError(f"it is of {len(label.classes)} classes, and the model, multilabel: false, takes one")
    truth = torch.tensor([name in label.classes for name in config.labels], dtype=torch.uint8)
    image = read_image(Path(case.image), channels=config.channels)
    return {
        "image": prepared(image, config),
        "label": truth,
        "spacing_mm": torch.from_numpy(np.array(image.spacing_mm, dtype=np.float64)),
    }


class ImageSampler:
    """Draws images at random, with balance each class as often, and augments them as a batch.

    Images lie on the training device as long as they leave half of its free memory to the network.
    """

    def __init__(
        self,
        cases: list[PreparedCase],
        config: ClassifierConfig,
        device: torch.device,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._config, self._device = config, device
        drawn = torch.ones(len(cases)) if weights is None else torch.tensor(weights, dtype=torch.float32)
        if config.training.balance == "sampling":
            drawn = drawn * _balanced(cases)
        self._weights = drawn
        room = free_bytes(device) * _SHARE_OF_MEMORY
        self._images: list[torch.Tensor] = []
        for case in cases:
            room -= case.image.nbytes
            self._images.append(case.image.to(device) if room > 0 else case.image)
        self._truth = torch.stack([case.label for case in cases]).to(device)
        self._slices = max(case.image.shape[3] for case in cases)

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image drawn by each generator ``(B, C, X, Y, Z)`` float32 and its classes ``(B, K)`` uint8."""
        drawn = [int(torch.multinomial(self._weights, 1, generator=generator)) for generator in generators]
        images = torch.stack([_of_slices(self._images[index].to(self._device), self._slices) for index in drawn])
        training = self._config.training
        images = augment(
            images,
            generators,
            dimensions=self._config.dimensions,
            mirror_axes=[MIRROR_AXES[axis] for axis in self._config.mirror],
            rotation_degrees=training.rotation_degrees,
            scale_range=training.scale_range,
            shift_fraction=training.shift_fraction,
            shear_degrees=training.shear_degrees,
            intensity=training.vary_intensity,
        )
        return images, self._truth[drawn]


def truth_of(cases: Sequence[PreparedCase]) -> torch.Tensor:
    """Return the classes of cases ``(N, K)`` uint8."""
    return torch.stack([case.label for case in cases])


class ClassLoss:
    """Cross entropy of logits ``(B, K)``, with ``multilabel`` that of each class by itself.

    With ``balance: weights`` a class counts as much more as it is rarer, up to ten times, so that a class of a single
    image does not rule the training.
    """

    _MOST = 10.0

    def __init__(self, cases: list[PreparedCase], config: ClassifierConfig) -> None:
        self._multilabel, self._smoothing = config.multilabel, config.training.label_smoothing
        counts = truth_of(cases).sum(0).float()
        self._weights: torch.Tensor | None = None
        if config.training.balance == "weights":
            other = len(cases) - counts if config.multilabel else counts.sum() / len(config.labels)
            self._weights = (other / counts.clamp(min=1)).clamp(max=self._MOST)

    def __call__(self, levels: Sequence[torch.Tensor], truth: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch: logits ``(B, K)``, the only level, and classes ``(B, K)``."""
        logits, target = levels[0].float(), truth.float()
        weights = self._weights.to(logits.device) if self._weights is not None else None
        if self._multilabel:
            smooth = target * (1 - self._smoothing) + self._smoothing / 2
            return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights)
        return functional.cross_entropy(logits, target.argmax(1), weight=weights, label_smoothing=self._smoothing)


def _balanced(cases: Sequence[PreparedCase]) -> torch.Tensor:
    """Return how often to draw each case for all classes to be drawn alike: by its rarest class."""
    truth = truth_of(cases).float()
    of_none = (truth.sum(1) == 0).float()[:, None]  # multilabel: an image of no class counts as a class of its own
    every = torch.cat([truth, of_none], dim=1)
    return (every / every.sum(0).clamp(min=1)).amax(1)


def _of_slices(image: torch.Tensor, slices: int) -> torch.Tensor:
    """Return an image of a 2-D model with so many slices; a volume that has fewer shows some of them again."""
    present: Any = image.shape[3]
    if present == slices:
        return image
    return image[..., torch.arange(slices, device=image.device) % present]
