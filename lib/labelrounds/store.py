"""The datastore: the studies folder with its images, labels and index, as MONAI Label's, mended.

What a round ends in (``PUT /datastore/label``) and what a training begins with (`StudyStore.training_items`).

Concurrency
    Every change is a transaction: a lock within the process, a lock file between processes (the server, a training, a
    command line), then the newest index from the disk, the change, the write. Reading takes no file lock: the index in
    memory is never changed in place but replaced, so a reader goes on with the one it took; it is read again as soon
    as the file differs. Labels and images are checked before a lock is taken.

Crash
    Files appear by renaming, never by writing in place (`labelrounds.atomic`). A change of a file and of its entry in
    the index is one step: what is to come is noted in ``history/pending.json``, both files are written and flushed
    beside their places, then the file is renamed, then the index. Whoever comes next finds the note and finishes the
    step if the file had been renamed, or drops it. So a label is wholly old or wholly new, its meaning included, and a
    full disk leaves everything as it was. An index that cannot be read is kept aside and rebuilt from the files and
    from ``history/journal.jsonl``.

History
    Each version of a label stays as ``history/versions/<image>/<tag>-<checksum><ending>``, at no cost on a file
    system with links; ``history/journal.jsonl`` has a line a change. The last label submitted is the current one.
"""

import copy
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from labelrounds.atomic import copy_file, set_aside, staged, zipped
from labelrounds.classification.labels import (
    ClassLabel,
    check_known,
    check_named,
    class_label,
    named_in_slicer,
    read_class_label,
)
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound, UnsupportedMedia
from labelrounds.formats import ENDINGS, ending_of
from labelrounds.history import checksum, link_or_copy
from labelrounds.index import DataModel, ImageLabelModel, IndexedFolder
from labelrounds.labels import NOT_LABELS, Meaning, by_position, check_grid, check_label, check_prediction
from labelrounds.names import check_id, check_tag
from labelrounds.notes import check_plain
from labelrounds.reading import patient_of, read_image, read_label

logger = logging.getLogger(__name__)

EXTENSIONS = ("*.nii.gz", "*.nii", "*.nrrd", "*.dcm", "*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff")
FINAL, CLASSES = "final", "classes"
_NO_PATIENT = ("", "UNK")


@dataclass(frozen=True)
class LabelledCase:
    """A case to train on.

    Attributes:
        image_id: The image's name in the store.
        image: Its file.
        label: The label's file: a version that no later submission changes, where the file system has links.
        values: Name to voxel value in the label, also of labels without a voxel; None where nobody has named them
            and they are 1, 2, 3 in the order of the labels of the model that is trained.
        patient: Whose image it is: the PatientID, or else the image's own id.
    """

    image_id: str
    image: Path
    label: Path
    values: dict[str, int] | None
    patient: str


