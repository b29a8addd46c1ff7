"""Which runtime answers a model's requests fastest on this machine, and labels images as float32 does.

Measured when a version is published, and in a server (`tuning.py`) where nothing is known for its machine. All runtimes
that the device has are timed in turn on the same windows, so that a busy moment slows all of them, and their label maps
of the same images, by the model's own windows and blend, are compared with those of float32.

What is found is kept beside the version in ``runtime.json``, an entry a machine: another machine, another PyTorch or
another number of threads measures anew and leaves the entry as it is. A damaged file counts as none.
"""

import logging
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, complete, is_out_of_memory
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError, Overloaded, TooLarge
from labelrounds.inference import predict
from labelrounds.json_files import read_json, write_json
from labelrounds.runtimes import REFERENCE, Runtime, Subject, default_runtime, runtimes
from labelrounds.sliding import Stopped, Windows, gather

logger = logging.getLogger(__name__)

LEAST_DICE = 0.995
# What is not quicker than the default by more than chance is no reason for another.
LEAST_GAIN = 1.05
# Of fewer voxels, those that differ by rounding would decide.
_FEWEST_VOXELS = 200
_MOST_CASES, _MOST_WINDOWS = 16, 64
# Of voxels beyond a patch; of a 2-D model, which has one slice in a patch, so many slices.
_LEAST_MARGIN = 4
_MOST_ROUNDS = 7
# For the images, then for the rounds; building comes on top. A slow network takes one image and one round, whatever.
_BUDGET_S = 10.0
_FILE = "runtime.json"

Made = TypeVar("Made")
Task = Callable[[Stopped], Made]
Do = Callable[[Task[Any]], Any]
"""Runs a task, now or when the device is free; the task is given what tells it to give up."""


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


