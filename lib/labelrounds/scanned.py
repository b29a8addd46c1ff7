"""What lies in the studies folder: the index made, or made again, from its files.

On the way of a study into the datastore: files at the top are taken up as they are; DICOM series are found by
`labelrounds.stored_series`. The rules stand in `labelrounds.store`.
"""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from labelrounds.errors import LabelRoundsError
from labelrounds.formats import ending_of
from labelrounds.history import checksum
from labelrounds.index import CLASSES, CONVERTED, SERIES, DataModel, ImageLabelModel, IndexedFolder
from labelrounds.names import is_safe_id
from labelrounds.privacy.identity import check_folder_or_file

SEGMENTATION = ".seg.nrrd"


class ScannedFolder(IndexedFolder):
    """An indexed folder that takes up what is dropped into it, and forgets what has gone."""

    def _on_any_event(self, event: Any) -> None:
        """Note that there is something to take up; a burst of files costs one scan, at the next reading."""
        places = [event.src_path, getattr(event, "dest_path", "")]
        with self._mutex:  # what this process has just put there is in the index when its lock is free
            if any(self._is_news(Path(os.fsdecode(place))) for place in places if place):
                self._stale = True

    def _is_news(self, file: Path) -> bool:
        """Tell whether a file that has come or gone makes the index wrong."""
        hidden = any(part.startswith(".") for part in file.relative_to(self._root).parts)
        if hidden or file == self._index_path:  # whoever reads next sees that it is another
            return False
        objects, name = self._snapshot.objects, file.name
        if file.parent == Path(self._snapshot.image_path()):
            image_id, ext = self._to_id(name)
            entry = objects[image_id].image if image_id in objects else None
        elif file.parent.parent == Path(self._snapshot.label_path(None)):
            image_id, ext = (name[: -len(".json")], ".json") if name.endswith(".json") else self._to_id(name)
            entry = objects[image_id].labels.get(file.parent.name) if image_id in objects else None
        else:
            return False
        return (entry is not None and entry.ext == ext) != file.exists()

    def _on_modify_event(self, event: Any) -> None:
        """Do nothing: a changed index is noticed by whoever reads next."""

    def _reconcile_datastore(self) -> None:
        """Take up files that were dropped into the folder, and forget what has gone."""
        if self._read_only:
            return
        with self._transaction():
            objects = self._scanned()
            if objects != self._snapshot.objects:
                self._commit(objects)

    def _scanned(self) -> dict[str, ImageLabelModel]:
        images = {**self._converted(), **self._files(Path(self._snapshot.image_path()), images=True)}
        labels = {
            tag: self._files(folder, images=False, classes=tag == CLASSES)
            for tag, folder in self._label_folders().items()
        }
        self._warn_of_strays(labels, {*self._snapshot.objects, *images})
        past: dict[tuple[str, str, str], dict[str, Any]] = {}
        new = any(name not in self._snapshot.objects for name in images) or any(
            name in images and not self._knows(name, tag) for tag, found in labels.items() for name in found
        )
        if new:
            past = self._history.known()
        objects: dict[str, ImageLabelModel] = {}
        for name in sorted({*filter(is_safe_id, self._snapshot.objects), *images}):
            old = self._snapshot.objects.get(name)
            image = self._entry(name, "", old.image if old else None, images.get(name), past)
            if image is None or not self._may_be_shown(self._path(name, "", image.ext)):
                continue
            tags = sorted({*(old.labels if old else ()), *(tag for tag, found in labels.items() if name in found)})
            entries = {
                tag: self._entry(name, tag, old.labels.get(tag) if old else None, labels.get(tag, {}).get(name), past)
                for tag in tags
            }
            objects[name] = ImageLabelModel(
                image=image, labels={tag: entry for tag, entry in entries.items() if entry is not None}
            )
        return objects

    def _may_be_shown(self, *files: Path) -> bool:
        """Tell whether an image may be served; not where it still says whose it is, and such are refused."""
        try:
            for file in files:
                check_folder_or_file(file)
        except LabelRoundsError as error:
            self._warn(f"left out: {error}")
            return False
        return True

    def _is_known_image(self, image_id: str, ext: str) -> bool:
        known = self._snapshot.objects.get(image_id)
        return known is not None and known.image.ext == ext

    def _knows(self, image_id: str, tag: str) -> bool:
        return image_id in self._snapshot.objects and tag in self._snapshot.objects[image_id].labels

    def _entry(
        self,
        image_id: str,
        tag: str,
        old: DataModel | None,
        ext: str | None,
        past: Mapping[tuple[str, str, str], dict[str, Any]],
    ) -> DataModel | None:
        """Return the entry of a file: the one it had, the one of the journal, or a bare one; None where it has gone."""
        if old is not None and self._path(image_id, tag, old.ext).exists():
            return old
        if ext is None:
            return None
        path = self._path(image_id, tag, ext)
        info = past.get((image_id, tag, checksum(path))) if past else None
        if info is None:
            info = {"ts": int(path.stat().st_mtime), "name": path.name}
        return DataModel(ext=ext, info=info)

    def _converted(self) -> dict[str, str]:
        """Return the images that were made of DICOM series."""
        names = (file.stem for file in sorted((self._root / CONVERTED).glob("*.nrrd")))
        return {name: SERIES for name in names if is_safe_id(name)}

    def _files(self, folder: Path, *, images: bool, classes: bool = False) -> dict[str, str]:
        """Return id to ending of the files in a folder that can be images or labels."""
        found: dict[str, str] = {}
        patterns = self._extensions if images else ["*.json"] if classes else ["*.nii.gz", "*.nii", "*.nrrd"]
        for file in sorted(self._list_files(folder, patterns)):
            name, ext = (file[: -len(".json")], ".json") if classes else self._to_id(file)
            if file.startswith(".") or not (classes or ending_of(file)) or (images and ext == SEGMENTATION):
                continue
            if images and ending_of(file) == ".dcm" and not self._is_known_image(name, ext):
                continue  # which may be a slice of a series: `labelrounds.stored_series` takes it up
            if not is_safe_id(name):
                self._warn(f"{file!r} is left out: its name has characters that an image id must not have")
            elif name in found:
                self._warn(f"{file!r} is left out: {name + found[name]!r} has the same id")
            else:
                found[name] = ext
        return found

    def _warn_of_strays(self, labels: Mapping[str, Mapping[str, str]], images: Container[str]) -> None:
        """Say which labels belong to no image; a misnamed label is otherwise missed in silence."""
        for tag, found in labels.items():
            strays = [name + ext for name, ext in found.items() if name not in images]
            if strays:
                self._warn(
                    f"labels/{tag}: {len(strays)} file(s) left out, such as {strays[0]!r}: a label has the name of its"
                    " image, and there is no image of that name"
                )

    def _to_id(self, file: str) -> tuple[str, str]:
        ext = file[-len(SEGMENTATION) :] if file.lower().endswith(SEGMENTATION) else file[-len(ending_of(file)) :]
        if not ending_of(file):
            return super()._to_id(file)
        return file[: -len(ext)], ext
