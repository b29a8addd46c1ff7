"""What an administrator answers for, on a real server: which models are served, and that no name gets out."""

import gzip
import json
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import torch
import yaml
from safetensors.torch import save

from labelrounds.client import Client
from labelrounds.config import load_configs
from labelrounds.folders import shipped_configs
from labelrounds.json_files import read_json
from labelrounds.networks import build_network
from labelrounds.phantoms import LABELS
from labelrounds.privacy.profile import table
from tests.api.conftest import MODEL
from tests.forked import running_server
from tests.identified import CANARY, write_identified

NAME = "small"


class Versions:
    """A model on a server whose versions are drawn by their number, and so all known."""

    def __init__(self, client: Client, home: Path, configs: Path) -> None:
        self.client, self.folder = client, home / "models" / NAME
        self.config = load_configs([configs], [NAME])[NAME]

    def weights(self, seed: int, **changes: torch.Tensor) -> bytes:
        torch.manual_seed(seed)
        return save({**build_network(self.config).state_dict(), **changes})

    def put(self, content: bytes, name: str = "weights.safetensors") -> requests.Response:
        return requests.put(f"{self.client.address}/model/{NAME}", files={"file": (name, content)}, timeout=60)

    def roll_back(self, **to: int) -> requests.Response:
        return requests.post(f"{self.client.address}/model/{NAME}/rollback", json=to, timeout=60)

    def answer(self) -> tuple[int, bytes]:
        """Return which version has answered, and its label map as it was sent."""
        route = f"/infer/{NAME}?image=noise&output=all"
        sent = self.client.call("POST", route, data={"params": json.dumps({"device": "cpu"})})
        head = f"Content-Type: {sent.headers['Content-Type']}\r\n\r\n".encode()
        parts = [part.get_payload(decode=True) for part in message_from_bytes(head + sent.content).get_payload()]
        return json.loads(parts[0])["version"], parts[1]

    @property
    def served(self) -> int:
        return self.client.call("GET", f"/model/{NAME}/versions").json()["served"]


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> Iterator[Versions]:
    """A server with one version that keeps no answers; no runtime is chosen, as another one rounds otherwise."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "studies").mkdir()
    voxels = np.random.default_rng(0).normal(0, 100, (24, 24, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4, 5, 1])), folder / "studies" / "noise.nii.gz")
    content = yaml.safe_load((shipped_configs() / f"{MODEL}.yaml").read_text())
    content |= {"network": {"name": "unet", "channels": [4, 8, 16]}, "inference": {"runtime": "eager"}}
    content["patch_size"] = [24, 24, 12]
    (folder / "configs").mkdir()
    (folder / "configs" / f"{NAME}.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_MEMORY_GB", "0")
        with running_server(folder / "studies", folder / "home", 0, [NAME], folder / "configs") as client:
            made = Versions(client, folder / "home", folder / "configs")
            assert made.put(made.weights(0)).json()["version"] == 1
            yield made


def test_code_never_comes_in_as_weights(versions, tmp_path):
    """Reliability 13: by PUT and on disk; that an annotator gets 403 stands in tests/unit/test_uploads.py."""

    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    before, code = versions.answer(), pickle.dumps(Canary())
    for name in ("weights.safetensors", "weights.pt", "weights.pkl"):
        refused = versions.put(code, name)
        assert refused.status_code == 415 and "safetensors" in refused.json()["detail"]
    planted = versions.folder / "versions" / "0077"
    shutil.copytree(versions.folder / "versions" / f"{before[0]:04d}", planted)
    (planted / "weights.safetensors").write_bytes(code)
    (versions.folder / "weights.pt").write_bytes(code)
    refused = versions.roll_back(to=77)
    assert refused.status_code == 400 and "cannot be read" in refused.json()["detail"]
    assert not (tmp_path / "canary").exists()
    assert versions.answer() == before
    shutil.rmtree(planted)


def test_weights_that_do_not_fit_are_named_and_the_old_ones_serve(versions):
    """Reliability 14."""
    before, whole = versions.answer(), versions.weights(1)
    wrong_channels = {"network": {"name": "unet", "channels": [4, 8, 32]}}
    other = versions.config.model_copy(update={"network": type(versions.config.network)(**wrong_channels["network"])})
    refused = {
        "expected": save(dict(build_network(other).state_dict())),
        "is missing": save(dict(list(build_network(versions.config).state_dict().items())[2:])),
        "cut": whole[: len(whole) // 2],
    }
    for told, content in refused.items():
        answer = versions.put(content)
        assert answer.status_code == 400 and told in answer.json()["detail"], answer.text
        assert answer.json()["detail"].count(";") <= 2
    assert versions.answer() == before


def differing(one: bytes, other: bytes) -> int:
    """Return how many bytes of two label maps as NRRD differ; -1 where they have not as many."""
    raw = [np.frombuffer(gzip.decompress(file.split(b"\n\n", 1)[1]), np.uint8) for file in (one, other)]
    return int(np.count_nonzero(raw[0] != raw[1])) if len(raw[0]) == len(raw[1]) else -1


def publish_while_it_answers(versions: Versions, count: int) -> None:
    """Publish versions one after the other while two clients ask; compare with what each then answers alone."""
    first, seen, ended = versions.served, [], threading.Event()

    def ask() -> None:
        while not ended.is_set():
            seen.append(versions.answer())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for seed in range(count):
        answered = len(seen)
        last = versions.put(versions.weights(1000 + seed)).json()["version"]
        while len(seen) == answered and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)  # an answer for each publication, whichever version it is of
    ended.set()
    for thread in threads:
        thread.join()
    assert versions.answer()[0] == last
    alone = {}
    for number in [first, *range(last - count + 1, last + 1)]:
        if versions.served != number:
            assert versions.roll_back(to=number).ok
        answered, alone[number] = versions.answer()
        assert answered == number
    assert len(set(alone.values())) == len(alone)  # else an answer could be of two versions
    assert len({number for number, _ in seen}) >= count // 4
    odd = [(number, differing(label, alone[number])) for number, label in seen if label != alone[number]]
    assert not odd, f"of {len(seen)} answers these are not their version's, by so many bytes unpacked: {odd}"
    versions.roll_back(to=first)
    rolled = versions.roll_back(to=last)
    assert rolled.json() == {"model": NAME, "served": last, "instead_of": first}
    assert versions.answer() == (last, alone[last])
    before = read_json(versions.folder / "versions" / f"{last:04d}" / "version.json")["served_before"]
    assert versions.roll_back().json()["served"] == before and versions.answer() == (before, alone[before])


def test_each_answer_is_one_versions_while_versions_are_published(versions):
    """Reliability 15, with 20 publications; the next test has 200."""
    publish_while_it_answers(versions, 20)


@pytest.mark.slow
def test_each_of_many_answers_is_one_versions(versions):
    """Reliability 15, whole."""
    publish_while_it_answers(versions, 200)


def test_versions_are_listed_fetched_and_removed(versions):
    listed = versions.client.call("GET", f"/model/{NAME}/versions").json()
    assert listed["versions"][0]["uploaded_by"] and "cases" not in listed["versions"][0]
    assert listed["measure"] == "Dice" and listed["versions"][0]["by_label"] == {}
    info = versions.client.call("GET", f"/model/info/{NAME}").json()
    fetched = versions.client.call("GET", f"/model/{NAME}")
    assert info["checksum"].startswith("SHA256:") and info["version"] == listed["served"]
    number = versions.put(fetched.content).json()["version"]  # what was fetched can be brought again
    address = f"{versions.client.address}/model/{NAME}/versions/{number}"
    served = requests.delete(address, timeout=60)
    assert served.status_code == 409 and "is served" in served.json()["detail"]
    versions.roll_back()
    assert requests.delete(address, timeout=60).json() == {"model": NAME, "removed": number}
    assert requests.delete(address, timeout=60).status_code == 404
    assert versions.put(fetched.content).json()["version"] == number + 1


@pytest.mark.parametrize(
    ("method", "route", "body", "status"),
    [
        ("GET", "/model/none/versions", None, 404),
        ("GET", "/model/..%2f..%2fx/versions", None, 404),
        ("POST", f"/model/{NAME}/rollback", {"to": -1}, 400),
        ("POST", f"/model/{NAME}/rollback", {"to": "1"}, 400),
        ("POST", f"/model/{NAME}/rollback", {"version": 1}, 400),
        ("POST", f"/model/{NAME}/rollback", {"to": 999}, 404),
        ("DELETE", f"/model/{NAME}/versions/999", None, 404),
        ("DELETE", f"/model/{NAME}/versions/-1", None, 404),
        ("DELETE", f"/model/{NAME}/versions/1e9", None, 422),
        ("PUT", f"/model/{NAME}", None, 422),
        ("DELETE", f"/model/{NAME}", None, 405),
    ],
)
def test_a_wrong_request_for_a_model_is_refused_in_words(versions, method, route, body, status):
    answer = requests.request(method, versions.client.address + route, json=body, timeout=60)
    assert answer.status_code == status and answer.json()["detail"], answer.text


class Talk:
    """A client that keeps all that it was told."""

    def __init__(self, client: Client) -> None:
        self.address, self.answers = client.address, []

    def __call__(self, method: str, route: str, **options) -> requests.Response:
        answer = requests.request(method, self.address + route, timeout=120, **options)
        self.answers.append(f"{method} {route}: {answer.status_code} {dict(answer.headers)}".encode() + answer.content)
        return answer


def naming(folder: Path) -> list[str]:
    """Return the files of a folder that hold the canary, or have it in their names."""
    canary = CANARY.encode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.name for path in files if canary in path.read_bytes() or CANARY in str(path))


@pytest.mark.parametrize("names", [("a.dcm", "a.dcm"), ("\u00e4.dcm", "\u00f6.dcm"), ("...", "..")])
def test_no_file_of_a_session_takes_the_place_of_another(versions, tmp_path, names):
    scans = [write_identified(tmp_path / f"{n}.dcm", index=n, SeriesInstanceUID=f"1.2.3.{n}") for n in (1, 2)]
    talk = Talk(versions.client)
    sent = [("files", (name, scan.read_bytes())) for name, scan in zip(names, scans, strict=True)]
    session = talk("PUT", "/session/", files=sent).json()["session_id"]
    assert "2 series" in talk("POST", f"/infer/{NAME}?session_id={session}&output=json").json()["detail"]
    assert talk("DELETE", f"/session/{session}").ok


def test_no_log_index_answer_or_file_holds_what_the_header_says_of_the_patient(versions, tmp_path):
    scan = write_identified(tmp_path / "scan.dcm", list(table()))
    other = write_identified(tmp_path / "other.dcm", index=1, SeriesInstanceUID="1.2.3.9")
    talk = Talk(versions.client)
    assert talk("PUT", "/datastore/image?image=scan", files={"file": ("scan.dcm", scan.read_bytes())}).ok
    infer = f"/infer/{NAME}?image=scan&output=image"
    label = talk("POST", infer, data={"params": json.dumps({"result_extension": ".nrrd"})})
    assert label.ok
    files = {"label": ("label.nrrd", label.content)}
    told = {"label_info": [{"name": name} for name in LABELS]}
    assert talk("PUT", "/datastore/label?image=scan", files=files, data={"params": json.dumps(told)}).ok
    session = talk("PUT", "/session/", files={"files": ("scan.dcm", scan.read_bytes())}).json()["session_id"]
    assert talk("POST", f"/infer/{NAME}?session_id={session}&output=json").ok
    assert talk("DELETE", f"/session/{session}").ok
    mixed = [("files", (path.name, path.read_bytes())) for path in (scan, other)]
    session = talk("PUT", "/session/", files=mixed).json()["session_id"]
    assert "2 series" in talk("POST", f"/infer/{NAME}?session_id={session}&output=json").json()["detail"]
    assert talk("DELETE", f"/session/{session}").ok
    for at in range(200, scan.stat().st_size, scan.stat().st_size // 12):
        cut = {"file": ("cut.dcm", scan.read_bytes()[:at])}
        assert talk("POST", f"/infer/{NAME}?output=json", files=cut).status_code in (400, 413, 415)
    assert talk("POST", f"/train/{NAME}", json={"epochs": -1}).status_code == 400
    for route in ("/datastore/", "/datastore/?output=all", "/datastore/?output=train", "/info/", "/rounds/"):
        assert talk("GET", route).ok, route
    for route in ("/datastore/image/info?image=scan", "/datastore/label/info?label=scan&tag=final", "/train/"):
        talk("GET", route)
    assert talk("POST", "/activelearning/random", json={}).ok
    assert [answer for answer in talk.answers if CANARY.encode() in answer] == []
    assert naming(versions.folder.parents[2]) == ["scan.dcm"]  # studies and home


@pytest.mark.slow
def test_a_server_that_refuses_names_says_which_attribute_on_every_way_in(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_REFUSE_IDENTIFIED", "true")
    studies = tmp_path / "studies"
    write_identified(studies / "there.dcm")
    sent = ("scan.dcm", write_identified(tmp_path / "scan.dcm").read_bytes())
    clean = ("scan.dcm", write_identified(tmp_path / "clean.dcm", PatientIdentityRemoved="YES").read_bytes())
    with running_server(studies, tmp_path / "home", 0, [MODEL]) as client:
        talk = Talk(client)
        ways = [("PUT", "/datastore/image?image=x", "file"), ("PUT", "/session/", "files")]
        ways.append(("POST", f"/infer/{MODEL}?output=json", "file"))
        for method, route, field in ways:
            answer = talk(method, route, files={field: sent})
            assert answer.status_code == 400 and "PatientName is filled" in answer.json()["detail"]
            assert talk(method, route, files={field: clean}).ok
        assert list(talk("GET", "/datastore/?output=all").json()["objects"]) == ["x"]
        assert talk("POST", f"/infer/{MODEL}?image=there&output=json").status_code == 404
        log, deadline = tmp_path / "home" / "server.log", time.monotonic() + 60
        while "left out: there.dcm: PatientName is filled" not in log.read_text():
            assert time.monotonic() < deadline, "a file is looked at when it has been at rest"
            time.sleep(0.5)
    assert [answer for answer in talk.answers if CANARY.encode() in answer] == []
