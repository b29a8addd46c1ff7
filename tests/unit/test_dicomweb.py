"""A DICOMweb server gives the same store; a stand-in in memory plays the server, no dcmqi and no PACS is needed."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from labelrounds import cold, dicomweb, leases, scores
from labelrounds.database import Database
from labelrounds.dicomweb import DicomwebStore, segment_names
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.pool import PoolSource
from labelrounds.reading import read_geometry, read_image
from labelrounds.store import CLASSES, StudyStore
from labelrounds.writing import write_label

SERIES = ("1.2.3.20", "1.2.3.10")


def slices(uid: str) -> list[pydicom.Dataset]:
    found = []
    for number in range(6):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, f"{uid}.{number}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID, data.Modality = "1.2.3", uid, "P7", "CT"
        data.Rows, data.Columns, data.PixelSpacing = 6, 8, [0.5, 0.75]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [1, 2, 3 + 2.0 * number]
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelData = (np.arange(48, dtype=np.int16) + 100 * number).tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = (
            data.SOPClassUID,
            f"{uid}.{number}",
        )
        found.append(data)
    return found


class Server:
    """What the host's datastore asks of ``dicomweb_client.DICOMwebClient``."""

    def __init__(self, url: str):
        self.base_url = url
        self.fetched: list[str] = []

    def search_for_series(self, search_filters: dict[str, Any]) -> list[dict[str, Any]]:
        wanted = search_filters.get("SeriesInstanceUID")
        found = [uid for uid in SERIES if search_filters.get("Modality") != "SEG" and wanted in (None, uid)]
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality")
        return [
            json.loads(pydicom.Dataset({k: v for k, v in slices(uid)[0].items() if v.keyword in keys}).to_json())
            for uid in found
        ]

    def retrieve_series(self, study: str, series: str) -> list[pydicom.Dataset]:
        self.fetched.append(series)
        for data in (found := slices(series)):
            data.save_as = lambda path, data=data: pydicom.dcmwrite(path, data, enforce_file_format=True)
        return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = DicomwebStore(
        Server(f"http://{tmp_path.name}"), {"Modality": "CT"}, ("liver",), cache_path=str(tmp_path / "cache")
    )
    yield found
    found.close()


def label(path: Path, store: DicomwebStore, value: int = 1) -> Path:
    geometry = read_geometry(Path(store.get_image_uri(SERIES[0])))
    array = np.zeros(geometry.shape, np.uint8)
    array[1, 1, 1] = value
    return write_label(array, geometry.affine, path, ["liver"] * value)


def test_series_are_listed_in_order_and_fetched_once(store: DicomwebStore, tmp_path: Path):
    assert store.list_images() == store.get_unlabeled_images() == sorted(SERIES)
    path = Path(store.get_image_uri(SERIES[0]))
    assert path.is_relative_to(tmp_path / "cache")
    assert store.get_image_uri(SERIES[0]) == str(path)
    assert store._client.fetched == [SERIES[0]]
    assert list(tmp_path.glob("*.nii.gz")) == []
    image = read_image(path)
    assert image.array[0, 0, 0].tolist() == [0, 100, 200, 300, 400, 500]
    assert np.abs(image.affine - read_image(path.with_name(SERIES[0])).affine).max() < 1e-4
    assert store.get_image_info(SERIES[0])["PatientID"] == "P7"


def test_a_round_chooses_from_all_series_and_fetches_none_to_score_it(store: DicomwebStore, config, tmp_path: Path):
    database = Database(tmp_path / "rounds.sqlite", leases.SCHEMA + scores.SCHEMA + cold.SCHEMA)
    source = PoolSource(config, store, database, leases.Leases(database))
    assert source.gather(cold=True).pool.candidates == sorted(SERIES)
    assert not source.to_score() and store._client.fetched == []
    store.get_image_uri(SERIES[0])
    assert list(source.to_score()) == [SERIES[0]]


def test_unknown_and_unsafe_series_are_refused(store: DicomwebStore):
    with pytest.raises(NotFound):
        store.get_image_uri("1.2.3.99")
    with pytest.raises(BadInput):
        store.get_image_uri("../../etc")
    assert store.get_image_info("1.2.3.20") == {}


def test_a_prediction_is_kept_in_the_cache(store: DicomwebStore, tmp_path: Path):
    path = label(tmp_path / "label.nrrd", store)
    store.save_label(SERIES[0], str(path), "original", {"params": {"label_names": {"liver": 1}}})
    assert store.get_label_info(SERIES[0], "original")["labels"] == {"liver": 1}


