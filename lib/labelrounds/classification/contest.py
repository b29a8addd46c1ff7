"""Which classifier a training publishes: the network, or a quick one on the embeddings that the training started from.

They are compared on the cases that the result is judged on: the validation cases or, where there are none, the groups
of patients that were each left out of a training.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from labelrounds.cases import PreparedCase
from labelrounds.classification.cases import ClassLoss, truth_of
from labelrounds.classification.config import NETWORK, QUICK, ClassifierConfig
from labelrounds.classification.outputs import logits_of, measured
from labelrounds.classification.quick import Embeddings, fit, obstacle_to_fit
from labelrounds.devices import device_of
from labelrounds.errors import Cancelled, Conflict, LabelRoundsError
from labelrounds.evaluation import Scores, evaluate, mean_dice, mean_of
from labelrounds.learning import Epoch, Outcome
from labelrounds.splits import TRAIN, VALIDATION
from labelrounds.training_plan import TrainingPlan
from labelrounds.version_files import tensors_of_served

logger = logging.getLogger(__name__)

MOST_LABELS = 500
"""With more of them `auto` trains the network alone."""

Measure = Callable[[nn.Module, list[PreparedCase]], Scores]


def untrained_start(plan: TrainingPlan, config: ClassifierConfig) -> str | None:
    """Return why the weights that a training starts from are no encoder to rely on, or None.

    Raises:
        LabelRoundsError: the weights of ``init_from`` can't be read.
    """
    source = config.training.init_from
    if plan.parent is not None:
        return None
    if source is None:
        return "the weights that it starts from are random: no version is served, and training.init_from names no model"
    there, own = tensors_of_served(source), plan.start.state_dict()
    lacking = [
        name
        for name, value in own.items()
        if not name.startswith("head.") and (name not in there or there[name].shape != value.shape)
    ]
    if not lacking:
        return None
    return (
        f"{len(lacking)} of the tensors that it starts from are random, as {lacking[0]}: training.init_from {source!r}"
        " is of another network or other options"
    )


def fit_alone(
    plan: TrainingPlan,
    network: nn.Module,
    train: list[PreparedCase],
    validation: list[PreparedCase],
    config: ClassifierConfig,
    device: torch.device,
    report: Callable[[Epoch], None],
    stopped: Callable[[], bool],
) -> Outcome:
    """Fit the classifier that the model's file names, where no network is trained; it counts as one epoch.

    Args:
        plan: the run.
        network: with the weights that it starts from.
        train: the cases to learn from.
        validation: those that say how good it is.
        config: the model.
        device: where to compute.
        report: told about the epoch.
        stopped: says whether to stop.

    Raises:
        Conflict: the start weights are not trained, or a class has no case.
    """
    started, kind = time.perf_counter(), config.training.classifier
    if untrained := untrained_start(plan, config):
        raise Conflict(
            f"no {kind} classifier for {config.name}: {untrained}; name a trained model of the same network in"
            f" training.init_from, or train once with training.classifier {NETWORK}"
        )
    try:
        fitted = fit(kind, Embeddings(network, device, stopped), train, config)
    except Cancelled:
        return Outcome(network, 0, stopped=True)
    scores = evaluate(fitted, validation, config, plan.note, measured)
    seconds = time.perf_counter() - started
    report(Epoch(1, 1, _loss(fitted, train, config), seconds, 0.0, mean_dice(list(scores.values())) or None))
    about = {"chosen": kind, "reason": f"training.classifier is {kind}", "scores": {}}
    return Outcome(fitted, 1, stopped=False, classifier=about)


def _loss(network: nn.Module, cases: list[PreparedCase], config: ClassifierConfig) -> float:
    logits = torch.stack(list(logits_of(network, cases, device_of(network))))
    return float(ClassLoss(cases, config)([logits], truth_of(cases)))


def contest(
    plan: TrainingPlan,
    outcome: Outcome,
    out_of_fold: Scores,
    start: Callable[[], nn.Module],
    config: ClassifierConfig,
    measure: Measure,
    stage: Callable[[str], None],
    stopped: Callable[[], bool],
) -> tuple[Outcome, Scores]:
    """Return what does best of the trained network and the quick classifiers, and its scores by cross-validation.

    Args:
        plan: the run; its notes are added to.
        outcome: its trained network.
        out_of_fold: the network's scores by cross-validation; empty where there was none.
        start: makes a network with the weights that the training started from.
        config: the model.
        measure: scores a network on cases.
        stage: told what is being done.
        stopped: says whether to stop; the network stays then.
    """
    if outcome.classifier:  # fitted alone
        return outcome, out_of_fold
    groups = [plan.parts[VALIDATION]] if plan.parts[VALIDATION] else plan.left_out
    try:
        if reason := _no_contest(plan, outcome, out_of_fold, config):
            return _staying(outcome, reason), out_of_fold
        found: dict[str, tuple[nn.Module, Scores]] = {}
        network_scores = measure(outcome.network, groups[0]) if plan.parts[VALIDATION] else out_of_fold
        found[NETWORK] = outcome.network, network_scores
        embeddings = Embeddings(start(), device_of(outcome.network), stopped)
        for kind in QUICK:
            stage(f"fitting the {kind} classifier")
            found[kind] = _contender(kind, plan, embeddings, groups, config, measure)
    except Cancelled:
        plan.note("stopped before the quick classifiers were compared; the network itself was complete")
        return _staying(outcome, "stopped before it was compared"), out_of_fold
    except LabelRoundsError as error:
        plan.note(f"the network was not compared with quick classifiers: {error}")
        return _staying(outcome, str(error)), out_of_fold
    return _best(plan, outcome, found)


def _no_contest(plan: TrainingPlan, outcome: Outcome, out_of_fold: Scores, config: ClassifierConfig) -> str | None:
    """Return why the network is compared with nothing, or None."""
    train = plan.parts[TRAIN]
    if config.training.classifier == NETWORK:
        return f"training.classifier is {NETWORK}"
    if outcome.stopped:
        return "the training was stopped"
    if len(train) > MOST_LABELS:
        return f"{len(train)} training labels are more than {MOST_LABELS}, up to which quick classifiers are tried"
    if not plan.parts[VALIDATION] and not out_of_fold:
        return "there is no case to compare it with quick classifiers on"
    return untrained_start(plan, config) or obstacle_to_fit(train, config)


def _contender(
    kind: str,
    plan: TrainingPlan,
    embeddings: Embeddings,
    groups: list[list[PreparedCase]],
    config: ClassifierConfig,
    measure: Measure,
) -> tuple[nn.Module, Scores]:
    """Return a classifier fitted to all training cases, and the scores of each group on one without its patients."""
    train = plan.parts[TRAIN]
    fitted, scores = fit(kind, embeddings, train, config), Scores()
    for group in groups:
        patients = {case.patient for case in group}
        rest = [case for case in train if case.patient not in patients]
        if len(rest) == len(train):
            scores |= measure(fitted, group)
        elif obstacle := obstacle_to_fit(rest, config):
            logger.warning("%s is not compared on %d case(s): without them, %s", kind, len(group), obstacle)
        else:
            scores |= measure(fit(kind, embeddings, rest, config), group)
    return fitted, scores


def _best(plan: TrainingPlan, outcome: Outcome, found: dict[str, tuple[nn.Module, Scores]]) -> tuple[Outcome, Scores]:
    """Return the contender with the best mean score on the cases that all have one; of equal ones the network."""
    common = set.intersection(*(set(scores) for _, scores in found.values()))
    if not common:
        return _staying(outcome, "no case could be compared on"), found[NETWORK][1]
    means = {
        kind: round(mean_of(mean_dice([scores[image] for image in sorted(common)])), 4)
        for kind, (_, scores) in found.items()
    }
    chosen = max(means, key=lambda kind: means[kind])
    kind_of_cases = "validation" if plan.parts[VALIDATION] else "cross-validation"
    figures = ", ".join(f"{kind} {mean:.3f}" for kind, mean in means.items())
    reason = f"the best by quadratic score on {len(common)} {kind_of_cases} case(s): {figures}"
    plan.note(f"the classifier is {chosen}, {reason}")
    network, scores = found[chosen]
    about = {"chosen": chosen, "reason": reason, "compared_on": kind_of_cases, "cases": len(common), "scores": means}
    return replace(outcome, network=network, classifier=about), {} if plan.parts[VALIDATION] else scores


def _staying(outcome: Outcome, reason: str) -> Outcome:
    about: dict[str, Any] = {"chosen": NETWORK, "reason": reason, "scores": {}}
    return replace(outcome, classifier=about)
