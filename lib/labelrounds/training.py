"""Retraining on the server: labelled cases from the datastore in, a published version out, or none.

Runs in a process of its own (``worker.py``): the cases are prepared and the run is planned (``training_plan.py``); a
network is trained, where validation cases choose the epoch and end the training early (``learning.py``), and
cross-validated where there are few patients (``cross_validation.py``); the result is judged and published
(``promotion.py``).

What the server shows of it goes through ``progress.json``, written after each epoch; what a killed process had
reached goes through ``state.safetensors`` and ``folds.json``, from which the next start of the same training goes on,
and ``begun.json``, which names its cases.
A training that was stopped before it was better than what is served is gone on with in the same way.
One training of a model at a time, across processes (``training_lock.py``).
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from filelock import Timeout
from monailabel.interfaces.tasks.train import TrainTask
from torch import nn

from labelrounds import distributed
from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.checkpoints import Checkpoints
from labelrounds.cross_validation import cross_validate
from labelrounds.devices import available_devices
from labelrounds.errors import BadInput, Busy, LabelRoundsError
from labelrounds.evaluation import Scores, evaluate
from labelrounds.json_files import read_json, write_json
from labelrounds.learning import Diverged, Epoch, Learner, Outcome, Schedule
from labelrounds.policies import POLICIES, is_new, learnt_from
from labelrounds.progress import Board, Progress, Watch
from labelrounds.promotion import promote
from labelrounds.sections import CommonConfig
from labelrounds.splits import TRAIN, VALIDATION
from labelrounds.store import LabelledCase
from labelrounds.tasks import label_tag_of, task_of
from labelrounds.together import dismiss, follow, lead
from labelrounds.training_lock import training_lock
from labelrounds.training_plan import TrainingPlan, make_plan, network_of
from labelrounds.training_request import TrainingRequest
from labelrounds.training_steps import copy_weights

logger = logging.getLogger(__name__)

_NEW_DRAWN = 2.0
# Dice rises again when the learning rate falls at the end. A third of the epochs without a new best was too little
# patience for a warm start: it ended the V-Net's on the hippocampus data after 32 of 80.
_PATIENT_SHARE, _FEWEST_PATIENT = 0.6, 5


class Trainer(TrainTask):
    """Trains one configured model on the labels that were submitted."""

    def __init__(self, config: CommonConfig) -> None:
        super().__init__(f"Train {config.name}: {config.description}")
        self.model = config
        self.progress = Progress(Checkpoints(config))

    def info(self) -> dict[str, Any]:
        """Return what a client shows, also of a model that nobody has trained; with its ``task`` and ``labels``."""
        return {**super().info(), "task": self.model.task, "labels": list(self.model.labels)}

    def config(self) -> dict[str, Any]:
        """Return the options that a client shows; of a list it sends the chosen item."""
        devices = available_devices()
        all_gpus = ["cuda"] if len(devices) > 2 else []
        return {"policy": list(POLICIES), "epochs": 0, "device": all_gpus + devices}

    def stats(self) -> dict[str, Any]:
        """Return the figures of the running or the last training, as the host's clients read them."""
        return self.progress.read()

    def __call__(self, request: dict[str, Any], datastore: Any, stopped: Callable[[], bool] = lambda: False) -> Any:
        """Train and publish.

        Raises:
            LabelRoundsError: a wrong request, no usable label, or a training of this model that runs already.
        """
        wanted = TrainingRequest.parse(request, self.model)
        return train_model(self.model, datastore.training_items(label_tag_of(self.model)), wanted, stopped)


