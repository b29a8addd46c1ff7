"""What a round chooses from: the cases that may be handed out, and what is known of each.

On the way of a round: the datastore's images less those with a label, in somebody's hands, put aside, unreadable or
held back from training; the scores that the model's pass over them has left; the classes of the labelled ones. Nothing
is fetched for it: of a DICOMweb server's series only those in the cache are scored, the others are chosen unseen.

What takes long to find out and never changes (whose image it is, which classes a label has) is kept in memory.
"""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labelrounds.checkpoints import Checkpoints
from labelrounds.cold import ColdStore
from labelrounds.config import AnyConfig
from labelrounds.database import Database
from labelrounds.errors import LabelRoundsError
from labelrounds.leases import Aside, Lease, Leases, Standing
from labelrounds.memory_cache import identity_of
from labelrounds.policies import learnt_from
from labelrounds.reviews import sent_back
from labelrounds.scores import Known, ScoreStore
from labelrounds.splits import TEST, TRAIN, by_name_alone, part_to_be, read_parts
from labelrounds.store import CLASSES, StudyStore, patient_in
from labelrounds.strategies.base import Pool


@dataclass(frozen=True)
class Gathered:
    """A pool, and what is not in it.

    Attributes:
        pool: for a strategy.
        standing: by which it was gathered.
        sent_back: by id of a free case, why its label is to be corrected; it counts as one without a label.
        held_back: ids of free cases of patients by whom the model is or will be measured.
        unlabelled: ids of the cases without a label.
        files: by id, where the images lie that are at hand.
        known: what is known of them by the model's pass.
    """

    pool: Pool
    standing: Standing
    sent_back: Mapping[str, str]
    held_back: Sequence[str]
    unlabelled: Set[str]
    files: Mapping[str, Path]
    known: Known

    @property
    def images(self) -> int:
        """How many cases there are."""
        return len(self.unlabelled) + len(self.pool.labelled)

    @property
    def in_hand(self) -> list[Lease]:
        """The cases without a label that somebody has in hand, the one taken longest ago first."""
        return [lease for image, lease in self.standing.leases.items() if image in self.unlabelled]

    @property
    def put_aside(self) -> list[Aside]:
        """The readable cases without a label that were skipped or deferred."""
        unreadable = self.standing.unreadable
        return [one for one in self.standing.aside.values() if one.image in self.unlabelled - unreadable.keys()]

    @property
    def unreadable(self) -> dict[str, str]:
        """By id, why an image without a label can't be read."""
        found = self.standing.unreadable.items()
        return {image: reason for image, (_, reason) in found if image in self.unlabelled}


