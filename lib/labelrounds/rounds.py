"""The rounds of labelling of a studies folder: what is asked of them, and what watches its images for them.

The way: ``POST /activelearning/{strategy}`` -> `Rounds.choose` -> `labelrounds.handing_out` hands a case out. It ends
in ``PUT /datastore/label`` -> `Rounds.submitted` -> the ledger, where `labelrounds.agreement` then adds how well the
prediction agreed; a reviewer's word on the label comes by `Rounds.review`. `Rounds.state` tells how all of it stands.

Concurrency
    Any thread may call. A thread looks every few seconds for new images and versions, and has
    `labelrounds.pool_scoring` pass over them.

Crash
    What was answered is in the database under ``LABELROUNDS_HOME``, which is opened when it is first needed. Where it
    can't be written to, who asks for a case is told so with 507; labels are saved, and everything else goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import labelrounds.host  # noqa: F401 - makes the next import possible

# isort: split
from monailabel.interfaces.tasks.strategy import Strategy

from labelrounds import cold, leases, pool_means, scores
from labelrounds.agreement import Agreement, Predicting
from labelrounds.budget import TARGET
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import AnyConfig
from labelrounds.database import Database, rounds_file
from labelrounds.engine import Engine
from labelrounds.errors import LabelRoundsError, NotFound
from labelrounds.handing_out import HandingOut, Preparing
from labelrounds.history import checksum
from labelrounds.jobs import job_queue
from labelrounds.leases import Asking, Leases
from labelrounds.leftovers import queue_of
from labelrounds.owing import Owing
from labelrounds.pool import PoolSource
from labelrounds.pool_means import note_pool_mean
from labelrounds.pool_scoring import PoolScoring
from labelrounds.round_state import Parts, state_of
from labelrounds.store import CLASSES
from labelrounds.strategies import strategies
from labelrounds.training_lock import is_trained

logger = logging.getLogger(__name__)

SCHEMA = leases.SCHEMA + scores.SCHEMA + cold.SCHEMA + pool_means.SCHEMA
DEFAULT, SECOND = "auto", "second_opinion"
_LOOK_EVERY_S = 5.0
_CLOSING_S = 5.0


class Served(Preparing, Predicting, Protocol):
    """What the rounds ask of the app; see `labelrounds.app.LabelRoundsApp`."""

    @property
    def engine(self) -> Engine:
        """The devices."""

    def usual_model(self, task: str) -> str | None:
        """Return the model of a task that users ask for, None where there is none."""


@dataclass(frozen=True)
class _Open:
    """What needs the database."""

    database: Database
    leases: Leases
    handing_out: HandingOut
    agreement: Agreement


class _Model:
    """What is about one model: its pool, and what passes over it."""

    def __init__(self, config: AnyConfig, app: Served, opened: _Open) -> None:
        folders = [Checkpoints(other).folder for other in app.configs.values()]
        self.source = PoolSource(config, app.datastore(), opened.database, opened.leases)
        self.scoring = PoolScoring(
            config,
            app.engine,
            self.source.scores,
            self.source.cold,
            training=lambda: bool(job_queue("train").unfinished()) or any(map(is_trained, folders)),
        )
        self._wanted: object = None

    def want(self, costly: tuple[str, ...], active: bool = True) -> None:
        """Have the images that are there now passed over, or nothing more by a model that the rounds have left."""
        wanted = (self.source.to_score() if active else {}), costly
        if wanted != self._wanted:
            self.scoring.wanted(*wanted)
            self._wanted = wanted


class Listed(Strategy):
    """A strategy as the host lists it."""

    def __init__(self, description: str, choose: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__(description)
        self._choose = choose

    def __call__(self, request: dict[str, Any], datastore: object) -> dict[str, Any]:
        """Return the next case."""
        return self._choose(request)


class Rounds:
    """The rounds of labelling of one studies folder.

    Args:
        app: whose models and datastore they are about.
        studies: the folder, or the address of a DICOMweb server.
    """

    def __init__(self, app: Served, studies: str) -> None:
        self._app, self._studies = app, studies
        self._opening = threading.Lock()
        self._open: _Open | None = None
        self._models: dict[str, _Model] = {}
        self._costly: tuple[str, ...] = ()
        self._asked: str | None = None  # the model that a case was last asked for by its name
        self._owing = Owing(lambda: app.datastore().history)
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._look, name="rounds", daemon=True)

    def opened(self) -> _Open:
        """Return what needs the database, opening it first if need be.

        Raises:
            OutOfSpace: it can't be written to; the next call tries again.
        """
        with self._opening:
            if self._open is None:
                database = Database(rounds_file(self._studies), SCHEMA)
                held = Leases(database)
                self._open = _Open(database, held, HandingOut(self._app, held), Agreement(self._app, held.ledger))
            return self._open

    def start(self) -> None:
        """Begin to pass over the images, and go on with what a killed server has left."""
        self._watch.start()

    def close(self) -> None:
        """End what runs in the background."""
        self._closed.set()
        if self._watch.ident is not None:
            self._watch.join(_CLOSING_S)
        if self._open is not None:
            self._open.agreement.close()
        for model in list(self._models.values()):
            model.scoring.close()

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return how far the scoring of each model's pool is; see `PoolScoring.progress`."""
        return {name: model.scoring.progress() for name, model in list(self._models.items())}

    def model(self, asked: object = None) -> str:
        """Return the model that the rounds are about: the one asked for, or the one that users ask for.

        Raises:
            NotFound: no such model, or none of the task that the datastore's labels are of.
        """
        task = "classification" if self._app.datastore().rounds_tag == CLASSES else "segmentation"
        configs = self._app.configs
        fitting = [name for name, config in configs.items() if config.task == task] or list(configs)
        name = asked or self._app.usual_model(task) or next(iter(fitting), None)
        if name not in fitting:
            raise NotFound(f"model {str(asked)[:100]!r} is not one of {', '.join(fitting)}")
        return str(name)

    def choose(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Hand out a case.

        Args:
            request: ``strategy`` (by default ``auto``), ``client_id``, ``model``.

        Returns:
            what a client reads of the case, and nothing to add; or nothing, and why there is no case.

        Raises:
            NotFound: no such strategy or model.
            OutOfSpace: the database can't be written to.
        """
        name, model = self._strategy(request.get("strategy")), self.model(request.get("model"))
        strategy = strategies.get(name)()
        self._asked = model if request.get("model") else self._asked
        self._costly = tuple(sorted({*self._costly, *strategy.costly}))
        asking = Asking(str(request.get("client_id") or ""), name, model, second=name == SECOND)
        return self.opened().handing_out.next_case(strategy, self._of(model).source, asking)

    def submitted(self, image: str, tag: str, client: str) -> None:
        """Note a label that was just saved; where that can't be done, it is noted beside the label, and done later."""
        store = self._app.datastore()
        if tag != store.rounds_tag:
            return
        try:
            entry, model = store.entries[image].labels[tag], self.model()
            digest = entry.info.get("sha256") or checksum(Path(store.get_label_uri(image, tag)))
            served = Checkpoints(self._app.configs[model]).served_number()
        except (LabelRoundsError, KeyError) as error:
            logger.warning("The label of %s is saved, but not in the ledger of the rounds: %s", image, error)
            return
        self._owing.add({"image": image, "client": client, "label": digest, "model": model, "version": served})
        self._settle()

    def _settle(self) -> None:
        if self._owing.settle(lambda entry: self.opened().leases.submitted(**entry)):
            self.opened().agreement.resume()

    def renew(self, image: str, client: str) -> float:
        """Keep a case for its client; returns for how many seconds.

        Raises:
            NotFound: no such image.
            Conflict: it is not in that client's hands.
        """
        self._check_image(image)
        return self.opened().leases.renew(image, client)

    def put_aside(self, image: str, client: str, kind: str, reason: str, hours: float | None) -> None:
        """Hand a case out no more, for good or for some hours; raises `NotFound` where there is no such image."""
        self._check_image(image)
        self.opened().leases.put_aside(image, client, kind, reason, hours)

    def put_back(self, image: str, client: str) -> None:
        """Hand a case out again; raises `NotFound` where there is no such image, or it is not put aside."""
        self.opened().leases.put_back(image, client)

    def review(
        self, image: str, verdict: str, reason: str, user: str, client: str, sha256: str | None = None
    ) -> dict[str, Any]:
        """Note a reviewer's word on an image's label, and return it.

        Args:
            image: whose label it is about.
            verdict: ``approved`` or ``sent_back``.
            reason: what is to be corrected.
            user: who says so.
            client: by which.
            sha256: of the label that was looked at, where that is known.

        Raises:
            NotFound: no such image, or it has no label.
            Conflict: its label is another one by now.
            OutOfSpace: it can't be written down.
        """
        store = self._app.datastore()
        word = {"verdict": verdict, "by": user, "reason": reason, "time": time.time()}
        store.note_review(image, store.rounds_tag, word, sha256)
        self.opened().leases.reviewed(image, client, verdict, reason)
        return word

    def state(
        self,
        strategy: str | None = None,
        count: int = 10,
        model: str | None = None,
        target: float | None = None,
        thumbnails: bool = False,
    ) -> dict[str, Any]:
        """Return how the labelling stands; see `labelrounds.round_state`.

        Args:
            strategy: by which the queue is ordered, by default ``auto``.
            count: of the queue's cases.
            model: by default the one that the rounds are about.
            target: mean Dice of predictions on random cases at which to stop, by default `budget.TARGET`.
            thumbnails: whether the queue has pictures.

        Raises:
            NotFound: no such strategy or model.
            OutOfSpace: the database can't be written to.
        """
        name, served = self._strategy(strategy), self.model(model)
        chooser, of, opened = strategies.get(name)(), self._of(served), self.opened()
        gathered = of.source.gather(cold=chooser.cold)
        return state_of(
            Parts(
                config=of.source.config,
                store=self._app.datastore(),
                database=opened.database,
                gathered=gathered,
                strategy=name,
                choices=queue_of(chooser, gathered, count, second=name == SECOND),
                ledger=opened.leases.ledger.entries(),
                progress=of.scoring.progress(),
                cold={} if gathered.known.scores else of.source.cold.known(gathered.files)[0],
                ready=self._app.is_ready,
                target=TARGET if target is None else target,
                thumbnails=thumbnails,
            )
        )

    def _strategy(self, name: object) -> str:
        name = name or DEFAULT
        if name not in strategies.names():
            raise NotFound(f"strategy {str(name)[:100]!r} is not one of {', '.join(strategies.names())}")
        return str(name)

    def _of(self, model: str) -> _Model:
        opened = self.opened()
        with self._opening:
            if model not in self._models:
                self._models[model] = _Model(self._app.configs[model], self._app, opened)
            return self._models[model]

    def _check_image(self, image: str) -> None:
        store = self._app.datastore()
        if image not in store.entries and image not in store.list_images():
            raise NotFound(f"image {image[:200]!r} is not in the datastore")

    def _look(self) -> None:
        """Look for what is new until the server ends."""
        resumed = False
        while not self._closed.is_set():
            try:
                self._settle()
                if not resumed:
                    self.opened().agreement.resume()
                    resumed = True
                self._look_once(self._about())
            except LabelRoundsError as error:
                logger.debug("No pass over the images: %s", error)
            except Exception:
                logger.exception("No pass over the images")
            self._closed.wait(_LOOK_EVERY_S)

    def _about(self) -> set[str]:
        """Return the model that the rounds are about, and that by which a case was last asked for."""
        models = {self.model()}
        with suppress(NotFound):  # the labels are of another task by now
            models.add(self.model(self._asked))
        return models

    def _look_once(self, models: set[str]) -> None:
        """Have the images passed over by these models."""
        for name, other in list(self._models.items()):
            if name not in models:
                other.want(self._costly, active=False)
        for name in sorted(models):
            self._look_with(name)

    def _look_with(self, model: str) -> None:
        """Have the images passed over by a model, and check those that it could not take.

        What is too large for a model may still be labelled.
        """
        of = self._of(model)
        of.want(self._costly)
        opened, images = self.opened(), of.source.to_score()
        unreadable = opened.leases.standing().unreadable
        known = of.source.scores.known(images, of.source.checkpoints)
        note_pool_mean(opened.database, model, known, of.source.unlabelled_at_hand())
        for image in known.failed:
            if image not in unreadable:
                opened.handing_out.is_readable(image, images[image])
