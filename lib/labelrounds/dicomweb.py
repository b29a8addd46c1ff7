"""Studies on a DICOMweb server (Orthanc, a PACS), with the same rules as a studies folder.

On the way of inference and training in the place of `labelrounds.store`: a series is fetched when it is first needed,
read as any image is, and kept as NRRD in a `StudyStore` of its own, the cache. A final label goes to the server as a
DICOM SEG (`labelrounds.dicom_seg`) in a new series, and then into the cache; of several SEGs of a series the newest
counts, and older ones stay on the server. Classes and predictions stay in the cache.

Concurrency
    As a `StudyStore`; a series is fetched once, however many ask for it.

Crash
    A series is fetched into a hidden folder, and enters the cache whole. A label that reached the server and not the
    cache is taken from there when the next training begins.
"""

import hashlib
import logging
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds import dicom_seg
from labelrounds.atomic import PREFIX, disk_errors
from labelrounds.dicom_seg import Algorithm, label_map, segmentation
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, Unreachable
from labelrounds.labels import by_position, on_grid_of
from labelrounds.names import check_id, check_tag
from labelrounds.pacs import Pacs, Series
from labelrounds.pacs_lists import PacsLists, Segmented
from labelrounds.privacy.identity import check_dataset, check_folder_or_file, refusing
from labelrounds.reading import read_geometry, read_image, read_label
from labelrounds.sections import LabelCode
from labelrounds.store import CLASSES, FINAL, LabelledCase, StudyStore
from labelrounds.writing import write_label, write_volume

__all__ = ["CLASSES", "FINAL", "DicomwebStore", "numbered"]
logger = logging.getLogger(__name__)

_LISTED_WITHIN_S = 3600.0  # some servers list what was sent only after a while


