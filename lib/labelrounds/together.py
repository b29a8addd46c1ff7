"""One training by several processes: process 0 leads it, the others take part in each of its runs.

Process 0 alone decides, reports and publishes, and alone reads and writes the models' folder. Before each run of its
own it tells the others what to run. They may be on other machines, with the same studies: a case counts as the
same if its image, its label and its preparation are.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from labelrounds import distributed
from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.errors import Conflict
from labelrounds.learning import Diverged, Learner, Schedule
from labelrounds.networks import build_network
from labelrounds.sections import CommonConfig
from labelrounds.store import LabelledCase
from labelrounds.tasks import task_of


@dataclass(frozen=True)
class SharedRun:
    """What the others have to know of a run; its weights they get from process 0 as it begins.

    Attributes:
        train: image id and key of each case to learn from.
        validation: those of each case that chooses the epoch.
        schedule: how long and how fast.
        weights: how often each training case is drawn; all alike when None.
    """

    train: list[tuple[str, str]]
    validation: list[tuple[str, str]]
    schedule: Schedule
    weights: Sequence[float] | None


def lead(
    train: list[PreparedCase], validation: list[PreparedCase], schedule: Schedule, weights: Sequence[float] | None
) -> None:
    """Let the other processes begin the run that this one begins now."""
    distributed.share(SharedRun(_named(train), _named(validation), schedule, weights))


def dismiss() -> None:
    """Tell the other processes that there is no further run."""
    distributed.share(None)


def follow(config: CommonConfig, items: list[LabelledCase], device: torch.device) -> None:
    """Take part in the runs of process 0 until there is no further one.

    Cases are prepared as they are needed: then process 0 has them in the cache of a machine that both work on.

    Raises:
        Conflict: process 0 learns from a case that is not here, or is another one here.
    """
    known: dict[str, PreparedCase] = {}
    while True:
        run: SharedRun | None = distributed.share(None)
        if run is None:
            return
        wanted = {image for image, _ in [*run.train, *run.validation]} - set(known)
        cases, _ = prepare_cases([item for item in items if item.image_id in wanted], config, task_of(config).tensors)
        known |= {case.image_id: case for case in cases}
        train, validation = _found(run.train, known), _found(run.validation, known)
        learner = Learner(config, build_network(config), train, validation, device, run.schedule, weights=run.weights)
        with suppress(Diverged):  # process 0 finds so as well, and says what is next
            learner.run(lambda epoch: None, lambda: False)


def _named(cases: list[PreparedCase]) -> list[tuple[str, str]]:
    return [(case.image_id, case.key) for case in cases]


def _found(names: list[tuple[str, str]], known: dict[str, PreparedCase]) -> list[PreparedCase]:
    for image, key in names:
        if image not in known or known[image].key != key:
            what = "is not usable here" if image not in known else "has another image or label here"
            raise Conflict(
                f"process {distributed.rank()} can't take part in the training: {image} {what}; all machines need the"
                " same studies, labels and configuration"
            )
    return [known[image] for image, _ in names]