class PoolSource:
    """Gathers the pool of one model.

    Args:
        config: the model.
        store: the datastore.
        database: of the rounds.
        leases: in it.
    """

    def __init__(self, config: AnyConfig, store: StudyStore, database: Database, leases: Leases) -> None:
        self.config = config
        self.checkpoints = Checkpoints(config)
        self.scores = ScoreStore(database, config)
        self.cold = ColdStore(database, config)
        self._store, self._database, self._leases = store, database, leases
        self._tag = store.rounds_tag
        self._patients: dict[str, str] = {}
        self._read_to = 0
        self._begun: float | None = None  # time of the ledger's first entry
        self._submitted: dict[str, float] = {}
        self._labelled_by: dict[str, set[str]] = {}
        self._present: dict[str, list[str]] = {}

    def gather(self, client: str = "", cold: bool = False) -> Gathered:
        """Gather the pool as it is now.

        Args:
            client: for whom.
            cold: whether embeddings that need no model are wanted, where the model has not seen most of the images.
        """
        # What is in hand first: whoever submits a label in between saves it before the case leaves their hands.
        standing = self._with_files(self._leases.standing())
        back = sent_back(self._store.entries, self._tag)
        labelled = [image for image in self._store.get_labeled_images() if image not in back]
        unlabelled = [*self._store.get_unlabeled_images(), *back]
        waiting = {*unlabelled} - {*labelled}
        files = self._store.files_at_hand()
        parts = self._parts(labelled, [*labelled, *unlabelled], files)
        held_back = {image for image, part in parts.items() if part != TRAIN}
        known = self.scores.known(_without_test(files, parts), self.checkpoints)
        out = {*standing.leases, *standing.aside, *standing.unreadable}
        free = waiting - out
        pool = Pool(
            candidates=sorted(free - held_back - back.keys()),
            labelled=self._in_order(labelled),
            taken=sorted(image for image in standing.leases if image in waiting),
            scores=known.scores,
            cold=self.cold.known(files)[0] if cold and 2 * len(known.scores) < len(files) else {},
            labelled_once=self._by_one_other(labelled, standing, client),
            classes=tuple(self.config.labels),
            present=self._classes_of(labelled),
            trained=known.version is not None,
            learnt_from=self._learnt(known.version, labelled),
            seed=self.config.training.seed,
        )
        return Gathered(
            pool=pool,
            standing=standing,
            sent_back={image: why for image, why in back.items() if image in free},
            held_back=sorted(free & held_back - back.keys()),
            unlabelled=waiting,
            files=files,
            known=known,
        )

    def to_score(self) -> dict[str, Path]:
        """Return, by id, the images at hand that the model is to pass over: all but those that it is tested on.

        Those without a label come first.
        """
        files = self._store.files_at_hand()
        labelled = set(files) - set(self.unlabelled_at_hand())
        wanted = _without_test(files, self._parts(sorted(labelled), list(files), files))
        return {image: wanted[image] for image in sorted(wanted, key=lambda image: (image in labelled, image))}

    def unlabelled_at_hand(self) -> list[str]:
        """Return the ids of images at hand without a label; a DICOMweb server is not to be asked every few seconds."""
        return sorted(image for image, entry in self._store.entries.items() if self._tag not in entry.labels)

    def _with_files(self, standing: Standing) -> Standing:
        """Leave out the images that were exchanged since they could not be read."""
        files = self._store.files_at_hand() if standing.unreadable else {}
        same = {
            image: found
            for image, found in standing.unreadable.items()
            if image in files and _identity(files[image]) == found[0]
        }
        return replace(standing, unreadable=same)

    def _parts(self, labelled: Sequence[str], images: Sequence[str], files: Mapping[str, Path]) -> dict[str, str]:
        """Return the images whose patient's part is decided, or follows from the patient's name alone."""
        known = read_parts(self.checkpoints.folder / "split.json")
        if not known and not by_name_alone(len(labelled)):
            return {}  # without a look at any file
        patients = {image: self._patient(image, files) for image in images}
        by_name = by_name_alone(len({patients[image] for image in labelled}))
        found = {image: part_to_be(patient, known, by_name) for image, patient in patients.items()}
        return {image: part for image, part in found.items() if part is not None}

    def _patient(self, image: str, files: Mapping[str, Path]) -> str:
        if image not in files:
            return self._store.patient_elsewhere(image)
        if image not in self._patients:
            found = self._store.entries.get(image)
            if found is None:  # removed a moment ago
                return image
            self._patients[image] = patient_in(image, files[image], found.image.info)
        return self._patients[image]

    def _in_order(self, labelled: Sequence[str]) -> list[str]:
        """Return the labelled images in the order in which they were first labelled."""
        self._read_ledger()
        entries = self._store.entries

        def first(image: str) -> tuple[float, str]:
            found = entries[image].labels.get(self._tag) if image in entries else None
            return self._submitted.get(image, float(found.info.get("ts", 0)) if found else 0.0), image

        return sorted(labelled, key=first)

    def _classes_of(self, labelled: Sequence[str]) -> dict[str, list[str]]:
        """Return which of the model's labels each labelled image has: by its voxels once they were looked at."""
        entries = self._store.entries
        present = {}
        for image in labelled:
            found = entries[image].labels.get(self._tag) if image in entries else None
            info: Mapping[str, Any] = found.info if found is not None else {}
            named = info.get("classes") if self._tag == CLASSES else info.get("labels")
            seen = self._present.get(str(info.get("sha256")), list(named or ()))
            present[image] = [label for label in self.config.labels if label in seen]
        return present

    def _by_one_other(self, labelled: Sequence[str], standing: Standing, client: str) -> list[str]:
        """Return the images that have a label by one other client alone, and that nobody has in hand."""
        out = {*standing.leases, *standing.aside, *standing.unreadable}
        by = {image: self._labelled_by.get(image, set()) for image in labelled if image not in out}
        return sorted(image for image, clients in by.items() if len(clients) == 1 and client not in clients)

    def _read_ledger(self) -> None:
        """Take up what the ledger says of labels since it was last read."""
        with self._database.reading() as connection:
            first = connection.execute("SELECT time FROM ledger ORDER BY id LIMIT 1").fetchone()
            begun = None if first is None else first["time"]
            if begun != self._begun:  # also where the file was damaged or lost, and begun anew
                self._read_to, self._begun = 0, begun
            rows = connection.execute(
                "SELECT id, event, image, client, time, label, details FROM ledger"
                " WHERE id > ? AND event IN ('submitted', 'agreement') ORDER BY id",
                (self._read_to,),
            ).fetchall()
        for row in rows:
            self._read_to = row["id"]
            if row["event"] == "submitted":
                self._submitted.setdefault(row["image"], row["time"])
                self._labelled_by.setdefault(row["image"], set()).add(row["client"] or "")
            elif "present" in (details := json.loads(row["details"])):
                self._present[row["label"]] = details["present"]

    def _learnt(self, number: int | None, labelled: Sequence[str]) -> int:
        """Return how many of the labelled images the version has learnt from that has scored."""
        if not number:
            return 0
        try:
            learnt = learnt_from(self.checkpoints.version(number))
        except LabelRoundsError:
            return 0
        return sum(image in learnt for image in labelled)


def _without_test(files: Mapping[str, Path], parts: Mapping[str, str]) -> dict[str, Path]:
    return {image: file for image, file in files.items() if parts.get(image) != TEST}


def _identity(file: Path) -> str:
    try:
        return identity_of(file)
    except LabelRoundsError:
        return ""
