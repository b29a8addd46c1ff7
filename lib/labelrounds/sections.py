"""The parts that the configurations of all kinds of models are made of: strict, frozen, checked when they are read."""

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from labelrounds.registry import Registry

MOST_EPOCHS = 100_000
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MIRROR_AXES = {"left_right": 0, "posterior_anterior": 1, "inferior_superior": 2}
MirrorAxis = Literal["left_right", "posterior_anterior", "inferior_superior"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class Section(BaseModel):
    """Base of every part of a configuration: no unknown keys, no conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WindowIntensity(Section):
    """Clip to a window (HU for CT) and scale it to -1..1."""

    kind: Literal["window"]
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _ordered(self) -> "WindowIntensity":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self


class ZScoreIntensity(Section):
    """Clip to two percentiles of the image, then subtract its mean and divide by its standard deviation."""

    kind: Literal["zscore"]
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high_percentile: Annotated[float, Field(gt=50, le=100)] = 99.5


class RangeIntensity(Section):
    """Clip to two percentiles of the image and scale what is between them to -1..1."""

    kind: Literal["range"]
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high_percentile: Annotated[float, Field(gt=50, le=100)] = 99.5


class Code(Section):
    """A concept of a terminology, as DICOM writes it."""

    value: Annotated[str, Field(min_length=1, max_length=16)]
    scheme: Annotated[str, Field(min_length=1, max_length=16)] = "SCT"
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class LabelCode(Code):
    """What a label shows, for DICOM SEG: by default an anatomical structure; the modifier is a side or the like."""

    category: Code = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
    modifier: Code | None = None


class NetworkSection(Section):
    """The network's registered name and its options, which are checked against its builder."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    registry: ClassVar[Registry[Any]]
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name, as the builder takes them."""
        return dict(self.model_extra or {})

    @property
    def checked(self) -> dict[str, Any]:
        """All options that the builder takes, those that are left out with their defaults."""
        return dict(self.registry.options(self.name).model_validate_json(json.dumps(self.options)))

    @property
    def builder(self) -> Any:
        """What builds the network."""
        return self.registry.get(self.name)

    @model_validator(mode="after")
    def _known(self) -> "NetworkSection":
        if self.name not in self.registry.names():
            raise ValueError(f"name {self.name!r} is not one of {', '.join(self.registry.names())}")
        options = self.registry.options(self.name)
        unknown = [option for option in self.options if option not in options.model_fields]
        if unknown:
            allowed = ", ".join(options.model_fields)
            raise ValueError(f"{unknown[0]}: unknown key; {self.name} allows {allowed or 'no option'}")
        options.model_validate_json(json.dumps(self.options))
        return self


class TrainingSection(Section):
    """How a training runs unless the request says otherwise, whatever is trained."""

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 40
    quick_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = 8
    iterations_per_epoch: Count = 25
    batch_size: Count = 2
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    scale_range: tuple[Positive, Positive] = (0.7, 1.4)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("scale_range")
    @classmethod
    def _ordered(cls, scale_range: tuple[float, float]) -> tuple[float, float]:
        if scale_range[0] > scale_range[1]:
            raise ValueError("the first must not be above the second")
        return scale_range


class CommonConfig(Section):
    """What every served model has. Spatial triples are in the order left-right, posterior-anterior, inferior-superior.

    Attributes:
        task: what the model does, as the YAML file names it.
    """

    task: ClassVar[str]
    name: str
    description: str
    labels: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    modality: str = ""
    channels: Count = 1
    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    network: NetworkSection
    mirror: tuple[MirrorAxis, ...] = ()
    training: TrainingSection

    @property
    def dimensions(self) -> int:
        """2 when the network sees slices, else 3."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """How many logits the network has, of each voxel or of each image."""
        raise NotImplementedError

    @property
    def preparation(self) -> dict[str, Any]:
        """What of the configuration the preparation of a case depends on, as JSON; weights are right for it alone."""
        raise NotImplementedError

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"the file's stem {name!r} must match {NAME.pattern}")
        return name

    @field_validator("labels")
    @classmethod
    def _distinct_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("each label must be named once")
        if not all(label.strip() == label and label for label in labels):
            raise ValueError("a label must not be empty or begin or end with a space")
        return labels
