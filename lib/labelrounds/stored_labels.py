"""The label maps of the datastore: checked and saved whole or not at all, with every version kept.

On the way of a round: what ``PUT /datastore/label`` ends in. The rules stand in `labelrounds.store`.
"""

import copy
import logging
from pathlib import Path
from typing import Any

from labelrounds.atomic import set_aside, staged
from labelrounds.errors import Conflict, NotFound
from labelrounds.history import checksum, link_or_copy
from labelrounds.index import FINAL, DataModel, ImageLabelModel
from labelrounds.labels import Meaning, check_label, check_prediction
from labelrounds.names import check_tag
from labelrounds.reviews import REVIEW, is_sent_back
from labelrounds.stored_images import noted_info, plain_info
from labelrounds.stored_series import StoredSeries

logger = logging.getLogger(__name__)


class StoredLabels(StoredSeries):
    """A studies folder's label maps; see `labelrounds.store.StudyStore`."""

    known_labels: tuple[str, ...] = ()

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

        The same label again, from the same user and with the same meaning, changes nothing.

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
        sent = plain_info(label_info or {})
        meaning = self._meaning(source, image, tag, sent)
        info = noted_info(sent, image_id + ext, checksum(source))
        info.pop("labels", None)
        if meaning.values is not None:
            info["labels"] = meaning.values
        info.pop("unknown_labels", None)
        if meaning.unknown:
            logger.warning("%s %s: no model knows the labels %s", image_id, tag, ", ".join(meaning.unknown))
            info["unknown_labels"] = list(meaning.unknown)
        entry = DataModel(ext=ext, info=info)
        with self._transaction():
            if not self._is_current(image_id, tag, entry):
                self._save_checked(source, image_id, tag, entry)
        return image_id

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
        """Add to what is known of a label; what its values mean stays, and what a reviewer has said of it.

        Raises:
            NotFound: no such image, or it has no such label.
            BadInput: ``info`` is not an object.
        """
        added = plain_info(info)
        self._note(label_id, label_tag, {key: added[key] for key in added if key not in ("labels", "sha256", REVIEW)})

    def note_review(self, label_id: str, label_tag: str, word: dict[str, Any], sha256: str | None = None) -> None:
        """Note a reviewer's word on a label (`labelrounds.reviews`).

        Args:
            label_id: the image.
            label_tag: the label's tag.
            word: what was said.
            sha256: of the label that it was said of, where that is known.

        Raises:
            NotFound: no such image, or it has no such label.
            Conflict: its label is another one by now.
        """
        self._note(label_id, label_tag, {REVIEW: word}, sha256)

    def _note(self, label_id: str, label_tag: str, added: dict[str, Any], sha256: str | None = None) -> None:
        self._check_writable()
        tag = check_tag(label_tag)
        with self._transaction():
            entry = self._label(label_id, tag)
            if sha256 not in (None, entry.info.get("sha256")):
                raise Conflict(f"the label of {label_id!r} was replaced since it was looked at: look at it again")
            self._commit(self._entered(label_id, tag, DataModel(ext=entry.ext, info={**entry.info, **added})))

    def _label(self, image_id: str, tag: str) -> DataModel:
        found = self._object(image_id).labels.get(tag)
        if found is None:
            raise NotFound(f"image {image_id!r} has no label with the tag {tag!r}")
        return found

    def _image_file(self, image_id: str) -> str:
        """Return the file whose grid a label must have."""
        return self.get_image_uri(image_id)

    def _meaning(self, label: Path, image: Path, tag: str, sent: dict[str, Any]) -> Meaning:
        if tag == FINAL or "label_info" in sent:
            return check_label(label, image, sent.get("label_info"), self.known_labels)
        params = sent.get("params")
        return check_prediction(label, image, params.get("label_names") if isinstance(params, dict) else None)

    def _is_current(self, image_id: str, tag: str, entry: DataModel) -> bool:
        """Tell whether an image has just this label already, whole, from the same user and with the same meaning."""
        old = self._object(image_id).labels.get(tag)
        if old is None or old.ext != entry.ext or "sha256" not in old.info:
            return False
        if is_sent_back(old.info):  # who submits it again stands by it
            return False
        if any(old.info.get(key) != value for key, value in entry.info.items() if key != "ts"):
            return False
        path = self._path(image_id, tag, old.ext)
        return path.is_file() and checksum(path) == old.info["sha256"]

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
