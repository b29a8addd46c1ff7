"""Versions of a model over HTTP, on a real server: what must not come in, and what changes while it answers."""

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

from labelrounds.checkpoints import read_json
from labelrounds.client import Client, running_server
from labelrounds.config import load_configs
from labelrounds.folders import shipped_configs
from labelrounds.networks import build_network
from tests.api.conftest import MODEL

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


def publish_while_it_answers(versions: Versions, count: int) -> None:
    """Publish versions one after the other while three clients ask; compare with what each then answers alone."""
    first, seen, ended = versions.served, [], threading.Event()

    def ask() -> None:
        while not ended.is_set():
            seen.append(versions.answer())

    threads = [threading.Thread(target=ask) for _ in range(3)]
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
    assert all(label == alone[number] for number, label in seen)
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
