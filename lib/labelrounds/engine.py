"""Who computes when: one thread a device, and before it the places of those that wait for their turn.

On the way of inference, between ``inferer.py``, which knows what a request needs, and the device.

Concurrency
    A request runs in a thread of its own (the HTTP route's). It takes a place, waits until it is admitted, reads its
    image there, hands the computing to the device's thread, and writes its answer in its own thread again. So
    the next image is read and the last answer written while the device computes, only one request computes on a device
    at a time, and whatever a library keeps for a thread (OpenMP's threads, cuDNN's choices) is made once.

    Bounds: as many requests as `MOST_WAITING` have a place before they compute, further ones are refused at once; of
    those so many are admitted, and hold an image in memory, as there are cores to read with.

    Fair order: in each round every client is served once; a client's further requests belong to the rounds after. A
    request served is the n-th part of a round where n clients have a place, so that new clients put off nobody for ever
    (weighted fair queueing with equal weights, DOI 10.1145/75247.75248). Requests about the same image come one after
    the other, so that the second finds what the first has made.

    Background work (``ahead.py``) is admitted and computed only while no user has a place, and is stopped, to be done
    another time, when one takes a place; unless that user asks for the same answer: it then counts as the user's.

    Several devices: a request that may go to any of them takes its place where the same answer is being made already,
    else where the fewest have a place.

    Cancellation: a request whose client has gone leaves its place at once, or is stopped where the running
    computation next asks whether it should go on.
"""

import contextvars
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Any, TypeVar

import torch

from labelrounds import heap
from labelrounds.errors import Cancelled, Overloaded

logger = logging.getLogger(__name__)

MOST_WAITING = 16
_POLL_S = 0.25  # how often a waiting request looks whether its client is still there
_CLOSING_S = 10.0
_IDLE_S = 2.0  # after which the memory that is kept for the next computation is given back

Made = TypeVar("Made")


def _never() -> bool:
    return False


class _Stage(IntEnum):
    WAITING, LOADING, READY, RUNNING, DONE = range(5)


@dataclass(eq=False)
class Place:
    """A request's place at a device; `DeviceWorker.place` gives it, and says what its first attributes mean.

    Attributes:
        order: the round that it belongs to, and when it has come.
        waited_s: how long it has waited for others.
    """

    worker: "DeviceWorker"
    image: Hashable
    answer: Hashable
    client: Hashable
    background: bool
    gone: Callable[[], bool]
    order: tuple[float, int] = (0.0, 0)
    waited_s: float = 0.0
    stage: _Stage = _Stage.WAITING
    cancelled: bool = False
    started: float = 0.0
    task: Callable[[], Any] = _never
    outcome: "Future[Any]" = field(default_factory=Future)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.worker.name)

    def compute(self, task: Callable[[Callable[[], bool]], Made]) -> Made:
        """Run a task in the device's thread, and return what it returns or raise what it raises.

        Args:
            task: gets a function that tells whether it should stop; it then raises `Cancelled`.

        Raises:
            Cancelled: the client has gone, or this is background work and a user needs the device.
            Overloaded: the server is ending.
        """
        made: Made = self.worker.compute(self, lambda: task(lambda: self.worker.should_stop(self)))
        return made


