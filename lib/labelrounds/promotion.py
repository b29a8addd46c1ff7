"""Whether a training's result is served: judged, compared with what is served, published with its lineage, or not.

What is judged on says most about new cases: validation cases, else cross-validation, else, with nothing claimed, the
training cases. Test cases are reported, and decide nothing. What is published knows which runtime is the quickest for
it on this machine.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Checkpoints
from labelrounds.devices import device_of
from labelrounds.errors import TooLarge
from labelrounds.evaluation import Scores, mean_dice, mean_of, scores_as_json
from labelrounds.judging import Comparison, compare
from labelrounds.learning import Outcome
from labelrounds.policies import labels_at_full, learnt_from, unseen
from labelrounds.progress import rounded
from labelrounds.splits import RULE, TEST, TRAIN, VALIDATION
from labelrounds.tasks import task_of
from labelrounds.training_plan import TrainingPlan, named_few, network_of

logger = logging.getLogger(__name__)

_FEWEST_FOR_A_CLAIM = 5

Measure = Callable[[nn.Module, list[PreparedCase]], Scores]
"""Scores a network on cases; one that can't be measured is left out, and noted in the plan."""


@dataclass
class _Judgement:
    """A result's scores, what they rest on in a word and in a sentence, and how it compares with what is served."""

    scores: Scores
    kind: str
    claim: str
    comparison: Comparison | None
    dice_before: dict[str, float] | None


def promote(
    plan: TrainingPlan,
    outcome: Outcome,
    out_of_fold: Scores,
    measure: Measure,
    checkpoints: Checkpoints,
    elapsed_s: Callable[[], float],
) -> dict[str, Any]:
    """Publish a training's result if it is not worse than what is served, or say why not.

    Args:
        plan: the run.
        outcome: its result.
        out_of_fold: the scores of its cross-validation; empty where there was none.
        measure: scores a network on cases.
        checkpoints: where to publish.
        elapsed_s: tells how long the run has taken.

    Returns:
        what happened, in words (``message``) and figures; ``published`` is the number that is served, or None.

    Raises:
        TooLarge: no case to compare it on with what is served fits into memory.
        OutOfSpace: the version could not be written; the one served before stays.
    """
    task = task_of(checkpoints.config)
    judgement = _judge(plan, outcome, out_of_fold, measure, checkpoints)
    dice = mean_dice(list(judgement.scores.values()))
    result: dict[str, Any] = {
        "best_metric": 0.0 if math.isnan(mean_of(dice)) else round(mean_of(dice), 4),
        task.key: rounded(dice),
        f"{task.key}_before": rounded(judgement.dice_before) if judgement.dice_before is not None else None,
        "comparison": judgement.comparison.figures() if judgement.comparison else None,
        "judged_on": judgement.claim,
        "judged_by": judgement.kind,
        **({"classifier": outcome.classifier} if outcome.classifier else {}),
        "notes": plan.notes,
        "skipped": plan.skipped,
    }
    if missed := [label for label, value in dice.items() if value == 0]:
        plan.note(f"finds nothing right of {', '.join(missed)} in any of the cases that it is judged on")
    remarks = "".join(f" {_sentence(note)}" for note in plan.notes)
    remarks += f" Skipped {len(plan.skipped)}: {named_few(plan.skipped)}." if plan.skipped else ""
    objection = judgement.comparison.objection if judgement.comparison else None
    if objection is not None:
        return {**result, "published": None, "message": f"Not published: {objection}. {judgement.claim}{remarks}"}
    result |= _tested(plan, outcome.network, measure, checkpoints)
    lineage = _lineage(plan, outcome, checkpoints.config.training.seed, elapsed_s())
    record = {**result, **lineage, "scores": scores_as_json(judgement.scores)}
    choose = partial(task.complete, plan, outcome, checkpoints.config)
    version = checkpoints.publish(
        outcome.network, record, lambda: checkpoints.served_number() == plan.served_number, choose
    )
    serve = checkpoints.served_number() == version.number
    what = f"Published version {version.number}."
    if not serve:
        what = (
            f"Version {version.number} is kept but not served, as another version was chosen while it was trained;"
            f" `labelrounds rollback --model {version.model} --to {version.number}` serves it."
        )
    return {
        **result,
        "published": version.number if serve else None,
        "message": f"{what} {judgement.claim}{remarks}",
    }


