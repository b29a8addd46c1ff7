"""A round of classification over HTTP, as a client plays it: next image, class, training, answer, why."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from PIL import Image as Picture
from requests_toolbelt import MultipartDecoder

from labelrounds.client import Client
from labelrounds.writing import write_label
from tests.forked import running_server

MODEL = """
task: classification
description: a blob or none
labels: [none, blob]
input_size: [16, 16, 1]
intensity: {kind: zscore}
network: {name: densenet, stem: small, growth_rate: 4, init_features: 8, block_config: [2, 2]}
training: {epochs: 4, iterations_per_epoch: 10, batch_size: 8, learning_rate: 0.01}
"""
COUNT = 24


def picture(number: int) -> bytes:
    """A PNG of noise, with a bright blob if the number is odd."""
    random = np.random.default_rng(number)
    values = random.normal(80, 10, (16, 16))
    if number % 2:
        row, column = random.integers(4, 12, 2)
        values[row - 3 : row + 3, column - 3 : column + 3] += 120
    file = io.BytesIO()
    Picture.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[Client, Path]]:
    folder = tmp_path_factory.mktemp("classes")
    for name in ("configs", "studies"):
        (folder / name).mkdir()
    (folder / "configs" / "blobs.yaml").write_text(MODEL)
    for number in range(COUNT):
        (folder / "studies" / f"image_{number:02d}.png").write_bytes(picture(number))
    with running_server(folder / "studies", folder / "home", 0, ["blobs"], folder / "configs") as client:
        yield client, folder


def submit(client: Client, image: str, content: str, tag: str = "") -> requests.Response:
    return requests.put(
        f"{client.address}/datastore/label?image={image}&tag={tag}",
        files={"label": ("label.json", content)},
        timeout=60,
    )


def infer(client: Client, name: str, content: bytes, output: str = "json", **params) -> requests.Response:
    return requests.post(
        f"{client.address}/infer/blobs?output={output}",
        files={"file": (name, content)},
        data={"params": json.dumps(params)},
        timeout=60,
    )


def infer_stored(client: Client, image: str, output: str = "json", **params) -> requests.Response:
    route = f"{client.address}/infer/blobs?image={image}&output={output}"
    return requests.post(route, data={"params": json.dumps(params)}, timeout=60)


@pytest.fixture(scope="module")
def trained(server) -> tuple[Client, Path]:
    """The server with a version of the model; it is trained here where no test has done so before."""
    client, _ = server
    if not infer_stored(client, "image_00").ok:
        for number in range(COUNT):
            answer = submit(client, f"image_{number:02d}", json.dumps({"label": ["none", "blob"][number % 2]}))
            answer.raise_for_status()
        client.call("POST", "/train/blobs", json={})
        list(client.follow_training("blobs"))
    return server


def test_a_round_ends_in_a_model_that_names_the_class_and_shows_why(server):
    client, folder = server
    for number in range(COUNT):
        chosen = client.call("POST", "/activelearning/random", json={}).json()
        assert chosen["id"] >= f"image_{number:02d}"  # those before it have a class
        answer = submit(client, f"image_{number:02d}", json.dumps({"label": ["none", "blob"][number % 2]}))
        assert answer.json()["classes"] == [["none", "blob"][number % 2]]
    assert client.call("POST", "/activelearning/random", json={}).json() == {}
    client.call("POST", "/train/blobs", json={})
    *_, stats = client.follow_training("blobs")
    assert "Published version 1." in stats["message"]
    answer = infer(client, "new.png", picture(101)).json()
    scores = [one["score"] for one in answer["prediction"]]
    assert answer["prediction"][0]["label"] == "blob" and scores == sorted(scores, reverse=True)
    assert next(iter(answer["label_names"])) == f"blob {scores[0]:.0%}".replace("%", " %")
    assert infer(client, "new.png", picture(101)).json()["cached"] == "result"
    found = infer(client, "new.png", picture(101), "image", explain=True, result_extension=".nii.gz")
    (folder / "why.nii.gz").write_bytes(found.content)
    why = np.asarray(nibabel.load(folder / "why.nii.gz").dataobj)
    assert why.shape == (16, 16, 1) and 0 <= why.min() < why.max() <= 1.001
    shown = infer(client, "new.png", picture(101), "image", show="markups").json()
    assert shown["markups"][0]["controlPoints"][0]["label"].startswith("blob ")


def test_an_image_of_the_datastore_is_answered_with_its_class_a_marker_and_a_map(trained):
    client, folder = trained
    (folder / "studies" / "image_01.png").touch()  # which makes it another image to the server: nothing is kept of it
    first, second = (infer_stored(client, "image_01").json() for _ in range(2))
    assert (first["cached"], second["cached"]) == ("nothing", "result")
    assert first["prediction"] == second["prediction"]
    assert [sorted(one) for one in first["prediction"]] == [["idx", "label", "score"]] * 2
    assert all(one["label"] == ["none", "blob"][one["idx"]] for one in first["prediction"])
    answer = infer_stored(client, "image_01", "all", show="markups")
    params, marker = MultipartDecoder.from_response(answer).parts
    assert marker.headers[b"Content-Disposition"].decode().endswith('.mrk.json"')
    (point,) = json.loads(marker.text)["markups"][0]["controlPoints"]
    assert point["label"] == next(iter(json.loads(params.text)["label_names"])) == next(iter(first["label_names"]))
    found = infer_stored(client, "image_01", "image", explain="none", result_extension=".nii.gz")
    (folder / "why.nii.gz").write_bytes(found.content)
    why = np.asarray(nibabel.load(folder / "why.nii.gz").dataobj)
    assert why.shape == (16, 16, 1) and why.min() >= 0 and why.max() <= 1


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_a_segmentation_without_a_voxel_corrects_a_class(server, extension):
    client, folder = server
    assert submit(client, "image_01", '{"label": "blob"}').ok
    label = folder / f"empty{extension}"
    write_label(np.zeros((16, 16, 1), np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]), label, [])
    client.submit("image_01", label, ["none 93 %"])
    assert json.loads((folder / "studies" / "labels" / "classes" / "image_01.json").read_text()) == {"label": "none"}
    assert not list((folder / "studies" / "labels").glob("final/*"))  # it is no label map


@pytest.mark.parametrize(
    ("content", "tag", "said"),
    [
        ('{"label": "tumour"}', "", "class 'tumour' is not one of none, blob"),
        ("{", "", "not JSON"),
        ('{"label": "blob"}', "original", "classes go under the tag 'classes'"),
    ],
)
def test_a_label_that_cannot_be_kept_is_refused_with_a_sentence(server, content, tag, said):
    answer = submit(server[0], "image_00", content, tag)
    assert answer.status_code == 400 and said in answer.json()["detail"]


@pytest.mark.parametrize(
    "value", ["NaN", "1e999", "-Infinity", "[" * 100 + "]" * 100, "[" * 90_000 + "]" * 90_000, '"\\ud800"']
)
def test_what_json_cannot_hold_is_refused_on_every_way_and_every_list_still_answers(trained, value):
    client, _ = trained
    sent = f'{{"client_id": {value}}}'
    as_json = {"data": sent, "headers": {"content-type": "application/json"}}
    label = {"files": {"label": ("label.json", '{"label": "blob"}')}, "data": {"params": sent}}
    for method, route, options in (
        ("PUT", "/datastore/label?image=image_01", label),
        ("PUT", "/datastore/image/info?image=image_01", {"data": {"info": sent}}),
        ("PUT", "/datastore/label/info?label=image_01&tag=classes", {"data": {"info": sent}}),
        ("PUT", "/datastore/image?image=new", {"files": {"file": ("a.png", picture(3))}, "data": {"params": sent}}),
        ("POST", "/infer/blobs?image=image_01&output=json", {"data": {"params": sent}}),
        ("POST", "/activelearning/random", as_json),
        ("POST", "/train/blobs", as_json),
        ("POST", "/train/blobs", {**as_json, "data": value}),
    ):
        answer = requests.request(method, client.address + route, timeout=60, **options)
        assert 400 <= answer.status_code < 500 and answer.json()["detail"], (route, answer.text)
    for route in ("/datastore/?output=all", "/datastore/?output=train", "/train/", "/info/"):
        assert client.call("GET", route).ok


def test_the_labelled_images_are_downloaded_with_their_classes(server):
    client, _ = server
    submit(client, "image_03", '{"label": "blob"}').raise_for_status()
    with zipfile.ZipFile(io.BytesIO(client.call("GET", "/datastore/dataset").content)) as archive:
        assert json.loads(archive.read("classes/image_03.json")) == {"label": "blob"}
        assert archive.read("image/image_03.png") == picture(3)


def encoded(array: np.ndarray, kind: str = "png", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(array, mode).save(file, kind)
    return file.getvalue()


GREY = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
HUGE = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
)


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        ("cut.jpg", encoded(GREY, "jpeg")[:300], 400, "the file is cut"),
        ("cut.png", encoded(GREY)[:300], 400, "the file is cut"),
        ("cut.png", encoded(GREY)[:300] + encoded(GREY)[-12:], 400, "cannot read it"),
        ("zero.png", b"", 415, "the content is not PNG"),
        ("zero.jpg", b"", 415, "the content is not JPEG"),
        ("zero.dcm", b"", 415, "the content is not DICOM"),
        ("huge.png", HUGE, 413, "the header claims"),
        ("tiny.png", encoded(GREY[:1, :1]), 400, "smaller than 2 x 2 pixels"),
        ("line.png", encoded(GREY[:1]), 400, "smaller than 2 x 2 pixels"),
        ("text.png", b"hello", 415, "the content is not PNG"),
        ("scan.bmp", b"BM", 415, "does not end in one of"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_a_sentence_and_its_status(trained, name, content, status, said):
    answer = infer(trained[0], name, content)
    assert answer.status_code == status and said in answer.json()["detail"], answer.text
    assert infer_stored(trained[0], "image_01").ok


@pytest.mark.parametrize(
    "content",
    [
        encoded(GREY.astype(np.uint16) * 200),
        encoded(np.stack([GREY] * 3, -1)),
        encoded(np.stack([GREY] * 4, -1)),
        encoded(np.stack([GREY] * 2, -1), mode="LA"),
        encoded(GREY > 100),
        encoded(GREY, mode="P"),
    ],
    ids=["16 bits", "colours", "transparency", "grey and transparency", "1 bit", "palette"],
)
def test_a_picture_of_any_kind_is_classified(trained, content):
    assert infer(trained[0], "usable.png", content).json()["prediction"]


def test_an_unknown_class_is_not_explained(trained):
    unknown = infer(trained[0], "new.png", picture(3), explain="tumour")
    assert unknown.status_code == 400 and "neither true nor one of none, blob" in unknown.json()["detail"]
