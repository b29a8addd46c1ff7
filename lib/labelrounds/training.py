"""Retraining on the server: labelled cases from the datastore in, a published version out, or none.

Runs in a process of its own (``worker.py``). What the server shows of it goes through ``progress.json``, written
after each epoch; what a killed process had reached goes through ``state.safetensors``, from which the next start
of the same training goes on. One training of a model at a time, across processes, by a lock on its folder.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from monailabel.interfaces.tasks.train import TrainTask
from torch.utils.tensorboard import SummaryWriter

from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.checkpoints import Checkpoints, Version, read_json, write_json
from labelrounds.config import MOST_EPOCHS, ModelConfig
from labelrounds.devices import available_devices, choose_device
from labelrounds.errors import BadInput, Busy, Conflict, LabelRoundsError
from labelrounds.learning import Epoch, Learner, Outcome, Schedule, evaluate, mean_dice, mean_of
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.splits import TEST, TRAIN, VALIDATION, assign_parts
from labelrounds.store import LabelledCase

logger = logging.getLogger(__name__)

STARTS = ("current", "scratch")
TOLERATED_MEAN_LOSS, TOLERATED_LABEL_LOSS = 0.005, 0.02
_REQUEST_KEYS = {"model", "device", "epochs", "start", "client_id"}


@dataclass(frozen=True)
class TrainingRequest:
    """What a client may say of a training: ``epochs``, ``start`` (``current`` version or ``scratch``), ``device``."""

    epochs: int
    start: str
    device: str

    @classmethod
    def parse(cls, request: dict[str, Any], config: ModelConfig) -> "TrainingRequest":
        """Check a request before any process is started for it.

        Raises:
            BadInput: an unknown key or a value that is not allowed.
        """
        unknown = sorted(set(request) - _REQUEST_KEYS)
        if unknown:
            raise BadInput(f"training option {unknown[0]!r} is not one of {', '.join(sorted(_REQUEST_KEYS))}")
        epochs = request.get("epochs", config.training.epochs)
        if not isinstance(epochs, int) or isinstance(epochs, bool) or not 1 <= epochs <= MOST_EPOCHS:
            raise BadInput(f"epochs {epochs!r} is not a whole number from 1 to {MOST_EPOCHS}")
        start = request.get("start") or STARTS[0]
        if start not in STARTS:
            raise BadInput(f"start {start!r} is not one of {', '.join(STARTS)}")
        return cls(epochs, str(start), str(choose_device(request.get("device"))))


class Progress:
    """What is shown of a training while it runs and after: a small file, replaced whole."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._file = checkpoints.folder / "progress.json"
        self.content: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Return the last training's figures; empty when there was none."""
        return read_json(self._file) or {}

    def write(self, **changes: Any) -> None:
        """Add to the figures and write them."""
        self.content |= changes
        write_json(self._file, self.content)


class SegmentationTrainer(TrainTask):
    """Trains one configured model on the labels that were submitted."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(f"Train {config.name}: {config.description}")
        self.model = config
        self.progress = Progress(Checkpoints(config))

    def config(self) -> dict[str, Any]:
        """Return the options that a client shows; of a list it sends the chosen item."""
        return {"epochs": self.model.training.epochs, "start": list(STARTS), "device": available_devices()}

    def stats(self) -> dict[str, Any]:
        """Return the figures of the running or the last training, as the host's clients read them."""
        return self.progress.read()

    def __call__(self, request: dict[str, Any], datastore: Any, stopped: Callable[[], bool] = lambda: False) -> Any:
        """Train and publish.

        Raises:
            LabelRoundsError: a wrong request, no usable label, or a training of this model that runs already.
        """
        wanted = TrainingRequest.parse(request, self.model)
        return train_model(self.model, datastore.training_items(), wanted, stopped)


