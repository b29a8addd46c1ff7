"""A class over HTTP's hind side: what the answer holds, what is kept, and why an image is of a class."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from blobs import CLASSES, classifier, labelled, picture, volume, write_dicom

from labelrounds.archive_files import images_in
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.batch import classify_all
from labelrounds.classification.cases import prepared
from labelrounds.classification.explaining import METHODS, explain, occlusion
from labelrounds.classification.images import onto_image
from labelrounds.classification.inferer import ClassificationInferer, classify
from labelrounds.computing import LacksMemory
from labelrounds.engine import Engine
from labelrounds.errors import BadInput, Cancelled, Conflict, NotFound, OutOfSpace, TooLarge
from labelrounds.memory_cache import Memory
from labelrounds.networks import build_network
from labelrounds.reading import read_image, read_label
from labelrounds.starting import classify_files
from labelrounds.training import train_model
from labelrounds.training_request import TrainingRequest

CPU = torch.device("cpu")
WINDOW = {"kind": "window", "low": 0, "high": 1000}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A model that tells blobs, trained once: its weights and temperature."""
    folder = tmp_path_factory.mktemp("learnt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(folder / "home"))
        config = classifier(training={"epochs": 6})
        train_model(config, labelled(folder / "studies", 60), TrainingRequest("full", None, "cpu"), lambda: False)
        network, version = build_network(config), Checkpoints(config).current()
        Checkpoints(config).load(version, network)
    return network.eval(), version.record["temperature"]


@pytest.fixture
def inferer(learnt):
    config = classifier()
    Checkpoints(config).publish(learnt[0], {"temperature": learnt[1]})
    engine = Engine()
    yield ClassificationInferer(config, engine, Memory())
    engine.close()


def test_the_answer_names_every_class_with_its_score_the_likeliest_first(inferer, tmp_path, learnt):
    file, answer = inferer({"image": str(picture(tmp_path, "one", 100, True)), "json": True})
    assert file is None
    first, second = answer["prediction"]
    assert (first["label"], first["idx"]) == ("blob", 1) and first["score"] > 0.5
    assert first["score"] + second["score"] == pytest.approx(1, abs=1e-5)
    assert next(iter(answer["label_names"])) == f"blob {first['score']:.0%}".replace("%", " %")
    assert list(answer["label_names"].values()) == list(range(1, len(answer["label_names"]) + 1))
    assert answer["temperature"] == learnt[1] and answer["version"] == 1 and answer["cached"] == "nothing"


def test_the_second_answer_is_kept_and_a_changed_image_or_version_is_not(inferer, tmp_path, learnt):
    path = picture(tmp_path, "one", 100, True)
    before = inferer({"image": str(path)})[1]
    again = inferer({"image": str(path)})[1]
    assert again["cached"] == "result" and again["prediction"] == before["prediction"]
    picture(tmp_path, "one", 101, False)
    assert inferer({"image": str(path)})[1]["prediction"][0]["label"] == "none"
    torch.manual_seed(3)
    Checkpoints(classifier()).publish(build_network(classifier()), {})
    newer = inferer({"image": str(path)})[1]
    assert newer["version"] == 2 and newer["cached"] == "image"


def test_a_client_that_wants_a_file_gets_a_label_map_without_a_voxel(inferer, tmp_path):
    path = picture(tmp_path, "one", 100, True)
    file, answer = inferer({"image": str(path), "result_extension": ".seg.nrrd"})
    label = read_label(Path(file))
    Path(file).unlink()
    assert label.shape == (16, 16, 1) and not label.array.any()
    assert list(label.segments) == list(answer["label_names"])


def test_markups_put_the_classes_into_the_middle_of_the_image(inferer, tmp_path):
    file, answer = inferer({"image": str(picture(tmp_path, "one", 100, True)), "show": ["markups", "segments"]})
    point = json.loads(Path(file).read_text())["markups"][0]["controlPoints"][0]
    Path(file).unlink()
    assert file.endswith(".mrk.json") and point["label"] == next(iter(answer["label_names"]))
    assert point["position"] == [-7.5, -7.5, 0.0]


def test_what_cannot_be_answered_says_why(inferer, tmp_path):
    path = str(picture(tmp_path, "one", 1, True))
    with pytest.raises(BadInput, match="explain 'tumour' is neither true nor one of none, blob"):
        inferer({"image": path, "explain": "tumour"})
    with pytest.raises(BadInput, match="uncertainty is of models that segment"):
        inferer({"image": path, "uncertainty": True})
    with pytest.raises(BadInput, match="explain_method 'magic' is not one of gradcam, occlusion"):
        inferer({"image": path, "explain": True, "explain_method": "magic"})
    with pytest.raises(BadInput, match="show 'film' is not one of segments, markups"):
        inferer({"image": path, "show": "film"})
    with pytest.raises(NotFound):
        inferer({"image": str(tmp_path / "nothing.png")})
    Path(path).write_bytes(Path(path).read_bytes()[:50])
    with pytest.raises(BadInput):
        inferer({"image": path})


def test_an_untrained_model_is_not_served():
    untrained = ClassificationInferer(classifier(), Engine(), Memory())
    assert not untrained.is_valid()
    with pytest.raises(Conflict, match="no trained version yet"):
        untrained._networks.get(CPU)


def test_stock_slicer_lists_the_model_and_other_clients_know_what_it_is(inferer):
    described = inferer.info()
    assert described["type"] == "segmentation" and described["labels"] == []
    assert described["task"] == "classification" and described["classes"] == list(CLASSES)


@pytest.mark.parametrize("method", METHODS)
def test_the_map_of_a_blob_follows_it_and_lies_on_the_grid_of_the_image(inferer, tmp_path, method):
    for row, column in ((4, 4), (11, 5), (6, 11)):
        path = picture(tmp_path, f"at_{row}_{column}", 7, True, (row, column))
        request = {"image": str(path), "explain": "blob", "explain_method": method, "result_extension": ".nii.gz"}
        file, answer = inferer(request)
        found = np.asarray(nibabel.load(file).dataobj)
        Path(file).unlink()
        assert found.shape == (16, 16, 1) and found.min() >= 0 and found.max() == pytest.approx(1, abs=0.05)
        assert answer["explained"] == {"label": "blob", "method": method}
        x, y = np.unravel_index(found[..., 0].argmax(), (16, 16))
        assert abs(x - column) <= 4 and abs(y - row) <= 4


@pytest.mark.parametrize("method", METHODS)
def test_the_map_is_another_when_the_weights_are_drawn_anew(learnt, tmp_path, method):
    config = classifier()
    image = prepared(read_image(picture(tmp_path, "one", 7, True, (4, 4)), channels=1), config)
    torch.manual_seed(11)
    anew = build_network(config).eval()
    one, other = (explain(network, image, 1, method, False).flatten() for network in (learnt[0], anew))
    assert torch.corrcoef(torch.stack((one, other)))[0, 1].nan_to_num() < 0.7


@pytest.mark.parametrize(("size", "slices"), [([16, 16, 16], 1), ([16, 16, 1], 8)])
def test_volumes_are_explained_in_three_dimensions(tmp_path, size, slices):
    config = classifier(input_size=size, slices_of_volume=slices)
    torch.manual_seed(0)
    network = build_network(config).eval()
    read = read_image(volume(tmp_path, "scan", 1, True, (4, 8, 12)), channels=1)
    image = prepared(read, config)
    for method in METHODS:
        found = explain(network, image, 1, method, False)
        assert found.shape == image.shape[1:]
        assert onto_image(found, read, config.seen_size, None, config.dimensions).shape == read.shape


def test_what_is_marked_in_a_prepared_image_comes_back_to_its_place(tmp_path):
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])[[1, 0, 2, 3]]  # axes in another order, one of them reversed
    values = np.full((10, 20, 6), 10.0, np.float32)
    values[7, 4, 1] = 500
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "turned.nii.gz")
    read = read_image(tmp_path / "turned.nii.gz", channels=1)
    config = classifier(input_size=[24, 24, 24], spacing_mm=[1.0, 1.0, 1.0], intensity=WINDOW)
    image = prepared(read, config)[0]
    back = onto_image(image - image.min(), read, config.seen_size, config.spacing_mm, 3)
    assert np.unravel_index(back.argmax(), back.shape) == (7, 4, 1)


