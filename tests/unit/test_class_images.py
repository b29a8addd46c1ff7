"""A classification network sees the whole image, upright, undistorted and scaled; what cannot be seen so is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from pydantic import ValidationError
from tests.real_images import real

from labelrounds.classification.images import prepare_image
from labelrounds.errors import BadInput, TooLarge
from labelrounds.reading import Image, read_image
from labelrounds.sections import RangeIntensity, WindowIntensity, ZScoreIntensity

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RANGE = RangeIntensity(kind="range", low_percentile=0, high_percentile=100)
WINDOW = WindowIntensity(kind="window", low=0, high=200)
INTENSITIES = [RANGE, ZScoreIntensity(kind="zscore")]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)


def picture(array: np.ndarray) -> Image:
    return Image(array[None, :, :, None] if array.ndim == 2 else array, LPS, "png")


def volume(array: np.ndarray, affine: np.ndarray | None = None, source: str = "nifti") -> Image:
    return Image(array[None], np.eye(4) if affine is None else affine, source)


def prepared(image: Image, size=(16, 16, 1), spacing_mm=None, intensity=WINDOW, dimensions=2) -> torch.Tensor:
    return prepare_image(image, input_size=size, spacing_mm=spacing_mm, intensity=intensity, dimensions=dimensions)


def in_window(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32)) / 100 - 1


# Orientation


def test_a_picture_comes_in_the_order_of_ras_so_that_a_viewer_shows_it_upright():
    array = noise(16, 16)
    assert torch.allclose(prepared(picture(array))[0, :, :, 0], in_window(array[::-1, ::-1].copy()))


@pytest.mark.parametrize(
    ("columns", "rows"),
    [((-1, 0, 0), (0, -1, 0)), ((-1, 0, 0), (0, 0, -1)), ((0, 1, 0), (0, 0, -1))],
    ids=["unknown or axial", "coronal", "sagittal"],
)
def test_a_slice_of_any_plane_is_taken_as_it_lies(columns, rows):
    array, affine = noise(16, 16), np.eye(4)
    affine[:3, 0], affine[:3, 1] = columns, rows
    affine[:3, 2] = np.cross(columns, rows)
    expected = prepared(picture(array))
    if columns == (0, 1, 0):  # from the front to the back, not from the right to the left
        expected = expected.flip(1)
    assert torch.equal(prepared(Image(array[None, :, :, None], affine, "dicom")), expected)


def test_a_volume_comes_out_alike_however_it_is_stored():
    array = noise(8, 9, 10)
    stored = array[::-1].transpose(1, 2, 0)[::-1].copy()  # posterior, superior, left
    stored_affine = np.array([[0, 0, -1.0, 7], [-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, 0, 1]])
    expected = prepared(volume(array), (8, 9, 10), dimensions=3)
    assert torch.equal(prepared(volume(stored, stored_affine), (8, 9, 10), dimensions=3), expected)


# Size


@pytest.mark.parametrize(("shape", "filled"), [((64, 32), 1), ((32, 64), 0), ((5, 10), 0)])
def test_a_whole_picture_is_scaled_to_fit_and_the_rest_has_its_lowest_value(shape, filled):
    array = 100 + noise(*shape) // 2
    tensor = prepared(picture(array))[0, :, :, 0]
    assert tensor.shape == (16, 16)
    sides = tensor.narrow(filled, 0, 4), tensor.narrow(filled, 12, 4)
    middle = tensor.narrow(filled, 4, 8)
    assert all(torch.equal(side, torch.full_like(side, middle.min())) for side in sides)
    assert middle.min() >= 0
    assert middle.std() > 0.01


def test_a_picture_that_shrinks_is_averaged_not_picked():
    stripes = np.zeros((64, 64), np.int16)
    stripes[::2] = 200
    assert prepared(picture(stripes))[0, 1:-1].abs().max() < 0.1


def test_a_volume_that_shrinks_is_averaged_along_every_axis():
    for axis in range(3):
        stripes = np.zeros((32, 32, 32), np.int16)
        np.moveaxis(stripes, axis, 0)[::2] = 200
        inner = prepared(volume(stripes), (8, 8, 8), dimensions=3)[:, 1:-1, 1:-1, 1:-1]
        assert inner.abs().max() < 0.1


def test_the_aspect_ratio_is_one_in_millimetres():
    tensor = prepared(volume(np.full((20, 20, 10), 150), np.diag([1, 1, 4, 1])), (16, 16, 16), dimensions=3)
    assert torch.equal(tensor, torch.full((1, 16, 16, 16), 0.5))  # filled with the same
    array = np.full((20, 20, 10), 150)
    array[0] = 0
    tensor = prepared(volume(array, np.diag([1, 1, 4, 1])), (16, 16, 16), dimensions=3)[0]
    seen = (tensor > 0.4).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [7, 8, 16]


def test_with_a_spacing_the_middle_is_cut_out_or_padded():
    array = noise(20, 10, 6)
    tensor = prepared(volume(array), (16, 16, 6), (1.0, 1.0, 1.0), dimensions=3)[0]
    assert torch.allclose(tensor[:, 3:13], in_window(array[2:18]))
    assert torch.equal(tensor[:, :3], torch.full((16, 3, 6), tensor.min()))
    halved = prepared(volume(array, np.diag([0.5, 0.5, 0.5, 1])), (10, 5, 3), (1.0, 1.0, 1.0), dimensions=3)[0]
    assert halved.mean().item() == pytest.approx(in_window(array).mean().item(), abs=0.02)


def test_a_spacing_too_fine_for_the_image_is_refused():
    with pytest.raises(TooLarge, match=r"at \[0\.001, 0\.001, 1\.0\] mm"):
        prepared(picture(noise(200, 200)), spacing_mm=(0.001, 0.001, 1.0))


@pytest.mark.parametrize(("wanted", "taken"), [(1, [3]), (3, [1, 3, 5]), (7, list(range(7))), (20, list(range(7)))])
def test_a_volume_gives_a_2d_network_slices_of_its_own(wanted, taken):
    array = noise(16, 16, 7)
    assert torch.allclose(prepared(volume(array), (16, 16, wanted))[0], in_window(array[:, :, taken]))


def test_a_picture_has_one_slice_however_many_are_wanted():
    assert prepared(picture(noise(20, 30)), (16, 16, 9)).shape == (1, 16, 16, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_picture_of_a_single_row_is_refused(shape, dimensions):
    with pytest.raises(BadInput, match=f"{shape[0]} x {shape[1]} pixels are smaller than 2 x 2 pixels"):
        prepared(picture(noise(*shape)), dimensions=dimensions)


def test_a_3d_network_takes_no_flat_picture():
    with pytest.raises(BadInput, match="png: a flat picture; a 3-D model takes volumes"):
        prepared(picture(noise(20, 20)), (8, 8, 8), dimensions=3)
    with pytest.raises(BadInput, match="nifti: 1 slice; a 3-D model takes volumes"):
        prepared(volume(noise(20, 20, 1)), (8, 8, 8), dimensions=3)
    assert prepared(picture(noise(2, 2))).shape == (1, 16, 16, 1)


def test_a_picture_a_thousand_times_longer_than_wide_is_still_one():
    assert prepared(picture(noise(2000, 2))).isfinite().all()


# Intensities


@pytest.mark.parametrize("intensity", INTENSITIES, ids=lambda intensity: intensity.kind)
@pytest.mark.parametrize("value", [0, 255, -1000.1, 3e38])
def test_a_constant_image_becomes_zero(intensity, value):
    constant = Image(np.full((1, 20, 30, 1), value, np.float32), LPS, "png")
    assert torch.equal(prepared(constant, intensity=intensity), torch.zeros(1, 16, 16, 1))


def test_a_range_is_scaled_between_its_percentiles():
    array = np.arange(256, dtype=np.int16).reshape(16, 16)
    tensor = prepared(picture(array), intensity=RANGE)[0, :, :, 0]
    assert torch.allclose(tensor.flip(0, 1).flatten(), torch.linspace(-1, 1, 256), atol=1e-6)
    array[0, 0], array[15, 15] = -30000, 30000  # a dead pixel and a bright marker
    tensor = prepared(picture(array), intensity=RangeIntensity(kind="range"))
    assert (float(tensor.min()), float(tensor.max())) == pytest.approx((-1, 1))
    assert tensor.std() == pytest.approx(2 / 12**0.5, rel=0.02)


@pytest.mark.parametrize("intensity", INTENSITIES, ids=lambda intensity: intensity.kind)
def test_extreme_values_stay_finite(intensity):
    array = np.random.default_rng(0).uniform(-3e38, 3e38, (1, 20, 20, 1)).astype(np.float32)
    assert prepared(Image(array, LPS, "tiff"), intensity=intensity).isfinite().all()


def test_the_colours_of_a_picture_are_scaled_together_and_other_channels_each_for_itself():
    array = np.stack([noise(16, 16), noise(16, 16, seed=1) // 4])[..., None]
    array = np.concatenate((array, array[:1] // 2))
    together = prepared(picture(array), intensity=RANGE)
    assert together.amax((1, 2, 3)).tolist() == pytest.approx([1, -0.5, 0], abs=0.03)
    apart = prepared(Image(array, LPS, "nrrd"), intensity=RANGE)
    assert apart.amax((1, 2, 3)).tolist() == [1, 1, 1]


def test_padding_changes_nothing_in_the_image():
    array = noise(16, 8)
    for intensity in INTENSITIES:
        wide, narrow = (prepared(picture(array), (16, y, 1), intensity=intensity) for y in (16, 8))
        assert torch.equal(wide[:, :, 4:12], narrow)


def test_percentiles_out_of_order_are_refused():
    with pytest.raises(ValidationError):
        RangeIntensity(kind="range", low_percentile=60)


# From a file


def test_a_picture_and_its_dicom_radiograph_of_either_kind_look_alike(tmp_path: Path):
    from test_reading import series

    pixels = noise(6, 8).astype(np.uint8)  # as `series` has it, 8 columns and 6 rows
    Picture.fromarray(pixels).save(tmp_path / "xray.png")
    radiograph = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "Modality": "DX", "PixelSpacing": [0.2, 0.2]}
    stored = {"MONOCHROME2": pixels, "MONOCHROME1": 4095 - pixels.astype(np.uint16)}
    wanted = prepared(read_image(tmp_path / "xray.png"), intensity=RANGE)
    for kind, values in stored.items():
        changes = {"PhotometricInterpretation": kind, "PixelData": values.astype(np.uint16).tobytes(), "BitsStored": 12}
        file = series(tmp_path / kind, 1, **radiograph, **changes, HighBit=11)[0]
        assert torch.allclose(prepared(read_image(file), intensity=RANGE), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64, 1), (32, 32, 1), (96, 80, 1)])
def test_real_pictures_come_out_finite_and_full_of_contrast(size):
    kinds = sorted(real("mednist").iterdir())
    assert len(kinds) == 6
    for kind in kinds:
        tensor = prepared(read_image(min(kind.glob("*.jpeg")), channels=1), size, None, RangeIntensity(kind="range"))
        assert tensor.shape == (1, *size)
        assert tensor.isfinite().all()
        assert tensor.std() > 0.1


def test_a_real_dicom_series_is_seen_by_2d_and_3d_networks():
    image, intensity = read_image(real("dicom_brain_mr/11-T1post-18670"), channels=1), ZScoreIntensity(kind="zscore")
    assert prepared(image, (64, 64, 9), None, intensity).shape == (1, 64, 64, 9)
    whole = prepared(image, (48, 48, 32), (5.0, 5.0, 5.0), intensity, dimensions=3)
    assert whole.shape == (1, 48, 48, 32)
    assert whole.isfinite().all()
    assert whole[:, 20:28, 20:28, 12:20].mean() > whole[:, :4, :4].mean() + 0.5  # a head, and air around it
