"""A model as its YAML file describes it: strict, frozen, and checked before anything is built from it.

One file is one served model, and the file's stem is the model's name. The files in the project's ``configs``
and those in a folder of the user's own are read alike; the user's wins where both have a name.
"""

import json
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from labelrounds.classification.config import ClassifierConfig
from labelrounds.errors import BadInput
from labelrounds.networks import networks
from labelrounds.runtimes import runtimes
from labelrounds.sections import (
    Byte,
    CommonConfig,
    Count,
    LabelCode,
    NetworkSection,
    RangeIntensity,
    Section,
    TrainingSection,
    WindowIntensity,
    ZScoreIntensity,
)

AUTO = "auto"
_INTENSITIES: dict[str, type[BaseModel]] = {
    "window": WindowIntensity,
    "zscore": ZScoreIntensity,
    "range": RangeIntensity,
}
_EXPONENT = re.compile(r"[+-]?\d+[eE][+-]?\d+")


class NetworkConfig(NetworkSection):
    """A segmentation network's registered name and its options."""

    registry = networks


class TrainingConfig(TrainingSection):
    """How a training of a segmentation model runs unless the request says otherwise."""

    foreground_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5


class InferenceConfig(Section):
    """How the network is run, how its windows are brought together, and how the labels come to the image's voxels.

    Attributes:
        blend: ``gaussian`` sums the windows' logits, those near a window's middle counting most; ``owner`` takes each
            voxel's label from the window whose centre is nearest, in less time and memory; ``whole`` is one window as
            large as the image where the memory suffices, else ``gaussian``, for networks that see locally alone
            (`SegmentationNetwork.sees_locally`).
        overlap: by which share of their side neighbouring windows overlap.
        restore: how labels come to the voxels of an image that is finer than the model's ``spacing_mm``: ``linear``
            interpolates each and takes the largest, with smooth borders; ``nearest`` takes the nearest, in less time.
            True labels of the hippocampus, made 1.25 to 3 times coarser and restored, have a Dice 0.01 to 0.036 higher
            by ``linear``, in 90 to 100 % of 40 cases.
        runtime: the name of a registered runtime, or `AUTO`, the quickest by measurement that labels as float32 does.
    """

    blend: Literal["gaussian", "owner", "whole"] = "gaussian"
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    restore: Literal["linear", "nearest"] = "linear"
    runtime: str = AUTO

    @field_validator("runtime")
    @classmethod
    def _known(cls, runtime: str) -> str:
        allowed = [AUTO, *runtimes.names()]
        if runtime not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return runtime

    @model_validator(mode="after")
    def _of_a_size(self) -> "InferenceConfig":
        if self.blend == "whole" and self.runtime != AUTO and not runtimes.get(self.runtime).any_size:
            raise ValueError(f"runtime {self.runtime!r} takes windows of one size alone, blend 'whole' has any")
        return self


class LabelCleaning(Section):
    """What is done to one label of a prediction after the network."""

    largest_component: bool = False
    fill_holes: bool = False