class StudyStore(IndexedFolder):
    """A studies folder that survives bad names, bad files, other writers, crashes and a full disk.

    Attributes:
        known_labels: The labels of the app's segmentation models, in their order.
        known_classes: The classes of its classification models.
        multilabel_classes: Those of which an image may have any number.
        rounds_tag: The tag of the labels that its rounds of labelling are about: ``final``, or ``classes``.
    """

    known_classes: tuple[str, ...] = ()
    multilabel_classes: tuple[str, ...] = ()
    rounds_tag: str = FINAL
    _at_hand: tuple[Mapping[str, ImageLabelModel] | None, Mapping[str, Path]] = (None, {})

    def __init__(
        self,
        datastore_path: str | Path,
        known_labels: Sequence[str] = (),
        extensions: Sequence[str] = EXTENSIONS,
        auto_reload: bool = False,
        read_only: bool = False,
        known_classes: Sequence[str] = (),
        multilabel_classes: Sequence[str] = (),
        rounds_tag: str = FINAL,
    ):
        """Open a studies folder, making it if need be.

        Args:
            datastore_path: The folder of the images; ``labels`` and ``history`` lie in it.
            known_labels: The labels of the app's models, in their order; empty accepts any name.
            extensions: Patterns of the images' names.
            auto_reload: Watch the folder, and take up what is dropped into it.
            read_only: Refuse every change, and take up nothing that is not in the index.
            known_classes: The classes of the app's classification models; empty accepts any name.
            multilabel_classes: Those of which an image may have any number.
            rounds_tag: What counts as labelled: images with a label map, or with classes.
        """
        self.known_labels = tuple(known_labels)
        self.known_classes, self.multilabel_classes = tuple(known_classes), tuple(multilabel_classes)
        self.rounds_tag = rounds_tag
        root = Path(datastore_path).expanduser().resolve()
        super().__init__(root, list(extensions), auto_reload=auto_reload, read_only=read_only)

    def close(self) -> None:
        """Stop watching the folder."""
        observer = getattr(self, "_observer", None)
        if observer is not None and observer.is_alive():
            observer.stop()
            observer.join()

    # Images

    def list_images(self) -> list[str]:
        """Return the ids of all images, sorted."""
        return sorted(self._datastore.objects)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have a label with the tag (by default ``rounds_tag``), sorted."""
        tag = check_tag(label_tag or self.rounds_tag)
        return sorted(name for name, found in self._datastore.objects.items() if tag in found.labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the images that have no label with the tag (by default ``rounds_tag``), sorted."""
        tag = check_tag(label_tag or self.rounds_tag)
        return sorted(name for name, found in self._datastore.objects.items() if tag not in found.labels)

    @property
    def entries(self) -> Mapping[str, ImageLabelModel]:
        """What is known of the images at hand and of their labels at one moment; it must not be changed."""
        return self._datastore.objects

    def files_at_hand(self) -> Mapping[str, Path]:
        """Return, by id, where the images lie that need not be fetched from anywhere."""
        entries, (known, files) = self.entries, self._at_hand
        if known is not entries:  # as the index is never changed in place
            folder = Path(self._snapshot.image_path())
            files = {name: folder / (name + found.image.ext) for name, found in entries.items()}
            self._at_hand = entries, files
        return files

    def patient_elsewhere(self, image_id: str) -> str:
        """Return whose image it is that would have to be fetched first; there is none here, so the id is all."""
        return image_id

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image.

        Raises:
            NotFound: no such image.
        """
        return str(self._path(image_id, "", self._object(image_id).image.ext))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of an image, and its path.

        Raises:
            NotFound: no such image.
        """
        entry = self._object(image_id).image
        return {**copy.deepcopy(entry.info), "path": str(self._path(image_id, "", entry.ext))}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Add an image after checking that it can be read; the same image again changes nothing.

        Args:
            image_id: Its name; empty takes the file's.
            image_filename: The file, which is copied.
            image_info: What to keep of it, such as PatientID.

        Raises:
            BadInput: an unsafe name, or a file that `read_image` refuses.
            UnsupportedMedia: a format that is not read.
            Conflict: another image of that name has labels already.
            OutOfSpace: the disk is full; nothing was changed.
        """
        self._check_writable()
        source = Path(image_filename)
        own_name, ext = self._to_id(source.name)
        image_id = check_id(image_id or own_name)
        if not ending_of(source.name) or ext == ".seg.nrrd":
            raise UnsupportedMedia(f"{source.name[:200]}: not an image; allowed are {', '.join(ENDINGS)}")
        read_image(source)
        entry = DataModel(ext=ext, info=_info(image_info, image_id + ext, checksum(source)))
        with staged(self._path(image_id, "", ext), durable=True) as new:
            copy_file(source, new.file)
            new.flush()
            with self._transaction():
                old = self._snapshot.objects.get(image_id)
                if old and old.image.info.get("sha256", "") != entry.info["sha256"] and old.labels:
                    raise Conflict(f"image {image_id!r}: another image of this name has labels; remove it first")
                self._commit_file(new, image_id, "", entry)
                self._remove_others(image_id, "", old.image.ext if old else ext, ext)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; the labels' versions stay in the history.

        Raises:
            NotFound: no such image.
        """
        self._check_writable()
        with self._transaction():
            found = self._object(image_id)
            paths = [self._path(image_id, tag, label.ext) for tag, label in found.labels.items()]
            with set_aside([self._path(image_id, "", found.image.ext), *paths]):
                self._commit({name: other for name, other in self._snapshot.objects.items() if name != image_id})
            self._journal(image_id, "", None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known of an image.

        Raises:
            NotFound: no such image.
            BadInput: ``info`` is not an object.
        """
        self._check_writable()
        with self._transaction():
            entry = self._object(image_id).image
            new = DataModel(ext=entry.ext, info={**entry.info, **_plain(info)})
            self._commit(self._entered(image_id, "", new))

    # Labels

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label.

        Raises:
            NotFound: no such image, or it has no such label.
        """
        tag = check_tag(label_tag)
        return str(self._path(label_id, tag, self._label(label_id, tag).ext))

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return what is known of a label; ``labels`` has name to voxel value.

        Raises:
            NotFound: no such image, or it has no such label.
        """
        return copy.deepcopy(self._label(label_id, check_tag(label_tag)).info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Check a label, and save it whole or not at all.

        Its info gets ``labels`` (name to voxel value) and, where some of the names are no model's, ``unknown_labels``.

        Args:
            image_id: The image that it belongs to.
            label_filename: The file, which is copied.
            label_tag: ``final`` for a human's label, ``original`` for a model's.
            label_info: What the client sent; its ``label_info`` names the segments in the order of their values.

        Returns:
            The label's id, which is the image's.

        Raises:
            NotFound: no such image.
            BadInput: an unsafe tag, or what `labelrounds.labels.check_label` refuses.
            OutOfSpace: the disk is full; the old label is as it was.
        """
        self._check_writable()
        tag, source = check_tag(label_tag), Path(label_filename)
        image = Path(self._image_file(image_id))
        _, ext = self._to_id(source.name)
        sent = _plain(label_info or {})
        meaning = self._meaning(source, image, tag, sent)
        info = _info(sent, image_id + ext, checksum(source))
        info.pop("labels", None)
        if meaning.values is not None:
            info["labels"] = meaning.values
        info.pop("unknown_labels", None)
        if meaning.unknown:
            logger.warning("%s %s: no model knows the labels %s", image_id, tag, ", ".join(meaning.unknown))
            info["unknown_labels"] = list(meaning.unknown)
        with self._transaction():
            self._save_checked(source, image_id, tag, DataModel(ext=ext, info=info))
        return image_id

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
        return self._classes_of_segments(source, image, _plain(label_info or {})) if tag == FINAL else None

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
        sent = _plain(label_info or {})
        with tempfile.TemporaryDirectory() as folder, self._transaction():
            source, objects = Path(folder) / "label.json", dict(self._snapshot.objects)
            for image_id, label in labels.items():
                source.write_text(label.as_json(), encoding="utf-8")
                entry = DataModel(ext=".json", info=_classes_info(label, image_id, source, sent))
                if len(labels) == 1:
                    return self._save_checked(source, image_id, CLASSES, entry)
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

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; its versions stay in the history.

        Raises:
            NotFound: no such image, or it has no such label.
        """
        self._check_writable()
        tag = check_tag(label_tag)
        with self._transaction():
            label = self._label(label_id, tag)
            path = self._path(label_id, tag, label.ext)
            old = self._object(label_id)
            left = {other: entry for other, entry in old.labels.items() if other != tag}
            with set_aside([path]):
                self._commit({**self._snapshot.objects, label_id: ImageLabelModel(image=old.image, labels=left)})
            self._journal(label_id, tag, None)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known of a label; what its values mean stays.

        Raises:
            NotFound: no such image, or it has no such label.
            BadInput: ``info`` is not an object.
        """
        self._check_writable()
        tag = check_tag(label_tag)
        with self._transaction():
            entry = self._label(label_id, tag)
            added = {key: value for key, value in _plain(info).items() if key not in ("labels", "sha256")}
            self._commit(self._entered(label_id, tag, DataModel(ext=entry.ext, info={**entry.info, **added})))

    def training_items(self, label_tag: str = FINAL) -> list[LabelledCase]:
        """Return the cases with a human's label of a tag, sorted by id; those whose files have gone are left out."""
        cases = []
        model = self._datastore
        for image_id in sorted(model.objects):
            found = model.objects[image_id]
            if label_tag not in found.labels:
                continue
            image = self._path(image_id, "", found.image.ext)
            label = self._version_or_current(image_id, label_tag, found.labels[label_tag])
            if image.exists() and label.exists():
                values = self._values(found.labels[label_tag].info) if label_tag == FINAL else None
                cases.append(
                    LabelledCase(image_id, image, label, values, patient_in(image_id, image, found.image.info))
                )
        return cases

    # The datastore itself

    def set_name(self, name: str) -> None:
        """Name the datastore."""
        with self._transaction():
            self._commit(self._snapshot.objects, name=str(name))

    def set_description(self, description: str) -> None:
        """Describe the datastore."""
        with self._transaction():
            self._commit(self._snapshot.objects, description=str(description))

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return the path of a ZIP archive of the labelled images, their label maps and classes, and the index.

        They lie in ``image``, ``label`` and ``classes``. Whoever asks for the archive removes it.

        Args:
            limit_cases: how many images at most, the first by their ids; all with None.

        Raises:
            BadInput: fewer than one.
            Conflict: nothing has a label yet.
            OutOfSpace: the disk is full; nothing is left of the archive.
        """
        if limit_cases is not None and limit_cases < 1:
            raise BadInput(f"limit_cases {limit_cases} is not 1 or more")
        model = self._datastore
        cases = [image for image in sorted(model.objects) if {FINAL, CLASSES} & model.objects[image].labels.keys()]
        if not cases:
            raise Conflict("no label was submitted yet, so there is no data set to download")
        files: dict[str, Path] = {}
        for image_id in cases[:limit_cases]:
            found = model.objects[image_id]
            files[f"image/{image_id}{found.image.ext}"] = Path(self.get_image_uri(image_id))
            for tag, folder in ((FINAL, "label"), (CLASSES, "classes")):
                if tag in found.labels:
                    ext = found.labels[tag].ext
                    files[f"{folder}/{image_id}{ext}"] = self._path(image_id, tag, ext)
        return str(zipped(files, {"metadata.json": model.model_dump_json(exclude={"base_path"})}))

    def _object(self, image_id: str) -> ImageLabelModel:
        found = self._datastore.objects.get(image_id)
        if found is None:
            raise NotFound(f"image {check_id(image_id)!r}: not in the datastore")
        return found

    def _label(self, image_id: str, tag: str) -> DataModel:
        found = self._object(image_id).labels.get(tag)
        if found is None:
            raise NotFound(f"image {image_id!r} has no label with the tag {tag!r}")
        return found

    def _image_file(self, image_id: str) -> str:
        """Return the file whose grid a label must have."""
        return self.get_image_uri(image_id)

    def _check_writable(self) -> None:
        if self._read_only:
            raise Conflict("the datastore is read-only")

    def _meaning(self, label: Path, image: Path, tag: str, sent: dict[str, Any]) -> Meaning:
        if tag == FINAL or "label_info" in sent:
            return check_label(label, image, sent.get("label_info"), self.known_labels)
        params = sent.get("params")
        return check_prediction(label, image, params.get("label_names") if isinstance(params, dict) else None)

    def _save_checked(self, source: Path, image_id: str, tag: str, entry: DataModel) -> None:
        """Save under the lock: the version first, then, as a second name of it, the current label."""
        old = self._object(image_id).labels.get(tag)
        if old is not None and "sha256" not in old.info:
            self._history.keep(self._path(image_id, tag, old.ext), image_id, tag, old.ext)
        version = self._history.keep(source, image_id, tag, entry.ext)
        path = self._path(image_id, tag, entry.ext)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged(path, durable=True) as new:
            link_or_copy(version, new.file)
            self._commit_file(new, image_id, tag, entry)
        self._remove_others(image_id, tag, old.ext if old else entry.ext, entry.ext)

    def _version_or_current(self, image_id: str, tag: str, entry: DataModel) -> Path:
        current = self._path(image_id, tag, entry.ext)
        version = self._history.version(image_id, tag, entry.ext, str(entry.info.get("sha256", "")))
        same = version.exists() and current.exists() and version.samefile(current)
        return version if same else current

    def _remove_others(self, image_id: str, tag: str, old_ext: str, ext: str) -> None:
        if old_ext != ext:
            self._path(image_id, tag, old_ext).unlink(missing_ok=True)

    def _values(self, info: dict[str, Any]) -> dict[str, int] | None:
        if isinstance(info.get("labels"), dict):
            return dict(info["labels"])
        # Saved by MONAI Label itself: the list of the client is all there is.
        sent = info.get("label_info")
        names = [entry.get("name") for entry in sent if isinstance(entry, dict)] if isinstance(sent, list) else []
        return by_position([str(name) for name in names]) if names else None


def _classes_info(label: ClassLabel, image_id: str, source: Path, sent: dict[str, Any]) -> dict[str, Any]:
    info = _info(sent, f"{image_id}.json", checksum(source))
    for key in ("labels", "unknown_labels", "label_info"):
        info.pop(key, None)
    return {**info, "classes": list(label.classes)}


def _info(sent: dict[str, Any] | None, name: str, digest: str) -> dict[str, Any]:
    return {**_plain(sent or {}), "ts": int(time.time()), "name": name, "sha256": digest}


def _plain(info: object) -> dict[str, Any]:
    """Return ``info`` as JSON will give it back, so that memory and file never differ.

    Raises:
        BadInput: no object, or what JSON can't hold.
    """
    if not isinstance(info, dict):
        raise BadInput(f"info: {str(info)[:200]!r} is not an object")
    try:
        plain = dict(json.loads(to_json(info, fallback=str)))
    except ValueError as error:
        raise BadInput(f"info: cannot be kept as JSON: {error}") from error
    check_plain(plain, "info")
    return plain


def patient_in(image_id: str, image: Path, info: Mapping[str, Any]) -> str:
    """Return whose image it is: the PatientID of its info or of its file, or else the image's own id."""
    patient = str(info.get("PatientID") or "").strip()
    if patient in _NO_PATIENT:
        try:
            patient = patient_of(image) or ""
        except LabelRoundsError:
            patient = ""
    return patient or image_id
