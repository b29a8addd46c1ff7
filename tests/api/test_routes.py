"""What each route answers, above all to what it should not accept."""

import hashlib
import io
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from labelrounds.phantoms import LABELS, make_phantom
from labelrounds.runtime_choice import LEAST_DICE
from labelrounds.runtimes import runtimes
from tests.api.conftest import MODEL


def ask(server, method, route, **options) -> requests.Response:
    return requests.request(method, server.address + route, timeout=120, **options)


def files_of(folder) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.suffix not in (".log", ".lock")}


def detail(answer: requests.Response) -> str:
    return answer.json()["detail"]


def test_info_is_what_slicer_reads(server):
    info = ask(server, "GET", "/info/").json()
    assert not info.get("config")  # Slicer's extension refuses a server that has one
    assert info["labels"] == list(LABELS)
    assert info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["labels"] == list(LABELS)
    assert info["models"][MODEL]["config"]["device"][-1] == "cpu"
    assert info["models"][MODEL]["runtime"]["runtime"]
    assert "random" in info["strategies"]
    assert {"total", "completed"} <= set(info["datastore"])


def test_login_is_answered_as_slicer_expects_of_a_server_without(server):
    assert ask(server, "GET", "/auth/").status_code == 404


def test_infer_answers_with_the_label_and_its_names(server):
    answer = ask(server, "POST", f"/infer/{MODEL}?image=phantom_000&output=json", data={"params": "{}"})
    assert answer.status_code == 200
    assert answer.json()["label_names"] == {label: value for value, label in enumerate(LABELS, start=1)}
    label = server.segment(MODEL, image="phantom_000")
    assert label.shape == make_phantom(0).label.shape
    assert set(np.unique(label)) <= set(range(len(LABELS) + 1))


def test_behind_an_answer_the_runtimes_are_measured_and_info_tells_what_was_chosen(server):
    assert ask(server, "POST", f"/infer/{MODEL}?image=phantom_001&output=json", data={"params": "{}"}).ok
    until = time.monotonic() + 120
    while "speedup" not in (told := ask(server, "GET", "/info/").json()["models"][MODEL]["runtime"]):
        assert time.monotonic() < until, told
        time.sleep(0.2)
    assert told["runtime"] in runtimes.names() and told["lowest_dice"] >= LEAST_DICE
    answer = ask(server, "POST", f"/infer/{MODEL}?image=phantom_001&output=json", data={"params": "{}"})
    assert answer.json()["runtime"] == told["runtime"]


