"""The training loop: cases in, weights out; it knows neither the host nor where results are published.

It goes through the epochs, validates, keeps the best and knows when to end; the steps of an epoch are
``training_steps.py``'s. The same cases, configuration and seed give the same weights on the CPU, also of a run that is
resumed after a kill.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labelrounds import distributed
from labelrounds.cases import PreparedCase
from labelrounds.devices import is_out_of_memory
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.evaluation import mean_dice, mean_of, not_measured
from labelrounds.learning_state import LearningState, Standing, read_state, save_state
from labelrounds.sections import CommonConfig
from labelrounds.tasks import task_of
from labelrounds.training_steps import TrainingSteps, copy_weights

logger = logging.getLogger(__name__)

_SHOWN_CASES = 3


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
        dice: each label's mean of the task's measure over the validation cases; None where it was not validated.
        predictions: of the first validation cases, label maps ``(X, Y, Z)`` uint8 or probabilities ``(K,)``, None for
            one that was left out; empty where it was not validated.
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
    """A finished or stopped training; ``network`` holds the best averaged weights, ``notes`` are ``Learner``'s.

    ``classifier`` is for a classification model which was ``chosen``, the ``reason``, and the ``scores`` of each.
    """

    network: nn.Module
    epochs: int
    stopped: bool
    history: list[Epoch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classifier: dict[str, Any] = field(default_factory=dict)

    @property
    def is_fitted(self) -> bool:
        """Whether the last layer was fitted to embeddings, and no network trained."""
        return str(self.classifier.get("chosen", "network")) != "network"


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
        config: CommonConfig,
        network: nn.Module,
        train: list[PreparedCase],
        validation: list[PreparedCase],
        device: torch.device,
        schedule: Schedule,
        state: Path | None = None,
        fingerprint: str = "",
        weights: Sequence[float] | None = None,
    ) -> None:
        self._config, self._schedule = config, schedule
        self._network, self._validation = network, validation
        self._state, self._fingerprint = state, fingerprint
        self._standing = Standing()
        self.notes: list[str] = []
        self._steps = TrainingSteps(config, network, train, device, schedule.steps, weights, self._note)
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
            raise self._steps.too_large() from error

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
            rate = self._schedule.rate(self._standing.done * self._schedule.iterations_per_epoch - 1)
            epoch = Epoch(self._standing.done, self._schedule.epochs, loss, 0.0, rate)
            if self._validation and self._is_validated():
                epoch.dice, epoch.predictions = self._validate()
            epoch.seconds = time.perf_counter() - started
            history.append(replace(epoch, predictions=[]))  # label maps of large cases would pile up
            self._save()
            report(epoch)
        if ended and self._standing.done and self._validation:
            self._validate()
        chosen = self._steps.best if self._standing.best_dice >= 0 else self._steps.average
        self._network.load_state_dict(chosen)
        return Outcome(self._network, self._standing.done, ended, history, self.notes)

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
            if distributed.share_flag(stopped(), self._steps.device):
                return None
            step = self._standing.done * self._schedule.iterations_per_epoch + iteration
            loss = self._steps.take(step, self._schedule.rate(step))
            if math.isfinite(loss):
                losses.append(loss)
        if not losses:
            raise Diverged(
                f"the training diverges: no step of epoch {self._standing.done + 1} had a finite loss; choose a"
                f" training.learning_rate below {self._schedule.learning_rate:g}"
            )
        return sum(losses) / len(losses)

    def _is_validated(self) -> bool:
        """Validate about twenty times a run, and at its end."""
        done, epochs = self._standing.done, self._schedule.epochs
        return done == epochs or done % max(1, epochs // 20) == 0

    def _validate(self) -> tuple[dict[str, float], list[torch.Tensor | None]]:
        """Return each label's Dice and some predictions of the averaged weights; keep these if they are the best."""
        current = copy_weights(self._network)
        self._network.load_state_dict(self._steps.average)
        scores, predictions = self._evaluate_share()
        dice = mean_dice(scores)
        mean = mean_of(dice)
        if mean > self._standing.best_dice:
            self._standing.best_dice = mean
            self._steps.keep_average_as_best()
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
        cases = [self._validation[index] for index in share]
        results = task_of(self._config).measured(self._network, cases, self._config, self._steps.device, self._note)
        for index, result in zip(share, results, strict=True):
            if isinstance(result, TooLarge):
                left_out.append(not_measured(result))
            else:
                found[index] = (result[0], result[1] if index < _SHOWN_CASES else None)
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
        state = LearningState(
            standing=self._standing,
            batch_size=self._steps.batch_size,
            network=self._network.state_dict(),
            average=self._steps.average,
            best=self._steps.best,
            optimizer=self._steps.optimizer_tensors(),
        )
        save_state(self._state, self._fingerprint, state)

    def _resume(self) -> None:
        found = None
        if self._state is not None and distributed.rank() == 0:
            found = read_state(self._state, self._fingerprint)
        found = distributed.share(found)
        if found is None:
            return
        try:
            self._steps.restore(found)
        except ValueError as error:
            logger.warning("Start over, as %s is damaged: %s", self._state, error)
            return
        self._standing = found.standing