def test_a_folder_is_classified_with_a_row_for_each_image_also_for_one_that_cannot_be_used(learnt, tmp_path):
    config, folder = classifier(), tmp_path / "images"
    Checkpoints(config).publish(learnt[0], {"temperature": learnt[1]})
    for number in range(6):
        picture(folder / "deep", f"image_{number}", 200 + number, number % 2 == 1)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    said = classify_all(config, images_in(folder), folder, tmp_path / "classes.csv", CPU)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert "classified 6 of 7" in said and len(rows) == 7
    broken = next(row for row in rows if row["image"] == "broken.png")
    assert broken["label"] == "" and broken["error"]
    right = [row["label"] == CLASSES[int(row["image"][-5]) % 2] for row in rows if not row["error"]]
    assert sum(right) >= 5
    assert all(float(row["none"]) + float(row["blob"]) == pytest.approx(1, abs=1e-3) for row in rows if row["label"])


def test_a_run_that_is_ended_leaves_no_table_that_poses_as_whole(learnt, tmp_path, monkeypatch, capsys):
    config, folder, output = classifier(), tmp_path / "images", tmp_path / "classes.csv"
    Checkpoints(config).publish(learnt[0], {})
    for number in range(4):
        picture(folder, f"image_{number}", number, False)

    def interrupted(ready, images, model):
        if interrupted.calls:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return classify(ready, images, model)

    interrupted.calls = 0
    monkeypatch.setattr("labelrounds.classification.batch._AT_ONCE", 2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("labelrounds.classification.batch.classify", interrupted)
        classify_all(config, images_in(folder), folder, output, CPU)
    part = tmp_path / "classes.csv.part"
    assert not output.exists() and len(list(csv.DictReader(part.open()))) == 2
    assert f"not finished: {output} was not written, {part} has the rows so far" in capsys.readouterr().err
    classify_all(config, images_in(folder), folder, output, CPU)
    assert len(list(csv.DictReader(output.open()))) == 4 and not part.exists()


def test_a_file_name_in_another_encoding_is_a_row(learnt, tmp_path):
    config, folder = classifier(), tmp_path / "images"
    Checkpoints(config).publish(learnt[0], {})
    picture(folder, "image", 1, True).rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    picture(folder, "other", 2, True)
    assert "of 2 image(s)" in classify_all(config, images_in(folder), folder, tmp_path / "classes.csv", CPU)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["image"] for row in rows] == [r"caf\udce9.png", "other.png"] and rows[1]["label"]