@pytest.mark.parametrize(
    ("method", "route", "options", "status", "words"),
    [
        ("POST", "/infer/nope?image=phantom_000", {}, 404, "'nope' is not one of unet_phantom"),
        ("POST", f"/infer/{MODEL}?image=nope", {}, 404, "'nope'"),
        ("POST", f"/infer/{MODEL}?image=/etc/hostname", {}, 400, "hostname"),
        ("POST", f"/infer/{MODEL}?image=../phantom_000", {}, 400, "phantom_000"),
        ("POST", f"/infer/{MODEL}", {}, 400, "neither image"),
        ("POST", f"/infer/{MODEL}?session_id=nope", {}, 404, "session 'nope'"),
        ("POST", f"/infer/{MODEL}?image=phantom_000", {"data": {"params": "{"}}, 400, "params is not JSON"),
        ("POST", f"/infer/{MODEL}?image=phantom_000", {"data": {"params": "[1]"}}, 400, "must be a JSON object"),
        (
            "POST",
            f"/infer/{MODEL}?image=phantom_000",
            {"data": {"params": json.dumps({"image": "/etc/hostname"})}},
            400,
            "'image' is not one of",
        ),
        (
            "POST",
            f"/infer/{MODEL}?image=phantom_000",
            {"data": {"params": json.dumps({"device": "cuda:99"})}},
            400,
            "cuda:99",
        ),
        (
            "POST",
            f"/infer/{MODEL}?image=phantom_000",
            {"data": {"params": json.dumps({"device": "tpu"})}},
            400,
            "'tpu'",
        ),
        (
            "POST",
            f"/infer/{MODEL}?image=phantom_000",
            {"data": {"params": json.dumps({"result_extension": ".exe"})}},
            400,
            ".exe",
        ),
        (
            "POST",
            f"/infer/{MODEL}?image=phantom_000",
            {"data": {"params": json.dumps({"result_extension": ".nii.gz/../../x"})}},
            400,
            "/../../x",
        ),
        ("POST", f"/infer/{MODEL}", {"files": {"file": ("scan.nii.gz", b"garbage")}}, 415, "scan.nii.gz"),
        ("POST", f"/infer/{MODEL}", {"files": {"file": ("scan.mha", b"garbage")}}, 415, "scan.mha"),
        ("PUT", "/datastore/image?image=../evil", {"files": {"file": ("scan.nii.gz", b"x")}}, 400, "evil"),
        ("PUT", "/datastore/image?image=good", {"files": {"file": ("scan.nii.gz", b"x")}}, 415, "scan.nii.gz"),
        ("PUT", "/datastore/label?image=nope", {"files": {"label": ("label.nii.gz", b"x")}}, 404, "nope"),
        ("PUT", "/datastore/label?image=phantom_000", {"files": {"label": ("label.nii.gz", b"x")}}, 415, "label"),
        (
            "PUT",
            "/datastore/label?image=phantom_000&tag=../../escape",
            {"files": {"label": ("label.nii.gz", b"x")}},
            400,
            "escape",
        ),
        ("GET", "/datastore/image?image=nope", {}, 404, "nope"),
        ("PUT", "/datastore/image/info?image=phantom_001", {"data": {"info": '{"strategy": "x"}'}}, 400, "'strategy'"),
        ("PUT", "/datastore/image/info?image=phantom_001", {"data": {"info": "no"}}, 400, "info is not JSON"),
        ("PUT", "/datastore/label/info?label=phantom_001&tag=final", {"data": {"info": "[1]"}}, 400, "JSON object"),
        ("POST", "/activelearning/random", {"json": {"strategy": {"a": 1}}}, 400, "'strategy' is not one of client_id"),
        ("GET", "/datastore/label?label=phantom_000&tag=final", {}, 404, "phantom_000"),
        ("PUT", "/session/?uncompress=true", {"files": {"files": ("a.zip", b"x")}}, 400, "uncompress"),
        ("PUT", "/session/", {"files": {"files": ("a.zip", b"x")}}, 415, "a.zip"),
        ("GET", "/datastore/dataset", {}, 409, "no label was submitted"),
        ("POST", "/activelearning/nope", {"json": {}}, 404, "'nope' is not one of auto"),
        ("POST", "/train/nope", {"json": {}}, 404, "'nope' is not one of unet_phantom"),
        ("POST", f"/train/{MODEL}", {"json": {"train_ds": []}}, 400, "train_ds"),
        ("POST", f"/train/{MODEL}", {"json": {"epochs": -1}}, 400, "epochs -1"),
        ("POST", f"/train/{MODEL}", {"json": {}}, 409, "no label was submitted"),
        ("DELETE", "/train/", {}, 404, "no train task runs"),
        ("GET", "/train/", {}, 404, "No train task"),
    ],
)
def test_a_wrong_request_is_refused_in_words_and_changes_nothing(
    server, tmp_path_factory, method, route, options, status, words
):
    folder = tmp_path_factory.getbasetemp() / "routes0"
    before = files_of(folder)
    answer = ask(server, method, route, **options)
    assert answer.status_code == status, answer.text
    assert words in detail(answer)
    assert files_of(folder) == before
    assert ask(server, "GET", "/info/").ok


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("DELETE", f"/model/{MODEL}"),
        ("GET", "/proxy/dicom/x"),
        ("POST", "/reload"),
        ("GET", "/logs/"),
    ],
)
def test_what_is_not_served_is_not_there(server, method, route):
    assert ask(server, method, route).status_code in (404, 405)


def test_the_server_answers_while_it_segments(server):
    done = threading.Event()

    def segment() -> None:
        for _ in range(3):
            server.segment(MODEL, image="phantom_001")
        done.set()

    thread = threading.Thread(target=segment)
    thread.start()
    slowest = 0.0
    while not done.is_set():
        started = time.perf_counter()
        assert ask(server, "GET", "/info/").ok
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.02)
    thread.join()
    assert slowest < 2  # stock MONAI Label answers only when the inference has ended


def test_concurrent_requests_get_what_serial_ones_get(server):
    images = ["phantom_000", "phantom_001", "phantom_002", "phantom_000"]
    serial = [server.segment(MODEL, image=image) for image in images]
    with ThreadPoolExecutor(len(images)) as clients:
        parallel = list(clients.map(lambda image: server.segment(MODEL, image=image), images))
    assert [label.tobytes() for label in parallel] == [label.tobytes() for label in serial]
    assert len({label.tobytes() for label in serial}) == 3  # else an answer could be of another image


def test_an_image_kept_for_a_session_is_segmented(server, tmp_path_factory):
    image = tmp_path_factory.getbasetemp() / "routes0" / "studies" / "phantom_002.nii.gz"
    kept = ask(server, "PUT", "/session/", files={"files": (image.name, image.read_bytes())})
    assert kept.ok, kept.text
    session = kept.json()["session_id"]
    answer = ask(server, "POST", f"/infer/{MODEL}?session_id={session}&output=json", data={"params": "{}"})
    assert answer.ok, answer.text
    assert ask(server, "DELETE", f"/session/{session}").ok
    assert ask(server, "POST", f"/infer/{MODEL}?session_id={session}").status_code == 404


