"""Retraining on the server: labelled cases from the datastore in, a published version out, or none.

Runs in a process of its own (``worker.py``). What the server shows of it goes through ``progress.json``, written
after each epoch; what a killed process had reached goes through ``state.safetensors`` and ``folds.json``, from which
the next start of the same training goes on. One training of a model at a time, across processes, by a lock on its
folder.

With few patients nobody is held back (``splits.py``): one or two train by a fixed schedule and nothing is claimed;
from three on, cross-validation in at most five parts (leave-one-out up to five patients) says what to expect of new
cases. Only patients that the start weights have not seen are left out in turn, so that no part is judged on what it
knows. With validation cases those choose the epoch, and end the training early.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from filelock import FileLock, Timeout
from monailabel.interfaces.tasks.train import TrainTask

from labelrounds import __version__, distributed
from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.checkpoints import Checkpoints, Version, read_json, write_json
from labelrounds.config import MOST_EPOCHS, ModelConfig
from labelrounds.devices import available_devices, choose_device, device_of
from labelrounds.errors import BadInput, Busy, Conflict, LabelRoundsError, TooLarge
from labelrounds.evaluation import Scores, evaluate, mean_dice, mean_of
from labelrounds.judging import Comparison, compare
from labelrounds.learning import Diverged, Epoch, Learner, Outcome, Schedule
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.policies import (
    AUTO,
    POLICIES,
    QUICK,
    choose_policy,
    is_new,
    labels_at_full,
    learnt_from,
    unseen,
)
from labelrounds.progress import Board, Progress, Watch, rounded
from labelrounds.splits import FEWEST_HELD_BACK, RULE, TEST, TRAIN, VALIDATION, assign_parts, position
from labelrounds.store import LabelledCase
from labelrounds.together import dismiss, follow, lead
from labelrounds.training_steps import copy_weights

logger = logging.getLogger(__name__)

_REQUEST_KEYS = {"model", "device", "epochs", "policy", "processes", "client_id"}
_FEWEST_TO_CROSS_VALIDATE, _MOST_FOLDS = 3, 5
_FEWEST_FOR_A_CLAIM = 5
_NEW_DRAWN = 2.0
# Dice rises again when the learning rate falls at the end. A third of the epochs without a new best was too little
# patience for a warm start: it ended the V-Net's on the hippocampus data after 32 of 80.
_PATIENT_SHARE, _FEWEST_PATIENT = 0.6, 5


@dataclass(frozen=True)
class TrainingRequest:
    """What a client may say of a training.

    Attributes:
        policy: ``auto``, ``quick`` or ``full``; see ``policies.py``.
        epochs: how many; None for the policy's own number.
        device: where to compute.
        processes: how many train together on a server's machine; each has a GPU of its own.
    """

    policy: str
    epochs: int | None
    device: str
    processes: int = 1

    @classmethod
    def parse(cls, request: dict[str, Any], config: ModelConfig) -> "TrainingRequest":
        """Check a request before any process is started for it; 0 epochs, as clients show it, are the policy's own.

        Raises:
            BadInput: an unknown key or a value that is not allowed.
        """
        unknown = sorted(set(request) - _REQUEST_KEYS)
        if unknown:
            raise BadInput(f"training option {unknown[0]!r} is not one of {', '.join(sorted(_REQUEST_KEYS))}")
        epochs = request.get("epochs", 0)
        if not isinstance(epochs, int) or isinstance(epochs, bool) or not 0 <= epochs <= MOST_EPOCHS:
            raise BadInput(
                f"epochs {epochs!r} is not a whole number from 1 to {MOST_EPOCHS}, nor 0 for the policy's own number"
            )
        policy = request.get("policy") or AUTO
        if policy not in POLICIES:
            raise BadInput(f"policy {policy!r} is not one of {', '.join(POLICIES)}")
        device = choose_device(request.get("device"))
        processes = _processes(request.get("processes", 0), request.get("device"), device, config)
        return cls(str(policy), epochs or None, str(device), processes)

    def epochs_of(self, policy: str, config: ModelConfig) -> int:
        """Return how many epochs a policy trains."""
        own = config.training.quick_epochs if policy == QUICK else config.training.epochs
        return self.epochs or own


class SegmentationTrainer(TrainTask):
    """Trains one configured model on the labels that were submitted."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(f"Train {config.name}: {config.description}")
        self.model = config
        self.progress = Progress(Checkpoints(config))

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
        return train_model(self.model, datastore.training_items(), wanted, stopped)


