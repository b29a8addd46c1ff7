"""Class labels: what is accepted, where they lie, how they come from Slicer, how many are imported at once."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from blobs import picture, volume

from labelrounds.classification.importing import import_csv, import_folders
from labelrounds.classification.labels import ClassLabel, read_class_label
from labelrounds.errors import BadInput, NotFound
from labelrounds.store import CLASSES, FINAL, StudyStore


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Three pictures and a volume."""
    folder = tmp_path / "studies"
    for number, name in enumerate("abc"):
        picture(folder, name, number, False)
    volume(folder, "scan", 9, True)
    return folder


@pytest.fixture
def store(studies: Path) -> StudyStore:
    return StudyStore(studies, known_labels=["liver"], known_classes=["none", "blob"])


def written(folder: Path, content: object, name: str = "label.json") -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name


def submit(store: StudyStore, image: str, file: Path, tag: str = FINAL, info: dict | None = None) -> ClassLabel | None:
    found = store.classes_in(image, str(file), tag, info)
    if found is not None:
        store.save_classes({image: found}, info)
    return found


def test_one_class_or_a_list_of_them_is_read(tmp_path):
    assert read_class_label(written(tmp_path, {"label": "blob"})) == ClassLabel(("blob",))
    assert read_class_label(written(tmp_path, {"labels": ["a", "b"]})) == ClassLabel(("a", "b"), several=True)
    assert read_class_label(written(tmp_path, {"labels": []})) == ClassLabel((), several=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[" * 60_000, "not JSON"),
        ("[]", "is neither"),
        ({"label": "a", "labels": ["a"]}, "is neither"),
        ({"class": "a"}, "is neither"),
        ({"label": 3}, "class '3' is not a name"),
        ({"label": " "}, "is not a name"),
        ({"label": "a\nb"}, "is not a name"),
        ({"label": "a" * 256}, "is not a name"),
        ({"labels": "a"}, "is not a list"),
        ({"labels": ["a", "a "]}, "stands twice"),
        ({"label": "a", "x": "y" * 70_000}, "over 65536 bytes"),
        ("\udcff", "not JSON"),
    ],
)
def test_what_is_no_class_label_is_refused_with_the_reason(tmp_path, content, said):
    if content == "\udcff":
        (tmp_path / "label.json").write_bytes(b"\xff\xfe{")
    else:
        written(tmp_path, content)
    with pytest.raises(BadInput, match=said):
        read_class_label(tmp_path / "label.json")


def test_classes_lie_beside_a_label_map_and_replace_none(store, studies, tmp_path):
    label = tmp_path / "map.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((16, 16, 16), np.uint8), np.eye(4)), label)
    store.save_label("scan", str(label), FINAL, {"label_info": [{"name": "liver"}]})
    assert submit(store, "scan", written(tmp_path, {"label": "blob"})) == ClassLabel(("blob",))
    assert (studies / "labels" / "final" / "scan.nii.gz").is_file()
    assert json.loads((studies / "labels" / "classes" / "scan.json").read_text()) == {"label": "blob"}
    assert store.get_label_info("scan", CLASSES)["classes"] == ["blob"]
    assert [case.label.suffix for case in store.training_items()] == [".gz"]
    assert [case.label.suffix for case in store.training_items(CLASSES)] == [".json"]


def test_a_corrected_class_replaces_the_former_which_stays_in_the_history(store, studies, tmp_path):
    submit(store, "a", written(tmp_path, {"label": "none"}))
    submit(store, "a", written(tmp_path, {"label": "blob"}))
    assert read_class_label(store.training_items(CLASSES)[0].label).classes == ("blob",)
    assert len(list((studies / "history" / "versions" / "a").glob("classes-*.json"))) == 2


def test_an_unknown_class_several_of_one_and_a_wrong_tag_are_refused_and_nothing_is_saved(store, tmp_path):
    with pytest.raises(BadInput, match="a: class 'tumour' is not one of none, blob"):
        submit(store, "a", written(tmp_path, {"label": "tumour"}))
    with pytest.raises(BadInput, match="an image is of one class of none, blob; got none, blob"):
        submit(store, "a", written(tmp_path, {"labels": ["none", "blob"]}))
    with pytest.raises(BadInput, match="classes go under the tag 'classes', not 'original'"):
        submit(store, "a", written(tmp_path, {"label": "blob"}), "original")
    with pytest.raises(BadInput, match="label maps go to 'final'"):
        submit(store, "a", tmp_path / "map.nii.gz", CLASSES)
    with pytest.raises(NotFound):
        submit(store, "nobody", written(tmp_path, {"label": "blob"}))
    assert store.training_items(CLASSES) == []


