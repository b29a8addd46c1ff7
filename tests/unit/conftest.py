"""Every unit test has a home of its own and computes on one thread: two would wait for each other on shared cores."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what the package writes, empty at the start of each test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LABELROUNDS_HOME", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