def train_model(
    config: ModelConfig, items: list[LabelledCase], wanted: TrainingRequest, stopped: Callable[[], bool]
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
    config: ModelConfig,
    items: list[LabelledCase],
    wanted: TrainingRequest,
    device: torch.device,
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Train as process 0, and as the model's only training; let the others go at the end."""
    checkpoints = Checkpoints(config)
    try:
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(checkpoints.folder / "training.lock", timeout=0):
            return _Training(config, checkpoints, wanted, device, stopped).run(items)
    except Timeout as error:
        raise Busy(f"a training of {config.name} runs already") from error
    finally:
        dismiss()


def _processes(wanted: object, asked_device: object, device: torch.device, config: ModelConfig) -> int:
    """Return how many processes train together: as many as asked for, or one for each GPU unless one was chosen.

    Raises:
        BadInput: not a number, more than there are GPUs or patches in a batch.
    """
    most, limit = config.training.batch_size, f"training.batch_size of {config.name}"
    if device.type == "cuda" and torch.cuda.device_count() < most:
        most, limit = torch.cuda.device_count(), "GPUs of this machine"
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= most:
        raise BadInput(f"processes {wanted!r} is not a whole number from 1 to {most} ({limit}), nor 0 for the usual")
    usual = most if device.type == "cuda" and asked_device in (None, "", "cuda") else 1
    return wanted or usual


@dataclass
class _Plan:
    """What one run is about.

    Attributes:
        parts: the usable cases by part.
        skipped: the others' ids, with the reason.
        served: what the result is compared with; None where nothing usable is served.
        parent: what the weights start from; None for a start from scratch.
        start: those weights.
        policy: ``quick`` or ``full``, and ``reason``, why.
        epochs: of the training whose result is published.
        left_out: groups of training cases for cross-validation, each to be left out once.
        notes: what else the user should know.
    """

    parts: dict[str, list[PreparedCase]]
    skipped: dict[str, str]
    served: Version | None
    parent: Version | None
    start: SegmentationNetwork
    policy: str
    reason: str
    epochs: int
    left_out: list[list[PreparedCase]]
    notes: list[str] = field(default_factory=list)

    @property
    def fold_epochs(self) -> int:
        """Epochs of each cross-validation training: as many where it is compared with what is served, else a third."""
        return self.epochs if self.served is not None else math.ceil(self.epochs / 3)

    @property
    def all_epochs(self) -> int:
        return self.epochs + len(self.left_out) * self.fold_epochs

    @property
    def origin(self) -> str:
        return f"version {self.parent.number}" if self.parent else "scratch"

    def fold_name(self, number: int) -> str:
        alone = all(len({case.patient for case in group}) == 1 for group in self.left_out)
        return f"{'leave-one-out' if alone else 'cross-validation'} fold {number} of {len(self.left_out)}"


@dataclass
class _Judgement:
    """A result's scores, what they rest on in a word and in a sentence, and how it compares with what is served."""

    scores: Scores
    kind: str
    claim: str
    comparison: Comparison | None
    dice_before: dict[str, float] | None


class _Training:
    """One run, from the labels to the decision."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoints: Checkpoints,
        wanted: TrainingRequest,
        device: torch.device,
        stopped: Callable[[], bool],
    ) -> None:
        self._config, self._checkpoints, self._wanted, self._stopped = config, checkpoints, wanted, stopped
        self._device = device
        self._notes: list[str] = []  # what is found out before there is a plan
        self._state, self._folds = checkpoints.folder / "state.safetensors", checkpoints.folder / "folds.json"
        self._watch = Watch(checkpoints, resumable=self._state.is_file())

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
        cases, skipped = prepare_cases(self._counted(items), self._config)
        if self._stopped():
            return {"published": None, "message": "Stopped while the cases were prepared; nothing was published."}
        self._check_usable(items, cases, skipped)
        plan = self._plan(cases, skipped)
        fingerprint = self._fingerprint(plan)
        board = self._watch.training(
            fingerprint,
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
            outcome = self._learn(plan, fingerprint, board)
        finally:
            board.close()
        self._watch.ended(outcome.epochs, plan.epochs)
        if outcome.epochs == 0:
            return {"published": None, "message": "Stopped before the first epoch ended; nothing was published."}
        if outcome.stopped:
            plan.notes.append(f"stopped after epoch {outcome.epochs} of {plan.epochs}")
        out_of_fold = {} if outcome.stopped else self._cross_validate(plan, weights, fingerprint)
        self._watch.stage("judging")
        result = self._decide(plan, outcome, self._judge(plan, outcome.network, out_of_fold))
        for left in (self._state, self._folds):
            left.unlink(missing_ok=True)
        return result

    def _counted(self, items: list[LabelledCase]) -> Iterator[LabelledCase]:
        """Yield the cases, showing how far their preparation is; end early when the training is stopped."""
        for number, item in enumerate(items, start=1):
            if self._stopped():
                return
            self._watch.stage(f"preparing case {number} of {len(items)}")
            yield item

    def _check_usable(self, items: list[LabelledCase], cases: list[PreparedCase], skipped: dict[str, str]) -> None:
        reasons = f" (skipped {_few(skipped)})" if skipped else ""
        if not cases:
            raise Conflict(
                f"nothing to train {self._config.name} on: {len(items)} labels submitted, 0 usable; submit labels for"
                f" {', '.join(self._config.labels)}{reasons}"
            )
        if not any(case.foreground for case in cases):
            raise Conflict(
                f"nothing to train {self._config.name} on: all of the {len(cases)} usable labels are empty, without a"
                f" voxel of {', '.join(self._config.labels)}{reasons}"
            )

    def _plan(self, cases: list[PreparedCase], skipped: dict[str, str]) -> _Plan:
        served, network = self._served_network()
        fresh = {case.patient for case in unseen(cases, learnt_from(served))}
        patients = {case.patient for case in cases}
        split = assign_parts(patients, self._checkpoints.folder / "split.json", patients - fresh)
        parts = {part: [c for c in cases if split[c.patient] == part] for part in (TRAIN, VALIDATION, TEST)}
        if not parts[TRAIN]:
            raise Conflict(
                f"nothing to train {self._config.name} on: {len(cases)} usable labels, none of them of a patient in the"
                " training part; submit one of a new patient"
            )
        policy, reason = choose_policy(self._wanted.policy, served, len(cases), len(patients))
        parent = served if policy == QUICK else None
        epochs = self._wanted.epochs_of(policy, self._config)
        return _Plan(
            parts=parts,
            skipped=skipped,
            served=served,
            parent=parent,
            start=network if parent else self._network_of(None),
            policy=policy,
            reason=reason,
            epochs=epochs,
            left_out=[] if parts[VALIDATION] else _folds(parts[TRAIN], learnt_from(parent)),
            notes=self._notes + self._absent(parts[TRAIN]),
        )

    def _served_network(self) -> tuple[Version | None, SegmentationNetwork]:
        """Return the served version with its network; None and an untrained one where there is none that fits."""
        self._number_at_start = self._checkpoints.served_number()
        try:
            served = self._checkpoints.current()
            return served, self._network_of(served)
        except Conflict as error:  # of other labels or another configuration, and so none of this model's
            logger.warning("Start from scratch: %s", error)
        except LabelRoundsError as error:
            self._notes.append(
                f"started anew and compared with nothing, as what is served can't be used: {error};"
                f" `labelrounds rollback --model {self._config.name} --to NUMBER` serves another version"
            )
            logger.warning("Start from scratch: %s", error)
        return None, self._network_of(None)

    def _network_of(self, version: Version | None) -> SegmentationNetwork:
        """Return a version's network, or one whose weights are drawn by the seed."""
        torch.manual_seed(self._config.training.seed)
        network = build_network(self._config)
        if version is not None:
            self._checkpoints.load(version, network)
        return network

    def _absent(self, cases: list[PreparedCase]) -> list[str]:
        """Say which labels cannot be learnt, as no training case has a voxel of them, and which cases are empty."""
        present = {int(value) for case in cases for value in case.label.unique()}
        absent = [name for name, value in self._config.label_values.items() if value not in present]
        notes = [f"no training case has a voxel of {', '.join(absent)}"] if absent else []
        empty = [case.image_id for case in cases if not case.foreground]
        return notes + ([f"empty labels, learnt as patients without any: {', '.join(empty)}"] if empty else [])

    def _learn(self, plan: _Plan, fingerprint: str, board: Board) -> Outcome:
        validation = plan.parts[VALIDATION]

        def report(epoch: Epoch) -> None:
            self._watch.epoch(epoch)
            board.epoch(epoch, validation)

        outcome = self._train(plan, plan.start, plan.parts[TRAIN], validation, plan.epochs, report, fingerprint)
        plan.notes += outcome.notes
        return outcome

    def _train(
        self,
        plan: _Plan,
        network: SegmentationNetwork,
        train: list[PreparedCase],
        validation: list[PreparedCase],
        epochs: int,
        report: Callable[[Epoch], None],
        fingerprint: str | None = None,
    ) -> Outcome:
        """Train by the plan's policy, with the other processes; only with a fingerprint can it be resumed."""
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
                state=self._state if fingerprint else None,
                fingerprint=fingerprint or "",
                weights=weights,
            )
            return learner.run(report, self._stopped)
        except Diverged:  # in all processes alike, which then wait for the next run
            raise
        except BaseException:
            distributed.leave()  # the others have failed as well, or will; they wait for no further run
            raise

    def _cross_validate(self, plan: _Plan, weights: dict[str, torch.Tensor], fingerprint: str) -> Scores:
        """Train once without each group of patients, and return the Dice of each on the training that left it out.

        What is done is kept on disk, so that a killed run does at most one group again. When it is stopped, the
        groups that are done count.
        """
        done = self._read_folds(fingerprint)
        tried = 0
        for number, group in enumerate(plan.left_out, start=1):
            if self._stopped():
                break
            if not all(case.image_id in done for case in group):
                self._watch.stage(plan.fold_name(number))
                scores = self._tried_fold(plan, weights, number)
                if scores is None:
                    break
                done |= scores
                self._write_folds(fingerprint, done)
            tried += 1
            self._watch.ended(plan.fold_epochs, plan.fold_epochs)
        if tried < len(plan.left_out):
            plan.notes.append(
                f"stopped after {tried} of {len(plan.left_out)} cross-validation trainings; the training itself was"
                " complete" + ("" if done else " and is judged without them")
            )
        return done

    def _tried_fold(self, plan: _Plan, weights: dict[str, torch.Tensor], number: int) -> Scores | None:
        """Return a fold's scores; none, with a note, where its training fails; None when it was stopped."""
        try:
            return self._fold(plan, weights, plan.left_out[number - 1])
        except LabelRoundsError as error:
            if distributed.launched() and distributed.processes() == 1:
                raise  # the other processes have ended and so will this one; all go on from what is on disk
            plan.notes.append(f"{plan.fold_name(number)} could not be judged: {error}")
            return {}

    def _fold(self, plan: _Plan, weights: dict[str, torch.Tensor], group: list[PreparedCase]) -> Scores | None:
        """Return the Dice of the cases left out, or None when the training was stopped."""
        network = self._network_of(None)
        network.load_state_dict(weights)
        patients = {case.patient for case in group}
        rest = [case for case in plan.parts[TRAIN] if case.patient not in patients]
        outcome = self._train(plan, network, rest, [], plan.fold_epochs, self._watch.side_epoch)
        _add(plan.notes, outcome.notes)
        return None if self._stopped() else self._scores(plan, outcome.network, group)

    def _judge(self, plan: _Plan, network: SegmentationNetwork, out_of_fold: Scores) -> _Judgement:
        """Score the result on the cases that say most about it, and compare it with what is served."""
        training, validation = plan.parts[TRAIN], plan.parts[VALIDATION]
        if validation:
            kind, scores = "validation", self._scores(plan, network, validation)
            judged = [case for case in validation if case.image_id in scores]
            claim = f"Judged on {len(judged)} validation case(s), which also chose the epoch"
        elif out_of_fold:
            kind, scores = "cross-validation", out_of_fold
            judged = [case for case in training if case.image_id in out_of_fold]
            claim = (
                f"Judged on {len(judged)} case(s) by cross-validation, each by a training of {plan.fold_epochs} epochs"
                " without its patient"
            )
        else:
            kind, judged, scores = "train", training, self._scores(plan, network, training)
            claim = (
                f"Judged on the {len(judged)} training case(s), as there is no other: it says nothing about new cases"
            )
        if judged is not training and len(judged) < _FEWEST_FOR_A_CLAIM:
            claim += ": too few to claim an accuracy"
        if plan.served is None:
            return _Judgement(scores, kind, f"{claim}.", None, None)
        cases, remark = _comparable(plan, judged)
        candidate = self._scores(plan, network, training) if cases is training else scores
        served = self._scores(plan, self._network_of(plan.served).to(device_of(network)), cases)
        both = [case.image_id for case in cases if case.image_id in candidate and case.image_id in served]
        if not both:
            raise TooLarge(
                f"not published: none of the {len(cases)} case(s) to compare it with the served version on fits into"
                f" memory ({'; '.join(plan.notes)})"
            )
        comparison = compare([candidate[image] for image in both], [served[image] for image in both])
        before = mean_dice(list(served.values()))
        return _Judgement(scores, kind, f"{claim}.{remark} {comparison}", comparison, before)

    def _decide(self, plan: _Plan, outcome: Outcome, judgement: _Judgement) -> dict[str, Any]:
        """Publish what is not worse than what is served, or say why not."""
        dice = mean_dice(list(judgement.scores.values()))
        result: dict[str, Any] = {
            "best_metric": 0.0 if math.isnan(mean_of(dice)) else round(mean_of(dice), 4),
            "dice": rounded(dice),
            "dice_before": rounded(judgement.dice_before) if judgement.dice_before is not None else None,
            "comparison": judgement.comparison.figures() if judgement.comparison else None,
            "judged_on": judgement.claim,
            "judged_by": judgement.kind,
            "notes": plan.notes,
        }
        remarks = "".join(f" {_sentence(note)}" for note in plan.notes)
        remarks += f" Skipped {len(plan.skipped)}: {_few(plan.skipped)}." if plan.skipped else ""
        objection = judgement.comparison.objection if judgement.comparison else None
        if objection is not None:
            return {**result, "published": None, "message": f"Not published: {objection}. {judgement.claim}{remarks}"}
        tested = self._test(plan, outcome.network)
        serve = self._checkpoints.served_number() == self._number_at_start
        record = {**result, **tested, **self._lineage(plan, outcome), "scores": _plain(judgement.scores)}
        version = self._checkpoints.publish(outcome.network, record, serve)
        what = f"Published version {version.number}."
        if not serve:
            what = (
                f"Version {version.number} is kept but not served, as another version was chosen while it was trained;"
                f" `labelrounds rollback --model {self._config.name} --to {version.number}` serves it."
            )
        return {
            **result,
            **tested,
            "published": version.number if serve else None,
            "message": f"{what} {judgement.claim}{remarks}",
        }

    def _test(self, plan: _Plan, network: SegmentationNetwork) -> dict[str, Any]:
        """Return the Dice on the test cases, which decide nothing, of the result and of what is served."""
        cases = plan.parts[TEST]
        if not cases:
            return {"dice_test": None, "dice_test_before": None}
        found = {"dice_test": rounded(mean_dice(list(self._scores(plan, network, cases).values())))}
        if plan.served is None:
            return {**found, "dice_test_before": None}
        served = self._network_of(plan.served).to(device_of(network))
        return {**found, "dice_test_before": rounded(mean_dice(list(self._scores(plan, served, cases).values())))}

    def _lineage(self, plan: _Plan, outcome: Outcome) -> dict[str, Any]:
        """Return where a version comes from, as far as it takes to repeat and to judge it."""
        labels = sum(len(cases) for cases in plan.parts.values())
        return {
            "cases": {part: {case.image_id: case.key for case in cases} for part, cases in plan.parts.items()},
            "split_rule": RULE,
            "skipped": plan.skipped,
            "policy": plan.policy,
            "reason": plan.reason,
            "started_from": plan.origin,
            "parent": plan.parent.number if plan.parent else None,
            "learnt_before": learnt_from(plan.parent),
            "labels_at_full": labels_at_full(plan.parent.record) if plan.parent else labels,
            "epochs": outcome.epochs,
            "epochs_planned": plan.epochs,
            "seed": self._config.training.seed,
            "device": str(device_of(outcome.network)),
            "wall_time_s": self._watch.elapsed_s(),
        }

    def _scores(self, plan: _Plan, network: SegmentationNetwork, cases: list[PreparedCase]) -> Scores:
        """Return the Dice of cases; one that no memory suffices for is left out, and noted."""
        return evaluate(network, cases, self._config, lambda note: _add(plan.notes, [note]))

    def _fingerprint(self, plan: _Plan) -> str:
        """Return what makes a run this run: a state of another one is not resumed."""
        about = [
            self._config.model_dump(mode="json"),
            [plan.policy, plan.epochs, plan.served.number if plan.served else None],
            {part: [[c.image_id, c.patient, c.key] for c in cases] for part, cases in plan.parts.items()},
            __version__,
        ]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _read_folds(self, fingerprint: str) -> Scores:
        try:
            known = read_json(self._folds) or {}
        except BadInput as error:
            logger.warning("Cross-validate from the start: %s", error)
            return {}
        if known.get("fingerprint") != fingerprint:
            return {}
        return {
            image: {label: math.nan if dice is None else dice for label, dice in score.items()}
            for image, score in known["scores"].items()
        }

    def _write_folds(self, fingerprint: str, scores: Scores) -> None:
        try:
            write_json(self._folds, {"fingerprint": fingerprint, "scores": _plain(scores)})
        except (OSError, LabelRoundsError) as error:
            logger.warning("A cross-validation training is not saved, and is done again after a kill: %s", error)


