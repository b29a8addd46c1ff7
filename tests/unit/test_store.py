"""The store keeps what it was given, whole, whatever else writes, dies or runs full."""

import itertools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image as Picture

from labelrounds.classification.labels import ClassLabel
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound, OutOfSpace, UnsupportedMedia
from labelrounds.history import checksum
from labelrounds.reading import read_label
from labelrounds.store import LabelledCase, StudyStore
from labelrounds.writing import write_label

KNOWN = ("liver", "spleen", "kidney")
AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.8, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)


def image_file(path: Path, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, shape).astype(np.int16), affine), path)
    return path


def label_array(*values: int) -> np.ndarray:
    """One voxel block for each value, of different size, so that values can be told apart."""
    array = np.zeros(SHAPE, np.uint8)
    for value in values:
        array[value, : value + 1] = value
    return array


def label_file(path: Path, *values: int, affine: np.ndarray = AFFINE) -> Path:
    return write_label(label_array(*values), affine, path, [f"segment {k}" for k in range(1, 10)])


def listed(*names: str) -> dict[str, Any]:
    """Return what 3D Slicer submits: ``idx`` counts the background, which is not exported, and so is not the value."""
    return {"label_info": [{"name": name, "idx": index + 2} for index, name in enumerate(names)]}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for name in ("case_1", "case_2", "case_3"):
        image_file(tmp_path / "studies" / f"{name}.nii.gz")
    return tmp_path / "studies"


@pytest.fixture
def store(studies: Path) -> StudyStore:
    return StudyStore(studies, KNOWN)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# What the values of a label mean


def test_names_go_by_their_place_in_the_list_not_by_their_index(store: StudyStore, tmp_path: Path):
    label = label_file(tmp_path / "label.nii.gz", 1, 2)
    assert store.save_label("case_1", str(label), "final", listed("spleen", "liver")) == "case_1"
    assert store.get_label_info("case_1", "final")["labels"] == {"spleen": 1, "liver": 2}
    (case,) = store.training_items()
    assert case.values == {"spleen": 1, "liver": 2}
    assert np.array_equal(read_label(case.label).array[0], label_array(1, 2))


def test_segments_that_overlap_are_kept_whole_and_train_as_one_label_map(store: StudyStore, tmp_path: Path):
    layers, file = np.stack([label_array(1), label_array(1, 2)]), tmp_path / "label.seg.nrrd"
    layers[1][layers[1] == 1] = 7
    lps = np.diag([-1, -1, 1]) @ AFFINE[:3]
    header = {"space": "left-posterior-superior", "kinds": ["list", *["domain"] * 3], "space origin": lps[:, 3]}
    header["space directions"] = np.vstack([[np.nan] * 3, lps[:, :3].T])
    for number, (name, layer, value) in enumerate((("liver", 0, 1), ("tumour", 1, 7), ("spleen", 1, 2))):
        pairs = {"Name": name, "Layer": layer, "LabelValue": value}
        header |= {f"Segment{number}_{key}": str(content) for key, content in pairs.items()}
    nrrd.write(str(file), layers, header, index_order="F")
    store.save_label("case_1", str(file), "final", listed("liver", "tumour", "spleen"))
    (case,) = store.training_items()
    assert case.label.read_bytes() == file.read_bytes()
    assert case.values == store.get_label_info("case_1", "final")["labels"] == {"liver": 1, "tumour": 2, "spleen": 3}
    later = label_array(1, 2) + 1  # the tumour lies on all of the liver
    assert np.array_equal(read_label(case.label).array[0], np.where(later > 1, later, 0))


def test_a_label_that_is_listed_but_absent_from_the_scan_is_kept(store: StudyStore, tmp_path: Path):
    store.save_label(
        "case_1", str(label_file(tmp_path / "label.nrrd", 2)), "final", listed("liver", "spleen", "kidney")
    )
    assert store.get_label_info("case_1", "final")["labels"] == {"liver": 1, "spleen": 2, "kidney": 3}


def test_an_empty_label_is_accepted(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz")), "final", listed("liver"))
    store.save_label("case_2", str(label_file(tmp_path / "label.nii.gz")), "final", {"label_info": []})
    assert store.get_labeled_images() == ["case_1", "case_2"]


def test_a_label_without_a_list_is_left_to_the_model_that_is_trained(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1, 3)), "final", {})
    assert "labels" not in store.get_label_info("case_1", "final")
    assert store.training_items()[0].values is None
    with pytest.raises(BadInput, match=r"\[4\].*1 liver, 2 spleen, 3 kidney"):
        store.save_label("case_2", str(label_file(tmp_path / "label.nii.gz", 4)), "final", {})