def test_a_final_label_needs_dcmqi_and_says_so(store: DicomwebStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = label(tmp_path / "label.nrrd", store)
    monkeypatch.setattr(dicomweb.shutil, "which", lambda name: None)
    with pytest.raises(Conflict, match="itkimage2segimage"):
        store.save_label(SERIES[0], str(path), "final", {"label_info": [{"name": "liver"}]})


def test_a_label_is_checked_before_it_is_sent(store: DicomwebStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from monailabel.datastore import dicom

    sent: list[str] = []
    monkeypatch.setattr(dicomweb.shutil, "which", lambda name: name)
    monkeypatch.setattr(dicom, "nifti_to_dicom_seg", lambda folder, file, info: str(tmp_path / "seg.dcm"))
    monkeypatch.setattr(dicom, "dicom_web_upload_dcm", lambda file, client: sent.append(file) or "1.2.3.30")
    (tmp_path / "seg.dcm").write_bytes(b"")
    with pytest.raises(BadInput, match="value"):
        store.save_label(
            SERIES[0], str(label(tmp_path / "bad.nrrd", store, 3)), "final", {"label_info": [{"name": "liver"}]}
        )
    assert sent == []
    store.save_label(SERIES[0], str(label(tmp_path / "good.nrrd", store)), "final", {"label_info": [{"name": "liver"}]})
    assert len(sent) == 1
    info = store._datastore.objects[SERIES[0]].labels["final"].info
    assert (info["labels"], info["SeriesInstanceUID"], info["PatientID"]) == ({"liver": 1}, "1.2.3.30", "P7")


def test_a_series_is_labelled_as_soon_as_its_label_is_sent_whatever_the_servers_list_says_for_some_minutes(
    store: DicomwebStore, tmp_path: Path, config
):
    database = Database(tmp_path / "rounds.sqlite", leases.SCHEMA + scores.SCHEMA + cold.SCHEMA)
    source = PoolSource(config, store, database, leases.Leases(database))
    assert source.gather().pool.candidates == sorted(SERIES)
    StudyStore.save_label(store, SERIES[0], str(label(tmp_path / "good.nrrd", store)), "final", {})
    pool = source.gather().pool
    assert (pool.labelled, pool.candidates) == ([SERIES[0]], [SERIES[1]])
    assert store.get_unlabeled_images() == [SERIES[1]]


def test_the_segments_of_a_dicom_seg_are_named_in_order_of_their_numbers(tmp_path: Path):
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.SegmentationStorage, "1.2.3.4"
    data.SegmentSequence = [pydicom.Dataset(), pydicom.Dataset()]
    for item, number, name in zip(data.SegmentSequence, (3, 1), ("spleen", "liver"), strict=True):
        item.SegmentNumber, item.SegmentLabel = number, name
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert segment_names(tmp_path) == ["liver", "segment 2", "spleen"]
    assert segment_names(tmp_path / "nothing") == []


def test_classes_of_a_series_stay_in_the_cache_and_can_be_learnt_from(store, tmp_path):
    (tmp_path / "class.json").write_text('{"label": "blob"}')
    found = store.classes_in(SERIES[0], str(tmp_path / "class.json"), "final", {})
    store.save_classes({SERIES[0]: found})
    assert store.get_labeled_images("classes") == [SERIES[0]]
    (case,) = store.training_items("classes")
    assert case.image_id == SERIES[0] and case.label.suffix == ".json"


def test_rounds_of_classes_are_done_with_a_series_that_has_one(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = DicomwebStore(
        Server(f"http://classes/{tmp_path.name}"),
        {"Modality": "CT"},
        known_classes=("effusion",),
        rounds_tag=CLASSES,
        cache_path=str(tmp_path / "cache"),
    )
    (tmp_path / "class.json").write_text('{"label": "effusion"}')
    store.save_classes({SERIES[0]: store.classes_in(SERIES[0], str(tmp_path / "class.json"), CLASSES, {})})
    database = Database(tmp_path / "rounds.sqlite", leases.SCHEMA + scores.SCHEMA + cold.SCHEMA)
    pool = PoolSource(config, store, database, leases.Leases(database)).gather().pool
    store.close()
    assert (pool.labelled, pool.candidates) == ([SERIES[0]], [SERIES[1]])


def test_a_label_map_of_a_series_is_none_of_its_classes(store, tmp_path):
    sent = {"label_info": [{"name": "liver"}]}
    assert store.classes_in(SERIES[0], str(label(tmp_path / "label.nii.gz", store)), "final", sent) is None
