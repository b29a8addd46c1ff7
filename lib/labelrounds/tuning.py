"""Choose a version's runtime while a server runs and nobody waits, where nothing was measured on its machine yet.

On the way of inference, behind an answer: its image is what the runtimes are compared on. One thread does this, in
many short computations in the background of the users' requests (`engine.py`), each of which waits until no user needs
the device, so that a request is delayed by one of them at most. What is chosen serves from then on (`served.py`).
"""

import logging
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from labelrounds.checkpoints import Version
from labelrounds.config import AUTO
from labelrounds.engine import DeviceWorker, Engine
from labelrounds.errors import Cancelled, LabelRoundsError, Overloaded
from labelrounds.runtime_choice import Task, excerpt, shows_enough
from labelrounds.served import ServedNetworks

logger = logging.getLogger(__name__)

_CLIENT = "tuning"
_CLOSING_S = 5.0


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
        self._changed = threading.Condition()
        self._pending: list[_Job] = []
        self._seen: set[tuple[str, str, str]] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(
        self, networks: ServedNetworks, version: Version, device: torch.device, image: torch.Tensor, label: torch.Tensor
    ) -> None:
        """Choose a version's runtime, unless that was done or is forced by the configuration.

        Args:
            networks: those of the version's model.
            version: the one that has answered.
            device: where it has.
            image: ``(C, X, Y, Z)``, prepared.
            label: ``(X, Y, Z)``, what was found in it.
        """
        key = version.model, str(version.weights), str(device)
        if networks.config.inference.runtime != AUTO or key in self._seen:
            return
        try:
            shown, labelled = excerpt(image, label, networks.config)
            if not shows_enough(labelled):  # another image may do
                return
        except Exception:  # whatever it is, the answer is made
            logger.exception("%s keeps its runtime", version)
            return
        with self._changed:
            self._seen.add(key)
            self._pending.append(_Job(networks, version, device, shown, key))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tuning", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Begin no further version; wait a few seconds for the end of what is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            worker = self._engine.worker(job.device)
            try:
                job.networks.settle(job.version, job.device, [job.image], partial(_in_background, worker, job.key))
            except Overloaded:  # the server is ending
                return
            except LabelRoundsError as error:
                logger.info("%s keeps its runtime: %s", job.version, error)
            except Exception:
                logger.exception("%s keeps its runtime", job.version)

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._pending and not self._closed:
                self._changed.wait()
            return None if self._closed else self._pending.pop(0)


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