def train_model(
    config: CommonConfig, items: list[LabelledCase], wanted: TrainingRequest, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Train a model on labelled cases and publish the result if it is not worse than what is served.

    In one of several processes that ``torchrun`` started, process 0 does so, and the others take part.

    Returns:
        what happened, in words (``message``) and figures; nothing in a process other than 0.

    Raises:
        Busy: another process trains this model.
        Conflict: there is no case to learn from.
        OutOfSpace: the version could not be written; the one served before stays, and once there is room the same
            training goes on from its last epoch.
    """
    device = distributed.join(torch.device(wanted.device))
    try:
        if distributed.rank() == 0:
            return _train_and_publish(config, items, wanted, device, stopped)
        follow(config, items, device)
        return {}
    finally:
        distributed.leave()


def _train_and_publish(
    config: CommonConfig,
    items: list[LabelledCase],
    wanted: TrainingRequest,
    device: torch.device,
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Train as process 0, and as the model's only training; let the others go at the end."""
    checkpoints = Checkpoints(config)
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        with training_lock(checkpoints.folder):
            return _Training(config, checkpoints, wanted, device, stopped).run(items)
    except Timeout as error:
        raise Busy(f"a training of {config.name} runs already") from error
    finally:
        dismiss()


class _Training:
    """One run, from the labels to the decision."""

    def __init__(
        self,
        config: CommonConfig,
        checkpoints: Checkpoints,
        wanted: TrainingRequest,
        device: torch.device,
        stopped: Callable[[], bool],
    ) -> None:
        self._config, self._checkpoints, self._wanted, self._stopped = config, checkpoints, wanted, stopped
        self._device, self._task = device, task_of(config)
        self._state, self._folds = checkpoints.folder / "state.safetensors", checkpoints.folder / "folds.json"
        self._begun = checkpoints.folder / "begun.json"
        self._watch = Watch(checkpoints, resumable=self._state.is_file(), task=self._task)

    def run(self, items: list[LabelledCase]) -> dict[str, Any]:
        """Prepare, train, judge and publish."""
        self._watch.begin(len(items), self._wanted.epochs_of(self._wanted.policy, self._config))
        try:
            result = self._run(items)
        except Exception as error:
            self._watch.end("failed", message=str(error) or type(error).__name__)
            raise
        status = "stopped" if self._stopped() else "done"
        self._watch.end(status, **result)
        return {"status": status, **result}

    def _run(self, items: list[LabelledCase]) -> dict[str, Any]:
        cases, skipped = prepare_cases(self._counted(items), self._config, self._task.tensors)
        if self._stopped():
            return {"published": None, "message": "Stopped while the cases were prepared; nothing was published."}
        begun = self._read_begun() if self._state.is_file() else {}
        cases, remark = self._as_begun(cases, begun.get("cases", {}))
        plan = make_plan(self._checkpoints, self._wanted, cases, skipped)
        if not remark and begun.get("fingerprint", plan.fingerprint) != plan.fingerprint:
            remark = "began anew, as the settings are others than those of the training that was interrupted"
        if remark:
            plan.note(remark)
        self._write_begun(plan, cases)
        board = self._watch.training(
            plan.fingerprint,
            plan.all_epochs,
            cases={part: len(found) for part, found in plan.parts.items()},
            skipped=skipped,
            started_from=plan.origin,
            policy=plan.policy,
            reason=plan.reason,
            notes=plan.notes,
        )
        weights = copy_weights(plan.start)
        try:
            outcome = self._learn(plan, board)
        finally:
            board.close()
        self._watch.ended(outcome.epochs, plan.epochs)
        if outcome.epochs == 0:
            return {"published": None, "message": "Stopped before the first epoch ended; nothing was published."}
        if outcome.stopped:
            plan.note(f"stopped after epoch {outcome.epochs} of {plan.epochs}")
        out_of_fold = {} if outcome.stopped else self._cross_validate(plan, weights)
        measure = partial(self._measure, plan)
        outcome, out_of_fold = self._task.contest(
            plan,
            outcome,
            out_of_fold,
            partial(self._start, weights),
            self._config,
            measure,
            self._watch.stage,
            self._stopped,
        )
        outcome = replace(outcome, stopped=outcome.stopped or self._stopped())  # who stops it waits
        self._watch.stage("judging")
        result = promote(
            plan,
            outcome,
            out_of_fold,
            measure,
            self._checkpoints,
            self._watch.elapsed_s,
        )
        if outcome.stopped and result["published"] is None and self._state.is_file():
            again = " What it had reached is kept: the same training, started again, goes on from there."
            return {**result, "message": result["message"] + again}
        for left in (self._state, self._folds, self._begun):
            left.unlink(missing_ok=True)
        return result

    def _counted(self, items: list[LabelledCase]) -> Iterator[LabelledCase]:
        """Yield the cases, showing how far their preparation is; end early when the training is stopped."""
        for number, item in enumerate(items, start=1):
            if self._stopped():
                return
            self._watch.stage(f"preparing case {number} of {len(items)}")
            yield item

    def _as_begun(self, cases: list[PreparedCase], begun: dict[str, str]) -> tuple[list[PreparedCase], str]:
        """Return the cases to train on, and what to say of an interrupted training that had others.

        Labels are submitted while a training runs. If a server that was killed began anew with them at its next start,
        hours would be lost; so it goes on with those that the training had begun with, as long as they are the same.
        """
        same = [case for case in cases if begun.get(case.image_id) == case.key]
        if not begun or len(same) == len(begun) == len(cases):
            return cases, ""
        if self._wanted.resumed and len(same) == len(begun):
            later = len(cases) - len(same)
            return same, f"went on with its {len(same)} cases; {later} submitted since wait for the next training"
        return cases, "began anew, as the labels are others than those of the training that was interrupted"

    def _read_begun(self) -> dict[str, Any]:
        try:
            return read_json(self._begun) or {}
        except BadInput as error:
            logger.warning("Begin with all cases: %s", error)
            return {}

    def _write_begun(self, plan: TrainingPlan, cases: list[PreparedCase]) -> None:
        try:
            known = {case.image_id: case.key for case in cases}
            write_json(self._begun, {"fingerprint": plan.fingerprint, "cases": known})
        except (OSError, LabelRoundsError) as error:
            logger.warning("After a kill it goes on only if no label is submitted until then: %s", error)

    def _learn(self, plan: TrainingPlan, board: Board) -> Outcome:
        validation = plan.parts[VALIDATION]

        def report(epoch: Epoch) -> None:
            self._watch.epoch(epoch)
            board.epoch(epoch, validation)

        return self._train(plan, plan.start, plan.parts[TRAIN], validation, plan.epochs, report, resumable=True)

    def _train(
        self,
        plan: TrainingPlan,
        network: nn.Module,
        train: list[PreparedCase],
        validation: list[PreparedCase],
        epochs: int,
        report: Callable[[Epoch], None],
        resumable: bool = False,
    ) -> Outcome:
        """Train by the plan's policy, with the other processes, and note what a user should know of it."""
        fit = self._task.fit(self._config)
        if fit is not None:
            return fit(plan, network, train, validation, self._config, self._device, report, self._stopped)
        training, learnt = self._config.training, learnt_from(plan.parent)
        schedule = Schedule(
            epochs=epochs,
            iterations_per_epoch=training.iterations_per_epoch,
            learning_rate=training.learning_rate * (0.5 if plan.parent else 1.0),
            patience=max(_FEWEST_PATIENT, math.ceil(_PATIENT_SHARE * epochs)) if validation else None,
        )
        weights = [_NEW_DRAWN if is_new(case, learnt) else 1.0 for case in train] if plan.parent else None
        lead(train, validation, schedule, weights)
        try:
            learner = Learner(
                self._config,
                network,
                train,
                validation,
                self._device,
                schedule,
                state=self._state if resumable else None,
                fingerprint=plan.fingerprint,
                weights=weights,
            )
            outcome = learner.run(report, self._stopped)
        except Diverged:  # in all processes alike, which then wait for the next run
            raise
        except BaseException:
            distributed.leave()  # the others have failed as well, or will; they wait for no further run
            raise
        for note in outcome.notes:
            plan.note(note)
        return outcome

    def _cross_validate(self, plan: TrainingPlan, weights: dict[str, torch.Tensor]) -> Scores:
        """Score each group that the plan leaves out on a training from the same weights without it."""

        def leave_out(group: list[PreparedCase]) -> Scores | None:
            network = self._start(weights)
            patients = {case.patient for case in group}
            rest = [case for case in plan.parts[TRAIN] if case.patient not in patients]
            outcome = self._train(plan, network, rest, [], plan.fold_epochs, self._watch.side_epoch)
            return None if self._stopped() else self._measure(plan, outcome.network, group)

        return cross_validate(plan, self._folds, self._watch, leave_out, self._stopped)

    def _start(self, weights: dict[str, torch.Tensor]) -> nn.Module:
        """Return a network with the weights that the training started from."""
        network = network_of(None, self._checkpoints)
        network.load_state_dict(weights)
        return network

    def _measure(self, plan: TrainingPlan, network: nn.Module, cases: list[PreparedCase]) -> Scores:
        """Return the scores of cases; one that no memory suffices for is left out, and noted."""
        return evaluate(network, cases, self._config, plan.note, self._task.measured)
