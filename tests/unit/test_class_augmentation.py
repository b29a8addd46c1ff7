"""Whole images vary as they are told to, each by its own chance, and stay images."""

import math
import time

import pytest
import torch

from labelrounds.classification.augmentation import augment

STILL = {
    "mirror_axes": (),
    "rotation_degrees": 0.0,
    "scale_range": (1.0, 1.0),
    "shift_fraction": 0.0,
    "shear_degrees": 0.0,
    "intensity": False,
}
LIVELY = {
    "mirror_axes": (0, 1),
    "rotation_degrees": 20.0,
    "scale_range": (0.8, 1.2),
    "shift_fraction": 0.1,
    "shear_degrees": 10.0,
    "intensity": True,
}


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(99))


def blob(shape: tuple[int, ...], centre: tuple[float, ...], width: float = 2.0) -> torch.Tensor:
    """Return ``(1, 1, *shape)``: a Gaussian spot; its height is 1."""
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in shape), indexing="ij")
    squares = sum((axis - place) ** 2 for axis, place in zip(axes, centre, strict=True))
    return torch.exp(-squares / (2 * width**2))[None, None]


def centre_of(image: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass of ``(X, Y, Z)``, from the middle and in voxels."""
    axes = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in image.shape), indexing="ij")
    return torch.stack([(axis * image).sum() for axis in axes]) / image.sum()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_without_any_strength_nothing_changes(dimensions):
    images = 3 * noise(4, 2, 17, 12, 5)
    varied = augment(images, generators(4), dimensions=dimensions, **STILL)
    assert torch.allclose(varied, images, atol=1e-5)
    assert varied.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_strengths_next_to_none_change_next_to_nothing(dimensions):
    images = blob((24, 20, 16), (9, 10, 8), 4.0).repeat(3, 2, 1, 1, 1)
    varied = augment(images, generators(3), dimensions=dimensions, **{**STILL, "rotation_degrees": 1e-4})
    assert not torch.equal(varied, images)
    assert torch.allclose(varied, images, atol=1e-5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_image_is_varied_alike_in_any_batch_and_otherwise_by_another_seed(dimensions):
    images = noise(6, 2, 20, 24, 8)
    whole = augment(images, generators(6), dimensions=dimensions, **LIVELY)
    for number in range(6):
        alone = augment(images[number : number + 1], generators(1, number), dimensions=dimensions, **LIVELY)
        assert torch.allclose(alone[0], whole[number], atol=1e-5)
    other = augment(images, generators(6, 50), dimensions=dimensions, **LIVELY)
    assert all((other[number] - whole[number]).abs().max() > 0.1 for number in range(6))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_input_is_not_changed(dimensions):
    images = noise(3, 1, 16, 16, 4)
    before = images.clone()
    augment(images, generators(3), dimensions=dimensions, **LIVELY)
    augment(images, generators(3), dimensions=dimensions, **{**STILL, "mirror_axes": (0, 1, 2)})
    assert torch.equal(images, before)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e6])
def test_values_stay_finite_and_those_of_a_constant_image_near_what_they_are(dimensions, value):
    images = torch.full((8, 3, 16, 16, 4), value)
    varied = augment(images, generators(8), dimensions=dimensions, **LIVELY)
    assert varied.isfinite().all()
    assert (varied - value).abs().max() <= 0.3 * abs(value) + 0.6


def test_without_intensity_no_value_leaves_the_range_of_the_image():
    images = 10 + noise(16, 1, 20, 20, 1)
    varied = augment(images, generators(16), dimensions=2, **{**LIVELY, "intensity": False, "shift_fraction": 0.4})
    low, high = (bound(images, dim=(1, 2, 3, 4)) for bound in (torch.amin, torch.amax))
    least, most = (bound(varied, dim=(1, 2, 3, 4)) for bound in (torch.amin, torch.amax))
    assert torch.allclose(least, low, atol=1e-4)
    assert (most <= high + 1e-4).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_mirror_turns_its_own_axis_alone_and_half_of_the_time(axis, dimensions):
    images = noise(1, 1, 6, 7, 5).expand(80, -1, -1, -1, -1)
    varied = augment(images, generators(80), dimensions=dimensions, **{**STILL, "mirror_axes": (axis,)})
    turned = [torch.equal(image, original.flip(axis + 1)) for image, original in zip(varied, images, strict=True)]
    kept = [torch.equal(image, original) for image, original in zip(varied, images, strict=True)]
    assert all(one != other for one, other in zip(turned, kept, strict=True))
    assert 25 <= sum(turned) <= 55


def test_a_2d_rotation_turns_in_the_plane_by_as_much_as_is_allowed_and_keeps_distances():
    spot = blob((48, 32, 1), (33.5, 15.5, 0)).expand(60, -1, -1, -1, -1)  # 10 voxels from the middle
    varied = augment(spot, generators(60), dimensions=2, **{**STILL, "rotation_degrees": 40.0})
    places = torch.stack([centre_of(image[0]) for image in varied])
    angles = torch.rad2deg(torch.atan2(places[:, 1], places[:, 0]))
    assert torch.allclose(places.norm(dim=1), torch.full((60,), 10.0), atol=0.1)
    assert angles.abs().max() <= 40.5
    assert angles.min() < -25
    assert angles.max() > 25


def test_a_3d_rotation_turns_about_every_axis_and_keeps_distances():
    for axis in range(3):
        centre = [15.5] * 3
        centre[axis] += 8
        spot = blob((32, 32, 32), tuple(centre)).expand(20, -1, -1, -1, -1)
        varied = augment(spot, generators(20), dimensions=3, **{**STILL, "rotation_degrees": 30.0})
        places = torch.stack([centre_of(image[0]) for image in varied])
        assert torch.allclose(places.norm(dim=1), torch.full((20,), 8.0), atol=0.1)
        aside = [other for other in range(3) if other != axis]
        assert (places[:, aside].abs().amax(dim=0) > 1.5).all()


def test_a_scale_above_1_enlarges_and_one_below_makes_smaller():
    spot = blob((48, 48, 1), (23.5, 23.5, 0), 3.0).expand(30, -1, -1, -1, -1)
    before = spot[0].sum()
    for low, high in ((1.5, 1.5), (0.5, 0.5)):
        varied = augment(spot, generators(30), dimensions=2, **{**STILL, "scale_range": (low, high)})
        assert torch.allclose(varied.sum(dim=(1, 2, 3, 4)) / before, torch.full((30,), low**2), rtol=0.03)
    areas = augment(spot, generators(30), dimensions=2, **{**STILL, "scale_range": (0.5, 2.0)}).sum(dim=(1, 2, 3, 4))
    factors = (areas / before).sqrt()
    assert factors.min() >= 0.48
    assert factors.max() <= 2.05
    assert 8 <= (factors < 1).sum() <= 22  # as many smaller as larger


def test_a_shift_is_a_share_of_each_side():
    spot = blob((60, 30, 1), (29.5, 14.5, 0)).expand(60, -1, -1, -1, -1)
    varied = augment(spot, generators(60), dimensions=2, **{**STILL, "shift_fraction": 0.2})
    furthest = torch.stack([centre_of(image[0]) for image in varied]).abs().amax(dim=0)
    assert 9 < furthest[0] <= 12.1
    assert 4.5 < furthest[1] <= 6.1


def test_a_shear_leans_y_towards_x_and_leaves_x_where_it_is():
    above = blob((40, 40, 1), (19.5, 29.5, 0)).expand(40, -1, -1, -1, -1)
    beside = blob((40, 40, 1), (29.5, 19.5, 0)).expand(40, -1, -1, -1, -1)
    told = {**STILL, "shear_degrees": 20.0}
    leaning = torch.stack([centre_of(image[0]) for image in augment(above, generators(40), dimensions=2, **told)])
    assert leaning[:, 0].abs().max() <= 10 * math.tan(math.radians(20)) + 0.1
    assert leaning[:, 0].abs().max() > 2.5
    assert (leaning[:, 1] - 10).abs().max() < 0.1
    still = torch.stack([centre_of(image[0]) for image in augment(beside, generators(40), dimensions=2, **told)])
    assert (still[:, 0] - 10).abs().max() < 0.1
    assert still[:, 1].abs().max() < 0.1


def test_the_slices_of_a_2d_image_are_varied_alike_and_never_mixed():
    picture = noise(5, 2, 20, 20, 1)
    images = torch.cat((picture, torch.zeros_like(picture), picture), dim=4)
    varied = augment(images, generators(5), dimensions=2, **{**LIVELY, "intensity": False})
    assert torch.equal(varied[..., 0], varied[..., 2])
    assert torch.equal(varied[..., 1], torch.zeros_like(varied[..., 1]))
    assert (varied[..., 0] - images[..., 0]).abs().max() > 0.1


def test_a_blur_does_not_reach_from_slice_to_slice_of_a_2d_image():
    images = torch.zeros(60, 1, 20, 20, 3)
    images[..., 1] = noise(20, 20)
    varied = augment(images, generators(60), dimensions=2, **{**STILL, "intensity": True})
    quiet = varied[..., [0, 2]].flatten(1).abs().amax(dim=1) == 0
    assert quiet.sum() > 40  # those without noise of their own
    assert ((varied[quiet] - images[quiet]).flatten(1).abs().amax(dim=1) > 0.05).sum() > 15


def test_intensities_vary_for_most_images_and_moderately():
    images = torch.linspace(-1, 1, 400).view(1, 1, 20, 20, 1).expand(60, -1, -1, -1, -1)
    varied = augment(images, generators(60), dimensions=2, **{**STILL, "intensity": True})
    change = (varied - images).flatten(1).abs().mean(dim=1)
    assert (change > 1e-3).float().mean() > 0.5
    assert change.max() < 0.6


def test_64_pictures_are_varied_in_far_less_time_than_a_training_step():
    images = noise(64, 1, 64, 64, 1)
    seconds = []
    for first in range(5):
        start = time.perf_counter()
        augment(images, generators(64, first), dimensions=2, **LIVELY)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.15  # 0.025 on an idle core