class ModelConfig(CommonConfig):
    """One served segmentation model."""

    task = "segmentation"
    intensity: Annotated[WindowIntensity | ZScoreIntensity, Field(discriminator="kind")]
    network: NetworkConfig
    patch_size: tuple[Count, Count, Count]
    inference: InferenceConfig = InferenceConfig()
    training: TrainingConfig = TrainingConfig()
    cleaning: dict[str, LabelCleaning] = Field(default={})
    codes: dict[str, LabelCode] = Field(default={})
    colours: dict[str, tuple[Byte, Byte, Byte]] = Field(default={})

    @property
    def dimensions(self) -> int:
        """2 when the patch is one slice thick, else 3."""
        return 2 if self.patch_size[2] == 1 else 3

    @property
    def outputs(self) -> int:
        """Logits of each voxel: those of the labels and of the background."""
        return len(self.labels) + 1

    @property
    def preparation(self) -> dict[str, Any]:
        """What of the configuration the preparation of a case depends on, as JSON."""
        chosen = self.model_dump(mode="json", include={"labels", "channels", "spacing_mm", "intensity"})
        return {**chosen, "patch_size": self.dimensions}  # all of it that a preparation depends on

    @property
    def label_values(self) -> dict[str, int]:
        """Label names to voxel values, gap-free from 1."""
        return {label: value for value, label in enumerate(self.labels, start=1)}

    @field_validator("labels")
    @classmethod
    def _without_background(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if "background" in labels:
            raise ValueError("'background' is voxel value 0 and is never listed")
        return labels

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        for key, named in (("cleaning", self.cleaning), ("codes", self.codes), ("colours", self.colours)):
            unknown = sorted(set(named) - set(self.labels))
            if unknown:
                raise ValueError(f"{key}: names {', '.join(unknown)}, not among labels {', '.join(self.labels)}")
        network, options = self.network.builder, self.network.checked
        try:
            divisor = network.divisor(self.dimensions, **options)
        except ValueError as error:
            raise ValueError(f"network: {error}") from error
        for size, step in zip(self.patch_size, divisor, strict=True):
            if size % step:
                raise ValueError(f"patch_size: {list(self.patch_size)} must be a multiple of {list(divisor)}")
        if self.inference.blend == "whole" and not network.sees_locally(**options):
            raise ValueError(
                f"inference: blend 'whole' needs a network that sees locally alone; {self.network.name} normalises over"
                " all it sees, and was trained on patches"
            )
        if self.patch_size == divisor:  # nothing can be normalised over a single voxel
            raise ValueError(f"patch_size: {list(self.patch_size)} must be larger than {list(divisor)} along an axis")
        return self


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without two things: equal keys, of which PyYAML keeps the last in silence, and aliases.

    Aliases turn a small file into a huge or an endless one.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"alias *{self.peek_event().anchor} is not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"key {twice[0]!r} stands twice")
        return super().construct_mapping(node, deep)


AnyConfig = ModelConfig | ClassifierConfig
_TASKS: dict[str, type[CommonConfig]] = {kind.task: kind for kind in (ModelConfig, ClassifierConfig)}


def load_config(path: Path) -> Any:
    """Read one model's YAML file.

    Returns:
        a `ModelConfig`, or a `ClassifierConfig` where the file says ``task: classification``.

    Raises:
        BadInput: every fault of the file, a line each, with file, key, value and what is allowed.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except Exception as error:  # for a faulty value of a known type PyYAML lets any error through
        raise BadInput(f"{path.name}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path.name}: holds {type(content).__name__}, expected a mapping of keys to values")
    if "name" in content:
        raise BadInput(f"{path.name}: name: unknown key; the model's name is the file's stem, {path.stem!r}")
    given = "task" in content
    task = content.pop("task", ModelConfig.task)
    if not isinstance(task, str) or task not in _TASKS:
        raise BadInput(f"{path.name}: task: must be one of {', '.join(_TASKS)}, got {_shortened(repr(task))}")
    kind = _TASKS[task]
    try:
        document = json.dumps({**content, "name": path.stem}, default=_plain)
        return kind.model_validate_json(document)
    except ValidationError as error:
        faults = [_describe(path, fault, kind) for fault in error.errors()]
        raise BadInput("\n".join([*_missing_task(path, content, kind, given), *faults])) from error
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path.name}: {error}") from error


def load_configs(folders: Iterable[Path], names: Iterable[str] | None = None) -> dict[str, Any]:
    """Read the models of several folders; a later folder's file replaces an earlier one's of the same name.

    Args:
        folders: folders of ``*.yaml`` files.
        names: the models that are wanted; all when None.

    Raises:
        BadInput: a folder is missing, a file is faulty or a wanted name is not there.
    """
    paths: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"configs folder {str(folder)!r} is not a folder")
        misnamed = sorted(path.name for path in folder.glob("*.yml"))
        if misnamed:
            raise BadInput(f"configs folder {str(folder)!r}: {misnamed[0]} must end in .yaml")
        paths |= {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    wanted = sorted(paths) if names is None else list(names)
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise BadInput(f"model {', '.join(map(repr, missing))} is not one of {', '.join(sorted(paths)) or '(none)'}")
    return {name: load_config(paths[name]) for name in wanted}


def _plain(value: object) -> str:
    if isinstance(value, date):  # YAML takes a date for one without quotes
        return str(value)
    raise TypeError(f"value {value!r} of type {type(value).__name__} is not a number, a text, a list or a mapping")


def _describe(path: Path, fault: Any, kind: type[CommonConfig]) -> str:
    """Turn one of pydantic's findings into ``file: key: what was wrong, got ...``."""
    where = ".".join(str(part) for part in fault["loc"] if part not in _INTENSITIES)
    if fault["type"] == "extra_forbidden":
        return f"{path.name}: {where}: unknown key; allowed beside it: {', '.join(_allowed(fault['loc'], kind))}"
    if fault["type"] == "union_tag_not_found" and isinstance(fault["input"], dict):
        return f"{path.name}: {where}.kind: is missing"
    if fault["type"] == "missing":
        return f"{path.name}: {where}: is missing"
    if fault["type"] == "json_invalid":
        return f"{path.name}: nested too deeply, or a text that is not Unicode"
    message = fault["msg"].removeprefix("Value error, ")
    if (
        not where and fault["type"] == "value_error"
    ):  # of keys that do not go together; it begins with the first of them
        return f"{path.name}: {message}"
    value = fault["input"]
    shown = "" if isinstance(value, dict) else f", got {_shortened(repr(value))}"
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        shown += " (a text to YAML; with a point, as in 1.0e-3, it is a number)"
    return f"{path.name}: {where}: {message}{shown}"


def _missing_task(path: Path, content: dict[str, Any], kind: type[CommonConfig], given: bool) -> list[str]:
    """Say that a file without a task has keys that only another task's model knows."""
    others = {} if given else {task: other for task, other in _TASKS.items() if other is not kind}
    for task, other in others.items():
        foreign = sorted((set(content) & set(other.model_fields)) - set(kind.model_fields))
        if foreign:
            return [f"{path.name}: task: is missing, which means {kind.task}; {foreign[0]} is a key of task: {task}"]
    return []


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _allowed(location: tuple[Any, ...], kind: type[CommonConfig]) -> list[str]:
    """Return the keys of the section that a place in a file is in."""
    section: type[BaseModel] = kind
    nested: dict[str, type[BaseModel]] = {
        "training": getattr(kind.model_fields["training"], "annotation", kind),
        "inference": InferenceConfig,
        **_INTENSITIES,
    }
    by_label: dict[str, type[BaseModel]] = {"cleaning": LabelCleaning, "codes": LabelCode}
    for part in location[:-1]:
        section = nested.get(str(part), by_label.get(str(location[0]), section))
    return sorted(set(section.model_fields) - {"name"} | ({"task"} if section is kind else set()))
