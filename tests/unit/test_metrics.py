"""Each metric agrees with MONAI's and with values made by hand."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray

from labelrounds.errors import BadInput
from labelrounds.metrics import (
    Overlap,
    dice,
    dice_per_label,
    hd95,
    least_error,
    nsd,
    pixel_overlap,
    rand_overlap,
)

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


def rows(*lines: str) -> Mask:
    """A picture of cells (#) and the membranes between them (.)."""
    return np.array([[pixel == "#" for pixel in line] for line in lines], np.uint8)


def pairs_one_by_one(prediction: Mask, truth: Mask) -> Overlap:
    """The definition of `rand_overlap`, with a flood fill of its own and every pair looked at."""

    def names(mask: Mask) -> dict[tuple[int, int], tuple[int, int]]:
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for start in product(*map(range, mask.shape)):
            edge = [start] if mask[start] and start not in found else []
            while edge:
                x, y = edge.pop()
                if 0 <= x < mask.shape[0] and 0 <= y < mask.shape[1] and mask[x, y] and (x, y) not in found:
                    found[x, y] = start
                    edge += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        return found

    cells, parts = names(truth), names(prediction)
    lone = {pixel: parts.get(pixel, ("alone", *pixel)) for pixel in cells}
    together = [(lone[a] == lone[b], cells[a] == cells[b]) for a, b in product(cells, cells)]
    return Overlap(sum(p and t for p, t in together), sum(p for p, _ in together), sum(t for _, t in together))


def test_pixel_overlap_made_by_hand():
    counts = pixel_overlap(rows("###.", "...."), rows("##..", "##.."))
    assert counts == Overlap(both=2, found=3, sought=4)
    assert (counts.precision, counts.recall) == (2 / 3, 2 / 4)
    assert 1 - counts.f_score == pytest.approx(3 / 7)


def test_rand_overlap_of_a_merged_border_made_by_hand():
    # Two cells of 3 and 4 pixels become one: 9 + 16 ordered pairs are sought, 7 * 7 are found. The border itself
    # is outside the truth's cells and does not count.
    counts = rand_overlap(rows("########"), rows("###.####"))
    assert counts == Overlap(both=25, found=49, sought=25)
    assert counts.recall == 1


def test_rand_overlap_of_a_split_cell_made_by_hand():
    # A cell of 7 pixels falls into 3, a border pixel that is a cell of its own, and 3.
    counts = rand_overlap(rows("###.###"), rows("#######"))
    assert counts == Overlap(both=19, found=19, sought=49)
    assert counts.precision == 1


def test_cells_that_touch_at_a_corner_are_two():
    assert rand_overlap(rows("#.", ".#"), rows("#.", ".#")).sought == 2


def test_rand_overlap_forgives_a_border_of_another_width_but_pixel_overlap_does_not():
    truth, wide = rows(*["#########.#########"] * 9), rows(*["########...########"] * 9)
    assert pixel_overlap(wide, truth).f_score < 0.95
    assert rand_overlap(wide, truth).precision == 1
    assert 1 - rand_overlap(rows(*["#" * 19] * 9), truth).f_score > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_rand_overlap_is_that_of_every_pair_looked_at(seed: int):
    prediction, truth = (np.random.default_rng(seed).random((2, 7, 9)) < 0.6).astype(np.uint8)
    assert rand_overlap(prediction, truth) == pairs_one_by_one(prediction, truth)
    assert rand_overlap(prediction[..., None], truth[..., None]) == rand_overlap(prediction, truth)


def test_rand_overlap_counts_more_pairs_than_32_bits_hold():
    assert rand_overlap(np.ones((400, 400)), np.ones((400, 400))).both == 400**4


def test_overlaps_of_nothing_are_perfect_and_those_of_images_add_up():
    assert pixel_overlap(rows(".."), rows("..")).f_score == 1
    assert rand_overlap(rows("##"), rows("..")) == Overlap(0, 0, 0)
    assert pixel_overlap(rows(".."), rows("##")) + pixel_overlap(rows("##"), rows("##")) == Overlap(2, 2, 4)


def test_least_error_is_that_of_the_best_common_threshold():
    truths = [rows("##.."), rows("####")]
    probabilities = [np.array([[0.9, 0.45, 0.35, 0.35]]), np.array([[0.9, 0.9, 0.9, 0.35]])]
    # Above .4 only the last pixel is missing, 2 * 5 / (5 + 6); above .3 two are too many, 2 * 6 / (8 + 6).
    assert least_error(pixel_overlap, probabilities, truths) == (pytest.approx(1 - 10 / 11), 0.4)
    assert least_error(pixel_overlap, probabilities, truths, (0.1, 0.3)) == (pytest.approx(1 - 12 / 14), 0.1)


def test_least_error_without_an_image_for_each_truth_is_refused():
    with pytest.raises(BadInput, match="1 probability maps for 2 truths"):
        least_error(pixel_overlap, [np.ones((2, 2))], [np.ones((2, 2))] * 2)
    with pytest.raises(BadInput, match="0 probability maps"):
        least_error(pixel_overlap, [], [])


@pytest.mark.parametrize(
    "metric",
    [
        pixel_overlap,
        rand_overlap,
        lambda a, b: dice(a, b, 1),
        lambda a, b: hd95(a, b, (1, 1, 1)),
        lambda a, b: nsd(a, b, (1, 1, 1), 1),
    ],
    ids=["pixel_overlap", "rand_overlap", "dice", "hd95", "nsd"],
)
def test_arrays_of_different_shapes_are_refused(metric: Callable[[Mask, Mask], object]):
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
