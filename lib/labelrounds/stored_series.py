"""The DICOM series of the studies folder, each an image of the datastore.

On the way of a study into the datastore. `labelrounds.series` finds them; each is read and checked once, as any
untrusted file, and kept as one NRRD in ``converted/``, with the voxels and the geometry that reading it gave: what a
client downloads, and what inference, training and scoring read. The DICOM files are never written to.

Concurrency
    Of several processes one at a time looks and converts; the others go by the index. A server looks again and again in
    a thread; a command line once, when it opens the folder.

Crash
    An image appears by the step of `labelrounds.index`. What was not finished is found again at the next look. The
    folder ``converted`` may be deleted while nothing runs; it is made again.

History
    A series that grows before it has a label is replaced. After that its labels stay with the image that they were
    drawn on, and what has grown appears beside it, as ``<id>-v2``.
"""

import logging
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labelrounds.atomic import disk_errors, staged
from labelrounds.dicom_headers import known_of
from labelrounds.errors import LabelRoundsError, OutOfSpace
from labelrounds.history import checksum
from labelrounds.index import CONVERTED, SERIES, DataModel, ImageLabelModel
from labelrounds.reading import Image, read_image
from labelrounds.series import FoundSeries, Look, SeriesFinder
from labelrounds.stored_images import StoredImages, noted_info
from labelrounds.writing import write_volume

logger = logging.getLogger(__name__)

REST_S = 10.0
_VERSION = re.compile(r"-v\d+$")
_LEAST_PAUSE_S, _MOST_PAUSE_S, _PAUSES = 2.0, 300.0, 20.0


class StoredSeries(StoredImages):
    """A studies folder's DICOM series; see `labelrounds.store.StudyStore`.

    Attributes:
        holds_series: whether DICOM series in its folder are images; not in the cache of a DICOMweb server.
    """

    holds_series = True
    _watch: "SeriesWatch | None" = None
    _by_series: tuple[Any, dict[str, list[str]]] = (None, {})

    def __init__(self, root: Path, extensions: list[str], auto_reload: bool, read_only: bool):
        """Open the folder; see `labelrounds.store.StudyStore`."""
        self._finder = SeriesFinder(root, root / CONVERTED / "folders.json")
        # By name, the identity with which a series could not be read, and that with which it was looked at whether it
        # may be shown.
        self._refused: dict[str, str] = {}
        self._shown: dict[str, tuple[str, bool]] = {}
        super().__init__(root, extensions, auto_reload, read_only)

    def watch_series(self, rest_s: float = REST_S) -> None:
        """Look for series from now on, in a thread, until `close`.

        Args:
            rest_s: for how many seconds nothing of a series must have changed for it to be whole.
        """
        if self.holds_series and not self._read_only and self._watch is None:
            self._watch = SeriesWatch(lambda: self.take_up_series(rest_s), min(_LEAST_PAUSE_S, max(rest_s / 2, 0.05)))
            self._watch.start()

    def close(self) -> None:
        """Stop looking for series."""
        if self._watch is not None:
            self._watch.stop()

    def take_up_series(self, rest_s: float = 0.0) -> int:
        """Make images of the DICOM series that are new or have changed, and forget those that have gone.

        Returns:
            how many images have changed; 0 also where another process is at it.
        """
        if self._read_only or not self.holds_series:
            return 0
        try:
            with FileLock(self._root / ".series.lock", timeout=0):
                changed = self._take_up(rest_s)
        except Timeout:
            return 0
        if changed:
            self._reconcile_datastore()  # labels that lie there already
        return changed

    def _take_up(self, rest_s: float) -> int:
        with disk_errors(self._root / CONVERTED):
            (self._root / CONVERTED).mkdir(exist_ok=True)
        look = self._finder.look(rest_s, self._own_files())
        for reason, count in look.faults.items():
            self._warn(f"{count} DICOM file(s) or folder(s) left out: {reason}")
        shown = tuple(found for found in look.series if self._is_shown(found))
        hidden = {found.name for found in look.series} - {found.name for found in shown}
        look = replace(look, series=shown, names=look.names - hidden)
        changed = self._take_up_files([found for found in look.series if found.in_place])
        for found in look.series:
            if not found.in_place:
                if self._watch is not None and self._watch.stopped:
                    return changed
                changed += self._take_up_one(found)
        return changed + (self._forget_gone(look) if look.complete else 0)

    def _is_shown(self, found: FoundSeries) -> bool:
        """Tell whether a series may be served, looking at its files again only when they have changed."""
        identity, shown = self._shown.get(found.name, ("", False))
        if identity != found.identity:
            shown = self._may_be_shown(*found.files)
            self._shown[found.name] = found.identity, shown
        return shown

    def _own_files(self) -> frozenset[str]:
        """Return the DICOM files at the top that stay an image each: uploaded ones, and those with a label."""
        return frozenset(
            name + found.image.ext
            for name, found in self.entries.items()
            if _is_file(found) and (found.labels or "sha256" in found.image.info)
        )

    def _take_up_files(self, files: Sequence[FoundSeries]) -> int:
        """Enter the DICOM files at the top that are an image each."""
        with self._transaction():
            objects = dict(self._snapshot.objects)
            for found in files:
                if found.name not in objects:
                    info = {"ts": int(time.time()), "name": found.files[0].name}
                    image = DataModel(ext=found.files[0].suffix, info=info)
                    objects[found.name] = ImageLabelModel(image=image)
            added = len(objects) - len(self._snapshot.objects)
            if added:
                self._commit(objects)
        return added

    def _take_up_one(self, found: FoundSeries) -> int:
        versions = self._versions_of(found.name)
        latest = versions[-1] if versions else None
        if latest and _series_of(latest, self.entries[latest])["identity"] == found.identity:
            return 0
        if self._refused.get(found.name) == found.identity:
            return 0
        try:
            return self._convert(found, versions)
        except OutOfSpace as error:
            self._warn(f"series {found.name} waits for room on the disk: {error}")
        except LabelRoundsError as error:
            self._refused[found.name] = found.identity
            self._warn(f"series {found.name} is left out: {error}")
        except OSError as error:  # a file that has gone meanwhile
            logger.warning("series %s is not read: %s", found.name, error.strerror)
        return 0

    def _convert(self, found: FoundSeries, versions: Sequence[str]) -> int:
        """Read a series, and put it in its place."""
        latest = versions[-1] if versions else None
        labelled = latest is not None and bool(self.entries[latest].labels)
        image_id = f"{found.name}-v{len(versions) + 1}" if labelled else latest or found.name
        known, image = known_of(found.files[0]), read_series(found)
        with staged(self._path(image_id, "", SERIES), durable=True) as new:
            write_volume(image.array, image.affine, new.file)
            new.flush()
            digest = checksum(new.file)
            about = {"name": found.name, "identity": found.identity, "files": len(found.files)}
            info = noted_info({**known, "series": about}, f"{image_id}.nrrd", digest)
            with self._transaction():
                old = self._snapshot.objects.get(latest) if latest else None
                if old and latest and digest == self._digest_of(latest, old):
                    self._commit(self._entered(latest, "", DataModel(ext=SERIES, info=info)))
                    return 0
                there = self._snapshot.objects.get(image_id)
                if there and (there.image.ext != SERIES or there.labels):
                    # Another image has that name, or the series was labelled just now; the next look decides again.
                    self._warn(f"series {found.name} is left out: an image with the id {image_id} is there already")
                    return 0
                self._commit_file(new, image_id, "", DataModel(ext=SERIES, info=info))
        if labelled:
            self._warn(
                f"series {latest} has changed after it was labelled: its labels stay with it as it was, the changed one"
                f" is image {image_id}"
            )
        return 1

    def _digest_of(self, image_id: str, found: ImageLabelModel) -> str:
        return str(found.image.info.get("sha256") or checksum(self._path(image_id, "", SERIES)))

    def _versions_of(self, name: str) -> list[str]:
        """Return the images that were made of a series, the oldest first."""
        entries = self.entries
        if entries is not self._by_series[0]:
            groups: dict[str, list[str]] = defaultdict(list)
            for image_id, found in entries.items():
                if found.image.ext == SERIES:
                    groups[_series_of(image_id, found)["name"]].append(image_id)
            self._by_series = entries, groups
        return sorted(self._by_series[1].get(name, ()), key=lambda image_id: (len(image_id), image_id))

    def _forget_gone(self, look: Look) -> int:
        """Take out of the index what has gone from the folder, and the copies that were made of it."""
        with self._transaction():
            gone = {
                image_id: self._path(image_id, "", found.image.ext)
                for image_id, found in self._snapshot.objects.items()
                if (found.image.ext == SERIES and _series_of(image_id, found)["name"] not in look.names)
                or (_is_file(found) and _is_bare(found) and image_id not in look.names)
            }
            if gone:
                self._commit({name: one for name, one in self._snapshot.objects.items() if name not in gone})
            for image_id, path in gone.items():
                self._journal(image_id, "", None)
                if path.parent.name == CONVERTED:
                    path.unlink(missing_ok=True)
        return len(gone)


