"""A thumbnail is the middle slice as a radiologist reads it, at its true proportions."""

import base64
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from labelrounds.thumbnails import SIDE, thumbnail


def pixels(address: str) -> np.ndarray:
    head, content = address.split(",")
    assert head == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as picture:
        return np.asarray(picture.convert("L"))


@pytest.fixture
def volume(tmp_path):
    """Write a dark volume of 20 x 10 x 5 voxels of 1 x 2 x 3 mm with a bright left front corner."""

    def write(affine: np.ndarray, name: str = "volume") -> Path:
        array = np.zeros((20, 10, 5), np.float32)
        array[:5, 7:, 2] = 100  # in RAS: low x is the patient's left, high y is the front
        ras = np.diag([1.0, 2.0, 3.0, 1.0])
        image = nibabel.Nifti1Image(array[::-1] if affine[0, 0] < 0 else array, affine @ ras)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
        return tmp_path / f"{name}.nii.gz"

    return write


@pytest.mark.parametrize("right", [1.0, -1.0])
def test_the_patients_left_is_on_the_right_and_the_front_above_whatever_the_file_s_axes(volume, right):
    found = pixels(thumbnail(volume(np.diag([right, 1.0, 1.0, 1.0]))))
    assert found.shape == (SIDE, SIDE)  # 20 mm by 20 mm
    assert found[: SIDE // 4, -SIDE // 5 :].min() > 200
    assert found[SIDE // 2 :, :].max() == found[:, : SIDE // 2].max() == 0


def test_a_picture_that_is_longer_than_wide_stays_so(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (40, 10), np.uint8)
    Image.fromarray(array).save(tmp_path / "tall.png")
    found = pixels(thumbnail(tmp_path / "tall.png"))
    assert found.shape == (SIDE, SIDE // 4)


def test_another_file_under_the_same_name_is_another_thumbnail(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(path)
    first = thumbnail(path)
    Image.fromarray(np.eye(20, dtype=np.uint8)[::-1] * 255).save(path)
    assert thumbnail(path) != first


def test_what_is_gone_or_no_image_has_none(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "broken.png") is None
    assert thumbnail(tmp_path / "gone.png") is None
