"""The training loop: cases in, weights out; it knows neither the host nor where results are published.

Determinism: every random choice of a patch comes from a generator seeded with the seed, the step and the patch's
place in the batch. So the same cases, configuration and seed give the same weights on the CPU, a run that is resumed
after a kill draws what the uninterrupted one would have drawn, and several processes draw together what one would.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from labelrounds import distributed
from labelrounds.cases import PatchSampler, PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, is_out_of_memory, place, sound_gradients
from labelrounds.errors import Conflict, LabelRoundsError, TooLarge
from labelrounds.inference import predict
from labelrounds.losses import supervised_loss
from labelrounds.metrics import dice_per_label
from labelrounds.networks import SegmentationNetwork
from labelrounds.networks.base import lowest_shape

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_GRADIENT_LIMIT = 12.0
_SHOWN_CASES = 3
_MOVING_SHARE = 0.3


class Diverged(LabelRoundsError):
    """No step of an epoch had a finite loss; where several processes train together, all of them find so."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: at most so many.
        iterations_per_epoch: steps of an epoch.
        learning_rate: peak of the schedule.
        patience: end after so many epochs without a new best moving average of the validation Dice; None: never.
    """

    epochs: int
    iterations_per_epoch: int
    learning_rate: float
    patience: int | None = None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.iterations_per_epoch

    def rate(self, step: int) -> float:
        """Return a step's learning rate: a warm-up of 2 %, then a polynomial fall (1 - t)^0.9, as nnU-Net's."""
        warm = max(1, self.steps // 50)
        return self.learning_rate * min(1.0, (step + 1) / warm) * (1 - step / self.steps) ** 0.9


@dataclass
class Epoch:
    """What is known after an epoch.

    Attributes:
        learning_rate: that of the epoch's last step.
        dice: each label's mean over the validation cases; None where the epoch was not validated.
        predictions: label maps ``(X, Y, Z)`` uint8 of the first validation cases, None for one that was left out; empty
            where it was not validated.
    """

    number: int
    total: int
    loss: float
    seconds: float
    learning_rate: float
    dice: dict[str, float] | None = None
    predictions: list[torch.Tensor | None] = field(default_factory=list)


@dataclass
class Outcome:
    """A finished or stopped training; ``network`` holds the best averaged weights, ``notes`` are ``Learner``'s."""

    network: SegmentationNetwork
    epochs: int
    stopped: bool
    history: list[Epoch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Standing:
    """How far a run has come, and with which batch; saved with its weights."""

    batch_size: int
    done: int = 0
    best_dice: float = -1.0
    moving: float = -1.0
    best_moving: float = -1.0
    best_moving_epoch: int = 0

    def follow(self, dice: float) -> None:
        """Take a validation's Dice into the moving average."""
        self.moving = dice if self.moving < 0 else self.moving + _MOVING_SHARE * (dice - self.moving)
        if self.moving > self.best_moving:
            self.best_moving, self.best_moving_epoch = self.moving, self.done


class Learner:
    """Trains a network on cases, validates it and can be resumed.

    Args:
        config: the model.
        network: the network to start from; it is changed.
        train: the cases to learn from.
        validation: the cases that choose the best epoch; when empty, the last epoch counts.
        device: where to compute.
        schedule: how long and how fast.
        state: file of the resumable state, written after each epoch.
        fingerprint: what the run is about; a state of another fingerprint is ignored.
        weights: how often each training case is drawn, relative to the others; all alike when None.

    Attributes:
        notes: what a user should know of how it ran, as a batch that was made smaller to fit into memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        network: SegmentationNetwork,
        train: list[PreparedCase],
        validation: list[PreparedCase],
        device: torch.device,
        schedule: Schedule,
        state: Path | None = None,
        fingerprint: str = "",
        weights: Sequence[float] | None = None,
    ) -> None:
        self._config, self._schedule = config, schedule
        self._train, self._validation, self._weights = train, validation, weights
        self._state, self._fingerprint = state, fingerprint
        self._standing = _Standing(config.training.batch_size)
        if self._standing.batch_size < distributed.processes():
            raise Conflict(
                f"{distributed.processes()} processes can't share training.batch_size {config.training.batch_size}:"
                f" start at most {config.training.batch_size}, or choose a larger batch_size"
            )
        self.notes: list[str] = []
        self._network = network
        self._set_up(device)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=schedule.learning_rate, weight_decay=config.training.weight_decay
        )
        self._resume()

    def run(self, report: Callable[[Epoch], None], stopped: Callable[[], bool]) -> Outcome:
        """Train to the end or until ``stopped`` says so, telling ``report`` about each epoch.

        Raises:
            Diverged: no step of an epoch had a finite loss.
            LabelRoundsError: it needs more memory than there is.
        """
        try:
            return self._run(report, stopped)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_large() from error

    def _run(self, report: Callable[[Epoch], None], stopped: Callable[[], bool]) -> Outcome:
        history: list[Epoch] = []
        ended = False
        while self._standing.done < self._schedule.epochs and not self._is_over():
            started = time.perf_counter()
            loss = self._train_epoch(stopped)
            if loss is None:
                ended = True
                break
            self._standing.done += 1
            rate = self._optimizer.param_groups[0]["lr"]
            epoch = Epoch(self._standing.done, self._schedule.epochs, loss, 0.0, rate)
            if self._validation and self._is_validated():
                epoch.dice, epoch.predictions = self._validate()
            epoch.seconds = time.perf_counter() - started
            history.append(replace(epoch, predictions=[]))  # label maps of large cases would pile up
            self._save()
            report(epoch)
        if ended and self._standing.done and self._validation:
            self._validate()
        chosen = self._best if self._standing.best_dice >= 0 else self._average
        self._network.load_state_dict(chosen)
        return Outcome(self._network, self._standing.done, ended, history, self.notes)

    def _set_up(self, device: torch.device) -> None:
        """Use a device, or the CPU where a GPU has not the memory for the network and the cases.

        Raises:
            LabelRoundsError: the machine has not the memory either, or several processes train together.
        """
        try:
            self._use(device)
            self._average, self._best = copy_weights(self._network), copy_weights(self._network)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if device.type == "cpu" or distributed.processes() > 1:
                raise self._too_large() from error
        self._note(f"{device} -> cpu: out of memory before the first step")
        self._set_up(_CPU)

    def _too_large(self) -> LabelRoundsError:
        return LabelRoundsError(
            f"training.batch_size {self._standing.batch_size} does not fit into the memory of {self._device}; choose a"
            " smaller batch_size, patch_size or network"
        )

    def _use(self, device: torch.device) -> None:
        """Place the network and the cases on a device."""
        self._device = device
        place(self._network, device, self._config.dimensions)
        self._sound = sound_gradients(self._network, lowest_shape(self._config)[0], device)
        self._sampler = PatchSampler(self._train, self._config, device, self._weights)
        self._supervised = distributed.synchronised(_Supervised(self._network), device)

    def _is_over(self) -> bool:
        """Tell whether the validation Dice has not risen for so long that it will not rise again."""
        patience = self._schedule.patience
        if patience is None or self._standing.best_moving < 0:
            return False
        return self._standing.done - self._standing.best_moving_epoch > patience

    def _train_epoch(self, stopped: Callable[[], bool]) -> float | None:
        """Train for an epoch and return its mean loss; None where it was stopped before its end."""
        # For a network that draws for itself, as dropout does.
        torch.manual_seed(self._config.training.seed * 100_003 + self._standing.done)
        self._network.train()
        losses: list[float] = []
        for iteration in range(self._schedule.iterations_per_epoch):
            if distributed.share_flag(stopped(), self._device):
                return None
            step = self._standing.done * self._schedule.iterations_per_epoch + iteration
            for group in self._optimizer.param_groups:
                group["lr"] = self._schedule.rate(step)
            loss = self._fitting_step(step)
            if math.isfinite(loss):
                losses.append(loss)
                self._follow(step)
        if not losses:
            raise Diverged(
                f"the training diverges: no step of epoch {self._standing.done + 1} had a finite loss; choose a"
                f" training.learning_rate below {self._schedule.learning_rate:g}"
            )
        return sum(losses) / len(losses)

    def _fitting_step(self, step: int) -> float:
        """Take one step; where the memory does not suffice, with a smaller batch, and in the end on the CPU.

        Only the gradients are computed again: a step of the optimiser that fails may have changed some weights already.
        """
        while True:
            try:
                loss = self._compute_gradients(step)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._make_smaller(error)
        if math.isfinite(loss):
            self._optimizer.step()
        return loss

    def _make_smaller(self, error: Exception) -> None:
        """Give up half of the batch, or the GPU.

        Raises:
            LabelRoundsError: nothing is left to give up, or several processes train together, which can't go on with
                different batches.
        """
        if distributed.processes() > 1 or (self._standing.batch_size == 1 and self._device.type == "cpu"):
            raise self._too_large() from error
        self._optimizer.zero_grad(set_to_none=True)
        before = self._device
        if self._standing.batch_size > 1:
            self._note(
                f"batch size {self._standing.batch_size} -> {self._standing.batch_size // 2}: out of memory on {before}"
            )
            self._standing.batch_size //= 2
        else:
            self._note(f"{before} -> cpu: out of memory with a batch of one")
            self._standing.batch_size = self._config.training.batch_size
            self._move_to_cpu()
        if before.type == "cuda":
            torch.cuda.empty_cache()

    def _move_to_cpu(self) -> None:
        self._use(_CPU)
        for state in self._optimizer.state.values():
            state.update({name: value.cpu() for name, value in state.items() if isinstance(value, torch.Tensor)})
        self._average = {name: value.cpu() for name, value in self._average.items()}
        self._best = {name: value.cpu() for name, value in self._best.items()}

    def _compute_gradients(self, step: int) -> float:
        """Leave a step's clipped gradients in the network and return its loss; nan where either is not finite."""
        images, labels = self._sampler.draw(self._generators(step))
        with autocast(self._device, self._sound):
            levels = self._supervised(images.contiguous())
        loss = supervised_loss(levels, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_LIMIT)
        value = distributed.mean(loss.detach()).item()
        return value if math.isfinite(value + norm.item()) else math.nan

    def _generators(self, step: int) -> list[torch.Generator]:
        """Return a source of randomness for each patch of this process's share of the step's batch."""
        first = (self._config.training.seed * 1_000_003 + step) * 4099
        places = range(distributed.rank(), self._standing.batch_size, distributed.processes())
        return [torch.Generator().manual_seed((first + place) % 2**63) for place in places]

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Let the averaged weights follow: over the last 2 % of the run, at least 100 steps, fewer at its start."""
        keep = min(1 - 1 / max(100, self._schedule.steps // 50), (1 + step) / (10 + step))
        for name, value in self._network.state_dict().items():
            if value.dtype.is_floating_point:
                self._average[name].lerp_(value, 1 - keep)
            else:
                self._average[name].copy_(value)

    def _is_validated(self) -> bool:
        """Validate about twenty times a run, and at its end."""
        done, epochs = self._standing.done, self._schedule.epochs
        return done == epochs or done % max(1, epochs // 20) == 0

    def _validate(self) -> tuple[dict[str, float], list[torch.Tensor | None]]:
        """Return each label's Dice and some predictions of the averaged weights; keep these if they are the best."""
        current = copy_weights(self._network)
        self._network.load_state_dict(self._average)
        scores, predictions = self._evaluate_share()
        dice = mean_dice(scores)
        mean = mean_of(dice)
        if mean > self._standing.best_dice:
            self._standing.best_dice = mean
            self._best = {name: value.clone() for name, value in self._average.items()}
        if not math.isnan(mean):
            self._standing.follow(mean)
        self._network.load_state_dict(current)
        return dice, predictions

    def _evaluate_share(self) -> tuple[list[dict[str, float]], list[torch.Tensor | None]]:
        """Segment the validation cases, each process its share, and bring the scores together.

        A case that no memory suffices for is left out, and noted.
        """
        share = range(distributed.rank(), len(self._validation), distributed.processes())
        found: dict[int, tuple[dict[str, float], torch.Tensor | None]] = {}
        left_out: list[str] = []
        for index in share:
            case = self._validation[index]
            try:
                prediction = _segment(self._network, case, self._config, self._device, self._note)
            except TooLarge as error:
                left_out.append(not_measured(error))
                continue
            score = dice_per_label(prediction.numpy(), case.label.numpy(), self._config.labels)
            found[index] = (score, prediction if index < _SHOWN_CASES else None)
        parts = distributed.gather((found, left_out))
        for note in (note for _, notes in parts for note in notes):
            self._note(note)
        everything = {index: one for part, _ in parts for index, one in part.items()}
        ordered = [everything[index] for index in sorted(everything)]
        shown = [everything[index][1] if index in everything else None for index in range(_SHOWN_CASES)]
        return [score for score, _ in ordered], shown[: len(self._validation)]

    def _note(self, text: str) -> None:
        """Keep something for the user, and log it, once."""
        if text not in self.notes:
            self.notes.append(text)
            logger.warning("%s", text)

    def _save(self) -> None:
        if self._state is None or distributed.rank() != 0:
            return
        tensors = {f"network/{k}": v for k, v in self._network.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self._average.items()}
        tensors |= {f"best/{k}": v for k, v in self._best.items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
        note = {"fingerprint": self._fingerprint, "standing": json.dumps(vars(self._standing))}
        self._state.parent.mkdir(parents=True, exist_ok=True)
        staging = self._state.with_suffix(".new")
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, staging, metadata=note)
            staging.replace(self._state)
        except (OSError, SafetensorError) as error:
            staging.unlink(missing_ok=True)
            logger.warning("Epoch %d is not saved, and can't be resumed: %s", self._standing.done, error)

    def _resume(self) -> None:
        found = distributed.share(self._read() if distributed.rank() == 0 else None)
        if found is None:
            return
        standing, parts = found
        try:
            for part in ("best", "average", "network"):  # the first two only to see that they fit
                self._network.load_state_dict(parts[part])
            self._load_optimizer(parts["optimizer"])
        except (LookupError, ValueError, RuntimeError) as error:
            logger.warning("Start over, as %s is damaged: %s", self._state, error)
            self._network.load_state_dict(self._average)
            self._optimizer.state.clear()
            return
        self._average = {name: value.to(self._device) for name, value in parts["average"].items()}
        self._best = {name: value.to(self._device) for name, value in parts["best"].items()}
        standing.batch_size = max(standing.batch_size, distributed.processes())  # of another number of processes
        if standing.batch_size != self._standing.batch_size:
            self._note(f"batch size {standing.batch_size} as before the restart, as memory did not suffice for more")
        self._standing = standing

    def _read(self) -> tuple[_Standing, dict[str, dict[str, torch.Tensor]]] | None:
        """Return what the state's file holds; None where there is none, of another run, or a damaged one."""
        if self._state is None or not self._state.is_file():
            return None
        try:
            note, parts = _read_state(self._state)
            if note.get("fingerprint") != self._fingerprint:
                return None
            return _Standing(**json.loads(note["standing"])), parts
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            logger.warning("Start over, as %s is damaged: %s", self._state, error)
            return None

    def _load_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            index, name = key.split("/", 1)
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


class _Supervised(nn.Module):
    """What training calls: the logits of all supervised levels."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the network's ``forward_levels``."""
        return self.network.forward_levels(images)


def evaluate(
    network: SegmentationNetwork, cases: list[PreparedCase], config: ModelConfig, device: torch.device
) -> list[dict[str, float]]:
    """Return the Dice per label of each case, whole cases on the network's grid; nan where a label is in neither."""
    scores = []
    for case in cases:
        prediction = _segment(network, case, config, device, logger.warning)
        scores.append(dice_per_label(prediction.numpy(), case.label.numpy(), config.labels))
    return scores


def _segment(
    network: SegmentationNetwork,
    case: PreparedCase,
    config: ModelConfig,
    device: torch.device,
    note: Callable[[str], None],
) -> torch.Tensor:
    """Return a case's prediction; one that the GPU has not the memory for is made on the CPU, and noted.

    Raises:
        TooLarge: the machine has not the memory either.
    """
    network.eval()
    try:
        return predict(network, case.image.to(device), config).cpu()
    except Exception as error:
        if not isinstance(error, TooLarge) and not is_out_of_memory(error):
            raise
        if device.type == "cpu":
            raise TooLarge(f"{case.image_id} can't be segmented in the memory of the machine: {error}") from error
    note(f"cases that {device} has not the memory for are segmented on the CPU")
    return _segment(place(copy.deepcopy(network), _CPU, config.dimensions), case, config, _CPU, note)


def mean_dice(scores: list[dict[str, float]]) -> dict[str, float]:
    """Return each label's mean over the cases in which it was present or predicted; nan where it never was."""
    means = {}
    for label in scores[0] if scores else ():
        values = [score[label] for score in scores if not math.isnan(score[label])]
        means[label] = sum(values) / len(values) if values else math.nan
    return means


def mean_of(dice: dict[str, float]) -> float:
    """Return the mean over the labels that have one; nan where none has."""
    values = [value for value in dice.values() if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def not_measured(error: TooLarge) -> str:
    """Return the note of a case that could not be segmented to measure a network on it."""
    return f"not measured: {error}"


def _read_state(file: Path) -> tuple[dict[str, str], dict[str, dict[str, torch.Tensor]]]:
    """Return what ``Learner._save`` noted, and its tensors by part and name."""
    parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "average": {}, "best": {}, "optimizer": {}}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            part, name = key.split("/", 1)
            parts[part][name] = opened.get_tensor(key)
        return opened.metadata() or {}, parts


def copy_weights(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    """Return a network's tensors as they are now, by name; later training does not change them."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