def train_model(
    config: ModelConfig, items: list[LabelledCase], wanted: TrainingRequest, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Train a model on labelled cases and publish the result if it is not worse than what is served.

    Returns:
        what happened, in words (``message``) and figures.

    Raises:
        Busy: another process trains this model.
        Conflict: there is no case to learn from.
    """
    checkpoints = Checkpoints(config)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(checkpoints.folder / "training.lock", timeout=0):
            return _Training(config, checkpoints, wanted).run(items, stopped)
    except Timeout as error:
        raise Busy(f"a training of {config.name} runs already") from error


class _Training:
    """One run, from the labels to the decision."""

    def __init__(self, config: ModelConfig, checkpoints: Checkpoints, wanted: TrainingRequest) -> None:
        self._config, self._checkpoints, self._wanted = config, checkpoints, wanted
        self._device = torch.device(wanted.device)
        self._progress = Progress(checkpoints)
        self._started = time.time()

    def run(self, items: list[LabelledCase], stopped: Callable[[], bool]) -> dict[str, Any]:
        """Prepare, train, judge and publish."""
        self._progress.write(
            status="preparing",
            started=self._started,
            epoch=0,
            total_epochs=self._wanted.epochs,
            best_metric=0.0,
            labelled=len(items),
        )
        try:
            parts, skipped = self._prepare(items)
            incumbent, network, origin = self._start_network()
            counts = {part: len(cases) for part, cases in parts.items()}
            self._progress.write(status="training", cases=counts, skipped=skipped, started_from=origin)
            outcome = self._learn(network, parts, items, origin, stopped)
            result = self._decide(outcome.network, incumbent, parts, outcome.epochs, skipped, origin)
        except Exception as error:
            self._progress.write(
                status="failed", message=str(error) or type(error).__name__, total_time=self._elapsed()
            )
            raise
        status = "stopped" if outcome.stopped else "done"
        self._progress.write(status=status, epoch=outcome.epochs, total_time=self._elapsed(), **result)
        (self._checkpoints.folder / "state.safetensors").unlink(missing_ok=True)
        return {"status": status, **result}

    def _prepare(self, items: list[LabelledCase]) -> tuple[dict[str, list[PreparedCase]], dict[str, str]]:
        cases, skipped = prepare_cases(items, self._config)
        split = assign_parts([case.patient for case in cases], self._checkpoints.folder / "split.json")
        parts = {part: [c for c in cases if split[c.patient] == part] for part in (TRAIN, VALIDATION, TEST)}
        if not parts[TRAIN]:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
            raise Conflict(
                f"nothing to train {self._config.name} on: {len(items)} labels submitted, {len(cases)} usable, none of"
                f" them in the training part; submit labels for {', '.join(self._config.labels)}"
                + (f" (skipped {reasons})" if reasons else "")
            )
        return parts, skipped

    def _start_network(self) -> tuple[Version | None, SegmentationNetwork, str]:
        """Return the served version, and the network to start from with where its weights come from."""
        torch.manual_seed(self._config.training.seed)
        network = build_network(self._config)
        incumbent = self._checkpoints.current()
        if incumbent is None:
            return None, network, "scratch"
        trial = build_network(self._config)
        try:
            self._checkpoints.load(incumbent, trial)
        except LabelRoundsError as error:
            logger.warning("Start from scratch: %s", error)
            return None, network, "scratch"
        if self._wanted.start == "scratch":
            return incumbent, network, "scratch"
        return incumbent, trial, f"version {incumbent.number}"

    def _learn(
        self,
        network: SegmentationNetwork,
        parts: dict[str, list[PreparedCase]],
        items: list[LabelledCase],
        origin: str,
        stopped: Callable[[], bool],
    ) -> Outcome:
        learner = Learner(
            self._config,
            network,
            parts[TRAIN],
            parts[VALIDATION],
            self._device,
            Schedule(
                self._wanted.epochs,
                self._config.training.iterations_per_epoch,
                self._config.training.learning_rate * (1.0 if origin == "scratch" else 0.5),
            ),
            state=self._checkpoints.folder / "state.safetensors",
            fingerprint=self._fingerprint(items),
        )
        board = self._checkpoints.folder / "tensorboard" / time.strftime("%Y%m%d-%H%M%S")
        with SummaryWriter(str(board)) as writer:
            return learner.run(lambda epoch: self._report(epoch, writer), stopped)

    def _report(self, epoch: Epoch, writer: SummaryWriter) -> None:
        writer.add_scalar("loss", epoch.loss, epoch.number)
        elapsed = time.time() - self._started
        figures: dict[str, Any] = {
            "epoch": epoch.number,
            "loss": round(epoch.loss, 4),
            "elapsed_s": round(elapsed, 1),
            "eta_s": round(epoch.seconds * (epoch.total - epoch.number), 1),
        }
        if epoch.dice is not None:
            mean = mean_of(epoch.dice)
            best = max(mean, self._progress.content.get("best_metric", 0.0))
            figures |= {"dice": _rounded(epoch.dice), "best_metric": round(best, 4)}
            for label, dice in epoch.dice.items():
                writer.add_scalar(f"dice/{label}", dice, epoch.number)
            history = [*self._progress.content.get("history", []), [epoch.number, round(mean, 4)]]
            figures["history"] = history
        self._progress.write(**figures)
        shown = f", Dice {mean_of(epoch.dice):.3f}" if epoch.dice else ""
        print(f"epoch {epoch.number}/{epoch.total}: loss {epoch.loss:.3f}{shown}, {epoch.seconds:.1f} s", flush=True)

    def _decide(
        self,
        network: SegmentationNetwork,
        incumbent: Version | None,
        parts: dict[str, list[PreparedCase]],
        epochs: int,
        skipped: dict[str, str],
        origin: str,
    ) -> dict[str, Any]:
        """Compare with the served version on the same cases and publish, or say why not."""
        if epochs == 0:
            return {"published": None, "message": "Stopped before the first epoch ended; nothing was published."}
        claim, judged_on = _basis(parts)
        network.eval()
        scores = evaluate(network, judged_on, self._config, self._device)
        before = self._score_incumbent(incumbent, judged_on)
        verdict = judge(mean_dice(scores), mean_dice(before) if before is not None else None)
        result: dict[str, Any] = {
            "best_metric": round(mean_of(mean_dice(scores)), 4),
            "dice": _rounded(mean_dice(scores)),
            "dice_before": _rounded(mean_dice(before)) if before is not None else None,
            "judged_on": claim,
        }
        if verdict is not None:
            return {**result, "published": None, "message": f"Not published: {verdict}. {claim}"}
        tested = evaluate(network, parts[TEST], self._config, self._device)
        record = {
            **result,
            "dice_test": _rounded(mean_dice(tested)) if tested else None,
            "cases": {part: sorted(case.image_id for case in cases) for part, cases in parts.items()},
            "skipped": skipped,
            "started_from": origin,
            "epochs": epochs,
            "seed": self._config.training.seed,
            "device": self._wanted.device,
        }
        version = self._checkpoints.publish(network, record)
        return {
            **result,
            "dice_test": record["dice_test"],
            "published": version.number,
            "message": f"Published version {version.number}. {claim}",
        }

    def _score_incumbent(self, incumbent: Version | None, cases: list[PreparedCase]) -> list[dict[str, float]] | None:
        if incumbent is None:
            return None
        network = build_network(self._config)
        self._checkpoints.load(incumbent, network)
        return evaluate(network.to(self._device), cases, self._config, self._device)

    def _fingerprint(self, items: list[LabelledCase]) -> str:
        """Return what makes a run this run: a state of another one is not resumed."""
        served = self._checkpoints.current()
        about = [
            self._config.model_dump(mode="json"),
            [self._wanted.epochs, self._wanted.start, served.number if served else None],
            [[item.image_id, _stamp(item.label)] for item in items],
        ]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _elapsed(self) -> str:
        return time.strftime("%H:%M:%S", time.gmtime(time.time() - self._started))


def _stamp(file: Path) -> list[int] | None:
    """Return what changes when a file is replaced; None where it is missing, whose case is skipped."""
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size]


def judge(candidate: dict[str, float], incumbent: dict[str, float] | None) -> str | None:
    """Return why a candidate must not replace what is served, or None when it may.

    Both are mean Dice per label on the same cases. The mean may fall by 0.005 and no label by more than 0.02.
    """
    if incumbent is None:
        return None
    change = mean_of(candidate) - mean_of(incumbent)
    if change < -TOLERATED_MEAN_LOSS:
        return f"mean Dice {mean_of(candidate):.3f} is below the served version's {mean_of(incumbent):.3f}"
    for label, dice in candidate.items():
        if dice < incumbent[label] - TOLERATED_LABEL_LOSS:
            return f"Dice of {label} {dice:.3f} is below the served version's {incumbent[label]:.3f}"
    return None


def _basis(parts: dict[str, list[PreparedCase]]) -> tuple[str, list[PreparedCase]]:
    """Return what a comparison rests on, in words that claim no more than it does, and the cases."""
    validation = parts[VALIDATION]
    if not validation:
        return (
            f"Judged on the {len(parts[TRAIN])} training cases, as there is no validation case yet: this Dice says"
            " nothing about new cases.",
            parts[TRAIN],
        )
    if len(validation) < 5:
        return (
            f"Judged on {len(validation)} validation case(s): too few to claim an accuracy.",
            validation,
        )
    return f"Judged on {len(validation)} validation cases.", validation


def _rounded(dice: dict[str, float]) -> dict[str, float]:
    return {label: round(value, 4) for label, value in dice.items()}
