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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelrounds.atomic import zipped
from labelrounds.errors import BadInput, Conflict
from labelrounds.index import CLASSES, FINAL
from labelrounds.label_versions import LabelVersions
from labelrounds.labels import by_position
from labelrounds.reviews import is_sent_back
from labelrounds.stored_images import patient_in

__all__ = ["CLASSES", "EXTENSIONS", "FINAL", "LabelledCase", "StudyStore", "patient_in"]
EXTENSIONS = ("*.nii.gz", "*.nii", "*.nrrd", "*.dcm", "*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff")


@dataclass(frozen=True)
class LabelledCase:
    """A case to train on.

    Attributes:
        image_id: The image's name in the store.
        image: Its file.
        label: The label's file: a version that no later submission changes, where the file system has links.
        values: Name to voxel value in the label, also of labels without a voxel; None where nobody has named them:
            a ``.seg.nrrd`` may then name itself, and others are 1, 2, 3 in the order of the trained model's labels.
        patient: Whose image it is: the PatientID, or else the image's own id.
    """

    image_id: str
    image: Path
    label: Path
    values: dict[str, int] | None
    patient: str


class StudyStore(LabelVersions):
    """A studies folder that survives bad names, bad files, other writers, crashes and a full disk.

    Attributes:
        known_labels: The labels of the app's segmentation models, in their order.
        known_classes: The classes of its classification models.
        multilabel_classes: Those of which an image may have any number.
        rounds_tag: The tag of the labels that its rounds of labelling are about: ``final``, or ``classes``.
    """

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
        if not auto_reload:
            self.take_up_series()

    def close(self) -> None:
        """Stop watching the folder."""
        super().close()
        observer = getattr(self, "_observer", None)
        if observer is not None and observer.is_alive():
            observer.stop()
            observer.join()

    def training_items(self, label_tag: str = FINAL) -> list[LabelledCase]:
        """Return the cases with a human's label of a tag, sorted by id.

        Those whose label was sent back or whose files have gone are left out.
        """
        cases = []
        model = self._datastore
        for image_id in sorted(model.objects):
            found = model.objects[image_id]
            if label_tag not in found.labels or is_sent_back(found.labels[label_tag].info):
                continue
            image = self._path(image_id, "", found.image.ext)
            label = self._version_or_current(image_id, label_tag, found.labels[label_tag])
            if image.exists() and label.exists():
                values = _values(found.labels[label_tag].info) if label_tag == FINAL else None
                cases.append(
                    LabelledCase(image_id, image, label, values, patient_in(image_id, image, found.image.info))
                )
        return cases

    # The datastore itself

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return the paths of the images with a final label and of those; in the folder alone if not ``full_path``."""
        images, folder = self.files_at_hand(), Path(self._snapshot.label_path(FINAL))
        begin = 0 if full_path else len(str(self._root)) + 1
        return [
            {"image": str(images[name])[begin:], "label": f"{folder}/{name}{found.labels[FINAL].ext}"[begin:]}
            for name, found in self.entries.items()
            if FINAL in found.labels and name in images
        ]

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
            image = Path(self.get_image_uri(image_id))
            files[f"image/{image.name}"] = image
            for tag, folder in ((FINAL, "label"), (CLASSES, "classes")):
                if tag in found.labels:
                    ext = found.labels[tag].ext
                    files[f"{folder}/{image_id}{ext}"] = self._path(image_id, tag, ext)
        return str(zipped(files, {"metadata.json": model.model_dump_json(exclude={"base_path"})}))


def _values(info: dict[str, Any]) -> dict[str, int] | None:
    if isinstance(info.get("labels"), dict):
        return dict(info["labels"])
    # Saved by MONAI Label itself: the list of the client is all there is.
    sent = info.get("label_info")
    names = [entry.get("name") for entry in sent if isinstance(entry, dict)] if isinstance(sent, list) else []
    return by_position([str(name) for name in names]) if names else None