def test_the_images_of_a_studies_folder_are_classified_and_not_its_labels(tmp_path):
    for folder in (".", "labels/final", "history/versions/one", ".hidden", "deep/labels"):
        picture(tmp_path / folder, "one", 1, True)
    (tmp_path / "datastore_v2.json").write_text("{}")
    assert images_in(tmp_path) == [tmp_path / "one.png", tmp_path / "deep" / "labels" / "one.png"]


def test_a_series_that_is_the_folder_one_stands_in_has_its_name(learnt, tmp_path, monkeypatch):
    config = classifier()
    Checkpoints(config).publish(learnt[0], {})
    (tmp_path / "scan").mkdir()
    for at_mm, name in enumerate(("a", "b")):
        write_dicom(tmp_path / "scan" / name, "1.2.3", at_mm)
    monkeypatch.chdir(tmp_path / "scan")
    classify_all(config, images_in(Path()), Path(), tmp_path / "classes.csv", CPU)
    (row,) = csv.DictReader((tmp_path / "classes.csv").open())
    assert row["image"] == "scan" and row["label"]


def test_two_views_in_one_series_are_an_image_each(learnt, tmp_path):
    config, folder = classifier(), tmp_path / "chest"
    Checkpoints(config).publish(learnt[0], {})
    folder.mkdir()
    for name in ("frontal", "lateral.dcm"):
        write_dicom(folder / name, "1.2.3")
    classify_all(config, images_in(folder), folder, tmp_path / "classes.csv", CPU)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["image"] for row in rows if row["label"]] == ["frontal", "lateral.dcm"]


