"""Tiers C and D: a small U-Net on real hippocampi at 2 mm, retrained after every batch of labels.

Data: the Medical Segmentation Decathlon's Task04 (DOI 10.1038/s41467-022-30695-9), split as `split.json` says.
The pool of a published seed is the 160 training cases, and its models are tested on the 40 test cases, which
decide nothing. Seeds below `FIRST_PUBLISHED` are for development: a quarter of the training cases is held out to
test, and no test case is read.

Tier D's pool is as large; `disturbed.py` says what is in it.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.cases import PreparedCase, segmentation_tensors
from labelrounds.config import ModelConfig, NetworkConfig, load_configs
from labelrounds.costly_scores import PASSES, dropout_on, entropy_of
from labelrounds.devices import autocast
from labelrounds.folders import shipped_configs
from labelrounds.learning import Schedule
from labelrounds.metrics import dice_per_label, nsd
from labelrounds.networks import build_network
from labelrounds.networks.base import divisor_of
from labelrounds.reading import read_image, read_label
from labelrounds.scores import CaseScores
from labelrounds.store import LabelledCase
from labelrounds.strategies.base import CaseStrategy, Choice, Embedding, Pool
from labelrounds.training_steps import TrainingSteps
from labelrounds.transforms import Grid, restore
from labelrounds.voxel_scores import VoxelSums, extents
from tests.benchmarks.active_learning.disturbed import disturbed
from tests.real_images import DATA as REAL_IMAGES

DATA = REAL_IMAGES / "hippocampus"
FIRST_PUBLISHED = 1000
START, BATCH, ROUNDS = 4, 4, 5
LEARNING_RATE = 5e-3  # with less, a label is still missing after the first training of some development seeds
STEPS = {"first_steps": 300, "round_steps": 60, "all_labels_steps": 600}
_NEW_DRAWN = 2.0
_HELD_OUT = 40
_CPU = torch.device("cpu")


@cache
def configuration() -> ModelConfig:
    """Return the hippocampus U-Net as it ships, made small: 2 mm, three levels of 8 to 32 channels."""
    shipped: ModelConfig = load_configs([shipped_configs()], ["unet_hippocampus"])["unet_hippocampus"]
    return shipped.model_copy(
        update={
            "spacing_mm": (2.0, 2.0, 2.0),
            "patch_size": (16, 24, 16),
            "network": NetworkConfig.model_validate({"name": "unet", "channels": [8, 16, 32]}),
            "cleaning": {},
            "training": shipped.training.model_copy(update={"learning_rate": LEARNING_RATE}),
        }
    )


def split() -> dict[str, list[str]]:
    """Return the file names of the training and the test cases."""
    content = json.loads((DATA / "split.json").read_text())
    return {part: sorted(content[part]) for part in ("training", "test")}


@cache
def prepared(name: str) -> PreparedCase:
    """Return a case on the network's grid; each is read once a process."""
    stem = name.removesuffix(".nii.gz")
    item = LabelledCase(stem, DATA / "images" / name, DATA / "labels" / name, None, stem)
    tensors = segmentation_tensors(item, configuration())
    spacing = tensors["spacing_mm"].tolist()
    foreground = tuple(tensors[key] for key in sorted(tensors) if key.startswith("foreground"))
    return PreparedCase(
        stem, stem, tensors["image"], tensors["label"], (spacing[0], spacing[1], spacing[2]), foreground
    )


class Hippocampus:
    """The pool of one seed, of tier C or D.

    Args:
        seed: of the pool's make-up and of every training.
        shifted: whether it is tier D's.

    Attributes:
        images: ids of the pool.
        classes: the labels.
        cases: the pool by id, with the labels that a strategy does not see.
        tests: the test cases.
        last: the model that was trained last, whose true errors an oracle sees.
    """

    def __init__(self, seed: int, shifted: bool = False) -> None:
        parts = split()
        names, tests = parts["training"], parts["test"]
        if seed < FIRST_PUBLISHED:
            drawn = np.random.default_rng(seed).permutation(len(names))
            tests = sorted(names[index] for index in drawn[:_HELD_OUT])
            names = sorted(set(names) - set(tests))
        pool = [prepared(name) for name in names]
        if shifted:
            pool = list(disturbed(pool, len(configuration().labels), np.random.default_rng(seed)))
        self.seed = seed
        self.classes: Sequence[str] = configuration().labels
        self.cases = {case.image_id: case for case in pool}
        self.images: Sequence[str] = sorted(self.cases)
        self.tests = [prepared(name) for name in tests]
        self.last: Learnt | None = None
        self._first: dict[tuple[str, ...], Learnt] = {}

    def cold(self) -> Mapping[str, Embedding]:
        """Return nothing: the first labels are drawn by lot, and from then on there is a model's embedding."""
        return {}

    def present(self, image: str) -> Sequence[str]:
        """Return the labels that a case has."""
        values = set(self.cases[image].label.unique().tolist())
        return [name for value, name in enumerate(self.classes, start=1) if value in values]

    def train(self, labelled: Sequence[str], seed: int, before: Any) -> "Learnt":
        """Learn from some labels, from the last round's weights on where there are any.

        The first model of a seed is the same for all strategies, so it is trained once.
        """
        key = tuple(labelled)
        if before is None and key in self._first:
            self.last = self._first[key]
            return self.last
        fresh = before is None
        learnt = Learnt(
            self,
            list(labelled),
            learn(
                [self.cases[image] for image in labelled],
                STEPS["first_steps" if fresh else "round_steps"],
                seed,
                None if fresh else before.network,
                [1.0 if fresh or image in before.labelled else _NEW_DRAWN for image in labelled],
            ),
            0.0 if fresh else before.scoring_s,
        )
        if fresh:
            self._first[key] = learnt
        self.last = learnt
        return learnt

    def full(self) -> dict[str, Any]:
        """Return the figures of a model of all labels, trained as long as all rounds of a run together."""
        network = learn(list(self.cases.values()), STEPS["all_labels_steps"], self.seed, None, None)
        return Learnt(self, list(self.images), network).figures()


