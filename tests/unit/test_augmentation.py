"""Training patches are where they should be, and their intensities vary as nnU-Net's do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from labelrounds.augmentation import (
    IntensityDraw,
    _boxed,
    draw_intensity,
    random_mapping,
    sample_patch,
    vary_intensity,
)

STILL = {"rotation_degrees": 0.0, "scale_range": [1.0, 1.0]}
UNCHANGED = IntensityDraw(noise=(0.0, 0), blur=0.0, brightness=1.0, contrast=1.0, coarseness=1.0, gamma=(1.0, 1.0))


def draw(config, source, spacing=(1.0, 1.0, 1.0), centre=None, seed=0):
    centre = [(side - 1) / 2 for side in source] if centre is None else centre
    return random_mapping(source, spacing, centre, config, torch.Generator().manual_seed(seed))


def volume(shape=(8, 12, 16), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=generator), torch.randint(0, 3, shape, generator=generator).to(torch.uint8)


def still(make_config, patch, **more):
    return make_config(
        patch_size=list(patch),
        training=STILL,
        network={"name": "vnet", "channels": [2, 2, 2]} | {"depths": [1, 1, 1]},
        **more,
    )


def test_a_still_mapping_reproduces_the_case(make_config):
    image, label = volume()
    config = still(make_config, label.shape)
    patch, truth = sample_patch(image, label, draw(config, label.shape), config.patch_size)
    assert torch.allclose(patch, image, atol=1e-4)
    assert torch.equal(truth, label.long())


def test_a_still_mapping_cuts_the_patch_round_its_centre(make_config):
    image, label = volume((16, 20, 24))
    config = still(make_config, (8, 8, 8))
    patch, truth = sample_patch(image, label, draw(config, label.shape, centre=[5.5, 9.5, 12.5]), config.patch_size)
    assert torch.allclose(patch, image[:, 2:10, 6:14, 9:17], atol=1e-4)
    assert torch.equal(truth, label[2:10, 6:14, 9:17].long())


def test_beyond_the_border_the_border_is_repeated(make_config):
    image, label = volume((4, 8, 8))
    config = still(make_config, (8, 8, 8))
    patch, truth = sample_patch(image, label, draw(config, label.shape), config.patch_size)
    assert torch.allclose(patch[:, 2:6], image, atol=1e-4)
    assert torch.allclose(patch[:, :2], image[:, :1].expand(-1, 2, -1, -1), atol=1e-4)
    assert torch.equal(truth[6:], label[-1:].expand(2, -1, -1).long())


@pytest.mark.parametrize(("mirror", "axis"), [("left_right", 0), ("posterior_anterior", 1), ("inferior_superior", 2)])
def test_a_mirror_turns_its_own_axis_alone_and_half_of_the_time(make_config, mirror, axis):
    image, label = volume()
    config = still(make_config, label.shape, mirror=[mirror])
    flipped = 0
    for seed in range(40):
        patch, truth = sample_patch(image, label, draw(config, label.shape, seed=seed), config.patch_size)
        turned = torch.allclose(patch, image.flip(axis + 1), atol=1e-4) and torch.equal(truth, label.flip(axis).long())
        assert turned or (torch.allclose(patch, image, atol=1e-4) and torch.equal(truth, label.long()))
        flipped += turned
    assert 10 <= flipped <= 30


def in_mm(mapping: torch.Tensor, config, source, spacing) -> np.ndarray:
    """The mapping as a matrix from mm in the patch to mm in the case."""
    linear = mapping.flip(0)[:, [2, 1, 0, 3]][:, :3].double().numpy()
    half_patch = np.array(config.patch_size) / 2 * spacing
    half_case = np.array(source) / 2 * spacing
    return linear * half_case[:, None] / half_patch[None, :]


def test_a_rotation_is_rigid_in_millimetres_and_one_patch_in_five_is_turned(make_config):
    config = make_config(training={"rotation_degrees": 90.0, "scale_range": [1.0, 1.0]})
    spacing = np.array([0.5, 1.0, 4.0])
    turned = 0
    for seed in range(200):
        matrix = in_mm(draw(config, (40, 30, 12), spacing.tolist(), seed=seed), config, (40, 30, 12), spacing)
        assert np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-5)
        assert math.isclose(np.linalg.det(matrix), 1, rel_tol=1e-5)
        turned += not np.allclose(matrix, np.eye(3), atol=1e-5)
    assert 25 <= turned <= 55


def test_a_rotation_stays_within_its_degrees(make_config):
    config = make_config(training={"rotation_degrees": 10.0, "scale_range": [1.0, 1.0]})
    largest = 0.0
    for seed in range(500):
        matrix = in_mm(draw(config, (40, 30, 12), seed=seed), config, (40, 30, 12), np.ones(3))
        largest = max(largest, float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))))
    assert 8 < largest <= 10.5


def test_scales_are_drawn_from_their_range_for_one_patch_in_five(make_config):
    config = make_config(training={"rotation_degrees": 0.0, "scale_range": [0.5, 2.0]})
    scales = [in_mm(draw(config, (40, 30, 12), seed=s), config, (40, 30, 12), np.ones(3)) for s in range(500)]
    assert all(np.allclose(matrix, matrix[0, 0] * np.eye(3), atol=1e-5) for matrix in scales)
    found = [matrix[0, 0] for matrix in scales if not math.isclose(matrix[0, 0], 1, rel_tol=1e-5)]
    assert 75 <= len(found) <= 125
    assert 0.5 <= min(found) < 0.6 and 1.9 < max(found) <= 2


def test_a_2d_patch_stays_on_its_slice_however_it_is_turned(make_config):
    config = make_config(
        patch_size=[16, 16, 1],
        mirror=["left_right"],
        training={"rotation_degrees": 90.0, "scale_range": [0.5, 2.0]},
    )
    image = torch.arange(9.0).expand(1, 20, 20, 9).contiguous()
    for seed in range(60):
        place = seed % 9
        mapping = draw(config, (20, 20, 9), (1.0, 1.0, 6.0), [9.5, 9.5, place], seed)
        patch, _ = sample_patch(image, image[0].to(torch.uint8), mapping, config.patch_size)
        assert patch.shape == (1, 16, 16, 1)
        assert torch.allclose(patch, torch.full_like(patch, place), atol=1e-4)


def test_the_same_generator_draws_the_same_mapping(make_config):
    config = make_config(mirror=["left_right"])
    assert torch.equal(draw(config, (20, 20, 20), seed=3), draw(config, (20, 20, 20), seed=3))
    assert not torch.equal(draw(config, (20, 20, 20), seed=3), draw(config, (20, 20, 20), seed=4))


# The box that a patch reads from


def by_the_whole_case(image, label, mapping, patch_size):
    """What ``sample_patch`` is to give, without the box that it cuts out first."""
    where = functional.affine_grid(mapping[None], [1, 1, *patch_size], align_corners=False)
    patch = functional.grid_sample(image[None], where, padding_mode="border", align_corners=False)
    truth = functional.grid_sample(
        label[None, None].float(), where, mode="nearest", padding_mode="border", align_corners=False
    )
    return patch[0], truth[0, 0].long()


@pytest.mark.parametrize("centre", [[31.5, 27.5, 20.5], [1.5, 53.5, 20.5], [0.5, 0.5, 0.5]], ids=str)
@pytest.mark.parametrize("scale_range", [[1.0, 1.0], [0.5, 2.0]], ids=["as it is", "scaled"])
@pytest.mark.parametrize("degrees", [0.0, 90.0], ids=["straight", "rotated"])
def test_a_patch_from_its_box_is_that_from_the_whole_case(make_config, degrees, scale_range, centre):
    image, label = volume((62, 55, 41))
    config = make_config(mirror=["left_right"], training={"rotation_degrees": degrees, "scale_range": scale_range})
    for seed in range(30):
        mapping = draw(config, label.shape, (1.0, 1.0, 2.0), centre, seed)
        patch, truth = sample_patch(image, label, mapping, config.patch_size)
        expected, expected_truth = by_the_whole_case(image, label, mapping, config.patch_size)
        assert torch.allclose(patch, expected, atol=1e-3)
        # Where a point lies halfway between two voxels, rounding decides.
        assert (truth != expected_truth).float().mean() < 1e-3


@pytest.mark.parametrize("centre", [[31.5, 27.5, 20.5], [0.5, 53.5, 39.5]], ids=str)
def test_a_patch_that_is_neither_turned_nor_scaled_has_the_voxels_of_the_case(make_config, centre):
    image, label = volume((62, 55, 41))
    config = still(make_config, (8, 12, 16), mirror=["left_right", "posterior_anterior"])
    for seed in range(8):
        mapping = draw(config, label.shape, (1.0, 0.7, 2.0), centre, seed)
        patch, truth = sample_patch(image, label, mapping, config.patch_size)
        expected, expected_truth = by_the_whole_case(image, label, mapping, config.patch_size)
        assert torch.allclose(patch, expected, atol=1e-3)
        assert torch.equal(truth, expected_truth)
        assert set(patch.flatten().tolist()) <= set(image.flatten().tolist())


def test_a_patch_half_a_voxel_off_is_interpolated(make_config):
    image, label = volume((62, 55, 41))
    config = still(make_config, (8, 12, 16))
    mapping = draw(config, label.shape, centre=[31.0, 27.5, 20.5])
    patch, _ = sample_patch(image, label, mapping, config.patch_size)
    assert torch.allclose(patch, by_the_whole_case(image, label, mapping, config.patch_size)[0], atol=1e-3)


def test_a_patch_wholly_beyond_the_border_is_the_border(make_config):
    image, label = volume((30, 30, 30))
    config = still(make_config, (8, 8, 8))
    for centre, at in (([-40.0, 15.5, 15.5], 0), ([80.0, 15.5, 15.5], 29)):
        patch, _ = sample_patch(image, label, draw(config, label.shape, centre=centre), config.patch_size)
        assert torch.allclose(patch, image[:, at : at + 1, 12:20, 12:20].expand(-1, 8, -1, -1), atol=1e-4)


def test_the_box_is_no_larger_than_the_patch_needs(make_config):
    image, label = volume((62, 55, 41))
    config = still(make_config, (8, 8, 8))
    _, box, _ = _boxed(image, label, draw(config, label.shape, centre=[31.5, 27.5, 20.5]))
    assert all(8 <= side <= 12 for side in box.shape)


# Intensities


def noise_of(shape=(2, 1, 12, 11, 10), seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def varied(images: torch.Tensor, **changes) -> torch.Tensor:
    """All images changed in the same way, and in no other."""
    return vary_intensity(images, [replace(UNCHANGED, **changes)] * len(images))


def draws_of(seed: int, count: int) -> list[IntensityDraw]:
    generator = torch.Generator().manual_seed(seed)
    return [draw_intensity(generator) for _ in range(count)]


def test_intensities_vary_the_same_way_for_the_same_seed():
    images = noise_of((8, 2, 5, 6, 7))
    before = images.clone()
    once, again, other = (vary_intensity(images, draws_of(seed, 8)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(images, before)
    assert once.shape == images.shape and once.isfinite().all()


def test_an_image_varies_as_it_would_alone():
    images, draws = noise_of((16, 2, 5, 6, 7)), draws_of(3, 16)
    together = vary_intensity(images, draws)
    for index, draw_ in enumerate(draws):
        assert torch.allclose(together[index], vary_intensity(images[index : index + 1], [draw_])[0], atol=1e-5)


def test_intensities_of_each_image_vary_for_themselves_and_some_not_at_all():
    images = noise_of((1, 1, 6, 6, 6)).expand(64, -1, -1, -1, -1)
    changes = (vary_intensity(images, draws_of(5, 64)) - images).abs().amax(dim=(1, 2, 3, 4))
    assert (changes < 1e-5).any() and (changes > 0.05).any()


def test_intensities_of_a_flat_image_stay_finite():
    draws = [*draws_of(0, 20), replace(UNCHANGED, contrast=1.25, gamma=(0.7, 1.5))]
    assert vary_intensity(torch.zeros(21, 1, 4, 4, 4), draws).isfinite().all()


def test_the_strengths_are_drawn_as_often_and_as_large_as_nnunets():
    draws = draws_of(0, 4000)
    neutral = {"brightness": 1.0, "contrast": 1.0, "coarseness": 1.0, "blur": 0.0}
    found = {name: [getattr(one, name) for one in draws if getattr(one, name) != neutral[name]] for name in neutral}
    found["noise"] = [one.noise[0] for one in draws if one.noise[0]]
    found["inverted gamma"], found["gamma"] = ([one.gamma[i] for one in draws if one.gamma[i] != 1] for i in (0, 1))
    expected = {
        "brightness": (0.15, 0.75, 1.25),
        "contrast": (0.15, 0.75, 1.25),
        "coarseness": (0.25, 0.5, 1.0),
        "blur": (0.2, 0.5, 1.0),
        "noise": (0.1, 0.0, 0.1),
        "inverted gamma": (0.1, 0.7, 1.5),
        "gamma": (0.3, 0.7, 1.5),
    }
    for name, (probability, low, high) in expected.items():
        assert abs(len(found[name]) / len(draws) - probability) < 0.03, name
        assert low <= min(found[name]) < low + 0.1 * (high - low), name
        assert high - 0.1 * (high - low) < max(found[name]) <= high, name
    assert abs(sum(value < 1 for value in found["gamma"]) / len(found["gamma"]) - 0.5) < 0.06


def test_a_draw_that_changes_nothing_changes_nothing():
    images = noise_of()
    assert torch.allclose(varied(images), images, atol=1e-6)


def test_noise_has_its_deviation_and_no_mean():
    images = noise_of((2, 1, 30, 30, 30))
    added = varied(images, noise=(0.25, 7)) - images
    assert added.std().item() == pytest.approx(0.25, rel=0.02)
    assert abs(added.mean().item()) < 0.005


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(2, 2, 12, 11, 10), (2, 1, 20, 18, 1), (1, 1, 9, 2, 3)], ids=str)
def test_a_blur_is_a_gaussian_filter(shape, sigma):
    images = noise_of(shape)
    expected = [
        [gaussian_filter(channel.double().numpy(), sigma, mode="nearest", radius=3) for channel in image]
        for image in images
    ]
    assert np.allclose(varied(images, blur=sigma).numpy(), np.array(expected), atol=1e-5)


def test_brightness_is_a_factor():
    images = noise_of()
    assert torch.allclose(varied(images, brightness=1.2), images * 1.2, atol=1e-6)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_scales_the_distance_to_the_mean_within_the_range(factor):
    images = noise_of((2, 3, 12, 11, 10)) * torch.tensor([1.0, 5, 0.1]).view(1, 3, 1, 1, 1) + 2
    changed = varied(images, contrast=factor)
    for before, after in zip(images.flatten(0, 1), changed.flatten(0, 1), strict=True):
        expected = ((before - before.mean()) * factor + before.mean()).clamp(before.min(), before.max())
        assert torch.allclose(after, expected, atol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.95])
@pytest.mark.parametrize("shape", [(2, 2, 12, 11, 10), (2, 1, 20, 18, 1)], ids=str)
def test_coarsening_keeps_some_voxels_and_interpolates_between_them(shape, factor):
    images = noise_of(shape)
    expected = images.double().numpy()
    for axis, side in enumerate(shape[2:], start=2):
        coarse = max(1, round(side * factor))
        kept = np.floor((np.arange(coarse) + 0.5) * side / coarse).astype(int)
        where = (np.arange(side) + 0.5) * coarse / side - 0.5
        expected = np.apply_along_axis(
            lambda line, kept=kept, where=where: np.interp(where, np.arange(len(kept)), line[kept]), axis, expected
        )
    assert np.allclose(varied(images, coarseness=factor).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [(1.0, 0.7), (1.0, 1.5), (0.7, 1.0), (1.5, 0.8)], ids=str)
def test_gamma_keeps_the_mean_the_deviation_and_the_order(gamma):
    images = noise_of((2, 3, 8, 9, 10)) * torch.tensor([1.0, 5, 0.1]).view(1, 3, 1, 1, 1) + 2
    changed = varied(images, gamma=gamma)
    assert not torch.allclose(changed, images, atol=0.01)
    for before, after in zip(images.flatten(0, 1), changed.flatten(0, 1), strict=True):
        assert after.mean().item() == pytest.approx(before.mean().item(), abs=1e-3)
        assert after.std().item() == pytest.approx(before.std().item(), rel=1e-3)
        assert (after.flatten()[before.flatten().argsort()].diff() >= -1e-5).all()


def test_gamma_bends_the_scaled_intensities_and_the_inverted_gamma_the_inverted_ones():
    image = torch.linspace(0, 1, 1000).view(1, 1, 10, 10, 10)
    bent = image**1.5
    expected = (bent - bent.mean()) / bent.std() * image.std() + image.mean()
    assert torch.allclose(varied(image, gamma=(1.0, 1.5)), expected, atol=1e-4)
    inverted = (1 - image) ** 1.5
    expected = -(inverted - inverted.mean()) / inverted.std() * image.std() + image.mean()
    assert torch.allclose(varied(image, gamma=(1.5, 1.0)), expected, atol=1e-4)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_thick_slices_are_turned_and_scaled_within_themselves_alone(make_config, across):
    config = make_config(training={"rotation_degrees": 45.0, "scale_range": [0.5, 2.0]})
    spacing = np.ones(3)
    spacing[across] = 4.0
    seen = []
    for seed in range(60):
        matrix = in_mm(draw(config, (40, 40, 40), spacing.tolist(), seed=seed), config, (40, 40, 40), spacing)
        others = [axis for axis in range(3) if axis != across]
        assert np.allclose(matrix[across], np.eye(3)[across], atol=1e-5)
        assert np.allclose(matrix[others, across], 0, atol=1e-5)
        seen.append(not np.allclose(matrix, np.eye(3), atol=0.05))
    assert any(seen)
