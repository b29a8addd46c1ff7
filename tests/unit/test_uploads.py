"""Uploaded weights are looked at before anything of them is used; what does not fit changes nothing."""

import io
import json
import pickle
import zipfile
from types import SimpleNamespace

import pytest
import torch
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from safetensors.torch import save

from labelrounds import model_routes
from labelrounds.access import EVERYBODY, Admin, Caller
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Busy, Conflict, NotFound, OutOfSpace, UnsupportedMedia
from labelrounds.networks import build_network
from labelrounds.uploads import publish_upload


@pytest.fixture
def checkpoints(config) -> Checkpoints:
    found = Checkpoints(config)
    found.publish(build_network(config), {})
    return found


def tensors_of(config, seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(build_network(config).state_dict())


def upload(checkpoints, content: bytes, serve: bool = True):
    return publish_upload(checkpoints, io.BytesIO(content), "new.safetensors", "ada", serve)[0]


def unchanged(checkpoints) -> bool:
    hidden = [path.name for path in checkpoints.folder.iterdir() if path.name.startswith(".")]
    return [version.number for version in checkpoints.versions()] == [1] and not hidden


def test_what_was_uploaded_is_served_and_the_record_says_by_whom(checkpoints, config):
    tensors = tensors_of(config)
    version = upload(checkpoints, save(tensors))
    assert (version.number, version.record["uploaded_by"]) == (2, "ada") and checkpoints.served_number() == 2
    network = build_network(config)
    checkpoints.load(version, network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in tensors.items())


def test_weights_in_half_precision_as_they_are_shipped_are_taken_as_they_are(checkpoints, config):
    half = {key: value.half() if value.is_floating_point() else value for key, value in tensors_of(config).items()}
    network = build_network(config)
    checkpoints.load(upload(checkpoints, save(half)), network)
    found = network.state_dict()
    assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in half.items())


def test_an_upload_may_wait_to_be_served(checkpoints, config):
    assert upload(checkpoints, save(tensors_of(config)), serve=False).number == 2
    assert checkpoints.served_number() == 1


class Canary:
    def __init__(self, file) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def pickles(file) -> dict[str, bytes]:
    """The ways in which code comes as weights, each of which would make a file."""
    plain, archive = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Canary(file)}, archive)
    torch.save({"weights": Canary(file)}, plain, _use_new_zipfile_serialization=False)
    header = json.dumps({"__metadata__": {}}).encode()
    hidden = len(header).to_bytes(8, "little") + header + pickle.dumps(Canary(file))
    return {"pickle": pickle.dumps(Canary(file)), "zip": archive.getvalue(), "old": plain.getvalue(), "behind": hidden}


@pytest.mark.parametrize("kind", ["pickle", "zip", "old", "behind"])
def test_a_pickle_is_refused_and_its_code_never_run(checkpoints, tmp_path, kind):
    content = pickles(tmp_path / "canary")[kind]
    pickle.loads(pickles(tmp_path / "alive")["pickle"])  # the canary does sing
    assert (tmp_path / "alive").exists()
    with pytest.raises((UnsupportedMedia, BadInput), match="safetensors"):
        upload(checkpoints, content)
    assert not (tmp_path / "canary").exists() and unchanged(checkpoints)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(9), b"\xff" * 99, b"PK\x03\x04" + bytes(99)])
def test_what_is_no_safetensors_is_refused_by_its_first_bytes(checkpoints, content):
    with pytest.raises(UnsupportedMedia, match="safetensors"):
        upload(checkpoints, content)
    assert unchanged(checkpoints)