def test_a_value_beyond_the_list_is_refused_with_the_values_and_the_names(store: StudyStore, tmp_path: Path):
    with pytest.raises(BadInput, match=r"\[2, 5\].*1 liver"):
        store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1, 2, 5)), "final", listed("liver"))


def test_a_renamed_segment_is_refused_with_the_known_names(store: StudyStore, tmp_path: Path):
    with pytest.raises(BadInput, match=r"Segment_1.*liver, spleen, kidney"):
        store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("Segment_1", "liver"))


def test_names_that_no_model_knows_are_accepted_beside_known_ones(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1, 2)), "final", listed("liver", "tumour"))
    info = store.get_label_info("case_1", "final")
    assert info["unknown_labels"] == ["tumour"]
    assert info["labels"] == {"liver": 1, "tumour": 2}


@pytest.mark.parametrize(
    "label_info",
    [
        "liver",
        {"name": "liver"},
        ["liver"],
        [{"idx": 1}],
        [{"name": ""}],
        [{"name": "x" * 300}],
        [{"name": "liver\n"}, {"name": "a\x00b"}],
        [{"name": 3}],
        [{"name": "liver"}, {"name": "liver"}],
        [{"name": f"label {k}"} for k in range(256)],
    ],
)
def test_a_list_that_is_none_is_refused(store: StudyStore, tmp_path: Path, label_info: Any):
    with pytest.raises(BadInput, match="label_info"):
        store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", {"label_info": label_info})
    assert store.get_labeled_images() == []


def test_a_segmentation_file_names_its_values_itself_and_scribbles_are_left_out(store: StudyStore, tmp_path: Path):
    names = ["background", "spleen", "foreground_scribbles", "liver"]
    path = write_label(label_array(1, 2, 4), AFFINE, tmp_path / "label.seg.nrrd", names)
    store.save_label("case_1", str(path), "final", listed("spleen", "liver"))
    assert store.get_label_info("case_1", "final")["labels"] == {"spleen": 2, "liver": 4}
    (case,) = store.training_items()
    assert np.array_equal(np.unique(read_label(case.label).array), [0, 2, 4])
    assert store.get_label_uri("case_1", "final").endswith("labels/final/case_1.seg.nrrd")


def test_a_prediction_is_named_by_its_model(store: StudyStore, tmp_path: Path):
    params = {"model": "unet", "params": {"label_names": {"vertebra": 1, "rib": 2}}}
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1, 2)), "original", params)
    assert store.get_label_info("case_1", "original")["labels"] == {"vertebra": 1, "rib": 2}
    assert store.get_unlabeled_images() == ["case_1", "case_2", "case_3"]


# A label lies on its image


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".seg.nrrd"])
def test_a_label_beside_its_image_is_refused(store: StudyStore, tmp_path: Path, ending: str):
    moved = AFFINE.copy()
    moved[0, 3] += 0.01
    with pytest.raises(BadInput, match="beside the image"):
        store.save_label(
            "case_1", str(label_file(tmp_path / f"label{ending}", 1, affine=moved)), "final", listed("liver")
        )


def test_a_label_of_another_size_is_refused(store: StudyStore, tmp_path: Path):
    path = write_label(np.zeros((12, 10, 7), np.uint8), AFFINE, tmp_path / "label.nii.gz")
    with pytest.raises(BadInput, match=r"\(12, 10, 7\).*\(12, 10, 8\)"):
        store.save_label("case_1", str(path), "final", listed("liver"))


def test_of_a_picture_only_the_size_counts(studies: Path, tmp_path: Path):
    Picture.fromarray(np.zeros((10, 12), np.uint8)).save(studies / "xray.png")
    store = StudyStore(studies, KNOWN)
    path = write_label(np.ones((12, 10, 1), np.uint8), np.diag([0.35, 0.35, 1, 1]), tmp_path / "label.nrrd")
    store.save_label("xray", str(path), "final", listed("liver"))
    assert "xray" in store.get_labeled_images()


