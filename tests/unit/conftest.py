"""Every unit test has a home of its own and computes on one thread: two would wait for each other on shared cores."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import monai  # noqa: F401 - whole, before labelrounds.host: some tests compare with parts that it leaves out
import numpy as np
import pytest
import torch
from playground import Playground
from tests.conftest import MEASURE
from training_runs import NAMES, Recorder, labelled

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import folders, runtime_measurement
from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import ModelConfig
from labelrounds.networks import build_network
from labelrounds.runtimes import runtimes
from labelrounds.settings import server_settings
from labelrounds.store import LabelledCase


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what the package writes, empty at the start of each test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LABELROUNDS_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test the settings of a server, without those of the tests' servers."""
    monkeypatch.delenv(MEASURE, raising=False)
    server_settings.cache_clear()
    yield
    server_settings.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _instant_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no runtime that takes seconds to build, as a training of milliseconds would; `test_runtimes.py` does."""
    names = runtime_measurement.available
    monkeypatch.setattr(
        runtime_measurement, "available", lambda *of: [name for name in names(*of) if runtimes.get(name).instant]
    )


@pytest.fixture
def make_config():
    """Make a small model; keyword arguments replace or add keys."""

    def make(**changes) -> ModelConfig:
        content = {
            "name": "tiny",
            "description": "two blobs",
            "labels": ["near", "far"],
            "intensity": {"kind": "window", "low": -1, "high": 1},
            "network": {"name": "unet", "channels": [4, 6, 8]},
            "patch_size": [16, 16, 16],
            "inference": {"overlap": 0.25},
            "training": {"epochs": 2, "iterations_per_epoch": 2, "batch_size": 2, "learning_rate": 1e-2},
        }
        return ModelConfig.model_validate_json(json.dumps({**content, **changes}))

    return make


@pytest.fixture
def make_small(make_config):
    """Make a model of the smallest patches that its networks take."""
    return lambda **changes: make_config(**{"patch_size": [8, 8, 8], **changes})


@pytest.fixture
def make_case():
    """Make a prepared case: two bright boxes, of different brightness and at different places, in noise."""

    def make(seed: int, config: ModelConfig, shape=(20, 18, 16)) -> PreparedCase:
        rng = np.random.default_rng(seed)
        label = np.zeros(shape, np.uint8)
        for value in (1, 2):
            start = [int(rng.integers(1, max(2, side - 7))) for side in shape]
            label[tuple(slice(at, at + 6) for at in start)] = value
        image = np.array([-0.6, 0.2, 0.8], np.float32)[label] + rng.normal(0, 0.05, shape).astype(np.float32)
        voxels = torch.from_numpy(label)
        return PreparedCase(
            image_id=f"case_{seed}",
            patient=f"patient_{seed}",
            image=torch.from_numpy(image)[None].expand(config.channels, *shape).contiguous(),
            label=voxels,
            spacing_mm=(1.0, 1.0, 1.0),
            foreground=tuple(found for value in (1, 2) if len(found := torch.nonzero(voxels == value))),
            key=f"key_{seed}",
        )

    return make


@pytest.fixture
def cases(make_small, make_case) -> list[PreparedCase]:
    """Make three cases for a small model."""
    config = make_small()
    return [make_case(seed, config) for seed in range(3)]


@pytest.fixture
def config(make_small) -> ModelConfig:
    """Make a model that is trained within a second."""
    return make_small(training={"epochs": 3, "iterations_per_epoch": 2, "learning_rate": 1e-2})


@pytest.fixture
def studies(tmp_path: Path) -> list[LabelledCase]:
    """Ten labelled cases, of which two validate: two boxes, of different brightness, at different places."""
    return [labelled(tmp_path, name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Note what each training is given."""
    return Recorder(monkeypatch)


@pytest.fixture
def playground(config, tmp_path) -> Iterator[Playground]:
    """An app without images yet, and its rounds."""
    made = Playground(config, tmp_path)
    yield made
    made.close()


@pytest.fixture
def ship(config, tmp_path, monkeypatch):
    """Ship a version of which the card names the cases that it has learnt from."""

    def ship(learnt: list[str]) -> None:
        version = Checkpoints(config).publish(build_network(config), {})
        (tmp_path / "weights").mkdir()
        shutil.move(version.weights, tmp_path / "weights" / "tiny.safetensors")
        shutil.rmtree(Checkpoints(config).folder)
        card = {"labels": ["near", "far"], "cases": {"train": learnt, "validation": [], "test": []}}
        (tmp_path / "weights" / "tiny.json").write_text(json.dumps(card))
        monkeypatch.setattr(folders, "shipped_weights", lambda: tmp_path / "weights")

    return ship