def test_dicom_files_without_an_ending_are_classified(learnt, tmp_path):
    config, folder = classifier(), tmp_path / "images"
    Checkpoints(config).publish(learnt[0], {})
    folder.mkdir()
    for name in ("IM000001", "1.2.840.7", "scan.ima"):
        write_dicom(folder / name, f"1.2.{len(name)}")
    classify_all(config, images_in(folder), folder, tmp_path / "classes.csv", CPU)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [(row["image"], row["error"]) for row in rows] == [
        (name, "") for name in ("1.2.840.7", "IM000001", "scan.ima")
    ]


def test_an_output_that_cannot_be_written_or_is_there_already_is_refused(tmp_path):
    image, there = picture(tmp_path, "one", 1, True), tmp_path / "there.csv"
    there.write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    for output, said in (
        (tmp_path / "missing" / "x.csv", "the folder does not exist"),
        (tmp_path / "folder.csv", "is a folder; name a file in it"),
        (there, "is there already; choose another name, or --force"),
        (tmp_path / "x.txt", "classes are written as .csv"),
    ):
        with pytest.raises(BadInput, match=said):
            classify_files(classifier(), image, output, "cpu")
    assert there.read_text() == "mine"
    with pytest.raises(Conflict):  # past the check: there is nothing trained
        classify_files(classifier(), image, there, "cpu", force=True)
    assert there.read_text() == "mine"


def test_a_folder_without_an_image_says_so(tmp_path):
    with pytest.raises(NotFound, match="no image in it"):
        images_in(tmp_path)


