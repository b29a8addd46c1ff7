"""A picture shows label and prediction where they are, as a radiologist looks at a patient."""

import numpy as np
import torch

from labelrounds.outlines import LABEL_COLOUR, PREDICTION_COLOUR, outlined_slices


def pixels(picture, colour) -> np.ndarray:
    return np.argwhere((picture == colour).all(axis=2))


def volumes(shape=(16, 20, 6)):
    return torch.rand(shape), torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)


def test_label_and_prediction_are_outlined_apart_and_turned_to_the_viewer():
    image, label, prediction = volumes()
    label[2:6, 2:6, 3] = 1  # on the patient's left, behind
    prediction[11:14, 14:18, 3] = 2  # on the right, in front
    picture = outlined_slices([(image, label, prediction)])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    yellow, blue = pixels(picture, LABEL_COLOUR), pixels(picture, PREDICTION_COLOUR)
    height, width = picture.shape[:2]
    assert yellow[:, 0].min() > height / 2 and blue[:, 0].max() < height / 2
    assert blue[:, 1].max() < width / 2 and yellow[:, 1].min() > width / 2
    factor = height // 20
    assert len(yellow) == 4 * (4 * factor - 1)  # the outline of a square, one pixel thick


def test_the_slice_with_most_of_the_label_is_shown():
    image, label, prediction = volumes()
    label[2:4, 2:4, 1] = 1
    label[2:9, 2:9, 5] = 1
    picture = outlined_slices([(image, label, prediction)])
    assert len(pixels(picture, LABEL_COLOUR)) == 4 * (7 * (picture.shape[0] // 20) - 1)


def test_cases_of_other_sizes_and_without_a_label_stand_side_by_side():
    first, second = volumes(), volumes((30, 10, 1))
    picture = outlined_slices([first, second])
    assert picture.shape[0] >= 256
    assert len(pixels(picture, LABEL_COLOUR)) == len(pixels(picture, PREDICTION_COLOUR)) == 0
    flat = outlined_slices([(torch.ones(8, 8, 2), *volumes((8, 8, 2))[1:])])
    assert np.isfinite(flat).all()
