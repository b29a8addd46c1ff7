"""What one training is about: its cases by part, what it starts from, how long it takes, who is left out in turn.

With few patients nobody is held back (``splits.py``): one or two train by a fixed schedule and nothing is claimed;
from three on, cross-validation in at most five parts (leave-one-out up to five patients) says what to expect of new
cases. Only patients that the start weights have not seen are left out in turn, so that no part is judged on what it
knows.
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass

import torch
from torch import nn

from labelrounds import __version__
from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.errors import Conflict, LabelRoundsError
from labelrounds.networks import build_network
from labelrounds.policies import QUICK, choose_policy, learnt_from, unseen
from labelrounds.sections import CommonConfig
from labelrounds.splits import FEWEST_HELD_BACK, TEST, TRAIN, VALIDATION, assign_parts, position
from labelrounds.tasks import task_of
from labelrounds.training_request import TrainingRequest

logger = logging.getLogger(__name__)

_FEWEST_TO_CROSS_VALIDATE, _MOST_FOLDS = 3, 5


@dataclass
class TrainingPlan:
    """What one run is about.

    Attributes:
        parts: the usable cases by part.
        skipped: the others' ids, with the reason.
        served: what the result is compared with; None where nothing usable is served.
        served_number: what was pointed to when the plan was made, usable or not; None where nothing was.
        parent: what the weights start from; None for a start from scratch.
        start: those weights.
        policy: ``quick`` or ``full``, and ``reason``, why.
        epochs: of the training whose result is published.
        left_out: groups of training cases for cross-validation, each to be left out once.
        fingerprint: what makes the run this run; a state of another one is not resumed.
        notes: what else the user should know.
    """

    parts: dict[str, list[PreparedCase]]
    skipped: dict[str, str]
    served: Version | None
    served_number: int | None
    parent: Version | None
    start: nn.Module
    policy: str
    reason: str
    epochs: int
    left_out: list[list[PreparedCase]]
    fingerprint: str
    notes: list[str]

    @property
    def fold_epochs(self) -> int:
        """Epochs of each cross-validation training: as many where it is compared with what is served, else a third.

        It is compared on what the served version has not learnt from, if there is any.
        """
        judged = [case for group in self.left_out for case in group]
        compared = self.served is not None and unseen(judged, learnt_from(self.served))
        return self.epochs if compared else math.ceil(self.epochs / 3)

    @property
    def all_epochs(self) -> int:
        """Epochs of all trainings of the run."""
        return self.epochs + len(self.left_out) * self.fold_epochs

    @property
    def origin(self) -> str:
        """What the weights start from, as a user is told."""
        return f"version {self.parent.number}" if self.parent else "scratch"

    def fold_name(self, number: int) -> str:
        """Return what a user is told of the training without a group, the first of which is number 1."""
        alone = all(len({case.patient for case in group}) == 1 for group in self.left_out)
        return f"{'leave-one-out' if alone else 'cross-validation'} fold {number} of {len(self.left_out)}"

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def make_plan(
    checkpoints: Checkpoints, wanted: TrainingRequest, cases: list[PreparedCase], skipped: dict[str, str]
) -> TrainingPlan:
    """Plan a training of a model; patients that were not seen before are assigned to a part for good.

    Args:
        checkpoints: the model's versions.
        wanted: what was asked for.
        cases: the labelled cases that can be used.
        skipped: the ids of those that can't, with the reason.

    Raises:
        Conflict: there is no case to learn from.
        BadInput: the file of the split is damaged.
        OutOfSpace: the split could not be written.
    """
    config = checkpoints.config
    _check_usable(config, cases, skipped)
    notes: list[str] = []
    served_number = checkpoints.served_number()
    served, network = _served_network(checkpoints, notes)
    fresh = {case.patient for case in unseen(cases, learnt_from(served))}
    patients = {case.patient for case in cases}
    split = assign_parts(patients, checkpoints.folder / "split.json", patients - fresh)
    parts = {part: [c for c in cases if split[c.patient] == part] for part in (TRAIN, VALIDATION, TEST)}
    if not parts[TRAIN]:
        raise Conflict(
            f"nothing to train {config.name} on: {len(cases)} usable labels, none of them of a patient in the"
            " training part; submit one of a new patient"
        )
    policy, reason = choose_policy(wanted.policy, served, len(cases), len(patients))
    if served is not None and policy != QUICK and not task_of(config).begins_anew(config):
        policy, reason = QUICK, "what trains no network goes on from the served one"
    parent = served if policy == QUICK else None
    epochs = 1 if task_of(config).fit(config) is not None else wanted.epochs_of(policy, config)
    return TrainingPlan(
        parts=parts,
        skipped=skipped,
        served=served,
        served_number=served_number,
        parent=parent,
        start=network if parent else network_of(None, checkpoints),
        policy=policy,
        reason=reason,
        epochs=epochs,
        left_out=[] if parts[VALIDATION] else _folds(parts[TRAIN], learnt_from(parent)),
        fingerprint=_fingerprint(config, [policy, epochs, served.number if served else None], parts),
        notes=notes + task_of(config).remarks(parts[TRAIN], config),
    )


def network_of(version: Version | None, checkpoints: Checkpoints) -> nn.Module:
    """Return a version's network, or for None one whose weights are drawn by the seed.

    Raises:
        Conflict: the version was trained for other labels or by another configuration.
        BadInput: its weights are damaged.
    """
    torch.manual_seed(checkpoints.config.training.seed)
    network: nn.Module = build_network(checkpoints.config)
    if version is not None:
        checkpoints.load(version, network)
    else:
        task_of(checkpoints.config).initialise(network, checkpoints.config)
    return network


def named_few(skipped: dict[str, str]) -> str:
    """Return the first three of the cases that can't be used, with the reason, and how many more there are."""
    named = [f"{name}: {why}" for name, why in list(skipped.items())[:3]]
    return "; ".join(named) + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else "")


def _check_usable(config: CommonConfig, cases: list[PreparedCase], skipped: dict[str, str]) -> None:
    reasons = f" (skipped {named_few(skipped)})" if skipped else ""
    if not cases:
        raise Conflict(
            f"nothing to train {config.name} on: {len(skipped)} labels submitted, 0 usable; submit labels for"
            f" {', '.join(config.labels)}{reasons}"
        )
    obstacle = task_of(config).obstacle(cases, config)
    if obstacle is not None:
        raise Conflict(f"nothing to train {config.name} on: {obstacle}{reasons}")


def _served_network(checkpoints: Checkpoints, notes: list[str]) -> tuple[Version | None, nn.Module]:
    """Return the served version with its network; None and an untrained one where there is none that fits."""
    try:
        served = checkpoints.current()
        return served, network_of(served, checkpoints)
    except Conflict as error:  # of other labels or another configuration, and so none of this model's
        logger.warning("Start from scratch: %s", error)
    except LabelRoundsError as error:
        notes.append(
            f"started anew and compared with nothing, as what is served can't be used: {error};"
            f" `labelrounds rollback --model {checkpoints.config.name} --to NUMBER` serves another version"
        )
        logger.warning("Start from scratch: %s", error)
    return None, network_of(None, checkpoints)


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


def _fingerprint(config: CommonConfig, decided: list[object], parts: dict[str, list[PreparedCase]]) -> str:
    about = [
        config.model_dump(mode="json"),
        decided,
        {part: [[c.image_id, c.patient, c.key] for c in cases] for part, cases in parts.items()},
        __version__,
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
