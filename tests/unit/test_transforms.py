"""The way to the network's grid and back loses nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from labelrounds.errors import TooLarge
from labelrounds.reading import Image
from labelrounds.transforms import (
    Grid,
    clean,
    normalise,
    prepare,
    prepare_label,
    restore,
)

TURNS = [(axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize("kind", ["window", "zscore"])
def test_a_gpu_prepares_and_restores_as_the_cpu_does(make_config, dtype, kind):
    intensity = {"kind": "window", "low": 10, "high": 200} if kind == "window" else {"kind": "zscore"}
    config = make_config(spacing_mm=[0.9, 2.0, 1.3], intensity=intensity)
    array = np.asfortranarray(np.random.default_rng(7).integers(0, 250, (31, 18, 25)).astype(dtype))
    for axes, signs in TURNS[::7]:
        image = image_of(array, affine_of(axes, signs))
        grid = Grid.of(image, config)
        prepared = prepare(image, config, grid, "cuda:0")
        assert prepared.is_cuda and torch.allclose(prepared.cpu(), prepare(image, config, grid), atol=1e-4)
        label = torch.randint(0, 3, grid.shape, dtype=torch.uint8)
        assert np.array_equal(restore(label.cuda(), grid), restore(label, grid))
        # But for equal shares, of which rounding decides.
        assert (restore(label.cuda(), grid, "linear") == restore(label, grid, "linear")).mean() > 0.99


@pytest.mark.parametrize("spacing_mm", [[2.0, 1.5, 3.0], [0.7, 0.6, 0.5]], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_how_an_image_lies_in_its_file_changes_nothing(make_config, spacing_mm, order):
    config = make_config(spacing_mm=spacing_mm, intensity={"kind": "window", "low": -1, "high": 1})
    array = np.random.default_rng(5).uniform(-1, 1, (12, 10, 8)).astype(np.float32)
    straight = Grid.of(image_of(array, affine_of()), config)
    expected = functional.interpolate(torch.from_numpy(array)[None, None], size=straight.shape, mode="trilinear")[0]
    label = torch.from_numpy(np.random.default_rng(6).integers(0, 3, straight.shape, dtype=np.uint8))
    nearest = functional.interpolate(label[None, None], size=array.shape, mode="nearest-exact")[0, 0].numpy()
    for axes, signs in TURNS:
        turn = Grid.of(image_of(np.zeros([array.shape[axis] for axis in axes]), affine_of(axes, signs)), config)
        image = image_of(np.array(turn.backward(array), order=order), affine_of(axes, signs))
        assert turn.shape == straight.shape
        prepared = prepare(image, config, turn)
        assert prepared.is_contiguous() and torch.allclose(prepared, expected, atol=1e-5)
        restored = restore(label, turn)
        assert np.array_equal(restored, turn.backward(nearest)) and restored.flags.f_contiguous


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


def shares_of(label: torch.Tensor, shape) -> torch.Tensor:
    """Interpolate each label of a map ``(X, Y, Z)``, the background too, for itself: ``(K, *shape)``."""
    masks = torch.stack([(label == value).double() for value in range(int(label.max()) + 1)])
    return functional.interpolate(masks[None], size=shape, mode="trilinear")[0]


@pytest.mark.parametrize("planes", [1, 5, 16])
@pytest.mark.parametrize("shape", [(7, 6, 9), (1, 6, 5), (7, 1, 1)], ids=str)
def test_the_label_with_the_largest_share_is_restored_at_any_orientation(make_config, monkeypatch, planes, shape):
    monkeypatch.setattr("labelrounds.transforms._PLANES", planes)
    label = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(8), dtype=torch.uint8)
    label[label == 2] = 0  # a label that is not there
    wanted = (13, 11, 8)  # coarser along an axis
    shares = shares_of(label, wanted)
    first, second = shares.topk(2, dim=0).values
    clear = (first - second > 1e-6).numpy()
    assert clear.mean() > 0.9
    for axes, signs in TURNS:
        turned = Grid.of(image_of(np.zeros([wanted[axis] for axis in axes]), affine_of(axes, signs)), make_config())
        grid = replace(turned, shape=shape)
        assert grid.oriented_shape == wanted
        restored = restore(label, grid, "linear")
        assert restored.dtype == np.uint8 and restored.flags.f_contiguous
        assert np.array_equal(grid.forward(restored)[clear], shares.argmax(dim=0).numpy()[clear])


def test_a_label_on_a_grid_that_is_not_finer_is_restored_by_the_nearest(make_config):
    label = torch.randint(0, 3, (9, 8, 7), generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
    grid = Grid((0, 1, 2), (False, True, False), (6, 8, 5), (9, 8, 7))
    assert np.array_equal(restore(label, grid, "linear"), restore(label, grid, "nearest"))


def test_an_empty_label_map_stays_empty_and_a_full_one_full():
    grid = Grid((0, 1, 2), (False,) * 3, (9, 8, 7), (3, 4, 2))
    for value in (0, 255):
        assert (restore(torch.full((3, 4, 2), value, dtype=torch.uint8), grid, "linear") == value).all()


@pytest.mark.parametrize("coarser", [1.5, 2.0, 3.0])
def test_a_coarse_ball_is_restored_closer_to_the_ball_by_interpolation(coarser):
    centre = np.array([23.3, 25.1, 22.2])
    ball = (np.linalg.norm(np.indices((48, 48, 48)).T - centre, axis=-1).T < 14).astype(np.uint8)
    grid = Grid((0, 1, 2), (False,) * 3, ball.shape, tuple(round(side / coarser) for side in ball.shape))
    inside = functional.interpolate(torch.from_numpy(ball)[None, None].float(), size=grid.shape, mode="area")[0, 0]
    coarse = (inside > 0.5).to(torch.uint8)
    wrong = [int((restore(coarse, grid, method) != ball).sum()) for method in ("nearest", "linear")]
    assert wrong[1] < 0.85 * wrong[0]


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


@pytest.mark.parametrize("cleaning", [{"largest_component": True}, {"fill_holes": True}], ids=str)
@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=["3-D", "2-D"])
def test_cleaning_within_a_labels_box_is_cleaning_of_the_whole(make_config, patch_size, cleaning):
    label = np.zeros((20, 18, 16), np.uint8)
    label[3:15, 2:12, 4:14] = np.random.default_rng(3).choice(3, (12, 10, 10), p=[0.2, 0.6, 0.2]).astype(np.uint8)
    expected = label.copy()
    for value in (1, 2):
        mask = label == value
        if "fill_holes" in cleaning:
            neighbours = ndimage.generate_binary_structure(3, 1)
            if patch_size[2] == 1:
                neighbours[:, :, [0, 2]] = False
            expected[ndimage.binary_fill_holes(mask, neighbours) & (expected == 0)] = value
        else:
            parts, count = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())[1:]
            assert count > 1 and (sizes == sizes.max()).sum() == 1
            expected[mask & (parts != np.argmax(sizes) + 1)] = 0
    config = make_config(patch_size=patch_size, cleaning={"near": cleaning, "far": cleaning})
    assert not np.array_equal(expected, label)
    assert np.array_equal(clean(label, config), expected)


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
