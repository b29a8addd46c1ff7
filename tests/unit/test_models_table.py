"""`labelrounds models` tells what runs each version on this machine, how fast and how alike."""

import io

import pytest
import torch
from rich.console import Console

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import folders, runtime_measurement
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import load_configs
from labelrounds.runtime_measurement import Figures, Measurement, settings_of, write_measurement
from labelrounds.starting import models_table

CPU = torch.device("cpu")
MODEL = "unet_phantom"


@pytest.fixture
def own(tmp_path):
    """A folder with a copy of a shipped model's file, with a runtime of one's choice."""

    def make(runtime: str = "auto"):
        text = (folders.shipped_configs() / f"{MODEL}.yaml").read_text()
        assert "inference: {" in text
        (tmp_path / f"{MODEL}.yaml").write_text(text.replace("inference: {", f"inference: {{runtime: {runtime}, "))
        return tmp_path

    return make


def shown(configs) -> str:
    """Return the table's row of the model."""
    console = Console(file=io.StringIO(), width=300)
    console.print(models_table(configs))
    return next(line for line in console.file.getvalue().splitlines() if MODEL in line)


def test_a_version_shows_its_runtime_once_it_was_measured_and_a_forced_one(own, monkeypatch):
    monkeypatch.setattr(runtime_measurement, "available", lambda config, device: ["bfloat16", "eager"])
    assert "not measured" in shown(own())
    config = load_configs([own()])[MODEL]
    figures = {
        "eager": Figures(milliseconds=9, speedup=1.0, dice={"liver": 1.0}),
        "bfloat16": Figures(milliseconds=2, speedup=4.5, dice={"liver": 0.99912, "spleen": None}),
    }
    measured = Measurement(chosen="bfloat16", measured="", settings=settings_of(config), runtimes=figures, failed={})
    checkpoints = Checkpoints(config)
    write_measurement(checkpoints.runtimes_folder(checkpoints.current()), CPU, measured)
    assert "bfloat16, x4.5, Dice 0.9991" in shown(own())
    assert "eager, x1.0, Dice 1.0000" in shown(own("eager"))
    assert "as compiled can't be used: it is for CUDA devices alone" in shown(own("compiled"))