def test_garbage_is_refused_and_the_old_label_stays(store: StudyStore, studies: Path, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))
    before = tree(studies)
    whole = (tmp_path / "label.nii.gz").read_bytes()
    bad = {
        "text.nii.gz": b"no image",
        "cut.nii.gz": whole[:-20],
        "picture.png": b"\x89PNG",
        "label.mha": whole,
        "empty.nrrd": b"",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((BadInput, UnsupportedMedia)):
            store.save_label("case_1", str(tmp_path / name), "final", listed("liver"))
    assert tree(studies) == before


# Names


EVIL = [
    "../evil",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "a\x00b",
    "x" * 300,
    "a..b",
    ".hidden",
    "-rf",
    "a\nb",
    "trailing ",
    "trailing.",
    "%2e%2e/x",
    "~root",
]


@pytest.mark.parametrize("name", EVIL)
def test_an_unsafe_name_is_refused_and_nothing_is_written(store: StudyStore, studies: Path, tmp_path: Path, name: str):
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    image = str(image_file(tmp_path / "new.nii.gz"))
    before = tree(tmp_path)
    attempts: list[Callable[[], Any]] = [
        lambda: store.save_label(name, label, "final", listed("liver")),
        lambda: (
            store.save_label("case_1", label, name, listed("liver"))
            if name
            else store.save_label("", label, "final", {})
        ),
        lambda: store.get_image_uri(name),
        lambda: store.get_image_info(name),
        lambda: store.get_label_uri(name, "final"),
        lambda: store.remove_image(name),
        lambda: store.update_image_info(name, {}),
    ]
    if name:
        attempts.append(lambda: store.add_image(name, image, {}))
    for attempt in attempts:
        with pytest.raises(BadInput):
            attempt()
    assert tree(tmp_path) == before


def test_what_is_not_there_is_not_found(store: StudyStore, tmp_path: Path):
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    for attempt in (
        lambda: store.get_image_uri("case_9"),
        lambda: store.get_image_info("case_9"),
        lambda: store.save_label("case_9", label, "final", {}),
        lambda: store.remove_image("case_9"),
        lambda: store.get_label_uri("case_1", "final"),
        lambda: store.get_label_info("case_1", "final"),
        lambda: store.remove_label("case_1", "final"),
        lambda: store.update_label_info("case_1", "final", {}),
    ):
        with pytest.raises(NotFound):
            attempt()


def test_an_id_is_the_name_without_its_ending_and_nothing_more(tmp_path: Path):
    names = {
        "scan.nii.v2.nii": "scan.nii.v2",
        "a.nii.gz.b.nii.gz": "a.nii.gz.b",
        "T1.2024.nii": "T1.2024",
        "v (2).nii": "v (2)",
    }
    for name in names:
        image_file(tmp_path / name)
    store = StudyStore(tmp_path)
    assert store.list_images() == sorted(names.values())
    for name, image_id in names.items():
        assert Path(store.get_image_uri(image_id)).name == name


def test_files_that_cannot_be_images_are_left_out_with_a_warning(studies: Path):
    image_file(studies / "Müller.nii.gz")
    image_file(studies / "case_1.nii")
    shutil.copytree(studies, studies / ".labelrounds-dead")
    (studies / "case_2.seg.nrrd").write_bytes(b"")
    (studies / "notes.txt").write_text("no image")
    store = StudyStore(studies, extensions=["*"])
    assert store.list_images() == ["case_1", "case_2", "case_3"]
    assert any("Müller" in warning for warning in store.warnings)
    assert any("same id" in warning for warning in store.warnings)


# Images


def test_an_image_is_added_only_if_it_can_be_read(store: StudyStore, studies: Path, tmp_path: Path):
    assert store.add_image("", str(image_file(tmp_path / "new.nii.gz")), {"PatientID": "P1"}) == "new"
    assert store.get_image_info("new")["PatientID"] == "P1"
    before = tree(studies)
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "bad.mha").write_bytes(b"ObjectType = Image\n")
    for name in ("bad.nii.gz", "bad.mha"):
        with pytest.raises(UnsupportedMedia):
            store.add_image("bad", str(tmp_path / name), {})
    assert tree(studies) == before


def test_the_same_image_again_keeps_its_labels_and_another_of_its_name_is_refused(store: StudyStore, tmp_path: Path):
    image = image_file(tmp_path / "new.nii.gz")
    store.add_image("new", str(image), {})
    store.save_label("new", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))
    store.add_image("new", str(image), {})
    assert store.get_labeled_images() == ["new"]
    with pytest.raises(Conflict, match="remove it first"):
        store.add_image("new", str(image_file(tmp_path / "other.nii.gz", (5, 5, 5))), {})


def test_a_removed_image_takes_its_labels_with_it_but_their_history_stays(
    store: StudyStore, studies: Path, tmp_path: Path
):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))
    store.remove_image("case_1")
    assert StudyStore(studies, KNOWN).list_images() == ["case_2", "case_3"]
    assert not (studies / "labels" / "final" / "case_1.nii.gz").exists()
    assert len(list((studies / "history" / "versions" / "case_1").iterdir())) == 1


def test_lists_are_sorted(studies: Path, tmp_path: Path):
    store = StudyStore(studies, KNOWN)
    for name in ("zebra", "ant"):
        store.add_image(name, str(image_file(tmp_path / f"{name}.nii.gz")), {})
    assert store.list_images() == store.get_unlabeled_images() == ["ant", "case_1", "case_2", "case_3", "zebra"]


