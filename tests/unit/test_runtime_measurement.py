"""What was measured of a version's runtimes is kept once a machine, and holds for the same settings and runtimes."""

import json

import pytest
import torch

from labelrounds import json_files, runtime_measurement
from labelrounds.errors import OutOfSpace
from labelrounds.runtime_measurement import (
    Figures,
    Measurement,
    machine,
    read_measurement,
    settings_of,
    write_measurement,
)
from labelrounds.runtimes import runtimes
from labelrounds.runtimes.pytorch import Eager

CPU = torch.device("cpu")


@pytest.fixture
def offer(monkeypatch):
    """Put other runtimes into the registry than the package's."""

    def put(*names: str) -> None:
        runtimes.names()
        monkeypatch.setattr(runtimes, "_members", dict.fromkeys(("eager", *names), Eager))

    return put


@pytest.fixture
def measured(config, offer) -> Measurement:
    offer("quick")
    figures = {
        "eager": Figures(milliseconds=4.0, speedup=1.0, dice={"near": 1.0, "far": None}),
        "quick": Figures(milliseconds=1.0, speedup=4.0, dice={"near": 0.999, "far": None}),
    }
    return Measurement(
        chosen="quick", measured="2026-01-01T00:00:00+00:00", settings=settings_of(config), runtimes=figures, failed={}
    )


def test_what_was_measured_is_read_again(tmp_path, config, measured):
    folder = tmp_path / "shipped" / "0"
    assert read_measurement(folder, config, CPU) is None
    write_measurement(folder, CPU, measured)
    assert read_measurement(folder, config, CPU) == measured


def test_another_machines_entry_is_kept_and_not_taken_for_ones_own(tmp_path, config, measured, monkeypatch):
    monkeypatch.setattr(runtime_measurement, "_processor", lambda: "another processor")
    write_measurement(tmp_path, CPU, measured)
    monkeypatch.undo()
    assert read_measurement(tmp_path, config, CPU) is None
    write_measurement(tmp_path, CPU, measured)
    names = list(json.loads((tmp_path / "runtime.json").read_text()))
    assert names == [f"another processor, torch {torch.__version__}, 1 threads", machine(CPU)]


def test_other_settings_or_another_runtime_on_the_device_ask_for_a_new_measurement(
    tmp_path, config, make_small, measured, offer
):
    write_measurement(tmp_path, CPU, measured)
    assert read_measurement(tmp_path, make_small(inference={"overlap": 0.5}), CPU) is None
    assert read_measurement(tmp_path, make_small(inference={"overlap": 0.25, "runtime": "eager"}), CPU) == measured
    offer("quick", "newer")
    assert read_measurement(tmp_path, config, CPU) is None
    offer()
    assert read_measurement(tmp_path, config, CPU) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[1]",
        lambda text: text.replace('"quick"', '"gone"', 1),
        lambda text: text.replace('"speedup"', '"speed"'),
    ],
    ids=["empty", "cut off", "another thing", "a choice that was not measured", "another key"],
)
def test_a_damaged_file_is_ignored_with_a_line_in_the_log(tmp_path, config, measured, caplog, damage):
    write_measurement(tmp_path, CPU, measured)
    file = tmp_path / "runtime.json"
    file.write_text(damage(file.read_text()))
    assert read_measurement(tmp_path, config, CPU) is None
    assert "The runtimes are measured again" in caplog.text and "runtime.json" in caplog.text
    write_measurement(tmp_path, CPU, measured)
    assert read_measurement(tmp_path, config, CPU) == measured


def test_a_full_disk_is_no_failure(tmp_path, measured, monkeypatch, caplog):
    def full(path, content):
        raise OutOfSpace("no space left")

    monkeypatch.setattr(runtime_measurement, "write_json", full)
    write_measurement(tmp_path, CPU, measured)
    assert "is not kept: no space left" in caplog.text
    assert json_files.read_json(tmp_path / "runtime.json") is None
