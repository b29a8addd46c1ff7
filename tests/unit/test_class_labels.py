"""Class labels: what is accepted, where they lie, how they come from Slicer, how many are imported at once."""

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from blobs import picture, volume, write_dicom

from labelrounds.classification.importing import import_csv, import_folders
from labelrounds.classification.labels import ClassLabel, read_class_label
from labelrounds.errors import BadInput, NotFound
from labelrounds.reading import read_image
from labelrounds.store import CLASSES, FINAL, StudyStore
from labelrounds.writing import write_label


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
    (tmp_path / "label.json").write_text('{"label": "blob"}', encoding="utf-8-sig")  # as Windows writes it
    assert read_class_label(tmp_path / "label.json") == ClassLabel(("blob",))


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
        ('{"label": "a", "label": "b"}', "a key stands twice"),
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
    with pytest.raises(BadInput, match=r"an image is of one class of none, blob; got none$"):
        submit(store, "a", written(tmp_path, {"labels": []}))
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


@pytest.mark.parametrize("names", [["blb"], ["Blob 93 %"], ["blob 93 %", "nonee 7 %"]])
@pytest.mark.parametrize("labels", [[], ["liver"]])
def test_a_segmentation_without_a_voxel_that_names_no_class_is_refused_with_those_there_are(
    studies, tmp_path, names, labels
):
    store = StudyStore(studies, known_labels=labels, known_classes=["none", "blob"])
    said = f"nothing is segmented in it, and its segment .* is not one of none, blob{', liver' if labels else ''}"
    with pytest.raises(BadInput, match=said):
        submit(store, "scan", segmentation(tmp_path), FINAL, {"label_info": [{"name": name} for name in names]})
    assert not list((studies / "labels").rglob("scan*"))


def test_a_segmentation_file_names_its_class_itself(store, tmp_path):
    empty = write_label(np.zeros((16, 16, 16), np.uint8), np.eye(4), tmp_path / "empty.seg.nrrd", ["blob 93 %"])
    assert submit(store, "scan", empty) == ClassLabel(("blob",))


def test_the_archive_of_the_data_set_holds_label_maps_and_classes(store, studies, tmp_path):
    submit(store, "a", written(tmp_path, {"label": "blob"}))
    submit(store, "scan", written(tmp_path, {"label": "none"}))
    store.save_label("scan", str(segmentation(tmp_path, 1)), FINAL, {"label_info": [{"name": "liver"}]})
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        assert json.loads(archive.read("classes/a.json")) == {"label": "blob"}
        assert archive.read("image/a.png") == (studies / "a.png").read_bytes()
        assert json.loads(archive.read("metadata.json"))["objects"]["a"]["labels"]["classes"]["ext"] == ".json"
        maps = {"image/scan.nii.gz", "label/scan.nii.gz", "classes/scan.json"}
        assert set(archive.namelist()) == {"image/a.png", "classes/a.json", "metadata.json", *maps}
    with zipfile.ZipFile(store.get_dataset_archive(1)) as archive:
        assert set(archive.namelist()) == {"image/a.png", "classes/a.json", "metadata.json"}
    with pytest.raises(BadInput, match="limit_cases 0 is not 1 or more"):
        store.get_dataset_archive(0)


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
    said = "Labelled 2 images: blob 1, none 1; not read: the columns reader"
    assert import_csv(studies, table, False) == said
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
        ("image,label\nnobody,x\n", "line 2: image 'nobody' is not in the studies folder"),
        ("image,label\na,\n", "line 2: image 'a' has no label"),
        ("image,label\na,x;y\n", "line 2: image 'a' has 2 labels, x; y; --multilabel allows several"),
        ("image,label\na,x\nb,x\na,y\n", "line 4: image 'a' is y, line 2 says x; --multilabel allows several"),
        ("image,label\na,x,y\n", "line 2: 3 cells under 2 columns"),
        ("image,label\na\n", r"line 2: 1 cell\(s\), none under 'label'"),
        ("image,label\n,x\n", "line 2: image '' is not in"),
        ("image,label\nscan.png,x\n", "line 2: image 'scan.png' is not in the studies folder; there is scan.nii.gz"),
        ('image,label,note\na,x,"never closed\nb,y,z\n', "can't be read as CSV"),
        ('image,label\na,"x\ny"\n', "line 3: image 'a': class .* is not a name"),
        ("image,label,label\na,x,y\n", "each once"),
        ("file,class\na,x\n", "expected the columns image and label"),
        ("image;label\na;x\n", "expected the columns image and label"),
        ("image,label\n", "there is no image to label"),
        ("", "expected the columns image and label"),
    ],
)
def test_a_faulty_csv_is_refused_whole(studies, tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadInput, match=said):
        import_csv(studies, tmp_path / "labels.csv", False)
    assert StudyStore(studies).get_labeled_images(CLASSES) == []


