"""The images of the datastore: listed, found, added, removed.

The rules stand in `labelrounds.store`.
"""

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from labelrounds.atomic import copy_file, set_aside, staged
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound, UnsupportedMedia
from labelrounds.formats import ENDINGS, ending_of
from labelrounds.history import checksum
from labelrounds.index import FINAL, SERIES, DataModel, ImageLabelModel
from labelrounds.names import check_id, check_tag
from labelrounds.notes import check_plain
from labelrounds.privacy.identity import check_folder_or_file
from labelrounds.reading import patient_of, read_image
from labelrounds.reviews import REVIEW
from labelrounds.scanned import SEGMENTATION, ScannedFolder

_NO_PATIENT = ("", "UNK")


class StoredImages(ScannedFolder):
    """A studies folder's images; see `labelrounds.store.StudyStore`."""

    rounds_tag: str = FINAL
    _at_hand: tuple[Mapping[str, ImageLabelModel] | None, Mapping[str, Path]] = (None, {})

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
            files = {name: self._path(name, "", found.image.ext) for name, found in entries.items()}
            self._at_hand = entries, files
        return files

    def patient_elsewhere(self, image_id: str) -> str:
        """Return whose image it is that would have to be fetched first; there is none here, so the id is all."""
        return image_id

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image.

        Raises:
            NotFound: no such image.
            Identified: it still says whose it is, and such are refused.
        """
        path = self._path(image_id, "", self._object(image_id).image.ext)
        check_folder_or_file(path)
        return str(path)

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
            Conflict: another image of that name has labels already, or is a DICOM series.
            OutOfSpace: the disk is full; nothing was changed.
        """
        self._check_writable()
        source = Path(image_filename)
        own_name, ext = self._to_id(source.name)
        image_id = check_id(image_id or own_name)
        if not ending_of(source.name) or ext == SEGMENTATION:
            raise UnsupportedMedia(f"{source.name[:200]}: not an image; allowed are {', '.join(ENDINGS)}")
        read_image(source)
        entry = DataModel(ext=ext, info=noted_info(image_info, image_id + ext, checksum(source)))
        with staged(self._path(image_id, "", ext), durable=True) as new:
            copy_file(source, new.file)
            new.flush()
            with self._transaction():
                old = self._snapshot.objects.get(image_id)
                _check_no_series(image_id, old)
                if old and old.image.info.get("sha256", "") != entry.info["sha256"] and old.labels:
                    raise Conflict(f"image {image_id!r}: another image of this name has labels; remove it first")
                self._commit_file(new, image_id, "", entry)
                self._remove_others(image_id, "", old.image.ext if old else ext, ext)
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; the labels' versions stay in the history.

        Raises:
            NotFound: no such image.
            Conflict: it is a DICOM series, whose files are the hospital's.
        """
        self._check_writable()
        with self._transaction():
            found = self._object(image_id)
            _check_no_series(image_id, found)
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
            new = DataModel(ext=entry.ext, info={**entry.info, **plain_info(info)})
            self._commit(self._entered(image_id, "", new))

    def _object(self, image_id: str) -> ImageLabelModel:
        found = self._datastore.objects.get(image_id)
        if found is None:
            raise NotFound(f"image {check_id(image_id)!r}: not in the datastore")
        return found

    def _check_writable(self) -> None:
        if self._read_only:
            raise Conflict("the datastore is read-only")

    def _remove_others(self, image_id: str, tag: str, old_ext: str, ext: str) -> None:
        if old_ext != ext:
            self._path(image_id, tag, old_ext).unlink(missing_ok=True)


def _check_no_series(image_id: str, found: ImageLabelModel | None) -> None:
    if found is not None and found.image.ext == SERIES:
        raise Conflict(
            f"image {image_id!r} is a DICOM series of the studies folder: it goes when its files are removed there"
        )


def noted_info(sent: dict[str, Any] | None, name: str, digest: str) -> dict[str, Any]:
    """Return what is kept of a file: what the client sent, and what the server knows itself.

    A reviewer's word is no client's to send.
    """
    told = plain_info(sent or {})
    told.pop(REVIEW, None)
    return {**told, "ts": int(time.time()), "name": name, "sha256": digest}


def plain_info(info: object) -> dict[str, Any]:
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
