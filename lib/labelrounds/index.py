"""The index of the studies folder, MONAI Label's ``datastore_v2.json``: which images and labels there are.

`IndexedFolder` is the host's datastore with its way to write and read the index replaced; file and format stay, so that
either can read what the other wrote. The rules stand in `labelrounds.store`.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from labelrounds import host  # makes the next imports possible

# isort: split
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from labelrounds.atomic import Staged, remove_leftovers, staged
from labelrounds.history import History, checksum
from labelrounds.index_text import IndexText
from labelrounds.names import is_safe_tag
from labelrounds.notes import read_tamed

__all__ = ["CLASSES", "CONVERTED", "FINAL", "SERIES", "DataModel", "ImageLabelModel", "IndexedFolder", "host"]
logger = logging.getLogger(__name__)

FINAL, CLASSES = "final", "classes"  # the tags of a human's label maps and of class labels, which are JSON
SERIES = ".series.nrrd"  # the "ending" of an image that was converted from a DICOM series
CONVERTED = "converted"  # the folder where those lie
_NO_JSON = (b"NaN", b"Infinity")


class IndexedFolder(LocalDatastore):
    """The host's datastore with an index that is written whole, under a lock, and is never changed in place.

    Attributes:
        warnings: What an administrator should know: an index that had to be rebuilt, files that were left out.
    """

    def __init__(self, root: Path, extensions: list[str], auto_reload: bool, read_only: bool):
        """Open the folder; see `labelrounds.store.StudyStore`."""
        self.warnings: list[str] = []
        self._read_only = read_only
        self._root = root
        self._history = History(root / "history")
        self._mutex = threading.RLock()
        self._depth = 0
        self._stale = False
        self._signature: tuple[int, int, int] | None = None
        self._text = IndexText()
        root.mkdir(parents=True, exist_ok=True)
        self._file_lock = FileLock(root / ".lock")
        super().__init__(str(root), extensions=extensions, auto_reload=auto_reload, read_only=read_only)
        if auto_reload:
            self._handler.on_moved = self._on_any_event

    @property
    def history(self) -> History:
        """The journal, and the versions of each label."""
        return self._history

    @property
    def _datastore(self) -> LocalDatastoreModel:
        """The newest index. It is replaced, never changed, so a reader may go on with the one it took."""
        with self._mutex:
            if self._depth == 0:
                self._catch_up()
            return self._snapshot

    @_datastore.setter
    def _datastore(self, model: LocalDatastoreModel) -> None:
        self._snapshot = model

    def _catch_up(self) -> None:
        try:
            self._load()
        except ValueError as error:
            logger.warning("%s cannot be read; going on with what is in memory: %s", self._index_path, error)
        if self._stale:
            self._stale = False
            self._reconcile_datastore()

    @property
    def _index_path(self) -> Path:
        return Path(self._datastore_config_path)

    def _load(self) -> None:
        now = _signature(self._index_path)
        if now is not None and now != self._signature:
            model = _parsed(self._index_path.read_bytes())
            model.base_path = str(self._root)
            self._snapshot, self._signature = model, now

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        if self._read_only:
            self._load()
            return
        with self._transaction():
            self._history.tidy()
            for folder in (self._root, self._root / CONVERTED, *self._label_folders().values()):
                remove_leftovers(folder)

    def text(self) -> bytes:
        """Return the index as JSON."""
        with self._mutex:
            return self._text.of(self._datastore)

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._transaction():
            self._commit(self._snapshot.objects)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold both locks, with the newest index in memory and no step of another process left unfinished."""
        with self._mutex:
            if self._depth == 0:
                self._file_lock.acquire()
            self._depth += 1
            try:
                if self._depth == 1:
                    self._load_or_rebuild()
                    self._finish_pending()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._file_lock.release()

    def _load_or_rebuild(self) -> None:
        try:
            self._load()
        except ValueError as error:
            aside = self._index_path.with_name(f"{self._index_path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}")
            self._index_path.replace(aside)
            self.warnings.append(f"the index was torn; it is kept as {aside.name} and was rebuilt from the files")
            logger.warning("%s: %s (%s)", self._root, self.warnings[-1], error)
            self._snapshot = self._snapshot.model_copy(update={"objects": {}})
            self._commit(self._scanned())

    def _scanned(self) -> dict[str, ImageLabelModel]:
        """Return what lies in the folder; see `labelrounds.scanned`."""
        raise NotImplementedError

    def _commit(self, objects: Mapping[str, ImageLabelModel], new_file: Staged | None = None, **fields: str) -> None:
        """Write another index, and just before put the file that it speaks of in its place."""
        model = self._snapshot.model_copy(update={"objects": dict(objects), **fields})
        with staged(self._index_path, durable=True) as new_index:
            new_index.file.write_bytes(self._text.of(model))
            new_index.flush()
            if new_file is not None:
                new_file.commit()
            new_index.commit()
        self._snapshot, self._signature = model, _signature(self._index_path)

    def _commit_file(self, new_file: Staged, image_id: str, tag: str, entry: DataModel) -> None:
        """Put a file in its place and enter it, as one step; ``tag`` is "" for an image."""
        self._history.note_pending({"image": image_id, "tag": tag, **entry.model_dump()})
        try:
            self._commit(self._entered(image_id, tag, entry), new_file)
        except BaseException:
            if not new_file.committed:
                self._history.forget_pending()
            raise
        self._journal(image_id, tag, entry)
        self._history.forget_pending()

    def _finish_pending(self) -> None:
        """Finish the step in which a process was killed if its file is in place, else forget it."""
        noted = self._history.pending()
        if noted is None:
            return
        image_id, tag, entry = noted["image"], noted["tag"], DataModel(ext=noted["ext"], info=noted["info"])
        path = self._path(image_id, tag, entry.ext)
        known = not tag or image_id in self._snapshot.objects
        if known and path.is_file() and checksum(path) == entry.info.get("sha256"):
            logger.warning("finishing the interrupted save of %s %s", image_id, tag)
            self._commit(self._entered(image_id, tag, entry))
            self._journal(image_id, tag, entry)
        self._history.forget_pending()

    def _journal(self, image_id: str, tag: str, entry: DataModel | None) -> None:
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "image": image_id, "tag": tag}
        what = {"action": "saved", "info": entry.info} if entry else {"action": "removed"}
        self._history.append({**record, **what})

    def _entered(self, image_id: str, tag: str, entry: DataModel) -> dict[str, ImageLabelModel]:
        objects = dict(self._snapshot.objects)
        old = objects.get(image_id)
        labels = {**(old.labels if old else {}), **({tag: entry} if tag else {})}
        objects[image_id] = ImageLabelModel(image=old.image if old and tag else entry, labels=labels)
        return objects

    def _path(self, image_id: str, tag: str, ext: str) -> Path:
        if not tag and ext == SERIES:
            return self._root / CONVERTED / f"{image_id}.nrrd"
        folder = self._snapshot.label_path(tag) if tag else self._snapshot.image_path()
        return Path(folder) / (image_id + ext)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            logger.warning("%s: %s", self._root, text)

    def _label_folders(self) -> dict[str, Path]:
        labels = Path(self._snapshot.label_path(None))
        folders = sorted(folder for folder in labels.iterdir() if folder.is_dir()) if labels.is_dir() else []
        return {folder.name: folder for folder in folders if is_safe_tag(folder.name)}


def _parsed(content: bytes) -> LocalDatastoreModel:
    """Return the index that a file holds, also where an older release has kept in it what is no JSON.

    Raises:
        ValueError: it is torn.
    """
    if not any(word in content for word in _NO_JSON):
        try:
            return LocalDatastoreModel.model_validate_json(content)
        except ValueError:  # nothing that is too deep, for one, is read so
            pass
    return LocalDatastoreModel.model_validate(read_tamed(content))


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return what changes whenever a file is replaced, None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