class SeriesWatch(threading.Thread):
    """Looks again and again, the more rarely the longer a look takes.

    Args:
        look: what to do; returns how much has changed; its errors are logged.
        least_s: the shortest pause.
    """

    def __init__(self, look: Callable[[], int], least_s: float) -> None:
        super().__init__(name="series", daemon=True)
        self._look, self._least_s, self._stop_now = look, least_s, threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop_now.is_set()

    def run(self) -> None:
        """Look until `stop`."""
        while not self.stopped:
            start, changed = time.monotonic(), 0
            try:
                changed = self._look()
            except (LabelRoundsError, OSError) as error:
                logger.warning("The studies folder can't be looked through: %s", error)
            # A look that has found something took long for the conversions.
            pause_s = 0.0 if changed else min(_PAUSES * (time.monotonic() - start), _MOST_PAUSE_S)
            self._stop_now.wait(max(self._least_s, pause_s))

    def stop(self) -> None:
        """End it; a conversion that is under way is finished first."""
        self._stop_now.set()
        if self.ident is not None:
            self.join()


def read_series(found: FoundSeries) -> Image:
    """Read the files of a series, which may lie in several folders and beside others, as one volume.

    Raises:
        LabelRoundsError: what `read_image` raises; it names the series, never a folder.
    """
    with tempfile.TemporaryDirectory(prefix="labelrounds-") as temporary:
        folder = Path(temporary) / found.name
        folder.mkdir()
        for number, file in enumerate(found.files):
            (folder / f"{number:06d}.dcm").symlink_to(file.resolve())
        return read_image(folder)


def _series_of(image_id: str, found: ImageLabelModel) -> dict[str, str]:
    """Return the name and the identity of the series that an image was made of."""
    noted = found.image.info.get("series")
    known = noted if isinstance(noted, dict) else {}
    return {"name": str(known.get("name") or _VERSION.sub("", image_id)), "identity": str(known.get("identity") or "")}


def _is_file(found: ImageLabelModel) -> bool:
    return found.image.ext.lower() == ".dcm"


def _is_bare(found: ImageLabelModel) -> bool:
    return not found.labels and "sha256" not in found.image.info
