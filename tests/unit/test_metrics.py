"""Each metric agrees with MONAI's and with values made by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from labelrounds.errors import BadInput
from labelrounds.metrics import dice, dice_per_label, hd95, nsd

Mask = NDArray[np.uint8]
SPACING_MM = (0.8, 1.5, 3.0)


def cube(start: int, stop: int, size: int = 12) -> Mask:
    mask = np.zeros((size, size, size), np.uint8)
    mask[start:stop, start:stop, start:stop] = 1
    return mask


def two_blobs(seed: int) -> tuple[Mask, Mask]:
    """Two ellipsoids that overlap in part, with a stray voxel in the first; they touch the image's border."""
    rng = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices((18, 15, 11)), 0, -1)
    centres, radii = rng.uniform(3, 9, (2, 3)), rng.uniform(3, 6, (2, 3))
    first, second = (((grid - c) / r) ** 2 for c, r in zip(centres, radii, strict=True))
    prediction, truth = (each.sum(axis=-1) < 1 for each in (first, second))
    prediction[-1, -1, -1] = True
    return prediction.astype(np.uint8), truth.astype(np.uint8)


def batch(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def test_dice_of_a_half_overlap_made_by_hand():
    prediction, truth = np.array([2, 2, 0, 1]), np.array([0, 2, 2, 1])
    assert dice(prediction, truth, 2) == 0.5
    assert dice(prediction, truth, 1) == 1.0


def test_dice_of_two_empty_masks_is_undefined_and_of_one_is_zero():
    assert np.isnan(dice(cube(0, 0), cube(0, 0), 1))
    assert dice(cube(0, 0), cube(2, 4), 1) == 0
    assert dice(cube(2, 4), cube(0, 0), 1) == 0


def test_dice_does_not_overflow_in_eight_bits():
    # 2 * 512 voxels are more than a uint8 holds.
    assert dice(cube(0, 8), cube(0, 8), 1) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_dice_is_that_of_monai(seed: int):
    prediction, truth = two_blobs(seed)
    assert dice(prediction, truth, 1) == pytest.approx(compute_dice(batch(prediction), batch(truth)).item())


def test_dice_per_label_names_the_values_from_one_on():
    prediction, truth = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    scores = dice_per_label(prediction, truth, ("liver", "spleen", "spine"))
    assert list(scores) == ["liver", "spleen", "spine"]
    assert scores["liver"] == pytest.approx(2 / 3)
    assert scores["spleen"] == pytest.approx(2 / 3)
    assert np.isnan(scores["spine"])


def test_hd95_of_a_shift_is_the_shift_in_millimetres():
    truth = cube(3, 8)
    assert hd95(truth, truth, SPACING_MM) == 0
    assert hd95(np.roll(truth, 2, axis=2), truth, SPACING_MM) == pytest.approx(6.0)
    assert hd95(np.roll(truth, 2, axis=0), truth, SPACING_MM) == pytest.approx(1.6)


def test_hd95_forgives_one_stray_voxel_but_not_many():
    truth = cube(2, 8, size=16)
    stray = truth.copy()
    stray[15, 15, 15] = 1
    assert hd95(stray, truth, (1, 1, 1)) == 0
    stray[12:, 12:, 12:] = 1
    assert hd95(stray, truth, (1, 1, 1)) > 5


def test_hd95_takes_the_worse_direction():
    truth, part = cube(2, 10), cube(2, 4)
    assert hd95(part, truth, (1, 1, 1)) == hd95(truth, part, (1, 1, 1)) > 5


def test_hd95_of_empty_masks_is_undefined_or_infinite():
    assert np.isnan(hd95(cube(0, 0), cube(0, 0), SPACING_MM))
    assert hd95(cube(0, 0), cube(2, 4), SPACING_MM) == float("inf")
    assert hd95(cube(2, 4), cube(0, 0), SPACING_MM) == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_hd95_is_that_of_monai(seed: int):
    prediction, truth = two_blobs(seed)
    theirs = compute_hausdorff_distance(batch(prediction), batch(truth), percentile=95, spacing=list(SPACING_MM))
    assert hd95(prediction, truth, SPACING_MM) == pytest.approx(theirs.item(), rel=1e-5)


def test_nsd_is_one_within_the_tolerance_and_falls_beyond_it():
    truth = cube(3, 8)
    moved = np.roll(truth, 1, axis=2)
    assert nsd(truth, truth, SPACING_MM, 0) == 1
    assert nsd(moved, truth, SPACING_MM, 3.0) == 1
    assert 0.3 < nsd(moved, truth, SPACING_MM, 2.9) < 0.9


def test_nsd_of_two_voxels_made_by_hand():
    prediction, truth = np.zeros((8, 1, 1)), np.zeros((8, 1, 1))
    prediction[[0, 3]] = 1
    truth[0] = 1
    # Prediction: one of two within 1 mm; truth: one of one.
    assert nsd(prediction, truth, (1, 1, 1), 1) == pytest.approx(2 / 3)


def test_nsd_of_empty_masks_is_undefined_or_zero():
    assert np.isnan(nsd(cube(0, 0), cube(0, 0), SPACING_MM, 1))
    assert nsd(cube(0, 0), cube(2, 4), SPACING_MM, 1) == 0
    assert nsd(cube(2, 4), cube(0, 0), SPACING_MM, 1) == 0


@pytest.mark.parametrize("tolerance_mm", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_nsd_is_that_of_monai(seed: int, tolerance_mm: float):
    prediction, truth = two_blobs(seed)
    theirs = compute_surface_dice(
        batch(prediction), batch(truth), [tolerance_mm], include_background=True, spacing=list(SPACING_MM)
    )
    assert nsd(prediction, truth, SPACING_MM, tolerance_mm) == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize(
    "metric",
    [
        lambda a, b: dice(a, b, 1),
        lambda a, b: hd95(a, b, (1, 1, 1)),
        lambda a, b: nsd(a, b, (1, 1, 1), 1),
    ],
    ids=["dice", "hd95", "nsd"],
)
def test_arrays_of_different_shapes_are_refused(metric: Callable[[Mask, Mask], float]):
    # These two would broadcast, and give a number that means nothing.
    with pytest.raises(BadInput, match=r"shape \(4, 4, 4\), truth \(4, 4, 1\)"):
        metric(np.ones((4, 4, 4), np.uint8), np.ones((4, 4, 1), np.uint8))


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, float("nan"))])
def test_a_spacing_that_no_voxel_has_is_refused(spacing_mm: tuple[float, ...]):
    with pytest.raises(BadInput, match="one positive value for each of 3 axes"):
        hd95(cube(2, 4), cube(2, 4), spacing_mm)


@pytest.mark.parametrize("tolerance_mm", [-1, float("nan")])
def test_a_tolerance_below_zero_is_refused(tolerance_mm: float):
    with pytest.raises(BadInput, match="not 0 or more"):
        nsd(cube(2, 4), cube(2, 4), (1, 1, 1), tolerance_mm)
