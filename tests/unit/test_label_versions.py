"""Who has saved which label is told, and an earlier one can be made the current one again."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labelrounds.classification.labels import ClassLabel
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.reading import read_label
from labelrounds.store import StudyStore
from labelrounds.writing import write_label

SHAPE, AFFINE = (6, 5, 4), np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    (tmp_path / "studies").mkdir()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), tmp_path / "studies" / "case.nii.gz")
    return StudyStore(tmp_path / "studies", ("liver", "spleen"), known_classes=("ill", "well"))


def submit(store: StudyStore, tmp_path: Path, user: str, voxels: int, *names: str, ending: str = ".nii.gz") -> str:
    """Submit a label of some voxels, and return its checksum."""
    array = np.zeros(SHAPE, np.uint8)
    array.flat[:voxels] = 1
    label = write_label(array, AFFINE, tmp_path / f"label{ending}", names)
    info = {"label_info": [{"name": name} for name in names or ("liver",)], "user": user}
    store.save_label("case", str(label), "final", info)
    return str(store.get_label_info("case", "final")["sha256"])


def kept(store: StudyStore) -> list[Path]:
    return sorted((store._root / "history" / "versions" / "case").iterdir())


def test_the_same_label_twice_makes_no_second_version_and_no_second_line(store: StudyStore, tmp_path: Path):
    """Reliability 23: idempotent by content."""
    submit(store, tmp_path, "anna", 3)
    before = {file: file.read_bytes() for file in sorted(store._root.rglob("*")) if file.is_file()}
    submit(store, tmp_path, "anna", 3)
    assert {file: file.read_bytes() for file in sorted(store._root.rglob("*")) if file.is_file()} == before
    (told,) = store.label_history("case")
    assert told["user"] == "anna" and told["current"] and told["kept"]


def test_of_two_annotators_both_are_kept_and_the_last_is_current(store: StudyStore, tmp_path: Path):
    """Reliability 23: two annotators on one image, also where they agree to the voxel."""
    first, second = submit(store, tmp_path, "anna", 3), submit(store, tmp_path, "bert", 5)
    told = store.label_history("case", "final")
    assert [(one["user"], one["sha256"], one["current"]) for one in told] == [
        ("anna", first, False),
        ("bert", second, True),
    ]
    assert len(kept(store)) == 2 and read_label(Path(store.get_label_uri("case", "final"))).array.sum() == 5
    submit(store, tmp_path, "anna", 5)
    told = store.label_history("case")
    assert [one["user"] for one in told] == ["anna", "bert", "anna"] and len(kept(store)) == 2
    assert [one["current"] for one in told] == [False, False, True]


def test_another_meaning_of_the_same_voxels_is_saved(store: StudyStore, tmp_path: Path):
    submit(store, tmp_path, "anna", 3, "liver")
    submit(store, tmp_path, "anna", 3, "spleen")
    assert store.get_label_info("case", "final")["labels"] == {"spleen": 1}
    assert len(store.label_history("case")) == 2


def test_a_label_whose_file_was_changed_from_outside_is_saved_again(store: StudyStore, tmp_path: Path):
    submit(store, tmp_path, "anna", 3)
    path = Path(store.get_label_uri("case", "final"))
    path.unlink()
    path.write_bytes(b"spoilt")
    submit(store, tmp_path, "anna", 3)
    assert read_label(path).array.sum() == 3


def test_an_earlier_version_is_restored_with_its_meaning_its_author_and_its_ending(store: StudyStore, tmp_path: Path):
    first = submit(store, tmp_path, "anna", 3, "spleen", ending=".seg.nrrd")
    submit(store, tmp_path, "bert", 5)
    assert store.restore_label("case", "final", first[:16], "chief")["restored_by"] == "chief"
    info = store.get_label_info("case", "final")
    assert (info["user"], info["restored_by"], info["labels"]) == ("anna", "chief", {"spleen": 1})
    assert store.get_label_uri("case", "final").endswith(".seg.nrrd")
    assert read_label(Path(store.get_label_uri("case", "final"))).array.sum() == 3
    told = StudyStore(store._root).label_history("case")
    assert [one.get("restored_by") for one in told] == [None, None, "chief"]
    assert [one["current"] for one in told] == [False, False, True]
    before = (store._root / "history" / "journal.jsonl").read_bytes()
    store.restore_label("case", "final", first, "chief")
    assert (store._root / "history" / "journal.jsonl").read_bytes() == before


def test_classes_are_restored_too_and_a_removed_label_comes_back(store: StudyStore, tmp_path: Path):
    store.save_classes({"case": ClassLabel(("ill",))}, {"user": "anna"})
    ill = store.get_label_info("case", "classes")["sha256"]
    store.save_classes({"case": ClassLabel(("well",))}, {"user": "bert"})
    store.restore_label("case", "classes", ill, "chief")
    assert store.get_label_info("case", "classes")["classes"] == ["ill"]
    first = submit(store, tmp_path, "anna", 3)
    store.remove_label("case", "final")
    assert store.label_history("case", "final")[-1]["action"] == "removed"
    store.restore_label("case", "final", first, "chief")
    assert store.get_labeled_images() == ["case"]


def test_what_is_not_in_the_history_is_not_restored(store: StudyStore, tmp_path: Path):
    first = submit(store, tmp_path, "anna", 3)
    submit(store, tmp_path, "bert", 5)
    with pytest.raises(NotFound, match="no label 'final' with the checksum 'ffff'"):
        store.restore_label("case", "final", "ffff", "chief")
    with pytest.raises(NotFound):
        store.restore_label("none", "final", first, "chief")
    with pytest.raises(BadInput):
        store.restore_label("case", "../final", first, "chief")
    with pytest.raises(NotFound):
        store.label_history("none")
    version = next(file for file in kept(store) if first[:16] in file.name)
    version.write_bytes(b"spoilt")
    with pytest.raises(Conflict, match="was changed"):
        store.restore_label("case", "final", first, "chief")
    assert store.get_label_info("case", "final")["user"] == "bert"


def test_a_copy_made_while_labels_are_saved_gives_each_label_with_its_meaning_and_its_history(
    store: StudyStore, tmp_path: Path
):
    """The backup that the README describes: labels first, then the history, without the index."""
    names = ("liver", "spleen")
    submit(store, tmp_path, "anna", 1, "liver")
    copy = tmp_path / "copy"
    shutil.copytree(store._root / "labels", copy / "labels")
    submit(store, tmp_path, "bert", 2, "spleen")
    (store._root / ".labelrounds-left").mkdir()
    shutil.copytree(store._root / "history", copy / "history")
    shutil.copy(store._root / "case.nii.gz", copy)
    restored = StudyStore(copy, names)
    info = restored.get_label_info("case", "final")
    assert (info["user"], info["labels"]) == ("anna", {"liver": 1})
    told = restored.label_history("case")
    assert [(one["user"], one["kept"]) for one in told] == [("anna", True), ("bert", True)]
    restored.restore_label("case", "final", told[1]["sha256"], "chief")
    assert restored.get_label_info("case", "final")["labels"] == {"spleen": 1}


def test_a_history_with_damaged_lines_is_told_without_them(store: StudyStore, tmp_path: Path):
    submit(store, tmp_path, "anna", 3)
    journal = store._root / "history" / "journal.jsonl"
    lines = [b'{"image": "case", "tag": "fin', b"\xff\xfe", json.dumps({"image": "case", "tag": "final"}).encode()]
    journal.write_bytes(b"\n".join([*lines, journal.read_bytes()]))
    assert [one.get("user") for one in store.label_history("case")] == [None, "anna"]