def test_an_uploaded_image_can_be_segmented_and_removed(server, tmp_path_factory):
    image = tmp_path_factory.getbasetemp() / "routes0" / "studies" / "phantom_002.nii.gz"
    added = ask(server, "PUT", "/datastore/image?image=new", files={"file": (image.name, image.read_bytes())})
    assert added.json() == {"image": "new"}
    np.testing.assert_array_equal(server.segment(MODEL, image="new"), server.segment(MODEL, image="phantom_002"))
    assert ask(server, "DELETE", "/datastore/image?id=new").ok
    assert ask(server, "POST", f"/infer/{MODEL}?image=new").status_code == 404


def test_a_label_on_another_grid_is_refused_and_the_old_one_stays(server, truths):
    server.submit("phantom_000", truths["phantom_000"], LABELS)
    kept = ask(server, "GET", "/datastore/label?label=phantom_000&tag=final").content
    wrong = ask(
        server,
        "PUT",
        "/datastore/label?image=phantom_000",
        files={"label": ("mine.nii.gz", truths["phantom_001"].read_bytes())},
    )
    assert wrong.status_code == 400
    assert "mine.nii.gz" in detail(wrong)
    assert ask(server, "GET", "/datastore/label?label=phantom_000&tag=final").content == kept
    assert ask(server, "DELETE", "/datastore/label?id=phantom_000&tag=final").ok


def test_next_sample_hands_out_each_case_once_and_then_none(server, truths):
    def handed_out(client: str) -> str:
        return ask(server, "POST", "/activelearning/random", json={"client_id": client}).json()["id"]

    with ThreadPoolExecutor(len(truths)) as clients:  # all at once
        assert sorted(clients.map(handed_out, ["ann", "bob"] * (len(truths) // 2))) == sorted(truths)
    for image, label in truths.items():
        server.submit(image, label, LABELS)
    assert ask(server, "POST", "/activelearning/random", json={}).json() == {}
    for image in truths:
        ask(server, "DELETE", f"/datastore/label?id={image}&tag=final")


def test_no_page_of_the_server_loads_anything_from_elsewhere(server):
    assert ask(server, "GET", "/").json()["name"] == "LabelRounds"
    assert ask(server, "GET", "/docs").status_code == 404
    routes = ask(server, "GET", "/openapi.json").json()["paths"]
    assert {"/info/", "/infer/{model}", "/train/{model}", "/datastore/label"} <= set(routes)


def test_an_image_is_checked_by_its_checksum(server, tmp_path_factory):
    image = tmp_path_factory.getbasetemp() / "routes0" / "studies" / "phantom_001.nii.gz"
    right = hashlib.sha256(image.read_bytes()).hexdigest()
    for check_sum, status in (("", 200), (f"SHA256:{right}", 200), (right, 200), ("0" * 64, 404), ("foo:bar", 400)):
        answer = ask(server, "HEAD", f"/datastore/image?image=phantom_001&check_sum={check_sum}")
        assert answer.status_code == status, check_sum


def test_notes_about_an_image_are_kept(server):
    assert ask(server, "PUT", "/datastore/image/info?image=phantom_001", data={"info": '{"site": "A"}'}).ok
    assert ask(server, "GET", "/datastore/image/info?image=phantom_001").json()["site"] == "A"


def test_the_labelled_cases_can_be_downloaded(server, truths):
    server.submit("phantom_000", truths["phantom_000"], LABELS)
    answer = ask(server, "GET", "/datastore/dataset")
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert sorted(names) == ["image/phantom_000.nii.gz", "label/phantom_000.nii.gz", "metadata.json"]
    assert ask(server, "DELETE", "/datastore/label?id=phantom_000&tag=final").ok


@pytest.mark.parametrize("name", [".nii.gz", "..nii.gz", "a b;ä.nii.gz", "x" * 300 + ".nii.gz"])
def test_a_session_survives_odd_file_names(server, tmp_path_factory, name):
    image = tmp_path_factory.getbasetemp() / "routes0" / "studies" / "phantom_002.nii.gz"
    kept = ask(server, "PUT", "/session/", files={"files": (name, image.read_bytes())})
    assert kept.status_code in (200, 415), kept.text
    if kept.ok:
        session = kept.json()["session_id"]
        assert ask(server, "POST", f"/infer/{MODEL}?session_id={session}&output=json").ok
        assert ask(server, "DELETE", f"/session/{session}").ok
