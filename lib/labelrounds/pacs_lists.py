"""What a DICOMweb server has: the series that count as images, and of each the newest segmentation.

Asked again when the lists are older than ``LABELROUNDS_PACS_LIST_S``. While the server does not answer, the last lists
stand, and it is not asked again for some seconds, so that nobody waits for it at each click. Which images a SEG series
is about never changes: that is read once, and kept in a file beside the cache, by identifiers alone.

Any thread may ask; one of them asks the server, the others wait for it.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from labelrounds.atomic import write_bytes
from labelrounds.dicom_seg import is_prediction, made_at
from labelrounds.errors import LabelRoundsError, NotFound, Unreachable
from labelrounds.pacs import Series

logger = logging.getLogger(__name__)

_PAUSE_S = 10.0  # after a failure, and before an unknown series is looked for again
Value = TypeVar("Value")


class Server(Protocol):
    """What is asked of a server; see `labelrounds.pacs.Pacs`."""

    def search(self, filters: Mapping[str, Any]) -> list[Series]:
        """Return the series that match."""

    def headers(self, series: Series) -> list[Any]:
        """Return the headers of a series' files."""


@dataclass(frozen=True)
class Segmented:
    """A SEG series.

    Attributes:
        uid: of the series.
        study: of both.
        image: the series that it is about, "" where that is none or unknown.
        made: when, as a text that sorts.
        by_human: False where some algorithm made it alone.
    """

    uid: str
    study: str
    image: str = ""
    made: str = ""
    by_human: bool = True


class PacsLists:
    """The lists of one server.

    Args:
        server: is asked.
        images: which series count as images, such as ``{"Modality": "MR"}``.
        folder: where the file of what SEG series are about lies.
        keep_s: for how long a list is good.
    """

    def __init__(self, server: Server, images: Mapping[str, Any], folder: Path, keep_s: float) -> None:
        self._server, self._filter, self._file = server, dict(images), folder / "segmentations.json"
        self._about: dict[str, Segmented] = _read(self._file)
        self._noted = len(self._about)
        self._images = _Kept(self._ask_images, keep_s)
        self._segmented = _Kept(self._ask_segmented, keep_s)

    def images(self) -> Mapping[str, Series]:
        """Return the images by their UIDs; raises `Unreachable` where they were never listed."""
        return self._images.value()

    def image(self, uid: str) -> Series:
        """Return one image, asking again if it is not in the list.

        Raises:
            NotFound: the server has no such series, or it does not count as an image.
        """
        found = self.images().get(uid) or self._images.value(older_than_s=_PAUSE_S).get(uid)
        if found is None:
            raise NotFound(f"series {uid!r}: not among the images on the DICOMweb server")
        return found

    def known(self, uid: str) -> Series | None:
        """Return what the last list says of an image, without asking."""
        return (self._images.last or {}).get(uid)

    def segmented(self, anew: bool = False) -> Mapping[str, Segmented]:
        """Return, by image, the newest segmentation that a human has made."""
        newest: dict[str, Segmented] = {}
        for one in self.all_segmented(anew).values():
            if one.image and one.by_human and (one.image not in newest or one.made > newest[one.image].made):
                newest[one.image] = one
        return newest

    def all_segmented(self, anew: bool = False) -> Mapping[str, Segmented]:
        """Return all SEG series by their UIDs."""
        return self._segmented.value(older_than_s=0 if anew else None)

    def add(self, new: Segmented) -> None:
        """Take up a segmentation that was just sent, which a server may list only some seconds later."""
        self._about[new.uid] = new
        self._segmented.change(lambda known: {**known, new.uid: new})

    def _ask_images(self) -> Mapping[str, Series]:
        return {one.uid: one for one in self._server.search(self._filter)}

    def _ask_segmented(self) -> Mapping[str, Segmented]:
        images = self.images()
        studies = {one.study for one in images.values()}
        found = {one.uid: one for one in self._server.search({"Modality": "SEG"}) if one.study in studies}
        listed = {uid: known for uid, one in found.items() if (known := self._about_of(one)) is not None}
        about = list(self._about.values())
        if len(about) != self._noted:
            write_bytes(self._file, json.dumps([asdict(one) for one in about]).encode(), durable=False)
            self._noted = len(about)
        return listed

    def _about_of(self, series: Series) -> Segmented | None:
        if series.uid not in self._about:
            try:
                self._about[series.uid] = _segmented(series, self._server.headers(series))
            except Unreachable:
                raise
            except LabelRoundsError as error:
                logger.warning("SEG series %s is left out: %s", series.uid, error)
                return None
        return self._about[series.uid]


class _Kept(Generic[Value]):
    """A value that is asked for again when it is old."""

    def __init__(self, ask: Callable[[], Mapping[str, Value]], keep_s: float) -> None:
        self._ask, self._keep_s = ask, keep_s
        self._lock = threading.RLock()
        self.last: Mapping[str, Value] | None = None
        self._asked = -float("inf")
        self._failed: tuple[float, Unreachable] | None = None

    def value(self, older_than_s: float | None = None) -> Mapping[str, Value]:
        """Return the value, asked for again if it is older than that; the last one where the server does not answer."""
        limit_s = self._keep_s if older_than_s is None else older_than_s
        with self._lock:
            if self.last is not None and time.monotonic() - self._asked < limit_s:
                return self.last
            if self._failed is None or time.monotonic() - self._failed[0] > _PAUSE_S:
                self._try()
            if self.last is None and self._failed is not None:
                raise Unreachable(str(self._failed[1])) from self._failed[1]
            return self.last or {}

    def change(self, change: Callable[[Mapping[str, Value]], Mapping[str, Value]]) -> None:
        with self._lock:
            if self.last is not None:
                self.last = change(self.last)

    def _try(self) -> None:
        try:
            self.last = self._ask()
            self._asked, self._failed = time.monotonic(), None
        except Unreachable as error:
            self._failed = time.monotonic(), error
            if self.last is not None:
                logger.warning("The last list of the DICOMweb server stands: %s", error)


def _segmented(series: Series, headers: list[Any]) -> Segmented:
    newest = max(headers, key=made_at)
    about = newest.get("ReferencedSeriesSequence") or []
    image = str(about[0].get("SeriesInstanceUID", "")) if len(about) == 1 else ""
    return Segmented(series.uid, series.study, image, made_at(newest), not is_prediction(newest))


def _read(file: Path) -> dict[str, Segmented]:
    """Return what is known of SEG series; nothing of a missing or damaged file, as all of it can be asked again."""
    try:
        return {entry["uid"]: Segmented(**entry) for entry in json.loads(file.read_bytes())}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
