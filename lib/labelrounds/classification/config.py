"""A classification model as its YAML file describes it (``task: classification``)."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from labelrounds.classification.networks import classifiers
from labelrounds.sections import (
    NAME,
    CommonConfig,
    Count,
    NetworkSection,
    Positive,
    RangeIntensity,
    TrainingSection,
    WindowIntensity,
    ZScoreIntensity,
)

NETWORK, LOGISTIC, SVM = "network", "logistic", "svm"
QUICK = (LOGISTIC, SVM)
"""The classifiers that are fitted to embeddings."""


class ClassifierNetwork(NetworkSection):
    """A classification network's registered name and its options."""

    registry = classifiers


class ClassifierTraining(TrainingSection):
    """How a training of a classification model runs unless the request says otherwise.

    Attributes:
        shift_fraction: an image is shifted by up to this share of its sides.
        shear_degrees: and sheared by up to this angle.
        vary_intensity: change brightness, contrast, gamma, noise and sharpness at random.
        balance: how rare classes are made up for: by drawing every class as often (``sampling``), by the ``weights`` of
            the loss, or not at all.
        label_smoothing: the share of the truth that is spread over all classes.
        init_from: a model of the same network, whose served weights a training from nothing starts from, but for those
            of its last layer.
        classifier: ``network`` trains the network; ``logistic`` and ``svm`` train none and fit a linear classifier to
            the embeddings of the weights that a training starts from; ``auto`` trains the network and, up to 500
            labels, takes what does best of the three.
        encoder_rate: the learning rate of all but the last layer, relative to that layer's; 0 leaves them as they are.
    """

    epochs: Count = 20
    quick_epochs: Count = 5
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    scale_range: tuple[Positive, Positive] = (0.85, 1.15)
    shift_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    shear_degrees: Annotated[float, Field(ge=0, le=45)] = 0.0
    vary_intensity: bool = True
    balance: Literal["sampling", "weights", "none"] = "sampling"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    init_from: Annotated[str, Field(pattern=f"^{NAME.pattern}$")] | None = None
    classifier: Literal["auto", "network", "logistic", "svm"] = "auto"
    encoder_rate: Annotated[float, Field(ge=0, le=1)] = 1.0


class ClassifierConfig(CommonConfig):
    """One served classification model.

    Attributes:
        labels: the classes; an image is of exactly one, or with ``multilabel`` of any number.
        input_size: voxels that the network sees. A last number of 1 makes the model 2-D; so does ``slices_of_volume``.
        slices_of_volume: a 2-D model sees so many slices of a volume, evenly spaced, each by itself, and the network's
            option ``slices`` says how they become one answer. Each picture is one slice.
        spacing_mm: images are resampled to it and cut to ``input_size``; without it they are scaled to it as a whole.
    """

    task = "classification"
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    multilabel: bool = False
    intensity: Annotated[WindowIntensity | ZScoreIntensity | RangeIntensity, Field(discriminator="kind")]
    network: ClassifierNetwork
    input_size: tuple[Count, Count, Count]
    slices_of_volume: Annotated[int, Field(ge=1, le=512)] = 1
    training: ClassifierTraining = ClassifierTraining()

    @property
    def dimensions(self) -> int:
        """2 when the network sees slices, else 3."""
        return 2 if self.input_size[2] == 1 else 3

    @property
    def outputs(self) -> int:
        """Logits of each image, one a class."""
        return len(self.labels)

    @property
    def seen_size(self) -> tuple[int, int, int]:
        """The sides of a prepared image, for a 2-D model at most so many slices."""
        x, y, z = self.input_size
        return x, y, max(z, self.slices_of_volume)

    @property
    def preparation(self) -> dict[str, Any]:
        """What of the configuration the preparation of a case depends on, as JSON."""
        keys = {"labels", "multilabel", "channels", "spacing_mm", "intensity", "input_size", "slices_of_volume"}
        return {**self.model_dump(mode="json", include=keys), "task": self.task}

    @model_validator(mode="after")
    def _consistent(self) -> "ClassifierConfig":
        if not self.multilabel and len(self.labels) < 2:
            raise ValueError(
                f"labels: {list(self.labels)}, one class alone says nothing; name two, or multilabel: true"
            )
        if self.dimensions == 3 and self.slices_of_volume > 1:
            raise ValueError("slices_of_volume: is for a 2-D model, whose input_size ends in 1")
        if self.dimensions == 2 and "inferior_superior" in self.mirror:
            raise ValueError("mirror: a 2-D model has no inferior_superior")
        smallest = self.network.builder.smallest_input(self.dimensions, **self.network.checked)
        for size, least in zip(self.input_size, smallest, strict=True):
            if size < least:
                raise ValueError(
                    f"input_size: {list(self.input_size)} must be at least {list(smallest)} for the network"
                )
        if self.training.init_from == self.name:
            raise ValueError("training.init_from: names the model itself; its policy quick goes on from its weights")
        return self
