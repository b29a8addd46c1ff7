"""Every DICOM series in a studies folder is an image of it, wherever its files lie."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.dicom_files import GAP_MM, SPACING_MM, write_segmentation, write_series, write_slice
from tests.real_images import real

from labelrounds.errors import Conflict
from labelrounds.reading import read_geometry, read_image
from labelrounds.store import StudyStore
from labelrounds.writing import write_label


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    return folder


def opened(studies: Path) -> StudyStore:
    return StudyStore(studies, ("liver",))


def label_of(store: StudyStore, image: str, path: Path) -> Path:
    geometry = read_geometry(Path(store.get_image_uri(image)))
    array = np.zeros(geometry.shape, np.uint8)
    array[1, 1] = 1
    return write_label(array, geometry.affine, path)


def submit(store: StudyStore, image: str, tmp_path: Path) -> None:
    label = label_of(store, image, tmp_path / "label.nii.gz")
    store.save_label(image, str(label), "final", {"label_info": [{"name": "liver"}]})


def until(found: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_each_series_of_nested_and_mixed_folders_is_one_image(studies: Path):
    write_series(studies / "DOE_JANE" / "STUDY 1" / "T1", "1.2.3.1")
    write_series(studies / "DOE_JANE" / "STUDY 1" / "mixed", "1.2.3.2", ending="")
    write_series(studies / "DOE_JANE" / "STUDY 1" / "mixed", "1.2.3.3", 6, ending=".IMA")
    for number, file in enumerate(write_series(studies / "split" / "b", "1.2.3.4")):
        if number % 2:
            shutil.move(file, studies / "split" / file.name)
    write_series(studies, "1.2.3.5", 3)
    store = opened(studies)
    assert store.list_images() == ["1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4", "1.2.3.5"]
    depths = [read_geometry(Path(store.get_image_uri(name))).shape[2] for name in store.list_images()]
    assert depths == [4, 4, 6, 4, 3]
    assert store.warnings == []
    again = opened(studies)
    assert again.list_images() == store.list_images() and again.take_up_series() == 0


def test_a_converted_series_has_the_voxels_and_the_place_of_its_files(studies: Path):
    files = write_series(studies / "a", "1.2.3.1", RescaleSlope="2", RescaleIntercept="-1000")
    store = opened(studies)
    image, source = read_image(Path(store.get_image_uri("1.2.3.1"))), read_image(files[0].parent)
    assert np.array_equal(image.array, source.array)
    assert np.abs(image.affine - source.affine).max() < 1e-12
    assert np.allclose(image.spacing_mm, (SPACING_MM[1], SPACING_MM[0], GAP_MM))
    expected = 2 * np.random.default_rng(0).integers(-900, 900, (6, 5)) - 1000
    assert np.array_equal(image.array[0, :, :, 0].T, expected)


@pytest.mark.parametrize("series", ["11-T1post-18670", "36468-FLAIRreg-58706"])
def test_a_real_series_is_what_itk_reads_of_its_files(studies: Path, series: str):
    import itk  # takes seconds, which no other test here needs

    shutil.copytree(real(f"dicom_brain_mr/{series}"), studies / "p" / series)
    store = opened(studies)
    (name,) = store.list_images()
    names = itk.GDCMSeriesFileNames.New(Directory=str(studies / "p" / series)).GetInputFileNames()
    truth, image = itk.imread(list(names)), itk.imread(store.get_image_uri(name))
    assert np.array_equal(itk.array_from_image(truth), itk.array_from_image(image))
    last = [side - 1 for side in itk.size(truth)]
    for index in ([0, 0, 0], last, [3, 17, 5]):
        there, here = (np.array(one.TransformIndexToPhysicalPoint(index)) for one in (truth, image))
        assert np.abs(there - here).max() < 1e-3


def test_what_is_no_image_is_passed_over_and_what_is_no_volume_is_left_out_with_its_reason(studies: Path):
    write_series(studies / "a", "1.2.3.1")
    write_segmentation(studies / "a" / "seg.dcm", "1.2.3.9")
    (studies / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (studies / "a" / "notes.txt").write_text("nothing")
    (studies / "a" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 400)
    for file in write_series(studies / "DOE_JANE", "1.2.3.2")[1:3]:
        file.unlink()
    write_slice(studies / "DOE_JANE" / "third", "1.2.3.2", 7)
    store = opened(studies)
    assert store.list_images() == ["1.2.3.1"]
    assert any("1.2.3.2 is left out" in text and "uneven gaps" in text for text in store.warnings)
    assert not any("DOE" in text for text in store.warnings)


def test_a_patient_id_that_can_not_be_parsed_leaves_its_series_out_and_no_other(studies: Path):
    write_series(studies / "a", "1.2.3.1")
    for file in write_series(studies / "b", "1.2.3.2", PatientID="DOE42"):
        file.write_bytes(file.read_bytes().replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00FD"))
    store = opened(studies)
    assert store.list_images() == ["1.2.3.1"]
    (warning,) = store.warnings
    assert "1.2.3.2 is left out" in warning and "DOE" not in warning


def test_radiographs_without_a_place_in_space_are_an_image_each_and_at_the_top_stay_what_they_are(studies: Path):
    for number in (1, 2):
        write_slice(studies / "chest" / f"view{number}", "1.2.3.1", number, placed=False, Modality="DX")
    write_slice(studies / "chest_7.dcm", "1.2.3.2", 1, placed=False, Modality="DX")
    store = opened(studies)
    assert store.list_images() == ["1.2.3.1.1", "1.2.3.1.2", "chest_7"]
    assert store.get_image_uri("chest_7") == str(studies / "chest_7.dcm")
    assert not (studies / "converted" / "chest_7.nrrd").exists()


def test_the_patient_counts_for_the_split_but_no_name_is_kept_anywhere(studies: Path, tmp_path: Path):
    write_series(studies / "a", "1.2.3.1", PatientID="PGBM-003", PatientName="Dumbledore^Albus")
    write_series(studies / "b", "1.2.3.2", PatientID="DUMBLEDORE_1970", PatientName="Dumbledore^Albus")
    store = opened(studies)
    for image in store.list_images():
        submit(store, image, tmp_path)
    first, second = store.training_items()
    assert first.patient == "PGBM-003"
    assert second.patient.startswith("patient_") and second.patient != first.patient
    written = [file for file in studies.rglob("*") if file.is_file() and file.parent.name not in ("a", "b")]
    assert len(written) > 6
    for file in written:
        assert b"dumbledore" not in file.read_bytes().lower() and "dumbledore" not in file.name.lower()


def test_a_series_is_labelled_and_trained_on_with_the_geometry_of_its_files(studies: Path, tmp_path: Path):
    files = write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    submit(store, "1.2.3.1", tmp_path)
    (case,) = store.training_items()
    assert np.allclose(read_geometry(case.image).affine, read_geometry(files[0].parent).affine)
    assert np.allclose(read_geometry(case.label).affine, read_geometry(files[0].parent).affine, atol=1e-4)
    assert store.datalist()[0]["image"] == store.get_image_uri("1.2.3.1")
    assert str(store.files_at_hand()["1.2.3.1"]) == store.get_image_uri("1.2.3.1")


def test_a_series_that_is_being_copied_in_appears_once_it_rests(studies: Path):
    store = StudyStore(studies, ("liver",), auto_reload=True)
    try:
        for number in range(6):
            write_slice(studies / "new" / f"{number}", "1.2.3.1", number)
            assert store.take_up_series(rest_s=600) == 0 and store.list_images() == []
        store.watch_series(rest_s=0.2)
        until(lambda: store.list_images() == ["1.2.3.1"])
        assert read_geometry(Path(store.get_image_uri("1.2.3.1"))).shape[2] == 6
        write_series(studies / "new", "1.2.3.1", 2, first=6)
        until(lambda: read_geometry(Path(store.get_image_uri("1.2.3.1"))).shape[2] == 8)
        shutil.rmtree(studies / "new")
        until(lambda: store.list_images() == [])
    finally:
        store.close()
    assert not list((studies / "converted").glob("*.nrrd"))


def test_a_copy_with_the_times_of_its_original_is_waited_for_too(studies: Path):
    for file in write_series(studies / "a", "1.2.3.1"):
        os.utime(file, (1e9, 1e9))
    store = StudyStore(studies, auto_reload=True)
    assert store.take_up_series(rest_s=3600) == 0 and store.list_images() == []
    assert store.take_up_series(rest_s=0) == 1
    store.close()


def test_what_a_labelled_series_grows_to_is_another_image_and_the_label_stays_with_its_own(
    studies: Path, tmp_path: Path
):
    write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    submit(store, "1.2.3.1", tmp_path)
    before = Path(store.get_image_uri("1.2.3.1")).read_bytes()
    write_series(studies / "a", "1.2.3.1", 2, first=4)
    assert store.take_up_series() == 1
    assert store.list_images() == ["1.2.3.1", "1.2.3.1-v2"]
    assert Path(store.get_image_uri("1.2.3.1")).read_bytes() == before
    assert read_geometry(Path(store.get_image_uri("1.2.3.1-v2"))).shape[2] == 6
    assert store.get_labeled_images() == ["1.2.3.1"] and store.take_up_series() == 0
    assert any("has changed after it was labelled" in text for text in store.warnings)


def test_the_same_files_touched_or_moved_make_no_new_version(studies: Path, tmp_path: Path):
    files = write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    submit(store, "1.2.3.1", tmp_path)
    for file in files:
        file.touch()
    (studies / "a").rename(studies / "b")
    shutil.copytree(studies / "b", studies / "copy of b")
    assert store.take_up_series() == 0
    assert store.list_images() == ["1.2.3.1"] and store.get_labeled_images() == ["1.2.3.1"]


def test_a_series_that_comes_back_has_its_labels_again(studies: Path, tmp_path: Path):
    write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    submit(store, "1.2.3.1", tmp_path)
    (studies / "a").rename(tmp_path / "away")
    assert store.take_up_series() == 1 and store.list_images() == []
    (tmp_path / "away").rename(studies / "a")
    assert store.take_up_series() == 1
    assert store.get_label_info("1.2.3.1", "final")["labels"] == {"liver": 1}


def test_a_deleted_copy_and_a_torn_index_are_made_again_from_the_series(studies: Path, tmp_path: Path):
    write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    submit(store, "1.2.3.1", tmp_path)
    before = Path(store.get_image_uri("1.2.3.1")).read_bytes()
    (studies / "datastore_v2.json").write_text('{"name": "x", "obj')
    rebuilt = opened(studies)
    assert rebuilt.get_image_info("1.2.3.1")["PatientID"] == "P1"
    assert rebuilt.get_label_info("1.2.3.1", "final")["labels"] == {"liver": 1}
    shutil.rmtree(studies / "converted")
    again = opened(studies)
    assert Path(again.get_image_uri("1.2.3.1")).read_bytes() == before
    assert again.get_label_info("1.2.3.1", "final")["labels"] == {"liver": 1}


def test_headers_are_read_once_also_by_the_next_process(studies: Path, monkeypatch: pytest.MonkeyPatch):
    write_series(studies / "a", "1.2.3.1")
    opened(studies)
    monkeypatch.setattr("labelrounds.series.member_of", lambda file: pytest.fail(f"{file.name} was read again"))
    assert opened(studies).list_images() == ["1.2.3.1"]
    (studies / "converted" / "folders.json").write_text("{torn")
    monkeypatch.undo()
    assert opened(studies).list_images() == ["1.2.3.1"]
    assert json.loads((studies / "converted" / "folders.json").read_text())["folders"]


def test_a_series_is_neither_removed_nor_replaced_over_the_store(studies: Path, tmp_path: Path):
    files = write_series(studies / "a", "1.2.3.1")
    store = opened(studies)
    with pytest.raises(Conflict, match="goes when its files are removed"):
        store.remove_image("1.2.3.1")
    with pytest.raises(Conflict, match="is a DICOM series"):
        store.add_image("1.2.3.1", str(files[0]), {})
    assert all(file.is_file() for file in files) and store.list_images() == ["1.2.3.1"]


def test_only_one_process_at_a_time_looks(studies: Path):
    from filelock import FileLock

    store = StudyStore(studies, auto_reload=True)
    write_series(studies / "a", "1.2.3.1")
    with FileLock(studies / ".series.lock"):
        assert store.take_up_series() == 0
    assert store.take_up_series() == 1
    store.close()


def test_a_series_with_an_unusable_uid_gets_a_name_of_its_own(studies: Path):
    write_series(studies / "a", "1.2.3.1", SeriesInstanceUID="..")
    (name,) = opened(studies).list_images()
    assert name.startswith("series_") and opened(studies).list_images() == [name]


def test_a_lone_file_at_the_top_becomes_part_of_its_series(studies: Path):
    first = write_slice(studies / "one.dcm", "1.2.3.1", 0)
    store = opened(studies)
    assert store.list_images() == ["one"]
    write_series(studies, "1.2.3.1", 3, first=1)
    store.take_up_series()
    assert store.list_images() == ["1.2.3.1"] and first.is_file()
