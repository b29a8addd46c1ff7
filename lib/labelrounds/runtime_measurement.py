"""What was measured of a version's runtimes, kept beside it in ``runtime.json``, an entry a machine.

`labelrounds.runtime_choice` measures. Another machine, another PyTorch or another number of threads measures anew and
leaves the entry as it is. A damaged file counts as none.
"""

import logging
import platform
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from labelrounds.config import ModelConfig
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.json_files import read_json, write_json
from labelrounds.runtimes import runtimes

logger = logging.getLogger(__name__)

_FILE = "runtime.json"


class Figures(BaseModel):
    """What was measured of a runtime.

    Attributes:
        milliseconds: a window takes, the median.
        speedup: how many times as fast as float32.
        dice: of each label with float32's label map; None where too little of it was found to say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    milliseconds: float
    speedup: float
    dice: dict[str, float | None]

    @model_validator(mode="after")
    def _compared(self) -> "Figures":
        if all(value is None for value in self.dice.values()):
            raise ValueError("no label was compared")
        return self

    @property
    def lowest_dice(self) -> float:
        """The Dice of the label that differs most."""
        return min(value for value in self.dice.values() if value is not None)


class Measurement(BaseModel):
    """What was measured of a version on a machine.

    Attributes:
        chosen: the runtime that answers.
        measured: when, ISO 8601.
        settings: of the model, that it holds for.
        runtimes: what was measured, by name.
        failed: why others were not, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    chosen: str
    measured: str
    settings: dict[str, Any]
    runtimes: dict[str, Figures]
    failed: dict[str, str]

    @model_validator(mode="after")
    def _measured(self) -> "Measurement":
        if self.chosen not in self.runtimes:
            raise ValueError(f"chosen {self.chosen!r} was not measured")
        return self

    def holds(self, config: ModelConfig, device: torch.device) -> bool:
        """Tell whether it is of the model's settings, and of the very runtimes that the device has by now."""
        known = self.runtimes.keys() | self.failed.keys()
        return self.settings == settings_of(config) and known == set(available(config, device))

    def summary(self, runtime: str) -> dict[str, float]:
        """Return how many times as fast as float32 a runtime is, and how alike; nothing where it was not measured."""
        if runtime not in self.runtimes:
            return {}
        found = self.runtimes[runtime]
        return {"speedup": found.speedup, "lowest_dice": round(found.lowest_dice, 4)}

    def __str__(self) -> str:
        found = self.runtimes[self.chosen]
        return f"{self.chosen}, {found.speedup:g} times as fast as float32, lowest Dice to it {found.lowest_dice:.4f}"


_ENTRIES = TypeAdapter(dict[str, Measurement])


def available(config: ModelConfig, device: torch.device) -> list[str]:
    """Return the names of the runtimes that a device has for a model."""
    able = (name for name in runtimes.names() if runtimes.get(name).obstacle(device) is None)
    return [name for name in able if runtimes.get(name).any_size or config.inference.blend != "whole"]


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Return what of a model decides, beside its weights, which runtime is quickest and how alike its labels are."""
    return {"patch_size": list(config.patch_size), **config.inference.model_dump(include={"blend", "overlap"})}


def machine(device: torch.device) -> str:
    """Return what a measurement holds for: the GPU's name or the processor's and its threads, and PyTorch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def read_measurement(folder: Path, config: ModelConfig, device: torch.device) -> Measurement | None:
    """Return what is known of a version's runtimes on this machine; None where nothing is that still holds."""
    found = _entries(folder).get(machine(device))
    return found if found is not None and found.holds(config, device) else None


def write_measurement(folder: Path, device: torch.device, measurement: Measurement) -> None:
    """Keep what was measured on this machine, beside what others have; what can't be written is measured again."""
    entries = {**_entries(folder), machine(device): measurement}
    try:
        write_json(folder / _FILE, _ENTRIES.dump_python(entries))
    except (OSError, LabelRoundsError) as error:
        logger.warning("The measurement of the runtimes is not kept: %s", error)


def _entries(folder: Path) -> dict[str, Measurement]:
    try:
        return _ENTRIES.validate_python(read_json(folder / _FILE) or {})
    except (BadInput, ValidationError, OSError) as error:
        logger.warning("The runtimes are measured again, as %s can't be used: %s", folder / _FILE, error)
        return {}