def test_a_read_only_store_refuses_every_change(studies: Path, tmp_path: Path):
    StudyStore(studies, KNOWN)
    store = StudyStore(studies, KNOWN, read_only=True)
    before = tree(studies)
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    for attempt in (
        lambda: store.save_label("case_1", label, "final", {}),
        lambda: store.add_image("new", label, {}),
        lambda: store.remove_image("case_1"),
        lambda: store.update_image_info("case_1", {}),
    ):
        with pytest.raises(Conflict, match="read-only"):
            attempt()
    assert tree(studies) == before
    assert store.list_images() == ["case_1", "case_2", "case_3"]


# Training


def test_training_items_are_the_final_labels_whose_files_are_there(store: StudyStore, studies: Path, tmp_path: Path):
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    for name in ("case_3", "case_1", "case_2"):
        store.save_label(name, label, "final", listed("liver"))
    store.update_image_info("case_1", {"PatientID": "P7"})
    store.update_image_info("case_3", {"PatientID": "UNK"})
    (studies / "labels" / "final" / "case_2.nii.gz").unlink()
    items = store.training_items()
    assert [(case.image_id, case.patient, case.values) for case in items] == [
        ("case_1", "P7", {"liver": 1}),
        ("case_3", "case_3", {"liver": 1}),
    ]
    assert isinstance(items[0], LabelledCase)
    assert items[0].image == studies / "case_1.nii.gz"


def test_a_label_that_training_holds_does_not_change_under_it(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "one.nii.gz", 1)), "final", listed("liver"))
    (case,) = store.training_items()
    store.save_label("case_1", str(label_file(tmp_path / "two.nii.gz", 2)), "final", listed("spleen", "liver"))
    assert np.array_equal(read_label(case.label).array[0], label_array(1))
    assert store.training_items()[0].values == {"spleen": 1, "liver": 2}


def test_a_label_dropped_into_the_folder_is_taken_up(studies: Path):
    StudyStore(studies, KNOWN)
    label_file(studies / "labels" / "final" / "case_2.nii.gz", 1, 2)
    (case,) = StudyStore(studies, KNOWN).training_items()
    assert (case.image_id, case.values) == ("case_2", None)


def test_a_watched_folder_takes_up_what_is_dropped_or_moved_into_it(studies: Path, tmp_path: Path):
    store = StudyStore(studies, KNOWN, auto_reload=True)
    try:
        image_file(studies / "dropped.nii.gz")
        image_file(tmp_path / "moved.nii.gz").rename(studies / "moved.nii.gz")
        deadline = time.monotonic() + 20
        while not {"dropped", "moved"} <= set(store.list_images()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert {"dropped", "moved"} <= set(store.list_images())
    finally:
        store.close()


def test_labels_that_the_host_saved_are_read_by_the_clients_list(studies: Path):
    StudyStore(studies, KNOWN)
    label_file(studies / "labels" / "final" / "case_1.nii.gz", 1, 2)
    index = json.loads((studies / "datastore_v2.json").read_text())
    info = {"ts": 1, "name": "case_1.nii.gz", **listed("kidney", "liver")}
    index["objects"]["case_1"]["labels"]["final"] = {"ext": ".nii.gz", "info": info}
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    assert StudyStore(studies, KNOWN).training_items()[0].values == {"kidney": 1, "liver": 2}


def test_the_host_reads_the_index(store: StudyStore, studies: Path, tmp_path: Path):
    from monailabel.datastore.local import LocalDatastore

    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))
    host = LocalDatastore(str(studies))
    assert host.get_labeled_images() == ["case_1"]
    assert host.get_label_info("case_1", "final")["labels"] == {"liver": 1}
    assert host.get_label_uri("case_1", "final") == store.get_label_uri("case_1", "final")


# History


def test_every_version_of_a_label_is_kept_and_the_same_again_adds_none(
    store: StudyStore, studies: Path, tmp_path: Path
):
    one, two = label_file(tmp_path / "one.nii.gz", 1), label_file(tmp_path / "two.nii.gz", 1, 2)
    for label in (one, two, two, one):
        store.save_label("case_1", str(label), "final", listed("liver", "spleen"))
    versions = sorted(path.read_bytes() for path in (studies / "history" / "versions" / "case_1").iterdir())
    assert versions == sorted([one.read_bytes(), two.read_bytes()])
    assert Path(store.get_label_uri("case_1", "final")).read_bytes() == one.read_bytes()
    lines = (studies / "history" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["case_1"] * 3  # the same again is no change


def test_a_label_in_another_format_replaces_the_old_one(store: StudyStore, studies: Path, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "one.nii.gz", 1)), "final", listed("liver"))
    store.save_label("case_1", str(label_file(tmp_path / "two.nrrd", 1)), "final", listed("liver"))
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["case_1.nrrd"]


def test_a_removed_label_makes_the_image_unlabelled(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "one.nii.gz", 1)), "final", listed("liver"))
    store.remove_label("case_1", "final")
    assert store.get_labeled_images() == []
    assert store.training_items() == []


