"""Hand a case out: the first that is free and can be read of those that a strategy orders, segmented ahead.

On the way of a round: `labelrounds.rounds` has been asked for a case and says of which pool and by which strategy ->
`HandingOut.next_case` -> `labelrounds.leftovers` orders the pool -> `labelrounds.leases` takes the first case that is
free -> its image is fetched and checked -> it and the next ones are segmented ahead -> the answer.

Concurrency: any thread may call. Choosing is done one at a time in this process, fetching and reading are not; taking
is atomic between processes.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from labelrounds.leases import Asking, Leases
from labelrounds.leftovers import nothing_left, order_of
from labelrounds.pool import Gathered, PoolSource
from labelrounds.readable import Readable
from labelrounds.reviews import REVIEW, is_sent_back, review_of
from labelrounds.strategies.base import CaseStrategy, Choice

_AHEAD = 3


class Preparing(Protocol):
    """What is asked of the app."""

    def datastore(self) -> Any:
        """Return the datastore."""

    def image_path(self, image_id: str) -> Path:
        """Return where an image lies, fetching it if need be."""

    def segment_ahead(self, *images: Path) -> None:
        """Segment images in the background, the first one first."""

    def is_ready(self, image: Path) -> bool:
        """Tell whether the answer for an image is in memory."""


class HandingOut:
    """Hands out the cases of one datastore.

    Args:
        app: whose datastore it is.
        leases: who has which case in hand.
    """

    def __init__(self, app: Preparing, leases: Leases) -> None:
        self._app, self._leases = app, leases
        self._choosing = threading.Lock()
        self._readable = Readable()

    def next_case(self, strategy: CaseStrategy, source: PoolSource, asking: Asking) -> tuple[dict[str, Any], str]:
        """Hand out a case.

        Args:
            strategy: that orders the pool.
            source: of the pool.
            asking: who asks, and by what.

        Returns:
            what a client reads of the case, and nothing to add; or nothing, and why there is no case.

        Raises:
            OutOfSpace: the database can't be written to.
            LabelRoundsError: the case's image can't be fetched; nobody has it in hand then.
        """
        while True:
            with self._choosing:
                gathered = source.gather(asking.client, strategy.cold)
                order, asking = order_of(
                    strategy, gathered, replace(asking, version=gathered.known.version), _AHEAD + 1
                )
                place = self._take(order, asking, gathered)
            if not order:
                return {}, nothing_left(gathered, asking)
            if place is None:
                continue  # all of them were unreadable, or taken by another process
            image = order[place].image_id
            path = self._fetched(image, asking.client)
            if self.is_readable(image, path):
                self._prepare(path, order[place + 1 :], gathered)
                return self._answer(order[place], place + 1, path, asking, gathered), ""

    def is_readable(self, image: str, path: Path) -> bool:
        """Tell whether an image can be read; what can't be is handed out no more until its file is another."""
        identity, reason = self._readable.check(path)
        if reason:
            self._leases.note_unreadable(image, identity, reason)
        return not reason

    def _take(self, order: Sequence[Choice], asking: Asking, gathered: Gathered) -> int | None:
        """Take the first case that is free and, as far as it is at hand, readable; return its place."""
        for place, choice in enumerate(order):
            image = choice.image_id
            unseen = image in gathered.files and image not in gathered.known.scores
            if unseen and not self.is_readable(image, gathered.files[image]):
                continue
            if self._leases.take(choice, place + 1, asking, gathered.standing):
                return place
        return None

    def _fetched(self, image: str, client: str) -> Path:
        """Return where a handed-out image lies; where it can't be fetched, nobody has it in hand."""
        try:
            return self._app.image_path(image)
        except Exception as error:
            self._leases.give_back(image, client, f"could not be fetched: {error}"[:500])
            raise

    def _prepare(self, path: Path, later: Sequence[Choice], gathered: Gathered) -> None:
        """Have the handed-out case segmented, and then the next ones, as far as they are at hand."""
        images = [gathered.files[choice.image_id] for choice in later[:_AHEAD] if choice.image_id in gathered.files]
        self._app.segment_ahead(path, *images)

    def _answer(self, choice: Choice, rank: int, path: Path, asking: Asking, gathered: Gathered) -> dict[str, Any]:
        info: dict[str, Any] = self._app.datastore().get_image_info(choice.image_id)
        info.pop("strategy", None)
        pool = gathered.pool
        waiting = (
            set(pool.labelled_once) - set(pool.taken) if asking.second else {*pool.candidates, *gathered.sent_back}
        )
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
            "queue": len(waiting - {choice.image_id}),
            "lease_s": self._leases.seconds,
            **({"stale": _stale(gathered)} if gathered.known.stale else {}),
            **self._sent_back(choice.image_id),
        }

    def _sent_back(self, image: str) -> dict[str, Any]:
        """Return the reviewer's word on a case whose label is to be corrected."""
        store = self._app.datastore()
        found = store.entries[image].labels.get(store.rounds_tag) if image in store.entries else None
        return {REVIEW: review_of(found.info)} if found is not None and is_sent_back(found.info) else {}


def _stale(gathered: Gathered) -> str:
    return (
        f"scored by version {gathered.known.version}, as the one served now has not passed over all images yet:"
        f" {len(gathered.known.missing)} to go"
    )
