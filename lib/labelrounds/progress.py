"""What is shown of a training while it runs and after: figures for clients, curves and pictures for TensorBoard.

None of it may end a training: on a full disk the figures stand still and the training goes on.
"""

import logging
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, OutOfSpace
from labelrounds.evaluation import mean_of
from labelrounds.json_files import read_json, write_json
from labelrounds.learning import Epoch
from labelrounds.tasks import Task

logger = logging.getLogger(__name__)

# What a training that goes on after a kill keeps showing.
_CARRIED = ("run", "fingerprint", "history", "best_metric", "loss", "epoch", "total_epochs", "elapsed_s")


class Progress:
    """The figures of a model's running or last training: a small file, replaced whole."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._file = checkpoints.folder / "progress.json"
        self.content: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return the last training's figures; empty when there was none, or what was written of it is damaged."""
        try:
            return read_json(self._file) or {}
        except BadInput as error:
            logger.warning("What was written of the last training is not shown: %s", error)
            return {}

    def write(self, **changes: Any) -> None:
        """Add to the figures and write them."""
        self.content |= changes
        try:
            write_json(self._file, self.content)
        except (OSError, OutOfSpace) as error:
            logger.warning("The progress can't be shown: %s", error)


class Watch:
    """Turns what happens in a run into figures.

    ``epoch`` and ``total_epochs`` count over all trainings of the run, cross-validation included, so that a client's
    bar runs once from empty to full; ``eta_s`` is the time for what is left of them. ``history`` holds epoch and mean
    validation Dice of the training whose result is published; ``measure_key`` names the figure that holds each label's.
    """

    def __init__(self, checkpoints: Checkpoints, resumable: bool, task: Task) -> None:
        self.progress = Progress(checkpoints)
        self._folder, self._task = checkpoints.folder / "tensorboard", task
        self._started = time.time()
        earlier = self.progress.read() if resumable else {}
        self.progress.content = {key: earlier[key] for key in (*_CARRIED, task.key) if key in earlier}
        self._spent_before = 0.0
        self._seconds: deque[float] = deque(maxlen=10)
        self._before = 0  # epochs of the trainings that have ended

    def begin(self, labelled: int, epochs: int) -> None:
        """Say that a run has begun, with a first guess of its length; the last run's end is shown no longer."""
        shown = {"epoch": 0, "total_epochs": epochs, "best_metric": 0.0} | self.progress.content
        shown |= {"measure": self._task.measure, "measure_key": self._task.key}
        self.progress.write(**shown, status="preparing", stage="preparing", started=self._started, labelled=labelled)

    def stage(self, what: str) -> None:
        """Say what is being done."""
        self.progress.write(stage=what)

    def training(self, fingerprint: str, epochs: int, **about: Any) -> "Board":
        """Say that the training itself begins, and return where its curves go.

        Args:
            fingerprint: what the run is; figures of another are dropped.
            epochs: how many epochs all trainings of the run have together.
            about: what else to show.
        """
        content = self.progress.content
        if content.get("fingerprint") == fingerprint:
            self._spent_before = float(content.get("elapsed_s", 0.0))
        else:
            for key in ("run", "history", self._task.key, "loss", "elapsed_s"):
                content.pop(key, None)
            content |= {"epoch": 0, "best_metric": 0.0, "run": time.strftime("%Y%m%d-%H%M%S")}
        self.progress.write(fingerprint=fingerprint, status="training", stage="training", total_epochs=epochs, **about)
        return Board(self._folder / content["run"], self._task)

    def epoch(self, epoch: Epoch) -> None:
        """Take in an epoch of the training whose result is published."""
        content, figures = self.progress.content, self._counted(epoch)
        figures |= {"loss": round(epoch.loss, 4)}
        if epoch.dice is not None:
            mean = mean_of(epoch.dice)
            kept = [entry for entry in content.get("history", []) if entry[0] < epoch.number]
            measured = [] if math.isnan(mean) else [[epoch.number, round(mean, 4)]]
            figures |= {self._task.key: rounded(epoch.dice), "history": [*kept, *measured]}
            figures["best_metric"] = max((mean for _, mean in figures["history"]), default=0.0)
        self.progress.write(**figures)
        shown = f", {self._task.measure} {_as_text(mean_of(epoch.dice))}" if epoch.dice else ""
        print(
            f"epoch {epoch.number}/{epoch.total}: loss {epoch.loss:.3f}{shown}, {epoch.seconds:.1f} s,"
            f" {figures['eta_s']:.0f} s left",
            flush=True,
        )

    def side_epoch(self, epoch: Epoch) -> None:
        """Take in an epoch of a training that is only there to judge."""
        self.progress.write(**self._counted(epoch))

    def ended(self, epochs: int, planned: int) -> None:
        """Say that one of the run's trainings has ended after so many epochs, as it may before those planned."""
        self._before += epochs
        total = self.progress.content["total_epochs"] - planned + epochs
        self.progress.write(epoch=self._before, total_epochs=max(total, 1))

    def end(self, status: str, **figures: Any) -> None:
        """Say how the run has ended; ``total_time`` is what tells clients that it has."""
        self.progress.write(**figures, status=status, stage=status, eta_s=0.0, total_time=clock(self.elapsed_s()))

    def elapsed_s(self) -> float:
        """Return the time that the run has taken, before a kill and after."""
        return round(self._spent_before + time.time() - self._started, 1)

    def _counted(self, epoch: Epoch) -> dict[str, Any]:
        self._seconds.append(epoch.seconds)
        done, total = self._before + epoch.number, self.progress.content["total_epochs"]
        left = sum(self._seconds) / len(self._seconds) * max(0, total - done)
        return {"epoch": done, "elapsed_s": self.elapsed_s(), "eta_s": round(left, 1)}


class Board:
    """A run's curves and pictures for TensorBoard; a resumed run goes on in the same folder."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        self._writer: SummaryWriter | None = None
        self._try(self._open)

    def epoch(self, epoch: Epoch, validation: list[PreparedCase]) -> None:
        """Add an epoch's loss, learning rate and scores, and a picture of what it predicts on validation cases."""
        self._try(lambda: self._add(epoch, validation))

    def close(self) -> None:
        """Write what is still in memory."""
        self._try(lambda: self._writer.close() if self._writer else None)

    def _open(self) -> None:
        self._writer = SummaryWriter(str(self._folder))

    def _add(self, epoch: Epoch, validation: list[PreparedCase]) -> None:
        if self._writer is None:
            return
        self._writer.add_scalar("loss", epoch.loss, epoch.number)
        self._writer.add_scalar("learning_rate", epoch.learning_rate, epoch.number)
        shares = {**epoch.dice, "mean": mean_of(epoch.dice)} if epoch.dice else {}
        for name, dice in shares.items():
            if not math.isnan(dice):
                self._writer.add_scalar(f"{self._task.key}/{name}", dice, epoch.number)
        if epoch.predictions:
            picture = self._task.picture(validation, epoch.predictions)
            if picture is not None:
                self._writer.add_image("validation", torch.from_numpy(picture), epoch.number, dataformats="HWC")

    def _try(self, write: Any) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # the writer's thread hands on what stopped it
            logger.warning("No more curves in %s: %s", self._folder, error)
            self._writer = None


def clock(seconds: float) -> str:
    """Return a duration as clients show it: hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def rounded(dice: dict[str, float]) -> dict[str, float | None]:
    """Return the Dice per label as it is shown; None where there is none."""
    return {label: None if math.isnan(value) else round(value, 4) for label, value in dice.items()}


def _as_text(dice: float) -> str:
    return "-" if math.isnan(dice) else f"{dice:.3f}"