def test_what_is_known_of_a_label_can_be_added_to_but_not_its_meaning(store: StudyStore, tmp_path: Path):
    store.save_label("case_1", str(label_file(tmp_path / "one.nii.gz", 1)), "final", listed("liver"))
    store.update_label_info("case_1", "final", {"reviewed": True, "labels": {"liver": 9}})
    info = store.get_label_info("case_1", "final")
    assert info["reviewed"] is True
    assert info["labels"] == {"liver": 1}
    with pytest.raises(BadInput, match="not an object"):
        store.update_label_info("case_1", "final", ["reviewed"])  # type: ignore[arg-type]


def test_a_reviewers_word_comes_from_no_client(store: StudyStore, tmp_path: Path):
    forged, label = {"verdict": "approved", "by": "rita"}, str(label_file(tmp_path / "one.nii.gz", 1))
    store.save_label("case_1", label, "final", {**listed("liver"), "review": forged})
    store.update_label_info("case_1", "final", {"review": forged})
    assert "review" not in store.get_label_info("case_1", "final")
    store.note_review("case_1", "final", {"verdict": "sent_back", "by": "rita"})
    store.update_label_info("case_1", "final", {"review": forged})
    assert store.get_label_info("case_1", "final")["review"]["verdict"] == "sent_back"
    assert store.training_items() == []
    with pytest.raises(Conflict, match="was replaced since it was looked at"):
        store.note_review("case_1", "final", forged, sha256="0" * 64)
    assert store.get_label_info("case_1", "final")["review"]["verdict"] == "sent_back"
    store.save_label("case_1", label, "final", {**listed("liver"), "review": forged})
    assert "review" not in store.get_label_info("case_1", "final") and len(store.training_items()) == 1


# The index


@pytest.mark.parametrize("content", [b"", b'{"name": "x", "objects": {"case_1": {"im', b"\x00" * 500, b"[]"])
def test_a_torn_index_is_kept_aside_and_rebuilt_with_the_meaning_of_every_label(
    store: StudyStore, studies: Path, tmp_path: Path, content: bytes
):
    """Reliability 19: the torn index is kept aside, another is made of the files, and the administrator is warned."""
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1, 2)), "final", listed("spleen", "liver"))
    store.update_image_info("case_2", {"note": "lost with the index"})
    (studies / "datastore_v2.json").write_bytes(content)
    again = StudyStore(studies, KNOWN)
    assert again.list_images() == ["case_1", "case_2", "case_3"]
    assert again.training_items()[0].values == {"spleen": 1, "liver": 2}
    (aside,) = studies.glob("datastore_v2.json.broken-*")
    assert aside.read_bytes() == content
    assert any("rebuilt" in warning for warning in again.warnings)


def test_a_server_goes_on_while_its_index_is_torn_and_mends_it_at_the_next_change(store: StudyStore, studies: Path):
    (studies / "datastore_v2.json").write_bytes(b'{"na')
    assert store.list_images() == ["case_1", "case_2", "case_3"]
    store.update_image_info("case_1", {"note": "kept"})
    assert StudyStore(studies, KNOWN).get_image_info("case_1")["note"] == "kept"


def test_a_change_by_another_process_is_seen_at_once(store: StudyStore, studies: Path):
    other = StudyStore(studies, KNOWN)
    other.update_image_info("case_1", {"note": "from elsewhere"})
    assert store.get_image_info("case_1")["note"] == "from elsewhere"
    store.update_image_info("case_2", {"note": "from here"})
    assert other.get_image_info("case_1")["note"] == "from elsewhere"
    assert other.get_image_info("case_2")["note"] == "from here"


def processor_seconds(work: Callable[[], object], times: int = 5) -> float:
    """Return the median, without what other threads compute."""
    seconds = []
    for _ in range(times):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds)


def store_of(folder: Path, count: int, labelled: bool) -> StudyStore:
    """Make a datastore of many images, with or without a label of each."""
    template = image_file(folder.with_name("image.nii"))
    folder.mkdir()
    for number in range(count):
        os.link(template, folder / f"case_{number:05d}.nii")
    store = StudyStore(folder, KNOWN)
    if labelled:
        label = str(label_file(folder.with_name("first.nii.gz"), 1))
        store.save_label("case_00000", label, "final", listed("liver"))
        first, entries = store.entries["case_00000"], store.entries
        for number in range(1, count):
            os.link(store.get_label_uri("case_00000", "final"), folder / "labels/final" / f"case_{number:05d}.nii.gz")
        with store._transaction():
            store._commit(
                {name: found.model_copy(update={"labels": dict(first.labels)}) for name, found in entries.items()}
            )
    return store


