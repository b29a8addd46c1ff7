"""Cross-validation of a training: once without each group of patients, to say what to expect of new cases.

The scores of the groups that are done lie in ``folds.json``, so that a killed run does at most one group again.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from labelrounds import distributed
from labelrounds.cases import PreparedCase
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.evaluation import Scores, scores_as_json, scores_from_json
from labelrounds.json_files import read_json, write_json
from labelrounds.progress import Watch
from labelrounds.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

Group = list[PreparedCase]


def cross_validate(
    plan: TrainingPlan,
    file: Path,
    watch: Watch,
    leave_out: Callable[[Group], Scores | None],
    stopped: Callable[[], bool],
) -> Scores:
    """Return the scores of each group of patients on the training that left it out.

    Args:
        plan: the run; its notes are added to.
        file: where the scores of the groups that are done are kept.
        watch: takes how far it is.
        leave_out: trains without a group and returns its scores; None where it was stopped.
        stopped: says whether to stop; the groups that are done count then.
    """
    done = _read(file, plan.fingerprint)
    tried = 0
    for number, group in enumerate(plan.left_out, start=1):
        if stopped():
            break
        if not all(case.image_id in done for case in group):
            watch.stage(plan.fold_name(number))
            scores = _tried(plan, number, leave_out)
            if scores is None:
                break
            done |= scores
            _write(file, plan.fingerprint, done)
        tried += 1
        watch.ended(plan.fold_epochs, plan.fold_epochs)
    if tried < len(plan.left_out):
        plan.note(
            f"stopped after {tried} of {len(plan.left_out)} cross-validation trainings; the training itself was"
            " complete" + ("" if done else " and is judged without them")
        )
    return done


def _tried(plan: TrainingPlan, number: int, leave_out: Callable[[Group], Scores | None]) -> Scores | None:
    """Return a group's scores; none, with a note, where its training fails; None where it was stopped."""
    try:
        return leave_out(plan.left_out[number - 1])
    except LabelRoundsError as error:
        if distributed.launched() and distributed.processes() == 1:
            raise  # the other processes have ended and so will this one; all go on from what is on disk
        plan.note(f"{plan.fold_name(number)} could not be judged: {error}")
        return {}


def _read(file: Path, fingerprint: str) -> Scores:
    try:
        known = read_json(file) or {}
    except BadInput as error:
        logger.warning("Cross-validate from the start: %s", error)
        return {}
    return scores_from_json(known["scores"]) if known.get("fingerprint") == fingerprint else {}


def _write(file: Path, fingerprint: str, scores: Scores) -> None:
    try:
        write_json(file, {"fingerprint": fingerprint, "scores": scores_as_json(scores)})
    except (OSError, LabelRoundsError) as error:
        logger.warning("A cross-validation training is not saved, and is done again after a kill: %s", error)