def _folds(cases: list[PreparedCase], learnt: dict[str, str]) -> list[list[PreparedCase]]:
    """Deal the patients that the start weights have not seen into groups to leave out, of three to seven patients.

    More of them are without validation only if the served weights have learnt from all; so many trainings of so many
    cases would take too long. Dealt in the order of the patients' hashes, into at most five groups, so that the same
    cases give the same groups.
    """
    if not _FEWEST_TO_CROSS_VALIDATE <= len({case.patient for case in cases}) < FEWEST_HELD_BACK:
        return []
    fresh = unseen(cases, learnt)
    patients = sorted({case.patient for case in fresh}, key=position)
    count = min(len(patients), _MOST_FOLDS)
    return [[case for case in fresh if case.patient in patients[index::count]] for index in range(count)]


def _comparable(plan: _Plan, judged: list[PreparedCase]) -> tuple[list[PreparedCase], str]:
    """Return the cases to compare a result and what is served on, and what has to be said of them.

    They are those that the served version has not learnt from, where there are any. Validation cases that it has
    learnt from, as a shipped version may have, favour it. Without validation cases, training cases favour the new one
    or, where both have learnt from them, nobody: that comparison says no more than that the training went well.
    """
    everyone = [case for cases in plan.parts.values() for case in cases]
    fair = {case.image_id for case in unseen(everyone, learnt_from(plan.served))}
    cases = [case for case in judged if case.image_id in fair]
    if plan.parts[VALIDATION]:
        if not cases:
            return judged, " The served version has learnt from these cases, which favours it."
        few = len(cases) < len(judged)
        return cases, f" Compared on the {len(cases)} that the served version has not learnt from." if few else ""
    if not cases or judged is plan.parts[TRAIN]:
        return plan.parts[TRAIN], " Compared on the training cases."
    return cases, ""


def _add(notes: list[str], more: list[str]) -> None:
    """Add those notes that are not there yet."""
    notes += [note for note in more if note not in notes]


def _plain(scores: Scores) -> dict[str, dict[str, float | None]]:
    """Return scores as JSON knows them, null for nan."""
    return {
        image: {label: None if math.isnan(dice) else round(dice, 6) for label, dice in score.items()}
        for image, score in scores.items()
    }


def _few(skipped: dict[str, str]) -> str:
    named = [f"{name}: {why}" for name, why in list(skipped.items())[:3]]
    return "; ".join(named) + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else "")


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."
