"""The classes of the datastore's images: a file each, and those of many images saved as one change.

On the way of a round. The rules stand in `labelrounds.store`.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelrounds.atomic import staged
from labelrounds.classification.labels import (
    ClassLabel,
    check_known,
    check_named,
    class_label,
    named_in_slicer,
    read_class_label,
)
from labelrounds.errors import BadInput
from labelrounds.history import checksum, link_or_copy
from labelrounds.index import CLASSES, FINAL, DataModel, ImageLabelModel
from labelrounds.labels import check_grid
from labelrounds.names import check_tag
from labelrounds.reading import read_label
from labelrounds.segmentations import NOT_LABELS
from labelrounds.stored_images import noted_info, plain_info
from labelrounds.stored_labels import StoredLabels


class StoredClasses(StoredLabels):
    """A studies folder's class labels; see `labelrounds.store.StudyStore`."""

    known_classes: tuple[str, ...] = ()
    multilabel_classes: tuple[str, ...] = ()

    def classes_in(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None
    ) -> ClassLabel | None:
        """Return the classes that a submission names, for `save_classes`; None where it is a label map.

        They come as a JSON file, also under the tag ``final`` that clients send by habit: a class must not replace a
        label map. From Slicer, which submits nothing else, they come as a segmentation without a voxel whose segments
        are named like classes.

        Raises:
            NotFound: no such image.
            BadInput: a file that is no class label, a wrong tag, several classes where an image is of one.
        """
        tag, source = check_tag(label_tag), Path(label_filename)
        image = Path(self._image_file(image_id))
        if source.name.lower().endswith(".json"):
            if tag not in (FINAL, CLASSES):
                raise BadInput(f"{source.name}: classes go under the tag {CLASSES!r}, not {tag!r}")
            return read_class_label(source)
        if tag == CLASSES:
            raise BadInput(
                f"{source.name}: under the tag {tag!r} lie classes, a .json file; label maps go to {FINAL!r}"
            )
        return self._classes_of_segments(source, image, plain_info(label_info or {})) if tag == FINAL else None

    def save_classes(self, labels: Mapping[str, ClassLabel], label_info: dict[str, Any] | None = None) -> None:
        """Save the classes of images, those of many as one change of the index.

        Raises:
            NotFound: no such image.
            BadInput: a class that no model has, several where an image is of one. Nothing was saved then.
            OutOfSpace: the disk is full; the index is as it was.
        """
        self._check_writable()
        for image_id, label in labels.items():
            self._object(image_id)
            check_known(label, self.known_classes, self.multilabel_classes, image_id)
        sent = plain_info(label_info or {})
        with tempfile.TemporaryDirectory() as folder, self._transaction():
            source, objects = Path(folder) / "label.json", dict(self._snapshot.objects)
            for image_id, label in labels.items():
                source.write_text(label.as_json(), encoding="utf-8")
                entry = DataModel(ext=".json", info=_classes_info(label, image_id, source, sent))
                if len(labels) == 1:
                    if not self._is_current(image_id, CLASSES, entry):
                        self._save_checked(source, image_id, CLASSES, entry)
                    return
                self._put_classes(source, image_id, entry)
                old = objects[image_id]
                objects[image_id] = ImageLabelModel(image=old.image, labels={**old.labels, CLASSES: entry})
            self._commit(objects)

    def _put_classes(self, source: Path, image_id: str, entry: DataModel) -> None:
        """Put a class label in its place; the index, of which many share one change, follows."""
        path = self._path(image_id, CLASSES, entry.ext)
        path.parent.mkdir(parents=True, exist_ok=True)
        version = self._history.keep(source, image_id, CLASSES, entry.ext)
        with staged(path) as new:
            link_or_copy(version, new.file)
            new.commit()
        self._journal(image_id, CLASSES, entry)

    def _classes_of_segments(self, source: Path, image: Path, sent: dict[str, Any]) -> ClassLabel | None:
        """Return the classes that a segmentation without a voxel names; None where it is a label map.

        Raises:
            BadInput: it names neither a class nor a label, so that nothing could be learnt of it.
        """
        if not self.known_classes:
            return None
        entries = sent.get("label_info")
        names = [str(one.get("name")) for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
        names = [name for name in names if name not in NOT_LABELS]
        if set(names) & set(self.known_labels):
            return None
        read = read_label(source)
        check_grid(read, image, source.name)
        if read.array.any():
            return None
        names = names or list(read.segments or ())
        classes = named_in_slicer(names, self.known_classes)
        if classes is None:
            check_named(names, (*self.known_classes, *self.known_labels), source.name)
            return None
        several = all(name in self.multilabel_classes for name in classes)
        if len(classes) > 1 and not several:
            raise BadInput(f"{', '.join(classes)}: an image is of one class; keep the segment of the right class alone")
        return class_label(classes, several, source.name)


def _classes_info(label: ClassLabel, image_id: str, source: Path, sent: dict[str, Any]) -> dict[str, Any]:
    info = noted_info(sent, f"{image_id}.json", checksum(source))
    for key in ("labels", "unknown_labels", "label_info"):
        info.pop(key, None)
    return {**info, "classes": list(label.classes)}