def excerpt(image: torch.Tensor, label: torch.Tensor, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of an image ``(C, X, Y, Z)``, and of its label map, as much round what is labelled as takes a few windows.

    Args:
        image: prepared for the model.
        label: ``(X, Y, Z)``, its label map; the middle of the image is taken where it is empty.
        config: the model.
    """
    block = []
    for axis, (side, patch) in enumerate(zip(label.shape, config.patch_size, strict=True)):
        size = min(side, patch + max(patch // 2, _LEAST_MARGIN))
        start = min(max(0, round(_middle(label, axis) - size / 2)), side - size)
        block.append(slice(start, start + size))
    x, y, z = block
    return image[:, x, y, z].clone(), label[x, y, z]


def shows_enough(label: torch.Tensor) -> bool:
    """Tell whether there is a label of which a Dice says something."""
    return bool((torch.bincount(label.flatten().long())[1:] >= _FEWEST_VOXELS).any())


def _middle(label: torch.Tensor, axis: int) -> float:
    """Return the mean place along an axis of what is labelled, the middle of the image where nothing is."""
    planes = (label > 0).sum(dim=[other for other in range(3) if other != axis]).double()
    total = float(planes.sum())
    places = torch.arange(len(planes), device=planes.device, dtype=planes.dtype)
    return float(planes @ places) / total if total else len(planes) / 2


def excerpts(cases: Sequence[PreparedCase], config: ModelConfig) -> list[torch.Tensor]:
    """Return the excerpts of a few cases' images."""
    return [excerpt(case.image, case.label, config)[0] for case in cases[:_MOST_CASES]]


def calibration_windows(cases: Sequence[PreparedCase], config: ModelConfig) -> list[torch.Tensor]:
    """Return windows ``(1, C, *patch)`` of training cases, for runtimes that have to know what values occur."""
    found: list[torch.Tensor] = []
    for image in excerpts(cases, config):
        found += _all_windows(image, config).split(1)
    return found[:_MOST_WINDOWS]


def _all_windows(image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    windows = Windows.over(image.shape[1:], config.patch_size, config.inference.overlap)
    return gather(image, windows, [corner for batch in windows.batches() for corner in batch])


def at_once(task: Task[Made]) -> Made:
    """Run a task here and now, to its end."""
    return task(lambda: False)


def measure(
    subject: Subject, images: Sequence[torch.Tensor], do: Do = at_once
) -> tuple[Measurement, Mapping[str, Runtime]]:
    """Measure all runtimes that a device has, and choose one.

    Args:
        subject: what is run.
        images: prepared images ``(C, X, Y, Z)`` to compare label maps of; see `excerpt`.
        do: runs whatever computes on the device.

    Returns:
        what was found, and the runtimes, built, by name.

    Raises:
        Conflict: the images show too little of any label.
        Cancelled, Overloaded: ``do`` said so.
    """
    contest = _Contest(subject, do)
    contest.build()
    dice = contest.compare(images)
    milliseconds = contest.time(images[0])
    figures = {
        name: Figures(
            milliseconds=round(value, 3),
            speedup=round(milliseconds[REFERENCE] / value, 2),
            dice=dice[name],
        )
        for name, value in milliseconds.items()
    }
    measurement = Measurement(
        chosen=choose(figures, default_runtime(subject.device)),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings_of(subject.config),
        runtimes=figures,
        failed=contest.failed,
    )
    return measurement, contest.running


def choose(figures: Mapping[str, Figures], default: str) -> str:
    """Return the quickest runtime that labels as float32 does; the default, if it does, where none is much quicker.

    Another than the default and the reference is only taken where every label was compared.
    """
    trusted = {default, REFERENCE}
    alike = {
        name: found
        for name, found in figures.items()
        if found.lowest_dice >= LEAST_DICE and (name in trusted or None not in found.dice.values())
    }
    quickest = min(alike, key=lambda name: alike[name].milliseconds)
    if default in alike and alike[default].milliseconds < LEAST_GAIN * alike[quickest].milliseconds:
        return default
    return quickest


class _Contest:
    """The runtimes of a device against each other; one that fails is out."""

    def __init__(self, subject: Subject, do: Do) -> None:
        self._subject, self._do = subject, do
        self.running: dict[str, Runtime] = {}
        self.failed: dict[str, str] = {}

    def build(self) -> None:
        """Build the runtimes, each from when nobody computes, but not in the device's thread, as it takes long."""
        for name in available(self._subject.config, self._subject.device):
            self._do(lambda stopped: None)
            try:
                self.running[name] = runtimes.get(name)(self._subject)
            except Exception as error:
                self._drop(name, error)

    def compare(self, images: Sequence[torch.Tensor]) -> dict[str, dict[str, float | None]]:
        """Return each runtime's Dice a label with float32's label maps of the images, their voxels taken together.

        Raises:
            Conflict: the images show too little of any label.
        """
        labels = self._subject.config.labels
        counts = {name: torch.zeros(3, len(labels) + 1, dtype=torch.int64) for name in self.running}
        until = time.perf_counter() + _BUDGET_S
        for image in images:
            reference = self._label_map(image, self.running[REFERENCE])
            for name in list(self.running):
                found = reference if name == REFERENCE else self._attempt(name, partial(self._label_map, image))
                if found is not None:
                    counts[name] += _counts(found, reference, len(labels))
            if time.perf_counter() > until:
                break
        dice = {name: _dice(counts[name], labels) for name in self.running}
        if all(value is None for value in dice[REFERENCE].values()):
            raise Conflict(f"no label has {_FEWEST_VOXELS} voxels in the images: nothing to compare runtimes by")
        return dice

    def time(self, image: torch.Tensor) -> dict[str, float]:
        """Return the milliseconds that a window of the model's patch takes each runtime, in a batch: the median."""
        config = self._subject.config
        windows = Windows.over(image.shape[1:], config.patch_size, config.inference.overlap)
        batch = gather(image, windows, windows.batches()[0]).to(self._subject.device)
        seconds: dict[str, list[float]] = {name: [] for name in self.running}
        until = time.perf_counter() + _BUDGET_S
        for _ in range(_MOST_ROUNDS):
            for name in list(self.running):
                taken = self._attempt(name, lambda run: self._do(lambda stopped: _seconds(run, batch)))
                if taken is not None:
                    seconds[name].append(taken)
            if time.perf_counter() > until:
                break
        return {name: 1e3 * statistics.median(seconds[name]) / len(batch) for name in self.running}

    def _label_map(self, image: torch.Tensor, run: Runtime) -> torch.Tensor:
        config, device = self._subject.config, self._subject.device
        found: torch.Tensor = self._do(lambda stopped: predict(run, image.to(device), config, stopped).cpu())
        return found

    def _attempt(self, name: str, task: Callable[[Runtime], Made]) -> Made | None:
        """Return what a task makes of a runtime; None where it fails, which puts the runtime out."""
        try:
            return task(self.running[name])
        except Exception as error:
            self._drop(name, error)
            return None

    def _drop(self, name: str, error: Exception) -> None:
        """Put a runtime out that failed, unless that says nothing of it, or there is nothing without it."""
        passing = isinstance(error, Cancelled | Overloaded | TooLarge) or is_out_of_memory(error)
        if passing or name == REFERENCE:
            raise error
        self.running.pop(name, None)
        self.failed[name] = " ".join(str(error).split())[:500] or type(error).__name__
        logger.warning("%s does not run by %s: %s", self._subject.config.name, name, self.failed[name])


@torch.inference_mode()
def _seconds(run: Runtime, batch: torch.Tensor) -> float:
    since = time.perf_counter()
    with autocast(batch.device):  # as `predict` calls it
        run(batch)
    complete(batch.device)
    return time.perf_counter() - since


def _counts(one: torch.Tensor, other: torch.Tensor, labels: int) -> torch.Tensor:
    """Return the voxels of each class in both label maps, in the one and in the other, ``(3, labels + 1)``."""
    parts = (one[one == other], one, other)
    return torch.stack([torch.bincount(voxels.flatten().long(), minlength=labels + 1) for voxels in parts])


def _dice(counts: torch.Tensor, labels: Sequence[str]) -> dict[str, float | None]:
    """Return the Dice of each label; None where neither label map has enough of it to say."""
    found: dict[str, float | None] = {}
    for label, both, one, other in zip(labels, *counts[:, 1:].tolist(), strict=True):
        found[label] = round(2 * both / (one + other), 6) if max(one, other) >= _FEWEST_VOXELS else None
    return found