def test_a_map_for_which_the_memory_does_not_suffice_is_refused_with_a_sentence(inferer, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("labelrounds.classification.inferer.explain", full)
    with pytest.raises(TooLarge, match="the map does not fit into the memory of cpu"):
        inferer({"image": str(picture(tmp_path, "one", 1, True)), "explain": True})
    monkeypatch.setattr("labelrounds.classification.inferer.classify", full)
    with pytest.raises(TooLarge):
        inferer({"image": str(picture(tmp_path, "two", 2, True))})


def test_a_folder_named_from_where_one_stands_is_classified_also_as_the_first_thing_of_a_process(
    learnt, tmp_path, home, monkeypatch
):
    """ITK changes the working folder while it is loaded."""
    config = classifier()
    Checkpoints(config).publish(learnt[0], {})
    for number in range(8):
        picture(tmp_path / "images", f"image_{number}", number, False)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = (
        "import labelrounds.host, torch; from pathlib import Path;"
        "from labelrounds.archive_files import images_in;"
        "from labelrounds.classification.batch import classify_all;"
        "from labelrounds.classification.config import ClassifierConfig;"
        "config = ClassifierConfig.model_validate_json(Path('config.json').read_text());"
        "print(classify_all(config, images_in(Path('images')), Path('images'), Path('out.csv'), torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "classified 8 of 8" in done.stdout


def test_who_asks_for_the_same_while_it_is_made_gets_what_was_made(inferer, tmp_path, monkeypatch):
    made = []

    def slow(*of):
        made.append(of)
        time.sleep(0.2)
        return classify(*of)

    monkeypatch.setattr("labelrounds.classification.inferer.classify", slow)
    request, answers = {"image": str(picture(tmp_path, "one", 1, True)), "json": True}, []
    threads = [threading.Thread(target=lambda: answers.append(inferer(request)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(answer["cached"] for answer in answers) == ["nothing", "result", "result", "result"]


def test_a_gpu_without_the_memory_is_not_tried_in_vain_again(inferer, tmp_path, monkeypatch):
    gpu, computed, tried = torch.device("cuda:0"), inferer._computed, []

    def limited(device, image, voxels):
        tried.append(device)
        if device == gpu:
            raise LacksMemory(gpu, image.shape, "CUDA out of memory")
        return computed(device, image, voxels)

    monkeypatch.setattr("labelrounds.classification.inferer.choose_devices", lambda wanted: [gpu])
    monkeypatch.setattr(inferer, "_computed", limited)
    monkeypatch.setattr(inferer._memory, "images", lambda device, images=inferer._memory.images: images(CPU))
    request = {"image": str(picture(tmp_path, "one", 1, True)), "json": True}
    first, second = inferer(request)[1], inferer(request)[1]
    assert tried == [gpu, CPU] and second["cached"] == "result"
    assert first["note"] == second["note"] == "out of memory on cuda:0: classified on the CPU"
    assert first["device"] == second["device"] == "cpu"


def test_an_occlusion_ends_when_its_client_has_gone(learnt):
    asked = []

    def gone():
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(Cancelled, match="stopped after 32 of"):
        occlusion(learnt[0], torch.rand(1, 16, 16, 1), 1, False, gone)


def test_a_disk_that_is_full_is_told_and_no_file_is_left(inferer, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("labelrounds.classification.inferer.write_label", full)
    with pytest.raises(OutOfSpace):
        inferer({"image": str(picture(tmp_path, "one", 1, True))})
    with pytest.raises(BadInput, match="the ending of a map"):
        inferer({"image": str(tmp_path / "one.png"), "explain": True, "result_extension": ".seg.nrrd"})
    assert not list(folder.iterdir())


@pytest.mark.parametrize("show", ["segments", "markups"])
def test_an_image_in_which_nothing_is_found_is_shown_with_the_likeliest_class(tmp_path, show):
    config = classifier(multilabel=True, name="findings")
    network = build_network(config)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.fill_(0)
        list(network.head.parameters())[-1].copy_(torch.tensor([-12.0, -9.0]))
    Checkpoints(config).publish(network, {})
    engine = Engine()
    file, answer = ClassificationInferer(config, engine, Memory())(
        {"image": str(picture(tmp_path, "one", 1, False)), "show": show}
    )
    engine.close()
    Path(file).unlink()
    assert answer["label_names"] == {"blob 0 %": 1}


def test_no_dicom_file_of_a_folder_is_passed_over(tmp_path):
    def dicom(name: str, series: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_dicom(tmp_path / name, series, len(list((tmp_path / name).parent.iterdir())))

    for name, series in (("a", "1"), ("b", "2"), ("c.dcm", "3"), ("alone/a", "4"), ("scan/a", "5"), ("scan/b", "5")):
        dicom(name, f"1.2.{series}")
    for name in ("DICOMDIR", "scan/DICOMDIR"):  # what lists them is no image, and none of a series
        dicom(name, "")
    found = [str(path.relative_to(tmp_path)) for path in images_in(tmp_path)]
    assert sorted(found) == ["a", "alone/a", "b", "c.dcm", "scan"]


def test_an_image_for_which_the_memory_does_not_suffice_is_a_row_and_the_run_goes_on(learnt, tmp_path, monkeypatch):
    config, folder = classifier(), tmp_path / "images"
    Checkpoints(config).publish(learnt[0], {})
    for number in range(5):
        picture(folder, f"image_{number}", number, False)

    def limited(ready, images, model):
        if len(images) > 1 or limited.calls:
            limited.calls -= len(images) == 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return classify(ready, images, model)

    limited.calls = 1  # the first image alone is too much as well
    monkeypatch.setattr("labelrounds.classification.batch.classify", limited)
    said = classify_all(config, images_in(folder), folder, tmp_path / "classes.csv", CPU)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert "classified 4 of 5" in said and "1 could not be used" in said
    assert [bool(row["error"]) for row in rows] == [True, False, False, False, False]
    assert rows[0]["error"].startswith("the image does not fit into the memory of cpu")