def changed(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    first = sorted(tensors)[0]
    if how == "missing":
        return {key: value for key, value in tensors.items() if key != first}
    if how == "unknown":
        return {**tensors, "zzz": torch.zeros(1)}
    if how == "shape":
        return {**tensors, first: torch.zeros(*tensors[first].shape, 2)}
    if how == "type":
        return {**tensors, first: tensors[first].to(torch.int32)}
    return {**tensors, first: torch.full_like(tensors[first], float(how))}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "is missing"),
        ("unknown", "zzz is unknown"),
        ("shape", r"has shape \(.*, 2\), expected"),
        ("type", r"has type int32, expected float32"),
        ("nan", "not finite"),
        ("inf", "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(checkpoints, config, how, told):
    with pytest.raises(BadInput, match=told):
        upload(checkpoints, save(changed(tensors_of(config), how)))
    assert unchanged(checkpoints)


def test_weights_of_another_network_are_refused_with_the_first_three_differences(checkpoints, make_small):
    other = make_small(network={"name": "unet", "channels": [8, 12, 16]})
    with pytest.raises(BadInput, match=r"does not fit the configured network: (.*; ){2}.* and \d+ more"):
        upload(checkpoints, save(tensors_of(other)))
    assert unchanged(checkpoints)


def test_a_cut_file_is_refused_wherever_it_is_cut(checkpoints, config):
    content = save(tensors_of(config))
    for percent in range(0, 100, 7):
        with pytest.raises((BadInput, UnsupportedMedia)):
            upload(checkpoints, content[: len(content) * percent // 100])
    assert unchanged(checkpoints)


def test_a_full_disk_leaves_what_is_served(checkpoints, config, monkeypatch):
    def full(*of, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelrounds.checkpoints.save_file", full)
    with pytest.raises(OutOfSpace):
        upload(checkpoints, save(tensors_of(config)))
    assert unchanged(checkpoints)


def test_an_upload_does_not_wait_for_ever_behind_a_training_that_publishes(checkpoints, config, monkeypatch):
    monkeypatch.setattr("labelrounds.uploads._PATIENCE_S", 0.1)

    def complete(folder):
        with pytest.raises(Busy, match="is being published"):
            upload(checkpoints, save(tensors_of(config)))
        return {}

    assert checkpoints.publish(build_network(config), {}, complete=complete).number == 2


def test_a_removed_version_is_gone_and_its_number_not_given_again(checkpoints, config):
    checkpoints.publish(build_network(config), {})
    with pytest.raises(Conflict, match="version 2 of tiny is served"):
        checkpoints.remove(2, "ada")
    checkpoints.rollback()
    checkpoints.remove(2, "ada")
    assert [path.name for path in (checkpoints.folder / "versions" / "0002").iterdir()] == ["removed.json"]
    with pytest.raises(NotFound, match="has no version 2"):
        checkpoints.remove(2, "ada")
    with pytest.raises(NotFound):
        checkpoints.rollback(2)
    assert checkpoints.publish(build_network(config), {}).number == 3


def test_every_change_of_a_model_is_an_administrators(checkpoints, tmp_path, monkeypatch):
    """Reliability 13: an annotator gets 403."""

    app = SimpleNamespace(configs={"tiny": checkpoints.config})
    monkeypatch.setattr(model_routes, "app_instance", lambda: app)
    application = FastAPI()
    application.include_router(model_routes.models)

    def not_an_administrator():
        raise HTTPException(403, "Role admin is needed")

    application.dependency_overrides[Admin.__metadata__[0].dependency] = not_an_administrator
    application.dependency_overrides[Caller.__metadata__[0].dependency] = lambda: EVERYBODY
    client = TestClient(application)
    file = {"file": ("w.safetensors", save(tensors_of(checkpoints.config)))}
    assert client.put("/model/tiny", files=file).status_code == 403
    assert client.delete("/model/tiny/versions/1").status_code == 403
    assert client.post("/model/tiny/rollback", json={}).status_code == 403
    assert client.get("/model/tiny").status_code == 403
    assert client.get("/model/tiny/versions").json()["served"] == 1
    assert unchanged(checkpoints)
    assert len([route for route in model_routes.models.routes if route.methods != {"GET"}]) == 3


def test_an_archive_that_looks_like_safetensors_is_none(checkpoints):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weights.safetensors", b"x")
    with pytest.raises(UnsupportedMedia, match="a pickle"):
        upload(checkpoints, archive.getvalue())
