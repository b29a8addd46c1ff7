"""The versions of the labels: who has saved which, and an earlier one made the current one again.

On the way of a round, behind ``GET /datastore/label/history`` and ``POST /datastore/label/restore``. What was saved
stands in the journal, the files under ``history/versions``; both are only ever added to (`labelrounds.history`).
"""

import time
from pathlib import Path
from typing import Any

from labelrounds.classification.labels import check_known, read_class_label
from labelrounds.errors import Conflict, NotFound
from labelrounds.history import checksum
from labelrounds.index import CLASSES, DataModel
from labelrounds.labels import check_grid
from labelrounds.names import check_tag
from labelrounds.reading import read_label
from labelrounds.stored_classes import StoredClasses


class LabelVersions(StoredClasses):
    """A studies folder whose labels can be turned back; see `labelrounds.store.StudyStore`."""

    def label_history(self, image_id: str, label_tag: str = "") -> list[dict[str, Any]]:
        """Return what was done to an image's labels, the oldest first.

        Args:
            image_id: the image.
            label_tag: of which labels; of all where it is "".

        Returns:
            of each change ``time`` (UTC), ``tag``, ``action`` (saved or removed), and of what was saved ``user``,
            ``sha256``, ``labels`` or ``classes``, ``restored_by`` where it was, whether it is ``current``, and whether
            it can be restored (``kept``).

        Raises:
            NotFound: no such image.
            BadInput: an unsafe tag.
        """
        tag = check_tag(label_tag) if label_tag else ""
        labels = self._object(image_id).labels
        current = {name: label.info.get("sha256") for name, label in labels.items()}
        told = [
            self._told(entry, current)
            for entry in self._history.entries_of(image_id)
            if entry.get("tag") and tag in ("", entry["tag"])
        ]
        latest = {one["tag"]: number for number, one in enumerate(told) if one.get("current")}
        return [{**one, "current": latest.get(one["tag"]) == number} for number, one in enumerate(told)]

    def restore_label(self, image_id: str, label_tag: str, sha256: str, user: str) -> dict[str, Any]:
        """Make an earlier version of a label the current one, its meaning and its author included.

        Args:
            image_id: the image.
            label_tag: the label's tag.
            sha256: of the version's file, or how it begins.
            user: who restores it.

        Returns:
            what is noted of the label from now on.

        Raises:
            NotFound: no such image, or no such version.
            Conflict: the version's file is not what it was, or does not fit the image any more.
        """
        self._check_writable()
        tag = check_tag(label_tag)
        self._object(image_id)
        saved = [
            entry["info"]
            for entry in self._history.entries_of(image_id)
            if entry.get("tag") == tag and str((entry.get("info") or {}).get("sha256", "")).startswith(sha256)
        ]
        if not saved:
            raise NotFound(f"image {image_id!r} has no label {tag!r} with the checksum {sha256[:64]!r} in its history")
        past, ext = saved[-1], _ending(image_id, saved[-1])
        version = self._history.version(image_id, tag, ext, past["sha256"])
        if not version.is_file() or checksum(version) != past["sha256"]:
            raise Conflict(f"the version {sha256[:16]} of {image_id!r} is not in the history any more, or was changed")
        self._check_fits(version, image_id, tag)
        info = {**past, "ts": int(time.time()), "restored_by": user}
        with self._transaction():
            if not self._is_current(image_id, tag, DataModel(ext=ext, info=past)):
                self._save_checked(version, image_id, tag, DataModel(ext=ext, info=info))
        return info

    def _check_fits(self, version: Path, image_id: str, tag: str) -> None:
        if tag == CLASSES:
            check_known(read_class_label(version), self.known_classes, self.multilabel_classes, image_id)
        else:
            check_grid(read_label(version), Path(self._image_file(image_id)), version.name)

    def _told(self, entry: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
        info = entry.get("info")
        told = {key: entry.get(key) for key in ("time", "tag", "action")}
        if not isinstance(info, dict):
            return told
        image_id, tag, digest = str(entry["image"]), str(entry["tag"]), str(info.get("sha256", ""))
        kept = self._history.version(image_id, tag, _ending(image_id, info), digest).is_file()
        known = {key: info[key] for key in ("user", "client_id", "restored_by", "labels", "classes") if key in info}
        return {**told, **known, "sha256": digest, "current": current.get(tag) == digest, "kept": kept}


def _ending(image_id: str, info: dict[str, Any]) -> str:
    return str(info.get("name") or "")[len(image_id) :]
