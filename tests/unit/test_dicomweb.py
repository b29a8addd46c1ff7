"""A DICOMweb server gives the same store; a stand-in in memory plays the server (a real one: `tests/api`)."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import MemoryPacs, later

from labelrounds import cold, dicomweb, leases, pacs_lists, scores
from labelrounds.database import Database
from labelrounds.dicomweb import DicomwebStore, numbered
from labelrounds.errors import BadInput, Conflict, NotFound, Unreachable
from labelrounds.pool import PoolSource
from labelrounds.reading import read_geometry, read_image, read_label
from labelrounds.store import CLASSES, StudyStore
from labelrounds.writing import write_label

SERIES = ("1.2.3.20", "1.2.3.10")
LIVER = {"label_info": [{"name": "liver"}]}


@pytest.fixture
def pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryPacs:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return MemoryPacs(f"http://{tmp_path.name}", SERIES)


def opened(pacs: MemoryPacs, tmp_path: Path, **options: Any) -> DicomwebStore:
    return DicomwebStore(pacs, {"Modality": "CT"}, tmp_path / "cache", **{"known_labels": ("liver",), **options})


@pytest.fixture
def store(pacs: MemoryPacs, tmp_path: Path) -> Any:
    found = opened(pacs, tmp_path)
    yield found
    found.close()


@pytest.fixture
def source(store: DicomwebStore, tmp_path: Path, config) -> PoolSource:
    database = Database(tmp_path / "rounds.sqlite", leases.SCHEMA + scores.SCHEMA + cold.SCHEMA)
    return PoolSource(config, store, database, leases.Leases(database))


def label(path: Path, store: DicomwebStore, value: int = 1, at: int = 1) -> Path:
    geometry = read_geometry(Path(store.get_image_uri(SERIES[0])))
    array = np.zeros(geometry.shape, np.uint8)
    array[at, 1, 1] = value
    return write_label(array, geometry.affine, path, ["liver"] * value)


def submit(store: DicomwebStore, tmp_path: Path, at: int = 1) -> None:
    store.save_label(SERIES[0], str(label(tmp_path / "label.nrrd", store, at=at)), "final", LIVER)


def test_series_are_listed_in_order_and_fetched_once(store: DicomwebStore, pacs, tmp_path: Path):
    assert store.list_images() == store.get_unlabeled_images() == sorted(SERIES)
    with ThreadPoolExecutor(4) as pool:
        (path,) = {Path(found) for found in pool.map(store.get_image_uri, [SERIES[0]] * 4)}
    assert path.is_relative_to(tmp_path / "cache") and pacs.fetched == [SERIES[0]]
    assert list(tmp_path.glob("*.nii.gz")) == [] and list(path.parent.glob(".labelrounds-*")) == []
    image = read_image(path)
    assert image.array[0, 0, 0].tolist() == [0, 100, 200, 300, 400, 500]
    assert np.allclose(image.affine, [[-0.75, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]], atol=1e-4)
    assert store.get_image_info(SERIES[0])["PatientID"] == "P7"


def test_a_round_chooses_from_all_series_and_fetches_none_to_score_it(store: DicomwebStore, pacs, source: PoolSource):
    assert source.gather(cold=True).pool.candidates == sorted(SERIES)
    assert not source.to_score() and pacs.fetched == []
    store.get_image_uri(SERIES[0])
    assert list(source.to_score()) == [SERIES[0]]


def test_whose_a_series_is_that_was_not_fetched_is_asked_of_the_server(store: DicomwebStore, source: PoolSource):
    source.gather()
    assert source._patient(SERIES[0], {}) == store.patient_elsewhere(SERIES[0]) == "P7"
    assert store.patient_elsewhere("1.2.3.99") == "1.2.3.99"


def test_unknown_and_unsafe_series_are_refused(store: DicomwebStore):
    with pytest.raises(NotFound):
        store.get_image_uri("1.2.3.99")
    with pytest.raises(BadInput):
        store.get_image_uri("../../etc")
    assert store.get_image_info("1.2.3.99") == {}


def test_a_series_that_has_just_come_is_found_though_the_list_is_old(store, pacs, monkeypatch):
    assert store.list_images() == sorted(SERIES)
    pacs.kept["1.2.3.30"] = MemoryPacs("", ["1.2.3.30"]).kept["1.2.3.30"]
    with pytest.raises(NotFound):  # the server was asked a moment ago
        store.get_image_uri("1.2.3.30")
    monkeypatch.setattr(pacs_lists, "_PAUSE_S", 0)
    assert Path(store.get_image_uri("1.2.3.30")).exists()


def test_a_series_that_can_not_be_read_leaves_nothing(store: DicomwebStore, pacs, tmp_path: Path):
    pacs.kept[SERIES[1]][2].ImagePositionPatient = [1, 2, 100]
    with pytest.raises(BadInput, match="uneven gaps"):
        store.get_image_uri(SERIES[1])
    assert [path.name for path in (tmp_path / "cache").rglob("*") if SERIES[1] in path.name] == []


def test_a_server_that_does_not_answer_is_an_error_only_for_what_is_not_here(store, pacs, monkeypatch):
    monkeypatch.setattr(pacs_lists, "_PAUSE_S", 0)
    pacs.down = True
    with pytest.raises(Unreachable):
        store.list_images()
    pacs.down = False
    store.get_image_uri(SERIES[0])
    pacs.down = True
    pacs.limits = pacs.limits.model_copy(update={"pacs_list_s": 0})
    assert store.list_images() == sorted(SERIES) and store.get_image_uri(SERIES[0])
    with pytest.raises(Unreachable):
        store.get_image_uri(SERIES[1])


def test_a_server_that_does_not_answer_is_not_asked_at_each_click(pacs, tmp_path: Path):
    store = opened(pacs, tmp_path)
    pacs.down = True
    for _ in range(3):
        with pytest.raises(Unreachable):
            store.list_images()
    pacs.down = False
    with pytest.raises(Unreachable):  # within ten seconds
        store.list_images()
    assert pacs.searches == 0
    store.close()


def test_a_prediction_is_kept_in_the_cache(store: DicomwebStore, pacs, tmp_path: Path):
    path = label(tmp_path / "label.nrrd", store)
    store.save_label(SERIES[0], str(path), "original", {"params": {"label_names": {"liver": 1}}})
    assert store.get_label_info(SERIES[0], "original")["labels"] == {"liver": 1}
    assert pacs.segmentations() == []


def test_a_final_label_is_sent_and_kept(store: DicomwebStore, pacs, tmp_path: Path):
    submit(store, tmp_path)
    (seg,) = pacs.segmentations()
    info = store.get_label_info(SERIES[0], "final")
    assert (info["labels"], info["SeriesInstanceUID"]) == ({"liver": 1}, seg.SeriesInstanceUID)
    assert store.get_labeled_images() == [SERIES[0]]


def test_a_label_is_checked_before_it_is_sent(store: DicomwebStore, pacs, tmp_path: Path):
    with pytest.raises(BadInput, match="value"):
        store.save_label(SERIES[0], str(label(tmp_path / "bad.nrrd", store, 3)), "final", LIVER)
    assert pacs.segmentations() == []


def test_a_label_that_can_not_be_sent_is_not_saved(store: DicomwebStore, pacs, tmp_path: Path):
    path = label(tmp_path / "label.nrrd", store)
    pacs.down = True
    with pytest.raises(Unreachable):
        store.save_label(SERIES[0], str(path), "final", LIVER)
    assert StudyStore.get_labeled_images(store) == []


def test_a_read_only_datastore_sends_nothing(pacs, tmp_path: Path):
    store = opened(pacs, tmp_path, sends_labels=False)
    path = label(tmp_path / "label.nrrd", store)
    with pytest.raises(Conflict, match="read-only"):
        store.save_label(SERIES[0], str(path), "final", LIVER)
    assert pacs.segmentations() == []
    store.close()


def test_a_corrected_label_is_a_new_series_and_the_newest_counts(store: DicomwebStore, pacs, tmp_path: Path):
    submit(store, tmp_path, at=1)
    submit(store, tmp_path, at=2)
    assert len(pacs.segmentations()) == 2
    (case,) = store.training_items()
    assert read_label(case.label).array[0, :, 1, 1].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert len(pacs.fetched) == 1  # no SEG: what was sent is here


def test_a_label_that_somebody_else_has_sent_is_learnt_from(store: DicomwebStore, pacs, tmp_path: Path):
    submit(store, tmp_path, at=1)
    submit(store, tmp_path, at=5)
    *_, seg = pacs.segmentations()
    fresh = opened(pacs, tmp_path / "another")
    assert fresh.get_labeled_images() == [SERIES[0]]
    (case,) = fresh.training_items()
    assert read_label(case.label).array[0, :, 1, 1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert (case.values, case.patient) == ({"liver": 1}, "P7")
    pacs.store(later(seg))
    (case,) = fresh.training_items()
    assert fresh.get_label_info(SERIES[0], "final")["SeriesInstanceUID"] == seg.SeriesInstanceUID
    assert Path(fresh.get_label_uri(SERIES[0], "final")).exists()
    fresh.close()


def test_a_segmentation_that_can_not_be_used_does_not_keep_the_others_from_being_learnt(store, pacs, tmp_path, caplog):
    submit(store, tmp_path)
    (seg,) = pacs.segmentations()
    seg.SegmentSequence[0].SegmentLabel = "heart"
    fresh = opened(pacs, tmp_path / "another")
    assert fresh.training_items() == []
    assert "no model knows heart" in caplog.text
    fresh.close()


def test_what_an_algorithm_sent_is_no_label(store: DicomwebStore, pacs, tmp_path: Path):
    submit(store, tmp_path)
    pacs.segmentations()[0].SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"
    fresh = opened(pacs, tmp_path / "another")
    assert fresh.get_labeled_images() == fresh.training_items() == []
    fresh.close()


def test_without_the_server_a_training_goes_on_with_what_is_here(store, pacs, tmp_path, monkeypatch):
    monkeypatch.setattr(pacs_lists, "_PAUSE_S", 0)
    submit(store, tmp_path)
    pacs.down = True
    assert [case.image_id for case in store.training_items()] == [SERIES[0]]


def test_a_label_whose_segmentation_was_removed_from_the_server_is_not_learnt_from(store, pacs, tmp_path, monkeypatch):
    submit(store, tmp_path)
    (seg,) = pacs.segmentations()
    del pacs.kept[seg.SeriesInstanceUID]
    assert len(store.training_items()) == 1  # a server may list it only later
    monkeypatch.setattr(dicomweb, "_LISTED_WITHIN_S", -1)
    assert store.training_items() == [] and store.get_labeled_images() == []


def test_what_segmentations_are_about_is_asked_once(store, pacs, tmp_path, monkeypatch):
    store.training_items()
    submit(store, tmp_path)
    store.training_items()
    monkeypatch.setattr(pacs, "headers", lambda series: pytest.fail("asked again"))
    assert opened(pacs, tmp_path).get_labeled_images() == [SERIES[0]]


def test_a_series_is_labelled_as_soon_as_its_label_is_sent_whatever_the_servers_list_says_for_some_minutes(
    store: DicomwebStore, tmp_path: Path, source: PoolSource
):
    assert source.gather().pool.candidates == sorted(SERIES)
    submit(store, tmp_path)
    pool = source.gather().pool
    assert (pool.labelled, pool.candidates) == ([SERIES[0]], [SERIES[1]])
    assert store.get_unlabeled_images() == [SERIES[1]]


def test_the_numbers_of_segments_have_no_gap():
    array = np.array([[[0, 5, 9]]], np.uint8)
    voxels, names = numbered(array, {"spleen": 9, "liver": 5, "cyst": 7})
    assert voxels.ravel().tolist() == [0, 1, 3] and names == ["liver", "cyst", "spleen"]
    voxels, names = numbered(array, {})
    assert voxels.ravel().tolist() == [0, 1, 2] and names == ["segment 5", "segment 9"]
    with pytest.raises(BadInput, match="nothing to send"):
        numbered(0 * array, {})


def test_classes_of_a_series_stay_in_the_cache_and_can_be_learnt_from(store, tmp_path):
    (tmp_path / "class.json").write_text('{"label": "blob"}')
    found = store.classes_in(SERIES[0], str(tmp_path / "class.json"), "final", {})
    store.save_classes({SERIES[0]: found})
    assert store.get_labeled_images("classes") == [SERIES[0]]
    (case,) = store.training_items("classes")
    assert case.image_id == SERIES[0] and case.label.suffix == ".json"


def test_rounds_of_classes_are_done_with_a_series_that_has_one(pacs, tmp_path, config):
    store = opened(pacs, tmp_path, known_labels=(), known_classes=("effusion",), rounds_tag=CLASSES)
    (tmp_path / "class.json").write_text('{"label": "effusion"}')
    store.save_classes({SERIES[0]: store.classes_in(SERIES[0], str(tmp_path / "class.json"), CLASSES, {})})
    database = Database(tmp_path / "rounds.sqlite", leases.SCHEMA + scores.SCHEMA + cold.SCHEMA)
    pool = PoolSource(config, store, database, leases.Leases(database)).gather().pool
    store.close()
    assert (pool.labelled, pool.candidates) == ([SERIES[0]], [SERIES[1]])


def test_a_label_map_of_a_series_is_none_of_its_classes(store, tmp_path):
    assert store.classes_in(SERIES[0], str(label(tmp_path / "label.nii.gz", store)), "final", LIVER) is None
