"""Score the images of a pool before a round asks for it, while no user needs the device.

On the way of a round: the rounds say which images they want to know about, in which order, and take what is known
(`labelrounds.scores`). One thread scores what is missing by the version that is served, one image after the other; the
next is read and prepared meanwhile. It looks again when it is woken (a new image, a label, a published version), and by
itself every few seconds whether another version is served.

Concurrency
    Any thread may call any method. The computing is background work of the device's thread (`labelrounds.engine`): it
    is admitted only while no user has a place, broken off between windows when one takes a place, and taken up again.

Crash and faults
    What was scored is kept image by image. An image that can't be used is noted with its reason and skipped until its
    file changes. Where the disk is full, or the weights can't be read, the thread waits and says so in its progress.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError as CancelledReading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from labelrounds import cold
from labelrounds.checkpoints import Checkpoints
from labelrounds.cold import ColdStore
from labelrounds.config import AnyConfig
from labelrounds.devices import choose_devices
from labelrounds.engine import Engine
from labelrounds.errors import Cancelled, LabelRoundsError, OutOfSpace, Overloaded, TooLarge
from labelrounds.memory_cache import identity_of
from labelrounds.pool_progress import PoolProgress
from labelrounds.read_ahead import ReadAhead, give_way
from labelrounds.scores import CaseScores, ScoreStore, weights_of
from labelrounds.scoring import Prepared, Scorer

logger = logging.getLogger(__name__)

_POLL_S = 5.0  # after which it looks whether another version is served
_LOOK_AGAIN_S = 60.0  # after which it looks into folders for files that were changed in place
_PAUSE_S = 10.0  # before what failed by the fault of the disk or the weights is tried again
_CLOSING_S = 5.0
_CLIENT = "pool-scoring"
_CPU = torch.device("cpu")


class PoolScoring:
    """Scores the pool of one model; the thread starts when something is first wanted.

    Args:
        config: the model.
        engine: the devices, shared with inference.
        store: of the scores.
        cold_store: of embeddings without a model.
        devices: gives the devices to score on, the preferred one first.
        training: tells whether a training runs, which needs the devices more: nothing is scored meanwhile.
    """

    def __init__(
        self,
        config: AnyConfig,
        engine: Engine,
        store: ScoreStore,
        cold_store: ColdStore,
        devices: Callable[[], list[torch.device]] = choose_devices,
        training: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._engine, self._store, self._cold = config, engine, store, cold_store
        self._devices, self._training = devices, training
        self._checkpoints = Checkpoints(config)
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self._images: dict[str, Path] = {}
        self._costly: tuple[str, ...] = ()
        self._cold_wanted = False
        self._progress = PoolProgress()
        self._scorer: tuple[str, Scorer] | None = None  # and the hash of its weights
        self._too_costly: set[tuple[str, str]] = set()  # identities and weights
        self._thread: threading.Thread | None = None
        self._reader = ReadAhead("pool-reading")

    def wanted(self, images: Mapping[str, Path], costly: Collection[str] = (), cold_too: bool = False) -> None:
        """Say what is to be scored from now on, in place of what was wanted before; returns at once.

        Args:
            images: by id, the file or the folder of a series, in the order in which they are to be scored: those that
                may be handed out first.
            costly: names of `scoring.COSTLY` that a strategy in use goes by.
            cold_too: whether embeddings without a model are wanted also where there is a trained version.
        """
        with self._changed:
            self._images, self._costly, self._cold_wanted = dict(images), tuple(costly), cold_too
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="pool-scoring", daemon=True)
                self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Look again at once: an image, a label or a version has come."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def progress(self) -> dict[str, Any]:
        """Return how far it is.

        Returns:
            ``scored`` and ``failed`` images ``of`` those that are wanted, by the ``version`` that is served (None: it
            counts embeddings without a model), ``eta_s`` until all are done (None: not known, 0: done), whether it is
            ``running``, and a ``note`` where it waits for something.
        """
        with self._changed:
            return self._progress.told(len(self._images))

    def close(self) -> None:
        """Begin no further image, break off what is computed, and wait a few seconds for its end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.close()
        if self._thread is not None:
            self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        give_way()
        while not self._closed:
            with self._changed:
                self._woken = False
            served, patience_s = self._served(), _LOOK_AGAIN_S
            try:
                self._all(served)
            except LabelRoundsError as error:
                self._say(f"paused: {error}")
                patience_s = _PAUSE_S
            except Exception as error:  # whatever it is, the server goes on, and this is tried again
                logger.exception("The pool of %s is not scored", self._config.name)
                self._say(f"paused: {type(error).__name__}: {error}")
                patience_s = _PAUSE_S
            with self._changed:
                self._progress.running = False
            self._rest(served, patience_s)

    def _rest(self, served: str, patience_s: float) -> None:
        """Wait until there may be something to do."""
        until = time.monotonic() + patience_s
        while not self._interrupted(served):
            left = until - time.monotonic()
            if left <= 0:
                self._store.look_again(self._images)
                return
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closed, min(left, _POLL_S))

    def _interrupted(self, served: str) -> bool:
        return self._closed or self._woken or self._served() != served

    def _served(self) -> str:
        """Return what the served version is known by; another as soon as another is served."""
        try:
            version = self._checkpoints.current()
            return "" if version is None else f"{version.number} {identity_of(version.weights)}"
        except LabelRoundsError as error:
            return str(error)

    def _all(self, served: str) -> None:
        """Score what is missing, until something else is wanted or another version is served."""
        with self._changed:
            images, costly, cold_wanted = self._images, self._costly, self._cold_wanted
        scorer = self._ready()
        if scorer is None or cold_wanted:
            known, failed = self._cold.known(images)
            todo = {one: path for one, path in images.items() if one not in known and one not in failed}
            self._begin(None, len(todo), len(failed))
            for path in todo.values():
                if self._interrupted(served):
                    return
                self._embed(path)
        if scorer is None or self._interrupted(served):
            return
        weights, scoring = scorer
        names = scoring.able(costly)
        todo, failures = self._missing(images, weights, names)
        self._begin(scoring.version.number, len(todo), failures)
        for path, reading in self._reader.each(scoring.read, list(todo.values())):
            self._score(path, reading, weights, scoring, names)
            if self._interrupted(served):
                return

    def _ready(self) -> tuple[str, Scorer] | None:
        """Return the hash of the served weights and what scores by them; None, with a note, where there are none."""
        try:
            version = self._checkpoints.current()
            if version is None:
                self._say("there is no trained version yet")
                return None
            weights = weights_of(version)
            if self._scorer is None or self._scorer[0] != weights:
                self._scorer = None  # the memory of the one is needed for the other
                self._scorer = weights, Scorer(self._config, version)
            self._say("")
            return self._scorer
        except LabelRoundsError as error:
            self._say(str(error))
            return None

    def _missing(self, images: Mapping[str, Path], weights: str, names: Collection[str]) -> tuple[dict[str, Path], int]:
        """Return the images that have no scores yet, or not all that are wanted, and how many have failed."""
        known = self._store.known(images, self._checkpoints)
        lacking = set(known.missing)
        if not known.stale:
            lacking |= {
                image_id
                for image_id, scores in known.scores.items()
                if not scores.values.keys() >= set(names) and (str(images[image_id]), weights) not in self._too_costly
            }
        return {image_id: path for image_id, path in images.items() if image_id in lacking}, len(known.failed)

    def _attempt(
        self,
        path: Path,
        what: str,
        make: Callable[[], Callable[[], None] | None],
        failed: Callable[[str], None],
    ) -> None:
        """Do something with an image and keep what comes of it, or why it can't be done.

        Args:
            path: the image.
            what: is done, for the log.
            make: does it; returns what keeps the outcome, or None where it was broken off.
            failed: keeps the reason.
        """
        since = time.perf_counter()
        try:
            put = make()
        except LabelRoundsError as error:
            reason = str(error)
        except Exception as error:
            logger.exception("Not %s: %s", what, path.name)
            reason = f"{path.name}: {type(error).__name__}: {error}"
        else:
            if put is not None:
                self._keep(put)
                self._done(time.perf_counter() - since)
            return
        logger.info("Not %s: %s", what, reason)
        self._keep(lambda: failed(reason))
        self._done(time.perf_counter() - since, failed=True)

    def _score(
        self, path: Path, reading: "Future[Prepared]", weights: str, scorer: Scorer, names: Collection[str]
    ) -> None:
        """Score an image and keep what comes of it, or why not."""
        identity: str | None = None

        def make() -> Callable[[], None] | None:
            nonlocal identity
            try:
                prepared = reading.result()
            except CancelledReading:
                return None
            identity = prepared.identity
            scores = self._computed(prepared, path, weights, scorer, names)
            return None if scores is None else lambda: self._store.put(path, scores, weights, identity)

        def failed(reason: str) -> None:
            self._store.put_failure(path, reason, weights, scorer.version.number, identity)

        self._attempt(path, "scored", make, failed)

    def _computed(
        self, prepared: Prepared, path: Path, weights: str, scorer: Scorer, names: Collection[str]
    ) -> CaseScores | None:
        """Return the scores of an image, without the costly ones where the memory does not suffice for those.

        None where the server is ending.
        """
        while not self._closed:
            self._await_training()
            try:
                return self._in_background(prepared, weights, scorer, names)
            except Cancelled:  # a user needs the device, for whom the next place waits, or a training
                continue
            except Overloaded:  # the devices are closing, and so will this
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _PAUSE_S)
                continue
            except TooLarge:
                if not names:
                    raise
            self._too_costly.add((str(path), weights))
            names = ()
        return None

    def _in_background(self, prepared: Prepared, weights: str, scorer: Scorer, names: Collection[str]) -> CaseScores:
        answer = ("scores", self._config.name, weights, prepared.identity)
        with self._engine.place(
            dict.fromkeys(self._devices(), answer),
            prepared.identity,
            client=_CLIENT,
            background=True,
            gone=lambda: self._closed,
        ) as place:
            found: CaseScores = place.compute(
                lambda stopped: scorer.score_prepared(prepared, place.device, names, lambda: self._breaks_off(stopped))
            )
            return found

    def _breaks_off(self, stopped: Callable[[], bool]) -> bool:
        return self._closed or stopped() or self._training()

    def _await_training(self) -> None:
        """Wait until no training runs."""
        note = self._progress.note
        while self._training() and not self._closed:
            self._say("paused: a training runs")
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _POLL_S)
        self._say(note)

    def _embed(self, path: Path) -> None:
        """Embed an image without a model, and keep what comes of it, or why not."""

        def make() -> Callable[[], None] | None:
            identity = identity_of(path)
            try:
                # Admitted only while no user has a place; it is over in a moment.
                with self._engine.worker(_CPU).place(
                    identity, ("cold", identity), client=_CLIENT, background=True, gone=lambda: self._closed
                ):
                    embedding = cold.embed(path, self._config)
            except (Cancelled, Overloaded):
                return None
            return lambda: self._cold.put(path, embedding, identity)

        self._attempt(path, "embedded", make, lambda reason: self._cold.put_failure(path, reason))

    def _keep(self, put: Callable[[], None]) -> None:
        """Write to the database, again and again while the disk does not take it."""
        note = self._progress.note
        while not self._closed:
            try:
                put()
            except OutOfSpace as error:
                self._say(f"paused: {error}")
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _PAUSE_S)
            else:
                self._say(note)
                return

    def _begin(self, version: int | None, left: int, failed: int) -> None:
        with self._changed:
            self._progress.begin(version, left, failed)

    def _done(self, seconds: float, failed: bool = False) -> None:
        with self._changed:
            self._progress.done(seconds, failed)

    def _say(self, note: str) -> None:
        with self._changed:
            if note and note != self._progress.note:
                logger.warning("Pool of %s: %s", self._config.name, note)
            self._progress.note = note
