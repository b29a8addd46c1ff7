"""A 2-D model works on pictures as on volumes: what is learnt and what is handed out lies where it was drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.cases import prepare_cases
from labelrounds.inference import segment
from labelrounds.labels import check_label
from labelrounds.networks import build_network
from labelrounds.reading import read_image
from labelrounds.store import LabelledCase
from labelrounds.writing import write_label

WIDTH, HEIGHT = 30, 22


@pytest.fixture
def config(make_config):
    return make_config(labels=["cell"], patch_size=[16, 16, 1], intensity={"kind": "window", "low": 0, "high": 255})


@pytest.fixture
def drawn() -> np.ndarray:
    """Where the cell lies, in rows from the top and columns from the left; no flip or turn maps it onto itself."""
    cell = np.zeros((HEIGHT, WIDTH), np.uint8)
    cell[2:6, 3:15] = 1
    cell[2:12, 3:5] = 1
    return cell


def write_picture(drawn: np.ndarray, file: Path, colour: bool = False) -> Path:
    grey = drawn * 200 + 20
    Picture.fromarray(np.stack([grey] * 3, axis=-1) if colour else grey).save(file)
    return file


class Bright(torch.nn.Module):
    """Says ``cell`` where the picture is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat((-images, images), dim=1)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_picture_and_its_label_lie_on_each_other_in_training(config, drawn, tmp_path, ending):
    picture = write_picture(drawn, tmp_path / f"slice.{ending}")
    label = write_label(drawn.T[..., None].copy(), read_image(picture).affine, tmp_path / "slice.nii.gz")
    cases, skipped = prepare_cases([LabelledCase("slice", picture, label, None, "slice")], config)
    assert not skipped
    assert cases[0].image.shape == (1, WIDTH, HEIGHT, 1)
    assert torch.equal(cases[0].image[0] > 0, cases[0].label == 1)
    assert int((cases[0].label == 1).sum()) == drawn.sum()


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_the_answer_for_a_picture_is_a_label_of_that_picture(config, drawn, tmp_path, colour):
    picture = write_picture(drawn, tmp_path / "slice.png", colour)
    image = read_image(picture, channels=config.channels)
    answer = segment(Bright(), image, config, torch.device("cpu"))
    assert np.array_equal(answer[..., 0].T, drawn)
    file = write_label(answer, image.affine, tmp_path / "answer.nrrd", config.labels)
    assert check_label(file, picture, [{"name": "cell"}], config.labels).values == {"cell": 1}


def test_a_picture_smaller_than_the_patch_is_segmented_by_the_real_network(config, tmp_path):
    picture = write_picture(np.eye(5, 9, dtype=np.uint8), tmp_path / "small.png")
    answer = segment(build_network(config).eval(), read_image(picture), config, torch.device("cpu"))
    assert answer.shape == (9, 5, 1)