@pytest.mark.parametrize("labelled", [False, True])
def test_ten_thousand_images_are_listed_in_50_ms_and_a_label_is_saved_in_20_more(tmp_path: Path, labelled: bool):
    many, few = store_of(tmp_path / "many", 10_000, labelled), store_of(tmp_path / "few", 10, labelled)
    assert json.loads(many.text())["objects"].keys() == set(many.list_images())
    lists = (many.status, many.text, many.list_images, many.get_labeled_images, many.get_unlabeled_images)
    for listing in (*lists, many.datalist, many.files_at_hand):
        assert processor_seconds(listing) < 0.05
    label = str(label_file(tmp_path / "label.nii.gz", 1, 2))

    def saving(store: StudyStore) -> Callable[[], object]:
        cases = itertools.count()
        return lambda: store.save_label(f"case_{next(cases):05d}", label, "final", listed("liver", "spleen"))

    saving(few)()  # the first one loads ITK
    assert processor_seconds(saving(many)) - processor_seconds(saving(few)) < 0.02


def test_what_the_server_saves_itself_does_not_have_the_folder_looked_through(studies: Path, tmp_path: Path):
    store = StudyStore(studies, KNOWN, auto_reload=True)
    try:
        store._stale = False
        store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))
        store.add_image("case_4", str(image_file(tmp_path / "new.nii.gz")), {})
        scans = []
        store._reconcile_datastore = lambda: scans.append(1)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            store.list_images()
            time.sleep(0.05)
        assert scans == []
        shutil.copy(studies / "case_1.nii.gz", studies / "case_5.nii.gz")
        while not scans:
            assert time.monotonic() < end + 20
            store.list_images()
            time.sleep(0.05)
    finally:
        store.close()


# Others that write


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    code = "import sys\nfrom labelrounds.store import StudyStore\n" + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    template = image_file(tmp_path / "template.nii.gz")
    (tmp_path / "many").mkdir()
    for number in range(40):
        shutil.copy(template, tmp_path / "many" / f"case_{number:02d}.nii.gz")
    return tmp_path / "many"


