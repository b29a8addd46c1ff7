"""A benchmark goes on with a stopped run only if it is the same model, code and data."""

import argparse
from pathlib import Path

import pytest
import torch

from labelrounds.config import ModelConfig
from tests.benchmarks import machine, membrane, nnunet, peers


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    (folder / "networks").mkdir(parents=True)
    for name in ("losses.py", "networks/unet.py", "notes.txt"):
        (folder / name).write_text("1")
    return folder


@pytest.mark.parametrize("name", ["losses.py", "networks/unet.py"])
def test_the_code_is_that_of_all_modules(package, name):
    before = machine.code(package)
    assert machine.code(package) == before
    (package / name).write_text("2")
    changed = machine.code(package)
    (package / name).rename(package / "moved.py")
    assert len({before, changed, machine.code(package)}) == 3


def test_what_is_no_module_is_no_code(package):
    before = machine.code(package)
    (package / "notes.txt").write_text("2")
    assert machine.code(package) == before


def changed(**changes) -> ModelConfig:
    return peers.load_model("unet_hippocampus").model_copy(update=changes)


def of_nnunet(config: ModelConfig) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "load_model", lambda name: config)
        wanted = argparse.Namespace(model=config.name, device="cpu", threads=2, seed=0)
        return nnunet.fingerprint(wanted, ["a"], ["b"], [60.0])


def of_membrane(config: ModelConfig) -> str:
    return membrane.fingerprint(config, [["a"], ["b"]], torch.device("cpu"))


@pytest.mark.parametrize("of", [of_nnunet, of_membrane])
def test_another_configuration_or_code_is_another_run(of, monkeypatch):
    before = of(changed())
    assert of(changed()) == before
    assert of(changed(mirror=())) != before
    monkeypatch.setattr(machine, "code", lambda: "other")
    assert of(changed()) != before


def test_another_nnunet_is_another_run(monkeypatch):
    before = of_nnunet(changed())
    monkeypatch.setattr(nnunet, "PACKAGE", "nnunetv2==0")
    assert of_nnunet(changed()) != before


def test_results_are_gathered_only_with_those_of_the_same_cases_and_settings(tmp_path):
    result, about = tmp_path / "nnunet.json", {"seed": 0, "threads": 1, "cases": {"training": ["a"]}}
    assert nnunet.earlier(result, about) == {**about, "runs": []}
    nnunet.write({**about, "runs": [{"side": "ours"}]}, result)
    assert nnunet.earlier(result, about)["runs"] == [{"side": "ours"}]
    assert nnunet.earlier(result, {**about, "threads": 2})["runs"] == []
