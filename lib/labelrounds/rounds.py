"""A round: which case is handed out next and why, who has it in hand, and what comes of it.

The way: ``POST /activelearning/{strategy}`` -> `Rounds.choose` -> `labelrounds.pool` gathers what may be handed out and
what is known of it -> the strategy orders it -> `labelrounds.leases` takes the first that is free -> the next ones are
segmented ahead. It ends in ``PUT /datastore/label`` -> `Rounds.submitted` -> the ledger, where `labelrounds.agreement`
then adds how well the prediction agreed.

Concurrency
    Any thread may call. Choosing is done one at a time in this process; taking is atomic between processes. A thread
    looks every few seconds for new images and versions, and has `labelrounds.pool_scoring` pass over them.

Crash
    What was answered is in the database under ``LABELROUNDS_HOME``, which is opened when it is first needed. Where it
    can't be written to, who asks for a case is told so with 507; labels are saved, and everything else goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import labelrounds.host  # noqa: F401 - makes the next import possible

# isort: split
from monailabel.interfaces.tasks.strategy import Strategy

from labelrounds import cold, leases, pool_means, scores
from labelrounds.agreement import Agreement
from labelrounds.budget import TARGET
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import AnyConfig
from labelrounds.database import Database, rounds_file
from labelrounds.engine import Engine
from labelrounds.errors import LabelRoundsError, NotFound
from labelrounds.history import checksum
from labelrounds.jobs import job_queue
from labelrounds.leases import Asking, Leases
from labelrounds.leftovers import nothing_left, order_of, queue_of
from labelrounds.owing import Owing
from labelrounds.pool import Gathered, PoolSource
from labelrounds.pool_means import note_pool_mean
from labelrounds.pool_scoring import PoolScoring
from labelrounds.readable import Readable
from labelrounds.reviews import REVIEW, is_sent_back, review_of
from labelrounds.round_state import Parts, state_of
from labelrounds.store import CLASSES
from labelrounds.strategies import strategies
from labelrounds.strategies.base import Choice
from labelrounds.training_lock import is_trained

logger = logging.getLogger(__name__)

SCHEMA = leases.SCHEMA + scores.SCHEMA + cold.SCHEMA + pool_means.SCHEMA
DEFAULT, SECOND = "auto", "second_opinion"
AHEAD = 3
_LOOK_EVERY_S = 5.0
_CLOSING_S = 5.0


class Served(Protocol):
    """What the rounds ask of the app; see `labelrounds.app.LabelRoundsApp`."""

    @property
    def configs(self) -> Mapping[str, AnyConfig]:
        """The models by name."""

    @property
    def engine(self) -> Engine:
        """The devices."""

    def datastore(self) -> Any:
        """Return the datastore."""

    def usual_model(self, task: str) -> str | None:
        """Return the model of a task that users ask for, None where there is none."""

    def image_path(self, image_id: str) -> Path:
        """Return where an image lies, fetching it if need be."""

    def segment_ahead(self, image: Path) -> None:
        """Segment an image in the background."""

    def is_ready(self, image: Path) -> bool:
        """Tell whether the answer for an image is in memory."""

    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Segment or classify an image."""