def test_no_label_loses_its_meaning_to_other_threads_and_processes(many: Path, tmp_path: Path):
    store = StudyStore(many, KNOWN)
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    other = child(
        """
        store = StudyStore(sys.argv[1])
        store.save_label("case_39", sys.argv[2], "original", {})  # the first one loads ITK
        print("ready", flush=True)
        for number in range(20, 40):
            store.save_label(f"case_{number:02d}", sys.argv[2], "final", {"label_info": [{"name": "spleen"}]})
            for part in range(8):
                store.update_image_info("case_00", {f"from elsewhere {number} {part}": True})
        """,
        str(many),
        label,
    )
    assert other.stdout is not None
    other.stdout.readline()
    errors: list[BaseException] = []

    def work(numbers: range) -> None:
        try:
            for number in numbers:
                store.save_label(f"case_{number:02d}", label, "final", listed("liver"))
                for part in range(8):
                    store.update_image_info("case_00", {f"from here {number} {part}": True})
                store.refresh()
                store.list_images(), store.status(), store.datalist(), store.json()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(start, start + 5),)) for start in range(0, 20, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(timeout=120) == 0
    assert errors == []
    for found in (store, StudyStore(many, KNOWN)):
        for number in range(40):
            expected = {"liver": 1} if number < 20 else {"spleen": 1}
            assert found.get_label_info(f"case_{number:02d}", "final")["labels"] == expected
        assert sum("from" in key for key in found.get_image_info("case_00")) == 40 * 8


# Killed


SENT = {"a": ["liver", "spleen"], "b": ["spleen", "kidney", "liver"]}
# One process imports the package, and forks one that saves and dies for each case.
SAVE_AND_DIE = """
    import os, random, shutil, signal, time
    from itertools import count
    import itk
    from labelrounds.atomic import Staged

    # Loaded once here, not in every fork.
    itk.ImageFileReader, itk.NiftiImageIO, itk.array_from_image, itk.PyBuffer
    studies, files = sys.argv[1:3]
    commit = Staged.commit

    def save(store, name):
        labels = {"a": ["liver", "spleen"], "b": ["spleen", "kidney", "liver"]}[name]
        store.save_label("case_1", f"{files}/{name}.nii.gz", "final", {"label_info": [dict(name=x) for x in labels]})

    def die_at(folder, step, when):
        steps = count(1)
        def dying(staged):
            if next(steps) == step:
                if when == "after":
                    commit(staged)
                os._exit(9)
            commit(staged)
        store = StudyStore(folder, ("liver", "spleen", "kidney"))
        Staged.commit = dying
        save(store, "b")

    def save_for_ever(folder):
        store = StudyStore(folder, ("liver", "spleen", "kidney"))
        save(store, "a")
        os.write(ready[1], b"1")
        while True:
            save(store, "b")
            save(store, "a")

    def forked(work, *arguments):
        process = os.fork()
        if not process:
            try:
                work(*arguments)
            finally:
                os._exit(1)
        return process

    if sys.argv[3] == "steps":
        for step in (1, 2, 3, 4):
            for when in ("before", "after"):
                shutil.copytree(studies, f"{studies}-{step}-{when}")
                _, status = os.waitpid(forked(die_at, f"{studies}-{step}-{when}", step, when), 0)
                assert os.waitstatus_to_exitcode(status) == 9
    else:
        chance = random.Random(11)
        for number in range(int(sys.argv[3])):
            ready = os.pipe()
            process = forked(save_for_ever, studies)
            os.read(ready[0], 1)
            time.sleep(chance.uniform(0.0, 0.3))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            shutil.copytree(studies, f"{studies}-{number}")
"""


def assert_wholly_old_or_new(studies: Path, files: Path) -> str:
    store = StudyStore(studies, KNOWN)
    label, info = Path(store.get_label_uri("case_1", "final")), store.get_label_info("case_1", "final")
    name = next(name for name in SENT if (files / f"{name}.nii.gz").read_bytes() == label.read_bytes())
    assert list(info["labels"]) == SENT[name]
    assert not (studies / "history" / "pending.json").exists()
    store.update_image_info("case_2", {"still": "writable"})
    return name


@pytest.fixture
def two_labels(store: StudyStore, tmp_path: Path) -> Path:
    label_file(tmp_path / "a.nii.gz", 1, 2)
    label_file(tmp_path / "b.nii.gz", 2, 3)
    store.save_label("case_1", str(tmp_path / "a.nii.gz"), "final", listed(*SENT["a"]))
    return tmp_path


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_kill_leaves_the_old_label_or_the_new_one_and_its_meaning(studies: Path, two_labels: Path, kills: int):
    """Reliability 16: killed at a random moment of saving."""
    assert child(SAVE_AND_DIE, str(studies), str(two_labels), str(kills)).wait(timeout=1500) == 0
    for number in range(kills):
        assert_wholly_old_or_new(Path(f"{studies}-{number}"), two_labels)


def test_a_kill_at_each_step_leaves_the_old_label_or_the_new_one(studies: Path, two_labels: Path):
    """Reliability 16: killed before and after each step of saving."""
    assert child(SAVE_AND_DIE, str(studies), str(two_labels), "steps").wait(timeout=200) == 0
    found = {
        (step, when): assert_wholly_old_or_new(Path(f"{studies}-{step}-{when}"), two_labels)
        for step in (1, 2, 3, 4)
        for when in ("before", "after")
    }
    # Its version (1) and the note of what is to come (2) are written first; renaming the label (3) is what decides.
    assert "".join(found.values()) == "aaaaabbb"


# A full disk


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file grow over ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def without_versions(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "versions" not in name}


def test_a_disk_too_full_for_a_label_leaves_everything_as_it_was(store: StudyStore, studies: Path, tmp_path: Path):
    """Reliability 18, by a limit that any user may set."""
    store.save_label("case_1", str(label_file(tmp_path / "one.nii", 1)), "final", listed("liver"))
    before = tree(studies)
    with file_limit(1000), pytest.raises(OutOfSpace):
        store.save_label("case_1", str(label_file_unlimited(tmp_path)), "final", listed("liver", "spleen"))
    assert tree(studies) == before


def label_file_unlimited(tmp_path: Path) -> Path:
    with file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1]):
        return label_file(tmp_path / "two.nii", 2)