def segmentation(folder: Path, value: int = 0) -> Path:
    array = np.zeros((16, 16, 16), np.uint8)
    array[3] = value
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "segments.nii.gz")
    return folder / "segments.nii.gz"


def test_an_empty_segmentation_of_a_segment_named_like_a_class_is_that_class(store, tmp_path):
    info = {"label_info": [{"name": "blob 93 %", "idx": 1}]}
    assert submit(store, "scan", segmentation(tmp_path), FINAL, info) == ClassLabel(("blob",))
    assert store.get_labeled_images(CLASSES) == ["scan"] and store.get_labeled_images() == []


def test_segments_with_voxels_or_other_names_are_a_label_map(store, tmp_path):
    named = {"label_info": [{"name": "liver"}]}
    assert submit(store, "scan", segmentation(tmp_path, 1), FINAL, named) is None
    assert submit(store, "scan", segmentation(tmp_path), FINAL, named) is None
    assert submit(store, "scan", segmentation(tmp_path, 1), FINAL, {"label_info": [{"name": "blob 93 %"}]}) is None


def test_several_segments_of_classes_are_too_many_unless_an_image_may_be_of_several(store, studies, tmp_path):
    info = {"label_info": [{"name": "blob 93 %"}, {"name": "none 7 %"}]}
    with pytest.raises(BadInput, match="keep the segment of the right class alone"):
        submit(store, "scan", segmentation(tmp_path), FINAL, info)
    both = StudyStore(studies, known_classes=["none", "blob"], multilabel_classes=["none", "blob"])
    assert submit(both, "scan", segmentation(tmp_path), FINAL, info) == ClassLabel(("blob", "none"), several=True)


def test_a_server_of_classes_alone_hands_out_images_without_a_class(studies, tmp_path):
    store = StudyStore(studies, known_classes=["none", "blob"], rounds_tag=CLASSES)
    submit(store, "a", written(tmp_path, {"label": "blob"}))
    assert store.get_unlabeled_images() == ["b", "c", "scan"]


def test_class_labels_that_lie_in_the_folder_are_taken_up(studies):
    (studies / "labels" / "classes").mkdir(parents=True)
    written(studies / "labels" / "classes", {"label": "blob"}, "b.json")
    assert [case.image_id for case in StudyStore(studies).training_items(CLASSES)] == ["b"]


def test_a_csv_labels_images_by_id_or_file_name(studies, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,label,reader\na,none,me\nb.png,blob,me\n")
    assert import_csv(studies, table, False) == "Labelled 2 images: blob 1, none 1"
    assert StudyStore(studies).get_labeled_images(CLASSES) == ["a", "b"]


def test_several_labels_of_an_image_stand_in_rows_or_parted_by_semicolons(studies, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,label\na,x\na,y\nb,x; z\nc,\n")
    assert import_csv(studies, table, True) == "Labelled 3 images: x 2, y 1, z 1, none of them 1"
    read = [read_class_label(case.label).classes for case in StudyStore(studies).training_items(CLASSES)]
    assert read == [("x", "y"), ("x", "z"), ()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,label\nnobody,x\n", "line 2: image 'nobody' is not in"),
        ("image,label\na,\n", "line 2: image 'a' has no label"),
        ("image,label\na,x\na,y\n", "image 'a' has the labels x, y; --multilabel allows several"),
        ("file,class\na,x\n", "expected the columns image and label"),
        ("image,label\n", "there is no image to label"),
    ],
)
def test_a_faulty_csv_is_refused_whole(studies, tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadInput, match=said):
        import_csv(studies, tmp_path / "labels.csv", False)
    assert StudyStore(studies).get_labeled_images(CLASSES) == []


def test_folders_of_classes_are_copied_and_labelled_once(tmp_path):
    for name in ("cats", "dogs"):
        picture(tmp_path / "sorted" / name, "one", len(name) if name == "cats" else 9, False)
    picture(tmp_path / "sorted" / "dogs", "two", 5, True)
    for _ in range(2):
        said = import_folders(tmp_path / "new", tmp_path / "sorted")
        assert said == "Labelled 3 images: cats 1, dogs 2"
    assert StudyStore(tmp_path / "new").get_labeled_images(CLASSES) == ["cats_one", "dogs_one", "two"]


def test_another_image_of_the_same_name_and_an_empty_folder_are_refused(tmp_path):
    picture(tmp_path / "sorted" / "cats", "one", 1, False)
    picture(tmp_path / "new", "one", 2, True)
    with pytest.raises(BadInput, match="is another image of the same name"):
        import_folders(tmp_path / "new", tmp_path / "sorted")
    with pytest.raises(BadInput, match="no folder of a class holds an image"):
        import_folders(tmp_path / "new", tmp_path / "sorted" / "cats")