@dataclass(frozen=True)
class _Open:
    """What needs the database."""

    database: Database
    leases: Leases
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
        self._opening, self._choosing = threading.Lock(), threading.Lock()
        self._open: _Open | None = None
        self._models: dict[str, _Model] = {}
        self._costly: tuple[str, ...] = ()
        self._readable = Readable()
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
                self._open = _Open(database, held, Agreement(self._app, held.ledger))
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
        self._costly = tuple(sorted({*self._costly, *strategy.costly}))
        asking = Asking(str(request.get("client_id") or ""), name, model, second=name == SECOND)
        while True:
            with self._choosing:
                gathered = self._of(model).source.gather(asking.client, strategy.cold)
                order, asking = order_of(strategy, gathered, replace(asking, version=gathered.known.version), AHEAD + 1)
                place = self._take(order, asking, gathered)
            if not order:
                return {}, nothing_left(gathered, asking)
            if place is None:
                continue  # all of them were unreadable, or taken by another process
            image = order[place].image_id
            path = self._fetched(image, asking.client)
            if self._is_readable(image, path):
                self._prepare(path, order[place + 1 :], gathered)
                return self._answer(order[place], place + 1, path, asking, gathered), ""

    def _fetched(self, image: str, client: str) -> Path:
        """Return where a handed-out image lies; where it can't be fetched, nobody has it in hand."""
        try:
            return self._app.image_path(image)
        except Exception as error:
            self.opened().leases.give_back(image, client, f"could not be fetched: {error}"[:500])
            raise

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

    def _take(self, order: Sequence[Choice], asking: Asking, gathered: Gathered) -> int | None:
        """Take the first case that is free and, as far as it is at hand, readable; return its place."""
        for place, choice in enumerate(order):
            image = choice.image_id
            unseen = image in gathered.files and image not in gathered.known.scores
            if unseen and not self._is_readable(image, gathered.files[image]):
                continue
            if self.opened().leases.take(choice, place + 1, asking, gathered.standing):
                return place
        return None

    def _is_readable(self, image: str, path: Path) -> bool:
        """Tell whether an image can be read; what can't be is handed out no more until its file is another."""
        identity, reason = self._readable.check(path)
        if reason:
            self.opened().leases.note_unreadable(image, identity, reason)
        return not reason

    def _prepare(self, path: Path, later: Sequence[Choice], gathered: Gathered) -> None:
        """Have the handed-out case segmented, and then the next ones, as far as they are at hand."""
        images = [gathered.files[choice.image_id] for choice in later[:AHEAD] if choice.image_id in gathered.files]
        for image in [*reversed(images), path]:  # the last one first
            self._app.segment_ahead(image)

    def _answer(self, choice: Choice, rank: int, path: Path, asking: Asking, gathered: Gathered) -> dict[str, Any]:
        info: dict[str, Any] = self._app.datastore().get_image_info(choice.image_id)
        info.pop("strategy", None)
        return {
            **info,
            "id": choice.image_id,
            "path": str(path),
            "reason": choice.reason,
            "score": choice.score,
            "rank": rank,
            "strategy": asking.strategy,
            "model": asking.model,
            "monitor": choice.monitor,
            "prediction_ready": self._app.is_ready(path),
            "queue": max(0, len(gathered.pool.candidates) + len(gathered.sent_back) - 1),
            "lease_s": self.opened().leases.seconds,
            **({"stale": _stale(gathered)} if gathered.known.stale else {}),
            **self._sent_back(choice.image_id),
        }

    def _sent_back(self, image: str) -> dict[str, Any]:
        """Return the reviewer's word on a case whose label is to be corrected."""
        store = self._app.datastore()
        found = store.entries[image].labels.get(store.rounds_tag) if image in store.entries else None
        return {REVIEW: review_of(found.info)} if found is not None and is_sent_back(found.info) else {}

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
                self._look_once(self.model())
            except LabelRoundsError as error:
                logger.debug("No pass over the images: %s", error)
            except Exception:
                logger.exception("No pass over the images")
            self._closed.wait(_LOOK_EVERY_S)

    def _look_once(self, model: str) -> None:
        """Have the images passed over by the model that the rounds are about, and check those that it could not take.

        What is too large for a model may still be labelled.
        """
        for name, other in list(self._models.items()):
            other.want(self._costly, active=name == model)
        of = self._of(model)
        of.want(self._costly)
        unreadable = self.opened().leases.standing().unreadable
        images = of.source.to_score()
        known = of.source.scores.known(images, of.source.checkpoints)
        note_pool_mean(self.opened().database, model, known, of.source.unlabelled_at_hand())
        for image in known.failed:
            if image not in unreadable:
                self._is_readable(image, images[image])


def _stale(gathered: Gathered) -> str:
    return (
        f"scored by version {gathered.known.version}, as the one served now has not passed over all images yet:"
        f" {len(gathered.known.missing)} to go"
    )