def test_a_disk_too_full_for_the_index_leaves_everything_as_it_was(many: Path, tmp_path: Path):
    """Reliability 18, by a limit that any user may set."""
    store = StudyStore(many, KNOWN)
    one, two = label_file(tmp_path / "one.nii.gz", 1), label_file(tmp_path / "two.nii.gz", 2)
    store.save_label("case_01", str(one), "final", listed("liver"))
    before = tree(many)
    size = (many / "datastore_v2.json").stat().st_size
    assert two.stat().st_size < size - 500
    with file_limit(size - 100), pytest.raises(OutOfSpace):
        store.save_label("case_01", str(two), "final", listed("spleen", "liver"))
    assert without_versions(tree(many)) == without_versions(before)
    assert store.get_label_info("case_01", "final")["labels"] == {"liver": 1}
    store.save_label("case_01", str(two), "final", listed("spleen", "liver"))
    assert store.get_label_info("case_01", "final")["labels"] == {"spleen": 1, "liver": 2}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_disk_that_runs_full_each_label_is_whole_and_saving_works_again_with_room(
    small_disk: Path, tmp_path: Path
):
    """Reliability 18, on a small file system, which only root can mount."""
    ballast, image = small_disk / "ballast", image_file(tmp_path / "image.nii.gz", (40, 40, 40))
    store = StudyStore(small_disk / "studies", KNOWN)
    store.add_image("case", str(image), {})
    noise = np.random.default_rng(0)
    saved, refused = {"labels": None, "content": b""}, 0
    ballast.write_bytes(bytes(300_000))
    for number in itertools.count():
        path = write_label(noise.integers(0, 3, (40, 40, 40)).astype(np.uint8), AFFINE, tmp_path / "label.nii.gz")
        names = ("liver", "spleen") if number % 2 else ("spleen", "liver")
        try:
            store.save_label("case", str(path), "final", listed(*names))
            saved = {"labels": {name: k for k, name in enumerate(names, start=1)}, "content": path.read_bytes()}
        except OutOfSpace:
            refused += 1
            assert Path(store.get_label_uri("case", "final")).read_bytes() == saved["content"]
            assert (
                StudyStore(small_disk / "studies", KNOWN).get_label_info("case", "final")["labels"] == saved["labels"]
            )
        if refused == 3:
            break
    ballast.unlink()
    store.save_label("case", str(path), "final", listed("kidney", "liver"))
    assert store.get_label_info("case", "final")["labels"] == {"kidney": 1, "liver": 2}


def test_every_error_is_one_for_the_user(store: StudyStore, tmp_path: Path):
    label = str(label_file(tmp_path / "label.nii.gz", 1))
    for info in (
        None,
        {},
        {"label_info": None},
        {"params": 3},
        {"label_info": [{}]},
        {"x": float("nan")},
        {"x": object()},
    ):
        for tag in ("final", "original", "review", "\udc80"):
            try:
                store.save_label("case_2", label, tag, info)
            except LabelRoundsError as error:
                assert error.status == 400


def test_a_label_that_can_not_be_taken_out_of_the_index_stays_in_its_place(
    store: StudyStore, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", listed("liver"))

    def full(*_: Any) -> None:
        raise OutOfSpace("no space left")

    for remove in (lambda: store.remove_label("case_1", "final"), lambda: store.remove_image("case_1")):
        with monkeypatch.context() as patch, pytest.raises(OutOfSpace):
            patch.setattr(store, "_commit", full)
            remove()
        assert Path(store.get_label_uri("case_1", "final")).is_file()
        assert Path(store.get_image_uri("case_1")).is_file()
    assert not list(studies.rglob(".labelrounds-*"))


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [math.nan, math.inf, nested(100), nested(600), "\ud800"])
def test_what_json_cannot_hold_is_refused_wherever_it_is_sent(store: StudyStore, tmp_path: Path, value: Any):
    before = tree(store._root)
    for note in (
        lambda info: store.update_image_info("case_1", info),
        lambda info: store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", info),
        lambda info: store.save_classes({"case_1": ClassLabel(("x",))}, info),
    ):
        with pytest.raises(BadInput, match=r"not a finite number|levels deep|cannot be kept as JSON"):
            note({**listed("liver"), "seen": {"at": [value]}})
    assert tree(store._root) == before


@pytest.mark.parametrize("value", [math.nan, -math.inf, nested(250), nested(700), "\ud800", {"\ud800": 1}])
def test_a_datastore_that_holds_what_json_cannot_is_listed_without_it(studies: Path, tmp_path: Path, value: Any):
    store = StudyStore(studies)
    store.save_label("case_1", str(label_file(tmp_path / "label.nii.gz", 1)), "final", {"by": "me"})
    index = json.loads((studies / "datastore_v2.json").read_text())
    index["objects"]["case_1"]["labels"]["final"]["info"]["seen"] = value
    index["objects"]["case_1"]["image"]["info"]["seen"] = value
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    for opened in (store, StudyStore(studies)):
        listed_now = json.dumps(opened.json(), allow_nan=False)
        assert len(listed_now) < 4000 and opened.get_label_info("case_1", "final")["by"] == "me"
        opened.update_image_info("case_1", {"more": 1})
    assert not list(studies.glob("*.broken-*"))


def test_what_json_cannot_hold_is_left_out_where_the_index_is_rebuilt(studies: Path):
    StudyStore(studies).update_image_info("case_1", {"by": "me"})
    digest = checksum(next(studies.glob("case_1.*")))
    line = {"image": "case_1", "tag": "", "info": {"sha256": digest, "name": "case_1", "seen": math.inf, "by": "me"}}
    (studies / "history").mkdir(exist_ok=True)
    (studies / "history" / "journal.jsonl").write_text(json.dumps(line) + "\n")
    (studies / "datastore_v2.json").write_text("{torn")
    info = StudyStore(studies).get_image_info("case_1")
    assert info["by"] == "me" and info["seen"] is None