def test_every_faulty_line_is_named_in_its_order(studies, tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\nx,y\na,b,c\nb,\n")
    with pytest.raises(BadInput) as told:
        import_csv(studies, tmp_path / "labels.csv", False)
    assert [line.partition(":")[0] for line in str(told.value).splitlines()[1:]] == ["line 2", "line 3", "line 4"]


def test_a_csv_as_spreadsheets_write_it_is_read(studies, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_bytes(
        'Image, Label\r\n"a","one, or two"\r\n\r\nb.png,none\r\n,\r\na,"one, or two"\r\n'.encode("utf-8-sig")
    )
    assert import_csv(studies, table, False) == "Labelled 2 images: none 1, one, or two 1"
    table.write_text("image,label\na,x\n", encoding="utf-16")
    with pytest.raises(BadInput, match="can't be read as CSV in UTF-8"):
        import_csv(studies, table, False)


def test_an_image_of_none_and_of_one_contradict_each_other_also_where_several_are_allowed(studies, tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na,x\na,\n")
    with pytest.raises(BadInput, match="line 3: image 'a' is nothing, line 2 says x"):
        import_csv(studies, tmp_path / "labels.csv", True)


def test_a_name_that_is_an_id_and_the_file_of_another_image_is_refused(studies, tmp_path):
    picture(studies, "a.png", 5, False)  # a.png.png, of which a.png is the id
    (tmp_path / "labels.csv").write_text("image,label\na.png,x\n")
    with pytest.raises(BadInput, match=r"line 2: 'a.png' is the id of a.png.png and the file of another image"):
        import_csv(studies, tmp_path / "labels.csv", False)


def test_a_csv_for_a_folder_that_is_not_there_makes_none(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\na,x\n")
    with pytest.raises(BadInput, match="is not a folder"):
        import_csv(tmp_path / "misspelt", tmp_path / "labels.csv", False)
    assert not (tmp_path / "misspelt").exists()


def test_an_import_says_how_many_images_had_other_classes(studies, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image,label\na,x\nb,x\n")
    assert "other classes" not in import_csv(studies, table, False)
    table.write_text("image,label\na,y\nb,x\n")
    assert import_csv(studies, table, False).endswith("; 1 had other classes, which stay in the history")


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


def test_a_file_named_as_an_image_of_another_format_labels_not_that_one(tmp_path):
    volume(tmp_path / "new", "one", 1, False)
    picture(tmp_path / "sorted" / "cats", "one", 1, False)
    with pytest.raises(BadInput, match=r"one.nii.gz is another image of the same name, 'one'"):
        import_folders(tmp_path / "new", tmp_path / "sorted")
    assert StudyStore(tmp_path / "new").get_labeled_images(CLASSES) == []
    assert not (tmp_path / "new" / "one.png").exists()


def test_an_image_that_lies_in_the_studies_is_labelled_there_whatever_it_is_called(tmp_path):
    picture(tmp_path / "new", "patient_7", 3, True)
    picture(tmp_path / "sorted" / "cats", "one", 3, True)
    assert import_folders(tmp_path / "new", tmp_path / "sorted") == "Labelled 1 images: cats 1"
    assert StudyStore(tmp_path / "new").get_labeled_images(CLASSES) == ["patient_7"]
    assert not (tmp_path / "new" / "one.png").exists()


def test_a_second_image_of_a_name_that_is_added_later_leaves_the_first_what_it_was(tmp_path):
    picture(tmp_path / "sorted" / "cats", "one", 1, False)
    import_folders(tmp_path / "new", tmp_path / "sorted")
    picture(tmp_path / "sorted" / "dogs", "one", 2, False)
    assert import_folders(tmp_path / "new", tmp_path / "sorted") == "Labelled 2 images: cats 1, dogs 1"
    store = StudyStore(tmp_path / "new")
    found = {image: store.get_label_info(image, CLASSES)["classes"] for image in store.list_images()}
    assert found == {"one": ["cats"], "dogs_one": ["dogs"]}


def test_an_image_in_two_classes_is_refused_and_a_copy_within_one_is_taken_once(tmp_path):
    picture(tmp_path / "sorted" / "cats", "one", 1, False)
    picture(tmp_path / "sorted" / "cats", "two", 1, False)
    assert "; 1 more are copies, such as" in import_folders(tmp_path / "new", tmp_path / "sorted")
    picture(tmp_path / "sorted" / "dogs", "three", 1, False)
    with pytest.raises(BadInput, match=r"three.png: the same image as .*one.png, which is of another class"):
        import_folders(tmp_path / "new", tmp_path / "sorted")


def test_what_is_no_image_is_named_and_what_is_cut_is_refused_before_anything_is_copied(tmp_path):
    cats = tmp_path / "sorted" / "cats"
    picture(cats, "one", 1, False)
    (tmp_path / "sorted" / ".git").mkdir()
    (cats / "._one.png").write_bytes(b"of a Macintosh")
    (cats / "notes.txt").write_text("seen by me")
    (cats / "deeper").mkdir()
    said = import_folders(tmp_path / "new", tmp_path / "sorted")
    assert said == f"Labelled 1 images: cats 1; passed over 2 that are no images, such as {cats / 'deeper'}"
    (cats / "cut.png").write_bytes((cats / "one.png").read_bytes()[:50])
    picture(cats, "ä", 4, False)
    with pytest.raises(BadInput, match=r"(?s)cut.png: cut.png: the file is cut.*image id 'ä'"):
        import_folders(tmp_path / "newer", tmp_path / "sorted")
    assert not (tmp_path / "newer").exists()


def test_an_import_that_was_killed_is_done_again_as_if_for_the_first_time(tmp_path, monkeypatch):
    for number, name in enumerate(("cats", "dogs")):
        picture(tmp_path / "sorted" / name, f"one_{number}", number, False)

    def killed(source, target):
        target.write_bytes(source.read_bytes()[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.copyfile", killed)
        import_folders(tmp_path / "new", tmp_path / "sorted")
    assert import_folders(tmp_path / "new", tmp_path / "sorted") == "Labelled 2 images: cats 1, dogs 1"
    assert StudyStore(tmp_path / "new").list_images() == ["one_0", "one_1"]


def test_a_dicom_file_without_an_ending_is_imported_as_one(tmp_path):
    (tmp_path / "sorted" / "cats").mkdir(parents=True)
    write_dicom(tmp_path / "sorted" / "cats" / "IM000001", "1.2.3")
    assert import_folders(tmp_path / "new", tmp_path / "sorted") == "Labelled 1 images: cats 1"
    assert (tmp_path / "new" / "IM000001.dcm").is_file()
    assert read_image(tmp_path / "sorted" / "cats" / "IM000001").shape == (16, 16, 1)
