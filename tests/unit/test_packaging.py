"""What `pip install` brings: the wheel holds configs, app and weights, and works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, cwd=folder)
    return next(folder.glob("labelrounds-*.whl"))


def test_the_wheel_holds_every_config_weight_and_module(wheel):
    held = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    wanted = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/weights/*"), *ROOT.glob("lib/labelrounds/**/*.py")]
    wanted += [*ROOT.glob("apps/viewer/*/*.py"), *ROOT.glob("apps/slicer/LabelRounds/LabelRoundsLib/*.py")]
    assert {path.name for path in wanted} <= held
    assert any(name.endswith("share/labelrounds/apps/radiology/main.py") for name in zipfile.ZipFile(wheel).namelist())


def test_the_installed_package_finds_its_models_and_segments_without_a_checkout(wheel, tmp_path):
    target, image, output = tmp_path / "site", tmp_path / "phantom_000.nii.gz", tmp_path / "label.nii.gz"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True)
    from labelrounds.phantoms import write_studies

    write_studies(tmp_path, 1)
    environment = {**os.environ, "PYTHONPATH": str(target), "LABELROUNDS_HOME": str(tmp_path / "home")}
    labelrounds = [sys.executable, "-m", "labelrounds"]
    where = (
        "import labelrounds, labelrounds.folders as f; print(labelrounds.__file__, f.app_folder(), *f.viewer_folders())"
    )
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(target)) for path in found.stdout.split())
    predict = ["predict", "--model", "unet_phantom", "--image", str(image), "--output", str(output)]
    done = subprocess.run([*labelrounds, *predict], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output.is_file()
    assert "liver" in done.stdout