class Learnt:
    """A network that has learnt from some of a pool's labels.

    Attributes:
        labelled: what it has learnt from.
        network: that.
        errors: by id, 1 - the mean Dice of the cases that were scored.
        scoring_s: what the last scoring of the pool took.
    """

    def __init__(self, source: Hippocampus, labelled: list[str], network: Any, scored_before_s: float = 0.0) -> None:
        self._source, self.labelled, self.network = source, labelled, network.eval()
        self._scored_before_s = scored_before_s
        self.errors: dict[str, float] = {}
        self.scoring_s = 0.0
        self._figures: dict[str, Any] = {}
        self._scores: dict[str, CaseScores] = {}

    def scores(self, images: Sequence[str], costly: Sequence[str]) -> Mapping[str, CaseScores]:
        """Return what one pass says of each image, and of each that is not labelled the costly scores.

        They are computed when a strategy looks at them; chance does not.
        """
        return _Later(images, lambda: self._scored(images, costly))

    def _scored(self, images: Sequence[str], costly: Sequence[str]) -> dict[str, CaseScores]:
        started = time.perf_counter()
        for image in images:
            if image not in self._scores:
                case = self._source.cases[image]
                logits, embedding = forward(self.network, case.image)
                self._scores[image], label = scores_of(logits, embedding, case.spacing_mm)
                self.errors[image] = 1 - mean_dice(label, case)
        found = dict(self._scores)
        if "epistemic" in costly:
            for image in sorted(set(images) - set(self.labelled)):
                value = dropout_entropy(self.network, self._source.cases[image].image)
                found[image] = replace(found[image], values={**found[image].values, "epistemic": value})
        self.scoring_s = time.perf_counter() - started
        return found

    def true_errors(self) -> Mapping[str, float]:
        """Return 1 - the mean Dice of every case of the pool."""
        if not self.errors:
            self._scored(self._source.images, ())
        return self.errors

    def figures(self) -> Mapping[str, Any]:
        """Return mean and worst-decile Dice at 2 mm and, of the last round, the NSD on the images' own grid."""
        if not self._figures:
            labels = [forward(self.network, case.image)[0].argmax(0) for case in self._source.tests]
            dice = sorted(mean_dice(label, case) for label, case in zip(labels, self._source.tests, strict=True))
            worst = dice[: max(1, len(dice) // 10)]
            voxels = sum(int((self._source.cases[image].label > 0).sum()) for image in self.labelled)
            self._figures = {
                "dice": float(np.mean(dice)),
                "worst_decile": float(np.mean(worst)),
                "foreground_voxels": voxels,
                "scoring_s": self._scored_before_s,
            }
            if len(self.labelled) >= START + BATCH * ROUNDS:
                own = [native_nsd(label, case) for label, case in zip(labels, self._source.tests, strict=True)]
                self._figures["nsd_1mm"] = float(np.nanmean(own))
        return self._figures


class _Later(Mapping[str, CaseScores]):
    """Scores of images that are computed by the first look at one of them."""

    def __init__(self, images: Sequence[str], compute: Callable[[], dict[str, CaseScores]]) -> None:
        self._images = images
        self._compute: Callable[[], dict[str, CaseScores]] = cache(compute)

    def __getitem__(self, image: str) -> CaseScores:
        return self._compute()[image]

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


class OracleWorst(CaseStrategy):
    """Hands out the case that the model is worst at, which nobody can know.

    Args:
        source: whose last model's errors it sees.
    """

    description = "Oracle: the case with the largest true error"

    def __init__(self, source: Hippocampus) -> None:
        self._source = source

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the candidates by falling error."""
        model = self._source.last
        errors = {} if model is None else model.true_errors()
        ranked = sorted(pool.candidates, key=lambda image: (-errors.get(image, 0.0), image))
        return [Choice(image, "the model's error is largest", errors.get(image)) for image in ranked[:count]]


def learn(cases: list[PreparedCase], steps: int, seed: int, before: Any | None, weights: Sequence[float] | None) -> Any:
    """Return a network trained for some steps, from another's weights on at half the rate where one is given."""
    config = configuration()
    config = config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
    torch.manual_seed(seed)
    network = build_network(config) if before is None else copy.deepcopy(before)
    rate = config.training.learning_rate * (1.0 if before is None else 0.5)
    schedule = Schedule(1, steps, rate)
    taken = TrainingSteps(config, network, cases, _CPU, steps, weights, print)
    network.train()
    for step in range(steps):
        taken.take(step, schedule.rate(step))
    network.load_state_dict(taken.average)
    return network


def padded(image: torch.Tensor) -> torch.Tensor:
    """Return ``(C, X, Y, Z)`` with sides that the network can halve, its outermost voxels repeated."""
    sides = []
    for side, step in zip(reversed(image.shape[1:]), reversed(divisor_of(configuration())), strict=True):
        more = math.ceil(side / step) * step - side
        sides += [more // 2, more - more // 2]
    return functional.pad(image[None], sides, mode="replicate")[0]


@torch.inference_mode()
def forward(network: Any, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits ``(K, X, Y, Z)`` of an image and the bottleneck's average ``(D,)``, by one pass."""
    seen: list[torch.Tensor] = []
    hook = network.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with autocast(_CPU):
            logits = network(padded(image)[None])[0].float()
    finally:
        hook.remove()
    return logits[(slice(None), *_inside(image, logits))], seen[0][0].float().flatten(1).mean(1)


def _inside(image: torch.Tensor, logits: torch.Tensor) -> Iterator[slice]:
    """Yield where along each axis the image lies in what it was padded to."""
    for side, whole in zip(image.shape[-3:], logits.shape[-3:], strict=True):
        first = (whole - side) // 2
        yield slice(first, first + side)


def scores_of(
    logits: torch.Tensor, embedding: torch.Tensor, spacing_mm: Sequence[float]
) -> tuple[CaseScores, torch.Tensor]:
    """Return what a server keeps of one pass, and the label map ``(X, Y, Z)`` uint8."""
    labels = configuration().labels
    label = torch.empty(logits.shape[1:], dtype=torch.uint8)
    sums = VoxelSums(len(labels) + 1, label.numel(), _CPU)
    sums.add(logits, label)
    voxels = torch.bincount(label.flatten().long(), minlength=len(labels) + 1).tolist()
    by_label = {**sums.by_label(labels), **extents(label.numpy(), labels, math.prod(spacing_mm) / 1000)}
    return CaseScores(sums.values(voxels), by_label, embedding.numpy()), label


def dropout_entropy(network: Any, image: torch.Tensor) -> float:
    """Return MONAI Label's epistemic score of an image: the mean entropy of the mean of five passes with dropout."""
    with dropout_on(network), torch.inference_mode(), autocast(_CPU):
        logits = network(padded(image)[None].expand(PASSES, -1, -1, -1, -1)).float()
    chances = logits[(slice(None), slice(None), *_inside(image, logits))].softmax(dim=1)
    return float(entropy_of(chances.mean(dim=0)).mean())


def mean_dice(label: torch.Tensor, case: PreparedCase) -> float:
    """Return the mean Dice of the labels that are in the truth or the prediction ``(X, Y, Z)``."""
    return float(np.nanmean(list(dice_per_label(label.numpy(), case.label.numpy(), configuration().labels).values())))


@cache
def _native(image_id: str) -> tuple[Grid, np.ndarray, tuple[float, ...]]:
    image = read_image(DATA / "images" / f"{image_id}.nii.gz")
    truth = read_label(DATA / "labels" / f"{image_id}.nii.gz").array[0]
    return Grid.of(image, configuration()), truth, tuple(image.spacing_mm)


def native_nsd(label: torch.Tensor, case: PreparedCase) -> float:
    """Return the mean NSD at 1 mm of a 2 mm label map brought back to the image's own grid."""
    grid, truth, spacing_mm = _native(case.image_id)
    found = restore(label, grid, "linear")
    values = range(1, len(configuration().labels) + 1)
    return float(np.nanmean([nsd(found == value, truth == value, spacing_mm, 1.0) for value in values]))
