"""The training loop: cases in, weights out; it knows neither the host nor where results are published.

Determinism: every random choice of an epoch comes from a generator seeded with the seed and the epoch, so the
same cases, configuration and seed give the same weights on the CPU, and a run that is resumed after a kill
draws what the uninterrupted one would have drawn.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from labelrounds.cases import PatchSampler, PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, place, sound_gradients
from labelrounds.errors import LabelRoundsError
from labelrounds.inference import predict
from labelrounds.metrics import dice_per_label
from labelrounds.networks import SegmentationNetwork
from labelrounds.networks.base import lowest_shape
from labelrounds.transforms import vary_intensity

logger = logging.getLogger(__name__)

_LARGEST_AVERAGING = 0.99
_GRADIENT_LIMIT = 12.0


@dataclass
class Epoch:
    """What is known after an epoch; ``dice`` is None where the epoch was not validated."""

    number: int
    total: int
    loss: float
    seconds: float
    dice: dict[str, float] | None = None


@dataclass
class Outcome:
    """A finished or stopped training; ``network`` holds the best averaged weights."""

    network: SegmentationNetwork
    epochs: int
    stopped: bool
    history: list[Epoch] = field(default_factory=list)


class Learner:
    """Trains a network on cases, validates it and can be resumed.

    Args:
        config: the model.
        network: the network to start from; it is changed.
        train: the cases to learn from.
        validation: the cases that choose the best epoch; when empty, the last epoch counts.
        device: where to compute.
        epochs: how many epochs to train.
        learning_rate: peak of the schedule.
        state: file of the resumable state, written after each epoch.
        fingerprint: what the run is about; a state of another fingerprint is ignored.
    """

    def __init__(
        self,
        config: ModelConfig,
        network: SegmentationNetwork,
        train: list[PreparedCase],
        validation: list[PreparedCase],
        device: torch.device,
        epochs: int,
        learning_rate: float,
        state: Path | None = None,
        fingerprint: str = "",
    ) -> None:
        self._config, self._device, self._epochs = config, device, epochs
        self._validation = validation
        self._state, self._fingerprint = state, fingerprint
        self._network = place(network, device, config.dimensions)
        self._sound = sound_gradients(network, lowest_shape(config)[0], device)
        self._sampler = PatchSampler(train, config, device)
        self._loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=learning_rate, weight_decay=config.training.weight_decay
        )
        self._learning_rate = learning_rate
        self._average = _copy(network)
        self._best = _copy(network)
        self._best_dice = -1.0
        self._done = 0
        self._resume()

    def run(self, report: Callable[[Epoch], None], stopped: Callable[[], bool]) -> Outcome:
        """Train to the end or until ``stopped`` says so, telling ``report`` about each epoch.

        Raises:
            LabelRoundsError: the training diverges.
        """
        history: list[Epoch] = []
        while self._done < self._epochs and not stopped():
            started = time.perf_counter()
            loss = self._train_epoch(stopped)
            if stopped():
                break
            self._done += 1
            epoch = Epoch(self._done, self._epochs, loss, 0.0)
            if self._validation and self._is_validated():
                epoch.dice = self._validate()
            epoch.seconds = time.perf_counter() - started
            history.append(epoch)
            self._save()
            report(epoch)
        if stopped() and self._done and self._validation:
            self._validate()
        chosen = self._best if self._best_dice >= 0 else self._average
        self._network.load_state_dict(chosen)
        return Outcome(self._network, self._done, self._done < self._epochs, history)

    def evaluate(self, cases: list[PreparedCase]) -> list[dict[str, float]]:
        """Return the Dice per label of the network as it is, for each case, on the network's grid."""
        return evaluate(self._network, cases, self._config, self._device)

    def _train_epoch(self, stopped: Callable[[], bool]) -> float:
        seed = self._config.training.seed * 100_003 + self._done
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # for a network that draws for itself, as dropout does
        iterations = self._config.training.iterations_per_epoch
        self._network.train()
        losses: list[float] = []
        for iteration in range(iterations):
            if stopped():
                return math.nan
            step = self._done * iterations + iteration
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate(step, self._epochs * iterations)
            loss = self._train_step(generator)
            if math.isfinite(loss):
                losses.append(loss)
                self._follow(step)
        if not losses:
            raise LabelRoundsError(
                f"the training diverges: no step of epoch {self._done + 1} had a finite loss; choose a"
                f" training.learning_rate below {self._config.training.learning_rate:g}"
            )
        return sum(losses) / len(losses)

    def _train_step(self, generator: torch.Generator) -> float:
        """Take one step and return its loss; a step whose loss or gradient is not finite is not taken: nan."""
        images, labels = self._sampler.draw(generator)
        images = vary_intensity(images, generator).contiguous()
        with autocast(self._device, self._sound):
            logits = self._network(images)
        loss = self._loss(logits.float(), labels[:, None])
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_LIMIT)
        if not math.isfinite(loss.item() + norm.item()):
            return math.nan
        self._optimizer.step()
        return loss.item()

    def _rate(self, step: int, steps: int) -> float:
        """Warm up over the first 2 %, then fall as a polynomial (1 - t)^0.9, as nnU-Net's does."""
        warm = max(1, steps // 50)
        return self._learning_rate * min(1.0, (step + 1) / warm) * (1 - step / steps) ** 0.9

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Let the averaged weights follow; early on they follow faster, so that a short run profits too."""
        keep = min(_LARGEST_AVERAGING, (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.dtype.is_floating_point:
                self._average[name].lerp_(value, 1 - keep)
            else:
                self._average[name].copy_(value)

    def _is_validated(self) -> bool:
        """Validate about twenty times a run, and at its end."""
        return self._done == self._epochs or self._done % max(1, self._epochs // 20) == 0

    def _validate(self) -> dict[str, float]:
        current = _copy(self._network)
        self._network.load_state_dict(self._average)
        dice = mean_dice(self.evaluate(self._validation))
        if mean_of(dice) > self._best_dice:
            self._best_dice = mean_of(dice)
            self._best = {name: value.clone() for name, value in self._average.items()}
        self._network.load_state_dict(current)
        return dice

    def _save(self) -> None:
        if self._state is None:
            return
        tensors = {f"network/{k}": v for k, v in self._network.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self._average.items()}
        tensors |= {f"best/{k}": v for k, v in self._best.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
        note = {"fingerprint": self._fingerprint, "done": str(self._done), "best_dice": repr(self._best_dice)}
        self._state.parent.mkdir(parents=True, exist_ok=True)
        staging = self._state.with_suffix(".new")
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, staging, metadata=note)
            staging.replace(self._state)
        except (OSError, SafetensorError) as error:
            staging.unlink(missing_ok=True)
            logger.warning("Epoch %d is not saved, and can't be resumed: %s", self._done, error)

    def _resume(self) -> None:
        if self._state is None or not self._state.is_file():
            return
        try:
            note, parts = _read_state(self._state)
            if note.get("fingerprint") != self._fingerprint:
                return
            done, best_dice = int(note["done"]), float(note["best_dice"])
            for part in ("best", "average", "network"):  # the first two only to see that they fit
                self._network.load_state_dict(parts[part])
            self._load_optimizer(parts["optimizer"])
        except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
            logger.warning("Start over, as %s is damaged: %s", self._state, error)
            self._network.load_state_dict(self._average)
            self._optimizer.state.clear()
            return
        self._average = {name: value.to(self._device) for name, value in parts["average"].items()}
        self._best = {name: value.to(self._device) for name, value in parts["best"].items()}
        self._done, self._best_dice = done, best_dice

    def _load_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            index, name = key.split("/", 1)
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


def evaluate(
    network: SegmentationNetwork, cases: list[PreparedCase], config: ModelConfig, device: torch.device
) -> list[dict[str, float]]:
    """Return the Dice per label of each case, whole cases on the network's grid; nan where a label is in neither."""
    network.eval()
    scores = []
    for case in cases:
        prediction = predict(network, case.image.to(device), config).cpu().numpy()
        scores.append(dice_per_label(prediction, case.label.numpy(), config.labels))
    return scores


def mean_dice(scores: list[dict[str, float]]) -> dict[str, float]:
    """Return each label's mean over the cases in which it was present or predicted; 0 where it never was."""
    means = {}
    for label in scores[0] if scores else ():
        values = [score[label] for score in scores if not math.isnan(score[label])]
        means[label] = sum(values) / len(values) if values else 0.0
    return means


def mean_of(dice: dict[str, float]) -> float:
    """Return the mean over the labels."""
    return sum(dice.values()) / len(dice) if dice else 0.0


def _read_state(file: Path) -> tuple[dict[str, str], dict[str, dict[str, torch.Tensor]]]:
    """Return what ``Learner._save`` noted, and its tensors by part and name."""
    parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "average": {}, "best": {}, "optimizer": {}}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            part, name = key.split("/", 1)
            parts[part][name] = opened.get_tensor(key)
        return opened.metadata() or {}, parts


def _copy(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
