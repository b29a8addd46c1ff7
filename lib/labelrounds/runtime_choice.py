"""Which runtime answers a model's requests fastest on this machine, and labels images as float32 does.

Measured when a version is published, and in a server (`tuning.py`) where nothing is known for its machine. All runtimes
that the device has are timed in turn on the same windows, so that a busy moment slows all of them, and their label maps
of the same images, by the model's own windows and blend, are compared with those of float32. What is found is kept
beside the version (`labelrounds.runtime_measurement`).
"""

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any, TypeVar

import torch

from labelrounds import runtime_measurement
from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, complete, is_out_of_memory
from labelrounds.errors import Cancelled, Conflict, Overloaded, TooLarge
from labelrounds.inference import predict
from labelrounds.runtime_measurement import Figures, Measurement, settings_of
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

Made = TypeVar("Made")
Task = Callable[[Stopped], Made]
Do = Callable[[Task[Any]], Any]
"""Runs a task, now or when the device is free; the task is given what tells it to give up."""


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
        for name in runtime_measurement.available(self._subject.config, self._subject.device):
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
