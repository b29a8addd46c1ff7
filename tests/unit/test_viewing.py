"""The command ``viewer`` without what it needs, and what the viewer says that needs no Slicer."""

import importlib
import subprocess
import sys

import pytest

from labelrounds import folders
from labelrounds.errors import BadInput
from labelrounds.listening import Listening
from labelrounds.viewing import view


@pytest.fixture
def forgotten_after(monkeypatch):
    """Let no test find the modules and folders of another."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "labelrounds_viewer"]:
        del sys.modules[name]


def test_missing_extra_is_named_with_the_command_that_installs_it(forgotten_after, monkeypatch):
    monkeypatch.setitem(sys.modules, "trame_slicer", None)
    with pytest.raises(BadInput, match=r"not installed \(trame_slicer\): pip install 'labelrounds\[viewer\]'"):
        view("http://localhost:8000", Listening())


def test_missing_library_of_the_system_is_named_with_its_packages(forgotten_after, tmp_path, monkeypatch):
    package = tmp_path / "labelrounds_viewer"
    package.mkdir()
    (package / "command.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.setattr(folders, "viewer_folders", lambda: [tmp_path])
    with pytest.raises(BadInput, match=r"libGL\.so\.1.*apt-get install libgl1 libegl1"):
        view("http://localhost:8000", Listening())


def test_the_command_line_does_not_need_slicers_core():
    code = "import sys, labelrounds.cli; print({'slicer', 'vtk', 'trame', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("progress", "words", "part"),
    [
        ({"status": "waiting"}, "Waiting for another training.", 0),
        ({}, "Epoch 0 of ?.", 0),
        ({"epoch": 3, "total_epochs": 12, "best_metric": 0.0, "eta_s": 89.6}, "Epoch 3 of 12. 90 s left.", 25),
        (
            {"epoch": 3, "total_epochs": 12, "best_metric": 0.814, "eta_s": 300},
            "Epoch 3 of 12. Dice 0.81. 5 min left.",
            25,
        ),
    ],
)
def test_training_is_told_by_epoch_dice_and_time_left(forgotten_after, progress, words, part):
    sys.path += map(str, folders.viewer_folders())
    assert importlib.import_module("labelrounds_viewer.telling").how_far(progress) == (words, part)
