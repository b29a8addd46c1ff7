"""Choose a version's runtime while a server runs and nobody waits, where nothing was measured on its machine yet.

On the way of inference, behind an answer: its image is what the runtimes are compared on. One thread does this, in
many short computations in the background of the users' requests (`engine.py`), each of which waits until no user needs
the device, so that a request is delayed by one of them at most. What is chosen serves from then on (`served.py`).
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from labelrounds.backlog import Backlog
from labelrounds.checkpoints import Version
from labelrounds.config import AUTO
from labelrounds.engine import DeviceWorker, Engine
from labelrounds.errors import Cancelled, LabelRoundsError
from labelrounds.runtime_choice import Task, excerpt, shows_enough
from labelrounds.served import ServedNetworks
from labelrounds.settings import server_settings

logger = logging.getLogger(__name__)

_CLIENT = "tuning"


@dataclass(frozen=True)
class _Job:
    networks: ServedNetworks
    version: Version
    device: torch.device
    image: torch.Tensor
    key: tuple[str, str, str]


class Tuning:
    """The versions to choose a runtime for, and the thread that does it, which starts with the first.

    Args:
        engine: the devices.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[tuple[str, str], str] = {}  # the last weights of each model and device
        self._backlog = Backlog("tuning", self._do)

    def add(
        self, networks: ServedNetworks, version: Version, device: torch.device, image: torch.Tensor, label: torch.Tensor
    ) -> None:
        """Choose a version's runtime, unless that was done, is forced or is not wanted.

        Args:
            networks: those of the version's model.
            version: the one that has answered.
            device: where it has.
            image: ``(C, X, Y, Z)``, prepared.
            label: ``(X, Y, Z)``, what was found in it.
        """
        key = version.model, str(device), str(version.weights)
        if networks.config.inference.runtime != AUTO or self._seen.get(key[:2]) == key[2]:
            return
        if not server_settings().measure_runtimes:
            return
        try:
            shown, labelled = excerpt(image, label, networks.config)
            if not shows_enough(labelled):  # another image may do
                return
        except Exception:  # whatever it is, the answer is made
            logger.exception("%s keeps its runtime", version)
            return
        self._seen[key[:2]] = key[2]
        self._backlog.add({key: _Job(networks, version, device, shown, key)})

    def close(self) -> None:
        """Begin no further version; wait a few seconds for the end of what is under way."""
        self._backlog.close()

    def _do(self, job: _Job) -> None:
        worker = self._engine.worker(job.device)
        try:
            job.networks.settle(job.version, job.device, [job.image], partial(_in_background, worker, job.key))
        except LabelRoundsError as error:
            logger.info("%s keeps its runtime: %s", job.version, error)
        except Exception:
            logger.exception("%s keeps its runtime", job.version)


def _in_background(worker: DeviceWorker, key: tuple[str, str, str], task: Task[Any]) -> Any:
    """Run a task when no user needs the device; one that a user stops is begun anew.

    Raises:
        Overloaded: the server is ending.
    """
    while True:
        try:
            with worker.place(key, key, client=_CLIENT, background=True) as place:
                return place.compute(task)
        except Cancelled:
            continue
