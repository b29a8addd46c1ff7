"""The way to the network's grid and back loses nothing, and augmentation does what it says."""

import itertools
import math

import numpy as np
import pytest
import torch

from labelrounds.errors import TooLarge
from labelrounds.reading import Image
from labelrounds.transforms import (
    Grid,
    clean,
    normalise,
    prepare,
    prepare_label,
    random_mapping,
    restore,
    sample_patch,
    vary_intensity,
)

TURNS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
STILL = {"rotation_degrees": 0.0, "scale_range": [1.0, 1.0]}


def rotation(degrees: float, axis=(1.0, 2.0, -1.0)) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross, angle = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]), np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(axes=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), turned=None) -> np.ndarray:
    """Voxel axis ``i`` runs along patient axis ``axes[i]``."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, voxel] = sign * spacing[voxel]
    if turned is not None:
        affine[:3, :3] = turned @ affine[:3, :3]
    affine[:3, 3] = (-12.0, 30.0, 7.5)
    return affine


def image_of(array: np.ndarray, affine: np.ndarray) -> Image:
    return Image(array[None] if array.ndim == 3 else array, affine, "nifti")


def centre_mm(label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(label).mean(axis=0) + affine[:3, 3]


# To the grid and back


@pytest.mark.parametrize("turned", [None, rotation(17)], ids=["straight", "oblique"])
def test_all_48_orientations_come_to_ras_and_back(make_config, turned):
    assert len(TURNS) == 48
    for axes, signs in TURNS:
        array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
        affine = affine_of(axes, signs, (1.0, 1.5, 2.0), turned)
        grid = Grid.of(image_of(array, affine), make_config())
        forward = grid.forward(array)
        assert forward.shape == grid.oriented_shape == grid.shape
        assert np.array_equal(grid.backward(forward), array)
        # The axes of the turned grid, in the patient.
        first = {corner: int(forward[corner]) for corner in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
        where = {key: affine[:3, :3] @ np.unravel_index(value, array.shape) for key, value in first.items()}
        steps = np.column_stack([where[key] - where[0, 0, 0] for key in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]])
        assert (np.argmax(np.abs(steps), axis=0) == [0, 1, 2]).all()
        assert (np.diag(steps) > 0).all()


def test_an_array_with_channels_is_turned_as_each_of_them(make_config):
    array = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    grid = Grid.of(image_of(array, affine_of((2, 0, 1), (-1, 1, -1))), make_config(channels=2))
    both = grid.forward(array)
    assert all(np.array_equal(both[channel], grid.forward(array[channel])) for channel in (0, 1))


@pytest.mark.parametrize("own_spacing", [True, False], ids=["no spacing configured", "the same spacing"])
def test_a_label_on_an_unchanged_grid_comes_back_voxel_for_voxel(make_config, own_spacing):
    rng = np.random.default_rng(1)
    for axes, signs in TURNS[::5]:
        label = rng.integers(0, 3, (5, 7, 9), dtype=np.uint8)
        config = make_config() if own_spacing else make_config(spacing_mm=[2.0, 2.0, 2.0])
        grid = Grid.of(image_of(label, affine_of(axes, signs, (2.0, 2.0, 2.0), rotation(9))), config)
        assert np.array_equal(restore(prepare_label(label, grid), grid), label)


def test_an_image_on_an_unchanged_grid_keeps_its_values(make_config):
    config = make_config(intensity={"kind": "window", "low": -100, "high": 100})
    array = np.random.default_rng(2).integers(-100, 100, (4, 5, 6)).astype(np.int16)
    image = image_of(array, affine_of((1, 0, 2), (1, -1, 1)))
    grid = Grid.of(image, config)
    assert np.allclose(prepare(image, config, grid)[0].numpy() * 100, grid.forward(array), atol=1e-4)
    assert image.array.dtype == np.int16 and np.array_equal(image.array[0], array)


@pytest.mark.parametrize("spacing_mm", [[2.0, 3.0, 4.0], [0.7, 0.6, 0.9], [1.0, 5.0, 0.5]], ids=str)
def test_a_labels_centre_stays_within_half_a_voxel(make_config, spacing_mm):
    config = make_config(spacing_mm=spacing_mm)
    for (axes, signs), turned in zip(TURNS[::11], [None, rotation(20), rotation(5), None, rotation(30)], strict=False):
        spacing = (1.0, 1.2, 1.5)
        affine = affine_of(axes, signs, spacing, turned)
        label = np.zeros((30, 26, 24), np.uint8)
        label[6:20, 5:16, 7:19] = 1
        grid = Grid.of(image_of(label, affine), config)
        back = restore(prepare_label(label, grid), grid)
        assert back.shape == label.shape
        largest = max(*spacing, *spacing_mm)
        assert np.abs(centre_mm(back, affine) - centre_mm(label, affine)).max() <= largest / 2


def test_image_and_label_are_resampled_to_the_same_place(make_config):
    config = make_config(spacing_mm=[2.0, 2.0, 2.0], intensity={"kind": "window", "low": 0, "high": 1})
    label = np.zeros((24, 24, 24), np.uint8)
    label[5:15, 8:20, 3:12] = 1
    image = image_of(label.astype(np.float32), affine_of())
    grid = Grid.of(image, config)
    seen = (prepare(image, config, grid)[0] > 0).numpy()
    there = prepare_label(label, grid).numpy() == 1
    assert grid.shape == (12, 12, 12)
    assert np.abs(np.argwhere(seen).mean(axis=0) - np.argwhere(there).mean(axis=0)).max() <= 0.5


def test_the_spacing_belongs_to_the_patients_axes(make_config):
    image = image_of(np.zeros((10, 20, 30)), affine_of((2, 0, 1), (1, 1, 1), (4.0, 1.0, 2.0)))
    # Along left-right lie 20 voxels of 1 mm, along posterior-anterior 30 of 2 mm, along inferior-superior 10 of 4 mm.
    assert Grid.of(image, make_config(spacing_mm=[2.0, 2.0, 2.0])).shape == (10, 30, 20)


def test_a_2d_model_keeps_the_slices_apart(make_config):
    config = make_config(
        patch_size=[16, 16, 1], spacing_mm=[2.0, 2.0, 2.0], intensity={"kind": "window", "low": 0, "high": 10}
    )
    array = np.broadcast_to(np.arange(7, dtype=np.float32), (20, 16, 7))
    image = image_of(array.copy(), affine_of(spacing=(1.0, 1.0, 9.0)))
    grid = Grid.of(image, config)
    assert grid.shape == (10, 8, 7)
    slices = prepare(image, config, grid)[0]
    assert torch.allclose(slices, (torch.arange(7.0) / 5 - 1).expand(10, 8, 7), atol=1e-6)


def test_an_image_is_never_resampled_to_nothing(make_config):
    image = image_of(np.zeros((1, 2, 3)), affine_of(spacing=(0.1, 0.1, 0.1)))
    assert Grid.of(image, make_config(spacing_mm=[5.0, 5.0, 5.0])).shape == (1, 1, 1)


def test_an_image_that_would_fill_the_memory_is_refused(make_config):
    image = image_of(np.zeros((50, 50, 50)), affine_of(spacing=(1e4, 1e4, 1e4)))
    with pytest.raises(TooLarge, match="of model tiny"):
        Grid.of(image, make_config(spacing_mm=[1.0, 1.0, 1.0]))
    assert Grid.of(image, make_config()).shape == (50, 50, 50)


# Intensity


def test_a_window_is_scaled_to_minus_one_and_one_and_clipped(make_config):
    config = make_config(intensity={"kind": "window", "low": -160, "high": 240})
    values = torch.tensor([-1000.0, -160, 40, 140, 240, 3000]).view(1, 6, 1, 1)
    assert torch.allclose(normalise(values, config).flatten(), torch.tensor([-1, -1, 0, 0.5, 1, 1]))


def test_zscore_gives_each_channel_mean_zero_and_deviation_one(make_config):
    config = make_config(channels=2, intensity={"kind": "zscore"})
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 20, 20, 20, generator=generator) * torch.tensor([3.0, 50]).view(2, 1, 1, 1) + 7
    scaled = normalise(image, config)
    assert torch.allclose(scaled.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(scaled.std(dim=(1, 2, 3)), torch.ones(2), atol=1e-3)


def test_zscore_clips_to_the_percentiles(make_config):
    config = make_config(intensity={"kind": "zscore", "low_percentile": 10.0, "high_percentile": 90.0})
    image = torch.arange(1000.0).view(1, 10, 10, 10)
    scaled = normalise(image, config).flatten()
    assert (scaled == scaled.max()).sum() == 100
    assert (scaled == scaled.min()).sum() == 100


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 4, 4)], ids=str)
def test_an_image_of_one_value_is_zero_and_not_nothing(make_config, shape):
    assert torch.equal(normalise(torch.full(shape, 5.0), make_config(intensity={"kind": "zscore"})), torch.zeros(shape))


def test_percentiles_are_taken_from_all_slices(make_config, monkeypatch):
    # With a step of the last side's length, or of a part of it, only some slices would be seen.
    monkeypatch.setattr("labelrounds.transforms._PERCENTILE_SAMPLES", 400)
    config = make_config(intensity={"kind": "zscore", "low_percentile": 0.0, "high_percentile": 100.0})
    image = torch.zeros(1, 20, 20, 20)
    image[..., 10:] = 100
    assert normalise(image, config).max() > 0.9


# Augmentation


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


def test_a_rotation_is_rigid_in_millimetres(make_config):
    config = make_config(training={"rotation_degrees": 90.0, "scale_range": [1.0, 1.0]})
    spacing = np.array([0.5, 1.0, 4.0])
    for seed in range(10):
        matrix = in_mm(draw(config, (40, 30, 12), spacing.tolist(), seed=seed), config, (40, 30, 12), spacing)
        assert np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-5)
        assert math.isclose(np.linalg.det(matrix), 1, rel_tol=1e-5)
        assert not np.allclose(matrix, np.eye(3), atol=0.05)


def test_a_rotation_stays_within_its_degrees(make_config):
    config = make_config(training={"rotation_degrees": 10.0, "scale_range": [1.0, 1.0]})
    largest = 0.0
    for seed in range(200):
        matrix = in_mm(draw(config, (40, 30, 12), seed=seed), config, (40, 30, 12), np.ones(3))
        largest = max(largest, float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))))
    assert 8 < largest <= 10.5


def test_scales_are_drawn_from_their_range(make_config):
    config = make_config(training={"rotation_degrees": 0.0, "scale_range": [0.5, 2.0]})
    scales = [in_mm(draw(config, (40, 30, 12), seed=s), config, (40, 30, 12), np.ones(3)) for s in range(100)]
    assert all(np.allclose(matrix, matrix[0, 0] * np.eye(3), atol=1e-5) for matrix in scales)
    found = [matrix[0, 0] for matrix in scales]
    assert 0.5 <= min(found) < 0.6 and 1.9 < max(found) <= 2


def test_a_2d_patch_stays_on_its_slice_however_it_is_turned(make_config):
    config = make_config(
        patch_size=[16, 16, 1],
        mirror=["left_right"],
        training={"rotation_degrees": 90.0, "scale_range": [0.5, 2.0]},
    )
    image = torch.arange(9.0).expand(1, 20, 20, 9).contiguous()
    for seed in range(20):
        place = seed % 9
        mapping = draw(config, (20, 20, 9), (1.0, 1.0, 6.0), [9.5, 9.5, place], seed)
        patch, _ = sample_patch(image, image[0].to(torch.uint8), mapping, config.patch_size)
        assert patch.shape == (1, 16, 16, 1)
        assert torch.allclose(patch, torch.full_like(patch, place), atol=1e-4)


def test_the_same_generator_draws_the_same_mapping(make_config):
    config = make_config(mirror=["left_right"])
    assert torch.equal(draw(config, (20, 20, 20), seed=3), draw(config, (20, 20, 20), seed=3))
    assert not torch.equal(draw(config, (20, 20, 20), seed=3), draw(config, (20, 20, 20), seed=4))


def test_intensities_vary_the_same_way_for_the_same_seed():
    images = torch.randn(4, 2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    once, again, other = (vary_intensity(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(images, before)
    assert once.shape == images.shape and once.isfinite().all()


def test_intensities_of_each_image_vary_for_themselves_and_some_not_at_all():
    images = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)).expand(64, -1, -1, -1, -1)
    varied = vary_intensity(images, torch.Generator().manual_seed(5))
    changes = (varied - images).abs().amax(dim=(1, 2, 3, 4))
    assert (changes < 1e-5).any() and (changes > 0.05).any()


def test_intensities_of_a_flat_image_stay_finite():
    assert vary_intensity(torch.zeros(8, 1, 4, 4, 4), torch.Generator().manual_seed(0)).isfinite().all()


# Cleaning


def test_the_largest_component_stays_and_other_labels_are_untouched(make_config):
    label = np.zeros((12, 12, 12), np.uint8)
    label[1:6, 1:6, 1:6] = 1
    label[8, 8, 8] = 1
    label[9:11, 1:3, 1:3] = 2
    label[1, 9, 9] = 2
    before = label.copy()
    cleaned = clean(label, make_config(cleaning={"near": {"largest_component": True}}))
    assert cleaned[8, 8, 8] == 0
    assert np.array_equal(cleaned == 2, before == 2)
    assert np.array_equal(cleaned[1:6, 1:6, 1:6], before[1:6, 1:6, 1:6])
    assert np.array_equal(label, before)


def test_holes_are_filled_but_not_over_other_labels(make_config):
    label = np.zeros((9, 9, 9), np.uint8)
    label[1:8, 1:8, 1:8] = 1
    label[3, 3, 3] = 0
    label[5, 5, 5] = 2
    label[8, 8, 8] = 2
    cleaned = clean(label, make_config(cleaning={"near": {"fill_holes": True}}))
    assert cleaned[3, 3, 3] == 1
    assert np.array_equal(cleaned == 2, label == 2)
    assert cleaned[0].sum() == 0


@pytest.mark.parametrize("slices", [1, 3])
def test_a_2d_model_has_its_holes_filled_slice_by_slice(make_config, slices):
    label = np.zeros((9, 9, slices), np.uint8)
    label[1:8, 1:8] = 1
    label[4, 4] = 0
    config = make_config(patch_size=[16, 16, 1], cleaning={"near": {"fill_holes": True}})
    assert (clean(label, config)[1:8, 1:8] == 1).all()
    assert np.array_equal(clean(label, make_config(cleaning={"near": {"fill_holes": True}})), label)


def test_without_cleaning_a_label_is_as_it_was(make_config):
    label = np.random.default_rng(0).integers(0, 3, (6, 6, 6), dtype=np.uint8)
    assert np.array_equal(clean(label, make_config()), label)
    absent = clean(np.zeros((4, 4, 4), np.uint8), make_config(cleaning={"far": {"largest_component": True}}))
    assert not absent.any()