class DeviceWorker:
    """One device's thread and the places before it.

    Args:
        name: of the device, for messages.
        admitted: how many requests read, or have read, their image while another computes; half the cores when None.
    """

    def __init__(self, name: str, admitted: int | None = None) -> None:
        self.name = name
        self._most_admitted = admitted or max(1, (os.cpu_count() or 1) // 2)
        self._changed = threading.Condition()
        self._places: list[Place] = []
        self._arrivals = itertools.count()
        self._round = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def place(
        self,
        image: Hashable,
        answer: Hashable,
        *,
        client: Hashable = "",
        background: bool = False,
        gone: Callable[[], bool] = _never,
    ) -> AbstractContextManager[Place]:
        """Take a place; the context waits until it is admitted, and keeps it as long as the block lasts.

        Args:
            image: what the image is known by; only one request about it is admitted at a time.
            answer: what the answer is known by; background work for it becomes the user's who asks for it.
            client: who asks; in turn with the other clients.
            background: nobody waits for it.
            gone: tells whether the client is still there; called a few times a second.

        Raises:
            Overloaded: too many wait already, or the server is ending.
            Cancelled: the client has gone.
        """
        place = Place(self, image, answer, client, background, gone)
        self._enter(place)
        return self._held(place)

    @contextmanager
    def _held(self, place: Place) -> Iterator[Place]:
        try:
            since = time.perf_counter()
            self._wait(place, _Stage.LOADING)
            place.waited_s = time.perf_counter() - since
            yield place
        finally:
            with self._changed:
                if place.stage is not _Stage.WAITING:
                    self._round += 1 / len({other.client for other in self._places})
                self._places.remove(place)
                self._admit()

    @property
    def waiting(self) -> int:
        """How many users' requests have a place and do not compute yet."""
        with self._changed:
            return self._waiting()

    def queue(self, answer: Hashable) -> tuple[bool, int, int]:
        """Return what devices are compared by, the least being best: whether none makes that answer, how many wait.

        Of those who have a place the users come first, as background work gives way to them.
        """
        with self._changed:
            users = self._users()
            # What is in the background and waits is not the user's yet who asks for the same.
            made = (place for place in self._places if not place.background or place.stage is not _Stage.WAITING)
            return all(place.answer != answer for place in made), len(users), len(self._places) - len(users)

    def compute(self, place: Place, task: Callable[[], Made]) -> Made:
        """Run a task of an admitted place in the device's thread; see `Place.compute`."""
        since = time.perf_counter()
        with self._changed:
            # The device's thread logs on behalf of the request.
            place.task, place.stage = partial(contextvars.copy_context().run, task), _Stage.READY
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"engine-{self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        self._wait(place, _Stage.DONE)
        place.waited_s += place.started - since
        # What an error's traceback refers to must not refer to the error: nothing of it would be freed at once.
        outcome, place.outcome, place.task = place.outcome, Future(), _never
        try:
            made: Made = outcome.result()
            return made
        finally:
            del outcome

    def should_stop(self, place: Place) -> bool:
        """Tell whether a running computation is of no more use, or in a user's way."""
        with self._changed:
            return self._closed or place.cancelled or (place.background and bool(self._users()))

    def close(self) -> None:
        """Refuse those who wait, stop what runs where it next asks, and wait for the thread a few seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _enter(self, place: Place) -> None:
        with self._changed:
            self._check(place)
            waiting = self._waiting()
            if not place.background and waiting >= MOST_WAITING:
                raise Overloaded(f"{waiting} requests wait for {self.name} already; try again in a moment")
            last = [other.order[0] for other in self._places if other.client == place.client]
            place.order = (max([self._round, *(number + 1 for number in last)]), next(self._arrivals))
            for other in self._places:
                if other.answer == place.answer and other.stage is not _Stage.WAITING and not place.background:
                    other.background = False
            self._places.append(place)
            self._admit()

    def _wait(self, place: Place, stage: _Stage) -> None:
        """Wait until a place has come to a stage; one that computes is waited for, come what may."""
        while True:
            with self._changed:
                if place.stage < stage:
                    self._check(place)
                    self._changed.wait(_POLL_S)
                if place.stage >= stage:
                    return
            if not place.cancelled and place.gone():
                place.cancelled = True

    def _check(self, place: Place) -> None:
        if place.stage is _Stage.RUNNING:
            return
        if self._closed:
            raise Overloaded("the server is ending; try again when it has started anew")
        if place.cancelled:
            raise Cancelled("the client has gone")
        wanted = place.background and any(other.image == place.image for other in self._users())
        if wanted and place.stage is _Stage.READY:
            raise Cancelled("a user asks for something else of the same image")

    def _work(self) -> None:
        while (place := self._next(_IDLE_S) or self._next_after_tidying()) is not None:
            try:
                place.outcome.set_result(place.task())
            except BaseException as error:  # whatever it is, it is the request's, and the next one is served
                place.outcome.set_exception(error)
            with self._changed:
                place.stage = _Stage.DONE
                self._admit()
            del place  # an image must not stay in memory until the next request

    def _next_after_tidying(self) -> Place | None:
        """Give back the memory that is kept for the next one, as none comes, and wait for it."""
        heap.give_back()
        return self._next(None)

    def _next(self, patience_s: float | None) -> Place | None:
        """Return the next to compute, waiting for it no longer than so; None then, and at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._next_ready() is not None, patience_s)
            place = self._next_ready()
            if self._closed or place is None:
                return None
            place.started, place.stage = time.perf_counter(), _Stage.RUNNING
            self._admit()
            return place

    def _admit(self) -> None:
        """Let the next ones read their images, and wake whoever waits for a change."""
        while True:
            held = {place.image for place in self._places if place.stage is not _Stage.WAITING}
            served = self._served()
            admitted = sum(place.stage in (_Stage.LOADING, _Stage.READY) for place in served)
            able = [place for place in served if place.stage is _Stage.WAITING and place.image not in held]
            if not able or admitted >= self._most_admitted:
                break
            min(able, key=lambda place: place.order).stage = _Stage.LOADING
        self._changed.notify_all()

    def _next_ready(self) -> Place | None:
        ready = [place for place in self._served() if place.stage is _Stage.READY]
        return min(ready, key=lambda place: place.order, default=None)

    def _served(self) -> list[Place]:
        """Return the places that may go on: the users', or where there is none, those of background work."""
        return self._users() or self._places

    def _users(self) -> list[Place]:
        return [place for place in self._places if not place.background]

    def _waiting(self) -> int:
        return sum(place.stage < _Stage.RUNNING for place in self._users())


class Engine:
    """The devices' workers of a process, each made when it is first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[str, DeviceWorker] = {}

    def worker(self, device: torch.device) -> DeviceWorker:
        """Return the worker of a device."""
        with self._lock:
            return self._worker(device)

    def place(
        self, answers: Mapping[torch.device, Hashable], image: Hashable, **about: Any
    ) -> AbstractContextManager[Place]:
        """Take a place at the device of several that will serve it soonest; `Place.device` tells which.

        Args:
            answers: the devices, the preferred one first, and what the answer is known by at each.
            image: as for `DeviceWorker.place`.
            about: likewise.
        """
        with self._lock:  # so that two who come at once do not choose the same
            workers = {self._worker(device): answer for device, answer in answers.items()}
            chosen = min(workers, key=lambda worker: worker.queue(workers[worker]))
            return chosen.place(image, workers[chosen], **about)

    def _worker(self, device: torch.device) -> DeviceWorker:
        name = str(device)
        if name not in self._workers:
            self._workers[name] = DeviceWorker(name)
        return self._workers[name]

    def waiting(self) -> dict[str, int]:
        """Return how many users' requests wait for each device."""
        with self._lock:
            workers = dict(self._workers)
        return {name: worker.waiting for name, worker in workers.items()}

    def close(self) -> None:
        """End all of them in good order; what waits is refused."""
        with self._lock:
            workers = list(self._workers.values())
        for worker in workers:
            worker.close()
