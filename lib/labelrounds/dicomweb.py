"""Studies on a DICOMweb server (Orthanc, a PACS), with the same checks as a studies folder.

The host's datastore fetches a series, converts it to NIfTI in a cache folder and sends a final label back as DICOM SEG
by dcmqi's ``itkimage2segimage``. Its cache folder is a `StudyStore`, so names, index and labels follow the same rules.
"""

import shutil
from pathlib import Path
from typing import Any

from labelrounds.store import CLASSES, FINAL, LabelledCase, StudyStore  # brings labelrounds.host in first

# isort: split
import pydicom
from monailabel.datastore.dicom import DICOMWebDatastore

from labelrounds.errors import Conflict, NotFound
from labelrounds.names import check_id, check_tag
from labelrounds.privacy.identity import check_dataset, refusing


class DicomwebStore(DICOMWebDatastore, StudyStore):
    """The host's DICOMweb datastore on top of a `StudyStore`: the latter's methods are what it calls as its base."""

    holds_series = False  # what lies in its folder was fetched for an image that the server has

    def __init__(
        self,
        client: Any,
        search_filter: dict[str, Any],
        known_labels: tuple[str, ...] = (),
        known_classes: tuple[str, ...] = (),
        multilabel_classes: tuple[str, ...] = (),
        rounds_tag: str = FINAL,
        **options: Any,
    ):
        """Open the cache of a DICOMweb server.

        Args:
            client: A ``dicomweb_client.DICOMwebClient``.
            search_filter: Which series count as images, such as ``{"Modality": "CT"}``.
            known_labels: The labels of the app's segmentation models, in their order.
            known_classes: The classes of its classification models; they stay in the cache, as a file each.
            multilabel_classes: Those of which an image may have any number.
            rounds_tag: What counts as labelled: series with a DICOM SEG, or with classes.
            options: ``cache_path``, ``fetch_by_frame``, ``convert_to_nifti`` of the host's class.
        """
        self._without_names: set[str] = set()
        DICOMWebDatastore.__init__(self, client, search_filter, **options)
        self.known_labels = tuple(known_labels)
        self.known_classes, self.multilabel_classes = tuple(known_classes), tuple(multilabel_classes)
        self.rounds_tag = rounds_tag

    def list_images(self) -> list[str]:
        """Return the series on the server that match the filter, sorted."""
        return sorted(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series with a DICOM SEG on the server or a label in the cache, or with a class there, sorted."""
        tag = check_tag(label_tag or self.rounds_tag)
        here = StudyStore.get_labeled_images(self, tag)
        # What the server has is asked every few minutes: a label just sent must count before.
        return here if tag == CLASSES else sorted({*here, *super().get_labeled_images(label_tag, labels)})

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the other series, sorted."""
        return sorted(set(self.list_images()) - set(self.get_labeled_images(label_tag, labels)))

    def get_image_uri(self, image_id: str) -> str:
        """Fetch a series unless it is in the cache, and return its path.

        Raises:
            NotFound: the server has no such series.
        """
        check_id(image_id)
        if image_id not in self._datastore.objects and image_id not in self.list_images():
            raise NotFound(f"series {image_id!r}: not on the DICOMweb server")
        if refusing():
            self._check_identity(image_id)
        path = Path(super().get_image_uri(image_id))
        if path.is_file() and image_id in self._datastore.objects:
            cached = Path(StudyStore.get_image_uri(self, image_id))
            if cached != path:
                # The host returns the temporary file of its first conversion, and forgets it.
                path.unlink()
            return str(cached)
        return str(path)

    def _check_identity(self, series_id: str) -> None:
        """Refuse a series before it is fetched, or served again, that still says whose it is.

        Raises:
            Identified: the attribute is named.
        """
        if series_id in self._without_names:
            return
        described = self._client.search_for_series(search_filters={"SeriesInstanceUID": series_id})[0]
        study = str(pydicom.Dataset.from_json(described).StudyInstanceUID)
        for instance in self._client.retrieve_series_metadata(study, series_id):
            check_dataset(pydicom.Dataset.from_json(instance), f"series {series_id}")
        self._without_names.add(series_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return what is known of a series; nothing before it was fetched."""
        return super().get_image_info(image_id) if image_id in self._datastore.objects else {}

    def _dicom_info(self, series_id: str) -> dict[str, Any]:
        """Return what the server knows of a series, and of a fetched DICOM SEG the names of its segments."""
        names = segment_names(Path(self._snapshot.label_path(FINAL)) / series_id)
        return {
            **super()._dicom_info(series_id),
            **({"label_info": [{"name": name} for name in names]} if names else {}),
        }

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any] | None,
        label_id: str = "",
    ) -> str:
        """Check a label, send it to the server if it is final, and save it in the cache.

        Raises:
            Conflict: dcmqi, which makes the DICOM SEG, is not installed.
            LabelRoundsError: what `StudyStore.save_label` raises, before anything is sent.
        """
        tag, info = check_tag(label_tag), dict(label_info or {})
        image = Path(self.get_image_uri(image_id))
        self._meaning(Path(label_filename), image, tag, info)
        if tag == FINAL and shutil.which("itkimage2segimage") is None:
            raise Conflict("dcmqi's itkimage2segimage is not installed; without it no DICOM SEG can be sent")
        return str(super().save_label(image_id, label_filename, tag, info))

    def training_items(self, label_tag: str = FINAL) -> list[LabelledCase]:
        """Fetch what has a label map on the server, and return the cases; of classes, those in the cache."""
        if label_tag == FINAL:
            self._download_labeled_data()
        return StudyStore.training_items(self, label_tag)


def segment_names(folder: Path) -> list[str]:
    """Return the names of a DICOM SEG's segments in the order of their numbers, a gap filled by its number."""
    import pydicom

    for file in sorted(folder.glob("*")):
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        named = {int(item.SegmentNumber): str(item.SegmentLabel) for item in dataset.get("SegmentSequence", [])}
        if named and min(named) >= 1 and max(named) <= 255:
            return [named.get(number, f"segment {number}") for number in range(1, max(named) + 1)]
    return []