def _judge(
    plan: TrainingPlan, outcome: Outcome, out_of_fold: Scores, measure: Measure, checkpoints: Checkpoints
) -> _Judgement:
    """Score the result on the cases that say most about it, and compare it with what is served."""
    network, compared = outcome.network, bool(outcome.classifier.get("scores"))
    training, validation = plan.parts[TRAIN], plan.parts[VALIDATION]
    if validation:
        kind, scores = "validation", measure(network, validation)
        judged = [case for case in validation if case.image_id in scores]
        chosen = [] if outcome.is_fitted else ["the epoch"]
        chosen += ["the classifier"] if compared else []
        claim = f"Judged on {len(judged)} validation case(s)"
        claim += f", which also chose {' and '.join(chosen)}" if chosen else ""
    elif out_of_fold:
        kind, scores = "cross-validation", out_of_fold
        judged = [case for case in training if case.image_id in out_of_fold]
        claim = (
            f"Judged on {len(judged)} case(s) by cross-validation, each by a"
            f" {'fit' if outcome.is_fitted else f'training of {plan.fold_epochs} epochs'} without its patient"
            f"{', which also chose the classifier' if compared else ''}"
        )
    else:
        kind, judged, scores = "train", training, measure(network, training)
        claim = f"Judged on the {len(judged)} training case(s), as there is no other: it says nothing about new cases"
    if judged is not training and len(judged) < _FEWEST_FOR_A_CLAIM:
        claim += ": too few to claim an accuracy"
    if plan.served is None:
        return _Judgement(scores, kind, f"{claim}.", None, None)
    cases, remark = _comparable(plan, judged)
    candidate = measure(network, training) if cases is training else scores
    served = measure(network_of(plan.served, checkpoints).to(device_of(network)), cases)
    both = [case.image_id for case in cases if case.image_id in candidate and case.image_id in served]
    if not both:
        raise TooLarge(
            f"not published: none of the {len(cases)} case(s) to compare it with the served version on fits into"
            f" memory ({'; '.join(plan.notes)})"
        )
    comparison = compare(
        [candidate[image] for image in both], [served[image] for image in both], task_of(checkpoints.config).measure
    )
    before = mean_dice(list(served.values()))
    return _Judgement(scores, kind, f"{claim}.{remark} {comparison}", comparison, before)


def _comparable(plan: TrainingPlan, judged: list[PreparedCase]) -> tuple[list[PreparedCase], str]:
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


def _tested(plan: TrainingPlan, network: nn.Module, measure: Measure, checkpoints: Checkpoints) -> dict[str, Any]:
    """Return the scores on the test cases, which decide nothing, of the result and of what is served."""
    cases, key = plan.parts[TEST], task_of(checkpoints.config).key
    if not cases:
        return {f"{key}_test": None, f"{key}_test_before": None}
    found = {f"{key}_test": rounded(mean_dice(list(measure(network, cases).values())))}
    if plan.served is None:
        return {**found, f"{key}_test_before": None}
    served = network_of(plan.served, checkpoints).to(device_of(network))
    return {**found, f"{key}_test_before": rounded(mean_dice(list(measure(served, cases).values())))}


def _lineage(plan: TrainingPlan, outcome: Outcome, seed: int, wall_time_s: float) -> dict[str, Any]:
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
        "epochs": 0 if outcome.is_fitted else outcome.epochs,
        "epochs_planned": plan.epochs,
        "seed": seed,
        "device": str(device_of(outcome.network)),
        "wall_time_s": wall_time_s,
    }


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."
