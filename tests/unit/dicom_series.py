"""An invented DICOM series, and a DICOMweb server in memory that has some."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import UID, generate_uid
from tests.dicom_files import dicom_slice

from labelrounds.errors import NotFound, Unreachable
from labelrounds.pacs import Series
from labelrounds.settings import ServerSettings

STUDY = "1.2.3"


def slices(uid: str, count: int = 6, orientation: Sequence[float] = (1, 0, 0, 0, 1, 0)) -> list[pydicom.Dataset]:
    """Return the files of a CT series of 8 x 6 pixels of 0.75 x 0.5 mm, 2 mm apart."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        dicom_slice(
            uid,
            number,
            SOPClassUID=pydicom.uid.CTImageStorage,
            StudyInstanceUID=STUDY,
            FrameOfReferenceUID=f"{uid}.99",
            PatientID="P7",
            PatientBirthDate="19700101",
            PatientSex="F",
            StudyDate="20260102",
            StudyTime="030405",
            StudyID="S1",
            AccessionNumber="A1",
            ReferringPhysicianName="",
            Modality="CT",
            SeriesNumber=4,
            Rows=6,
            Columns=8,
            PixelSpacing=[0.5, 0.75],
            ImageOrientationPatient=[float(f"{value:.8f}") for value in orientation],
            ImagePositionPatient=[float(f"{value:.6f}") for value in np.array([1, 2, 3]) + 2.0 * number * normal],
            PixelData=(np.arange(48, dtype=np.int16) + 100 * number).tobytes(),
        )
        for number in range(count)
    ]


class MemoryPacs:
    """What `labelrounds.pacs.Pacs` does, without a server.

    Attributes:
        kept: the files by series.
        fetched: the series that were fetched, in order.
        down: True answers nobody.
    """

    def __init__(self, address: str, series: Sequence[str], keep_list_s: float = 3600) -> None:
        self.address = address
        self.limits = ServerSettings(pacs_list_s=keep_list_s)
        self.kept: dict[str, list[pydicom.Dataset]] = {uid: slices(uid) for uid in series}
        self.fetched: list[str] = []
        self.searches = 0
        self.down = False

    def search(self, filters: Mapping[str, Any]) -> list[Series]:
        self._answer()
        self.searches += 1
        found = [
            Series(uid, str(one.StudyInstanceUID), str(one.PatientID), str(one.Modality), instances=len(files))
            for uid, files in self.kept.items()
            for one in files[:1]
        ]
        return sorted((one for one in found if one.modality == filters["Modality"]), key=lambda one: one.uid)

    def headers(self, series: Series) -> list[pydicom.Dataset]:
        self._answer()
        if series.uid not in self.kept:
            raise NotFound(series.uid)
        return self.kept[series.uid]

    def fetch(self, series: Series, folder: Path) -> int:
        self.fetched.append(series.uid)
        for number, data in enumerate(self.headers(series)):
            pydicom.dcmwrite(folder / f"{number:03}.dcm", data, enforce_file_format=True)
        return len(self.kept[series.uid])

    def store(self, dataset: pydicom.Dataset) -> None:
        self._answer()
        self.kept.setdefault(str(dataset.SeriesInstanceUID), []).append(dataset)

    def segmentations(self) -> list[pydicom.Dataset]:
        return [files[0] for files in self.kept.values() if files[0].Modality == "SEG"]

    def _answer(self) -> None:
        if self.down:
            raise Unreachable("the DICOMweb server can't be reached, or broke off")


def later(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Return a SEG as if it had been made a day later, in a series of its own."""
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = generate_uid(), generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    dataset.ContentDate = "20991231"
    return dataset