class DicomwebStore(StudyStore):
    """A DICOMweb server's series, with a cache of those that were needed.

    Attributes:
        pacs: The server.
    """

    holds_series = False  # what lies in its folder was fetched for an image that the server has

    def __init__(
        self,
        pacs: Pacs,
        search_filter: Mapping[str, Any],
        cache_path: str | Path,
        coded: Mapping[str, LabelCode] | None = None,
        proposal: Callable[[str], tuple[str, str] | None] = lambda image: None,
        sends_labels: bool = True,
        **options: Any,
    ):
        """Open the cache of a DICOMweb server; the server itself is asked when it is first needed.

        Args:
            pacs: The server.
            search_filter: Which series count as images, such as ``{"Modality": "CT"}``.
            cache_path: The folder of the caches of all servers.
            coded: The codes of labels that a SEG is to have.
            proposal: Returns the name and version of the model that last segmented an image, None where none did.
            sends_labels: False refuses final labels.
            options: ``known_labels``, ``known_classes``, ``multilabel_classes`` and ``rounds_tag`` of `StudyStore`.
        """
        self.pacs, self._coded, self._proposal, self._sends = pacs, dict(coded or {}), proposal, sends_labels
        root = Path(cache_path) / hashlib.sha256(pacs.address.encode()).hexdigest()[:32]
        super().__init__(root, **options)
        self._lists = PacsLists(pacs, search_filter, root, pacs.limits.pacs_list_s)
        self._fetching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def name(self) -> str:
        """Return the server's address."""
        return self.pacs.address

    # Images

    def list_images(self) -> list[str]:
        """Return the series on the server that match the filter, sorted.

        Raises:
            LabelRoundsError: what `labelrounds.pacs.Pacs.search` raises, until the list was had once.
        """
        return sorted(self._lists.images())

    def patient_elsewhere(self, image_id: str) -> str:
        """Return the PatientID that the server's list has for a series."""
        series = self._lists.known(image_id)
        return (series.patient if series else "") or image_id

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of a series in the cache, fetching it if need be.

        Raises:
            NotFound: the server has no such series.
            LabelRoundsError: what fetching and reading it raise.
        """
        check_id(image_id)
        if not self._is_here(image_id):
            series = self._lists.image(image_id)
            with self._fetching[image_id]:
                if not self._is_here(image_id):
                    self._fetch(series)
        return super().get_image_uri(image_id)

    def _is_here(self, image_id: str) -> bool:
        entry = self.entries.get(image_id)
        return entry is not None and self._path(image_id, "", entry.image.ext).exists()

    def _fetch(self, series: Series) -> None:
        if refusing():
            for header in self.pacs.headers(series):
                check_dataset(header, f"series {series.uid}")
        with disk_errors(self._root), tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._root) as folder:
            files = Path(folder) / series.uid
            files.mkdir()
            self.pacs.fetch(series, files)
            check_folder_or_file(files)  # servers leave out of a list what the files have
            read = read_image(files)
            path = write_volume(read.array, read.affine, Path(folder) / f"{series.uid}.nrrd")
            self.add_image(series.uid, str(path), _known_of(series))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of a series: by its file once it was fetched, else by the server's list."""
        if image_id in self.entries:
            return super().get_image_info(image_id)
        series = self._lists.known(check_id(image_id))
        return _known_of(series) if series is not None else {}

    # Labels

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series with a label here or, of final labels, a human's DICOM SEG on the server, sorted."""
        tag = check_tag(label_tag or self.rounds_tag)
        here = super().get_labeled_images(tag)
        return sorted({*here, *self._lists.segmented()}) if tag == FINAL else here

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the other series, sorted."""
        return sorted(set(self.list_images()) - set(self.get_labeled_images(label_tag, labels)))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Check a label, send it to the server if it is final, and save it in the cache.

        Raises:
            Conflict: the server refused it, or labels are not sent (``MONAI_LABEL_DATASTORE_READ_ONLY``).
            Unreachable: the server does not answer; nothing was saved.
            LabelRoundsError: what `StudyStore.save_label` raises, before anything is sent.
        """
        tag, info = check_tag(label_tag), dict(label_info or {})
        if tag == FINAL:
            if not self._sends:
                raise Conflict("the datastore is read-only: no label is sent to the DICOMweb server")
            info |= self._send(image_id, Path(label_filename), info)
        return super().save_label(image_id, label_filename, tag, info)

    def _send(self, image_id: str, label: Path, sent: dict[str, Any]) -> dict[str, str]:
        """Send a label as a DICOM SEG, and return what to note of it."""
        image = Path(self.get_image_uri(image_id))
        meaning, grid = self._meaning(label, image, FINAL, sent), read_geometry(image)
        series = self._lists.image(image_id)
        array, names = numbered(
            on_grid_of(read_label(label), grid.shape, grid.affine, grid.is_flat, label.name),
            by_position(self.known_labels) if meaning.values is None else meaning.values,
        )
        by = self._proposal(image_id)
        headers, algorithm = self.pacs.headers(series), Algorithm(*by) if by is not None else None
        made = segmentation(array, grid.affine, headers, names, self._coded, algorithm)
        self.pacs.store(made)
        new = Segmented(str(made.SeriesInstanceUID), series.study, image_id, dicom_seg.made_at(made))
        self._lists.add(new)
        logger.info("%s: the label was sent as SEG series %s", image_id, new.uid)
        return {"SeriesInstanceUID": new.uid, "StudyInstanceUID": series.study, "Modality": "SEG", "made": new.made}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label, taking a final one from the server if it is only there."""
        tag = check_tag(label_tag)
        if tag == FINAL and not self._knows(label_id, tag) and (found := self._lists.segmented().get(label_id)):
            self._take(found)
        return super().get_label_uri(label_id, tag)

    def training_items(self, label_tag: str = FINAL) -> list[LabelledCase]:
        """Take what has a newer label on the server, and return the cases; where it does not answer, those here."""
        if label_tag == FINAL:
            try:
                self._take_all()
            except Unreachable as error:
                logger.warning("Going on with the labels that are in the cache: %s", error)
        return super().training_items(label_tag)

    def _take_all(self) -> None:
        for found in self._lists.segmented(anew=True).values():
            try:
                if found.image in self._lists.images() and found.made > self._noted(found.image, "made"):
                    self._take(found)
            except Unreachable:
                raise
            except LabelRoundsError as error:
                logger.warning("%s: SEG series %s is not learnt from: %s", found.image, found.uid, error)
        self._drop_removed(self._lists.all_segmented())

    def _drop_removed(self, there: Mapping[str, Segmented]) -> None:
        """Remove the labels of which the server has no SEG any more; their versions stay in the history."""
        for image in super().get_labeled_images(FINAL):
            uid, age_s = self._noted(image, "SeriesInstanceUID"), time.time() - float(self._noted(image, "ts") or 0)
            if uid and uid not in there and age_s > _LISTED_WITHIN_S and self._lists.known(image) is not None:
                logger.warning("%s: its SEG series %s is not on the server any more, nor used", image, uid)
                self.remove_label(image, FINAL)

    def _noted(self, image_id: str, key: str) -> str:
        entry = self.entries.get(image_id)
        label = entry.labels.get(FINAL) if entry is not None else None
        return str(label.info.get(key, "")) if label is not None else ""

    def _take(self, found: Segmented) -> None:
        """Save a SEG of the server as the label of its image."""
        import pydicom

        grid = read_geometry(Path(self.get_image_uri(found.image)))
        with disk_errors(self._root), tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._root) as folder:
            self.pacs.fetch(Series(found.uid, found.study), Path(folder))
            newest = max(map(pydicom.dcmread, sorted(Path(folder).iterdir())), key=dicom_seg.made_at)
            array, names = label_map(newest, grid.shape, grid.affine)
            path = write_label(array, grid.affine, Path(folder) / f"{found.image}.nii.gz")
            info = {"SeriesInstanceUID": found.uid, "StudyInstanceUID": found.study, "made": found.made}
            named = {"label_info": [{"name": name} for name in names]}
            super().save_label(found.image, str(path), FINAL, {**info, "Modality": "SEG", **named})


def numbered(array: NDArray[np.uint8], values: Mapping[str, int]) -> tuple[NDArray[np.uint8], Sequence[str]]:
    """Return a label map whose values are 1, 2, 3 without a gap, as a DICOM SEG has them, and their names.

    Args:
        array: ``(X, Y, Z)``.
        values: name to value; a value without a name gets one of its own.

    Raises:
        BadInput: no label at all.
    """
    named = {value: name for name, value in values.items()}
    named |= {int(value): f"segment {value}" for value in np.unique(array) if value and value not in named}
    if not named:
        raise BadInput("the label names no segment and has no voxel, so that there is nothing to send")
    table = np.zeros(256, np.uint8)
    for number, value in enumerate(sorted(named), start=1):
        table[value] = number
    return table[array], [named[value] for value in sorted(named)]


def _known_of(series: Series) -> dict[str, Any]:
    return {
        "SeriesInstanceUID": series.uid,
        "StudyInstanceUID": series.study,
        "PatientID": series.patient or "UNK",
        "Modality": series.modality,
        "StudyDate": series.date,
    }
