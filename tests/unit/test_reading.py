"""What comes out of a file is right, or an error that says why; nibabel, pynrrd and pydicom are the judges."""

import gc
import gzip
import struct
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image as Picture
from tests.real_images import real

from labelrounds.errors import BadInput, NotFound, TooLarge, UnsupportedMedia
from labelrounds.headers import nrrd_header
from labelrounds.itk_loading import load_itk
from labelrounds.reading import patient_of, read_geometry, read_image, read_label
from labelrounds.segmentations import Segment, flattened

SHAPE = (11, 9, 7)


def oblique(
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5), flip: tuple[int, int, int] = (1, 1, 1)
) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing * np.array(flip)
    affine[:3, 3] = (-120.5, 80.25, -900.75)
    return affine


GEOMETRIES = {
    "axial": np.diag([1.0, 1.0, 1.0, 1.0]),
    "as a scanner stores it": np.diag([-0.7, -0.7, 2.0, 1.0]),
    "flipped": np.diag([1.0, -1.0, -3.0, 1.0]),
    "anisotropic": np.diag([0.3, 0.3, 8.0, 1.0]),
    "axes exchanged": np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]]),
    "oblique": oblique(),
    "oblique and left-handed": oblique(flip=(1, -1, 1)),
}
geometries = pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())


def voxels(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(voxels() if array is None else array, np.eye(4) if affine is None else affine), path)
    return path


def write_nrrd(path: Path, array: np.ndarray | None = None, **header: Any) -> Path:
    geometry = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(path), voxels() if array is None else array, {**geometry, **header}, index_order="F")
    return path


def patched(source: Path, offset: int, form: str, *values: float) -> Path:
    content = bytearray(source.read_bytes())
    struct.pack_into(form, content, offset, *values)
    source.write_bytes(content)
    return source


# Voxels and geometry


@geometries
def test_a_nifti_has_the_voxels_and_the_affine_that_nibabel_finds(tmp_path: Path, affine: np.ndarray):
    image = read_image(nifti(tmp_path / "scan.nii.gz", affine=affine))
    assert image.source == "nifti"
    assert np.array_equal(image.array[0], voxels())
    assert np.abs(image.affine - nib.load(tmp_path / "scan.nii.gz").affine).max() < 1e-4
    assert image.spacing_mm == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0))


@geometries
def test_an_nrrd_has_the_voxels_and_the_affine_that_were_written(tmp_path: Path, affine: np.ndarray):
    lps = np.diag([-1, -1, 1, 1]) @ affine
    path = write_nrrd(tmp_path / "scan.nrrd", **{"space directions": lps[:3, :3].T, "space origin": lps[:3, 3]})
    image = read_image(path)
    assert np.array_equal(image.array[0], voxels())
    assert np.abs(image.affine - affine).max() < 1e-9


@pytest.mark.parametrize(
    ("space", "to_ras"),
    [("right-anterior-superior", (1, 1, 1)), ("LPS", (-1, -1, 1)), ("left-anterior-superior", (-1, 1, 1))],
)
def test_an_nrrd_in_another_space_lies_at_the_same_place(tmp_path: Path, space: str, to_ras: tuple[int, int, int]):
    affine = oblique()
    stored = np.diag([*to_ras, 1]) @ affine
    fields = {"space": space, "space directions": stored[:3, :3].T, "space origin": stored[:3, 3]}
    assert np.abs(read_image(write_nrrd(tmp_path / "scan.nrrd", **fields)).affine - affine).max() < 1e-9


@geometries
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
def test_the_geometry_alone_is_that_of_the_image(tmp_path: Path, affine: np.ndarray, ending: str):
    lps = np.diag([-1, -1, 1, 1]) @ affine
    path = tmp_path / f"scan{ending}"
    if ending == ".nrrd":
        write_nrrd(path, **{"space directions": lps[:3, :3].T, "space origin": lps[:3, 3]})
    else:
        nifti(path, affine=affine)
    image, geometry = read_image(path), read_geometry(path)
    assert geometry.shape == image.shape == SHAPE
    assert np.allclose(geometry.affine, image.affine, atol=1e-12)


@pytest.mark.parametrize("name", ["ct_abdomen/ct_thin.nii.gz", "ct_abdomen/mr_thin.nii.gz"])
def test_a_real_scan_has_the_voxels_and_the_affine_that_nibabel_finds(name: str):
    image, expected = read_image(real(name)), nib.load(real(name))
    assert np.array_equal(image.array[0], np.asanyarray(expected.dataobj))
    assert np.abs(image.affine - expected.affine).max() < 1e-4


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("uint8", "uint8"),
        ("int8", "int16"),
        ("int16", "int16"),
        ("uint16", "uint16"),
        ("int32", "int32"),
        ("uint32", "uint32"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nrrd"])
def test_the_type_in_the_file_is_kept(tmp_path: Path, stored: str, read: str, ending: str):
    write = nifti if ending == ".nii" else write_nrrd
    image = read_image(write(tmp_path / f"scan{ending}", voxels(stored)))
    assert image.array.dtype == read
    assert np.array_equal(image.array[0], voxels(stored))


@pytest.mark.parametrize("order", ["<", ">"])
def test_either_byte_order_is_read(tmp_path: Path, order: str):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype("int16").newbyteorder(order))
    nib.save(nib.Nifti1Image(voxels(), oblique(), header), tmp_path / "scan.nii.gz")
    image = read_image(tmp_path / "scan.nii.gz")
    assert np.array_equal(image.array[0], voxels())
    assert np.abs(image.affine - oblique()).max() < 1e-4


def test_slope_and_intercept_of_a_nifti_are_applied(tmp_path: Path):
    path = patched(nifti(tmp_path / "scan.nii"), 112, "<2f", 0.5, -100.0)
    assert np.allclose(read_image(path).array[0], voxels() * 0.5 - 100)


def test_the_array_outlives_the_reader(tmp_path: Path):
    big = voxels(np.int16, (64, 64, 64))
    image = read_image(nifti(tmp_path / "scan.nii", big))
    for _ in range(3):
        gc.collect()
        np.ones((64, 64, 64), np.int16)
    assert np.array_equal(image.array[0], big)


def test_a_single_voxel_and_a_single_slice_are_images(tmp_path: Path):
    assert read_image(nifti(tmp_path / "dot.nii", voxels(shape=(1, 1, 1)))).shape == (1, 1, 1)
    assert read_image(nifti(tmp_path / "slice.nii", voxels(shape=(8, 9)))).shape == (8, 9, 1)


def test_a_fourth_axis_is_taken_only_if_it_was_asked_for(tmp_path: Path):
    """Reliability 7."""
    path = nifti(tmp_path / "scan.nii.gz", voxels(shape=(6, 5, 4, 3)))
    with pytest.raises(BadInput, match="3 channels"):
        read_image(path)
    with pytest.raises(BadInput, match="allowed: 2"):
        read_image(path, channels=2)
    image = read_image(path, channels=3)
    assert np.array_equal(image.array, np.moveaxis(voxels(shape=(6, 5, 4, 3)), 3, 0))
    assert image.affine.shape == (4, 4)


def test_a_fourth_axis_of_one_is_no_axis(tmp_path: Path):
    assert read_image(nifti(tmp_path / "scan.nii", voxels(shape=(6, 5, 4, 1)))).array.shape == (1, 6, 5, 4)


def test_several_values_a_voxel_in_an_nrrd_are_channels(tmp_path: Path):
    array = voxels(shape=(2, 6, 5, 4))
    directions = np.array([[np.nan] * 3, *np.eye(3)])
    kinds = ["vector", "domain", "domain", "domain"]
    path = write_nrrd(tmp_path / "scan.nrrd", array, kinds=kinds, **{"space directions": directions})
    with pytest.raises(BadInput, match="2 channels"):
        read_image(path)
    assert np.array_equal(read_image(path, channels=2).array, array)


# Pictures


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_grey_picture_is_one_slice_of_1_mm(tmp_path: Path, ending: str):
    pixels = voxels(np.uint8, (20, 30))
    Picture.fromarray(pixels).save(tmp_path / f"xray{ending}", dpi=(72, 72))
    image = read_image(tmp_path / f"xray{ending}")
    assert np.array_equal(image.array[0, :, :, 0], pixels.T)
    assert image.spacing_mm == (1, 1, 1)
    assert read_geometry(tmp_path / f"xray{ending}").shape == (30, 20, 1)


def test_a_colour_picture_keeps_its_colours_unless_one_channel_is_wanted(tmp_path: Path):
    pixels = voxels(np.uint8, (20, 30, 3))
    Picture.fromarray(pixels).save(tmp_path / "photo.png")
    assert np.array_equal(read_image(tmp_path / "photo.png").array[:, :, :, 0], pixels.T)
    grey = read_image(tmp_path / "photo.png", channels=1)
    assert grey.array.shape == (1, 30, 20, 1)
    luminance = pixels @ np.array([0.2125, 0.7154, 0.0721])
    assert np.abs(grey.array[0, :, :, 0].T - luminance).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_picture_gives_three_equal_channels_if_three_are_wanted(tmp_path: Path, mode: str):
    pixels = voxels(np.uint8, (20, 30))
    picture = Picture.fromarray(pixels).convert(mode)
    if mode == "LA":
        picture.putalpha(100)
    picture.save(tmp_path / "xray.png")
    for channels, found in ((None, 1), (1, 1), (3, 3)):
        array = read_image(tmp_path / "xray.png", channels=channels).array
        assert np.array_equal(array[..., 0], np.stack([pixels.T] * found))
    with pytest.raises(BadInput, match="allowed: 4"):
        read_image(tmp_path / "xray.png", channels=4)


def test_three_wanted_channels_of_a_picture_are_its_colours_without_its_transparency(tmp_path: Path):
    pixels = voxels(np.uint8, (20, 30, 4))
    Picture.fromarray(pixels).save(tmp_path / "photo.png")
    assert np.array_equal(read_image(tmp_path / "photo.png", channels=3).array[..., 0], pixels[..., :3].T)


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii"])
def test_luminance_is_that_of_the_colours_whatever_the_transparency(tmp_path: Path, ending: str):
    pixels = voxels(np.uint8, (20, 30, 4))
    path = tmp_path / f"photo{ending}"
    if ending == ".nii":
        colours = pixels.view([(name, "u1") for name in "RGBA"])
        nib.save(nib.Nifti1Image(colours.reshape(20, 30, 1).transpose(1, 0, 2), np.diag([-1, -1, 1, 1])), path)
    else:
        Picture.fromarray(pixels).save(path)
    Picture.fromarray(pixels[..., :3]).save(tmp_path / "opaque.png")
    found = read_image(path, channels=1).array
    assert np.array_equal(found, read_image(tmp_path / "opaque.png", channels=1).array)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [None, 1])
def test_a_jpeg_that_was_cut_before_its_end_mark_is_refused(
    tmp_path: Path, progressive: bool, mode: str, channels: int | None
):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(3).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Picture.fromarray(pixels).convert(mode).save(path, progressive=progressive)
    content = path.read_bytes()
    scan = content.rindex(b"\xff\xda")
    read_image(path, channels=channels)
    for percent in range(10, 96, 5):
        path.write_bytes(content[: scan + (len(content) - scan) * percent // 100] + b"\xff\xd9")
        with pytest.raises(BadInput, match=r"photo.jpg: the file is cut"):
            read_image(path, channels=channels)


def test_a_whole_jpeg_may_end_in_the_grey_that_a_cut_one_ends_in(tmp_path: Path):
    Picture.fromarray(np.full((40, 40, 3), 128, np.uint8)).save(tmp_path / "grey.jpg")
    assert (read_image(tmp_path / "grey.jpg").array == 128).all()


def test_a_file_that_may_not_be_opened_is_bad_input(tmp_path: Path, monkeypatch):
    path = nifti(tmp_path / "scan.nii")
    for error, kind in ((PermissionError(13, "Permission denied"), BadInput), (FileNotFoundError(2, "gone"), NotFound)):

        def refuse(*_: Any, raised: OSError = error, **__: Any) -> None:
            raise raised

        with monkeypatch.context() as refused, pytest.raises(kind, match=r"scan.nii: (can't be opened: Perm|no such)"):
            refused.setattr(Path, "open", refuse)
            read_image(path)


def test_a_volume_of_one_channel_is_not_taken_for_three(tmp_path: Path):
    with pytest.raises(BadInput, match="allowed: 3"):
        read_image(nifti(tmp_path / "scan.nii"), channels=3)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_a_picture_of_16_bits_keeps_them(tmp_path: Path, ending: str, channels: int | None):
    pixels = np.random.default_rng(2).integers(0, 65536, (20, 30)).astype(np.uint16)
    Picture.fromarray(pixels).save(tmp_path / f"xray{ending}")
    array = read_image(tmp_path / f"xray{ending}", channels=channels).array
    assert array.dtype == np.uint16
    assert all(np.array_equal(channel[..., 0], pixels.T) for channel in array)


def test_jpegs_of_grey_and_of_colours_are_read(tmp_path: Path):
    rows, columns = np.mgrid[:40, :60]
    smooth = np.stack([rows * 6, columns * 4, 255 - rows * 3], axis=2).astype(np.uint8)
    Picture.fromarray(smooth).save(tmp_path / "photo.jpg", quality=95)
    Picture.fromarray(smooth[..., 0]).save(tmp_path / "xray.jpeg", quality=95)
    colours = read_image(tmp_path / "photo.jpg", channels=3).array[..., 0].T.astype(int)
    assert np.abs(colours - smooth).max() <= 12
    grey = read_image(tmp_path / "photo.jpg", channels=1).array[0, ..., 0].T
    assert np.abs(grey - smooth @ np.array([0.2125, 0.7154, 0.0721])).max() <= 6
    single = read_image(tmp_path / "xray.jpeg").array[0, ..., 0].T.astype(int)
    assert np.abs(single - smooth[..., 0]).max() <= 4


def test_a_single_pixel_is_a_picture(tmp_path: Path):
    for ending in (".png", ".jpg"):
        Picture.fromarray(np.full((1, 1), 200, np.uint8)).save(tmp_path / f"dot{ending}")
        assert read_image(tmp_path / f"dot{ending}").array.tolist() == [[[[200]]]]


def test_real_jpegs_are_read():
    kinds = sorted(real("mednist").iterdir())
    assert len(kinds) == 6
    for kind in kinds:
        file = min(kind.glob("*.jpeg"))
        expected = np.asarray(Picture.open(file).convert("L")).astype(int)
        assert np.abs(read_image(file, channels=1).array[0, :, :, 0].T - expected).max() <= 1


def test_several_pages_are_no_picture(tmp_path: Path):
    page = Picture.fromarray(voxels(np.uint8, (20, 30)))
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(BadInput, match="several pages"):
        read_image(tmp_path / "pages.tif")


# What does not fit its ending


@pytest.mark.parametrize(
    "name", ["scan.mha", "scan.mhd", "scan.npy", "scan", "scan.nii.zip", ".nii", "scan.nii.gz.exe"]
)
def test_other_endings_are_refused_before_anything_is_opened(tmp_path: Path, name: str):
    """Reliability 2."""
    (tmp_path / name).write_bytes(b"ObjectType = Image\n" * 40)
    with pytest.raises(UnsupportedMedia, match="ending is not one of"):
        read_image(tmp_path / name)


def grey_tiff(path: Path, pixels: np.ndarray, meaning: int, sample_format: int = 1) -> Path:
    """Write grey ``(height, width)``; ``meaning`` 0: 0 is white, 1: 0 is black; ``sample_format`` 2: signed."""
    height, width = pixels.shape
    shorts = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: meaning, 273: 8, 277: 1, 278: height}
    shorts |= {279: pixels.nbytes, 339: sample_format}
    entries = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in shorts.items())
    directory = struct.pack("<H", len(shorts)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + pixels.nbytes) + pixels.tobytes() + directory)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_in_which_0_is_white_is_as_bright_as_others(tmp_path, dtype):
    """Reliability 7."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 9)).astype(dtype)
    usual = read_image(grey_tiff(tmp_path / "usual.tif", pixels, meaning=1))
    inverted = read_image(grey_tiff(tmp_path / "inverted.tif", np.iinfo(dtype).max - pixels, meaning=0))
    assert usual.array.dtype == inverted.array.dtype == dtype
    np.testing.assert_array_equal(usual.array[0, :, :, 0], pixels.T)
    np.testing.assert_array_equal(inverted.array, usual.array)
    with pytest.raises(BadInput, match="0 is white has whole numbers from 0, not int16"):
        read_image(grey_tiff(tmp_path / "signed.tif", pixels, meaning=0, sample_format=2))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04\x95 a pickle", b"ObjectType = Image\n" * 40, gzip.compress(bytes(500))],
    ids=["empty", "pickle", "text", "gzip"],  # a compressed content has the time in it, and is no name of a test
)
def test_content_that_does_not_match_its_ending_is_refused(tmp_path: Path, ending: str, content: bytes):
    """Reliability 2."""
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    with pytest.raises(UnsupportedMedia):
        read_image(path)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(NotFound):
        read_image(tmp_path / "scan.nii.gz")


def test_nifti_in_two_files_and_nifti_2_are_refused(tmp_path: Path):
    path = nifti(tmp_path / "pair.nii")
    path.write_bytes(path.read_bytes()[:344] + b"ni1\0" + path.read_bytes()[348:])
    with pytest.raises(UnsupportedMedia, match="two files"):
        read_image(path)
    nib.save(nib.Nifti2Image(voxels(), np.eye(4)), tmp_path / "two.nii")
    with pytest.raises(UnsupportedMedia, match="NIfTI-2"):
        read_image(tmp_path / "two.nii")


def test_an_nrrd_whose_voxels_lie_in_another_file_is_refused(tmp_path: Path):
    write_nrrd(tmp_path / "scan.nrrd")
    text = (tmp_path / "scan.nrrd").read_bytes().replace(b"encoding: gzip", b"encoding: raw\ndata file: /etc/hostname")
    (tmp_path / "scan.nrrd").write_bytes(text)
    with pytest.raises(UnsupportedMedia, match="data file"):
        read_image(tmp_path / "scan.nrrd")


# Sizes


def test_a_short_file_that_claims_32767_voxels_a_side_is_too_large(tmp_path: Path):
    """Reliability 4."""
    with pytest.raises(TooLarge, match="32767"):
        read_image(patched(nifti(tmp_path / "scan.nii"), 40, "<4h", 3, 32767, 32767, 32767))
    write_nrrd(tmp_path / "scan.nrrd")
    text = (tmp_path / "scan.nrrd").read_bytes().replace(b"sizes: 11 9 7", b"sizes: 32767 32767 32767")
    (tmp_path / "scan.nrrd").write_bytes(text)
    with pytest.raises(TooLarge, match="32767"):
        read_image(tmp_path / "scan.nrrd")


def test_the_limit_counts_every_format(tmp_path: Path):
    Picture.fromarray(voxels(np.uint8, (20, 30))).save(tmp_path / "xray.png")
    for path in (
        nifti(tmp_path / "a.nii"),
        nifti(tmp_path / "a.nii.gz"),
        write_nrrd(tmp_path / "a.nrrd"),
        tmp_path / "xray.png",
    ):
        with pytest.raises(TooLarge):
            read_image(path, max_voxels=500)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_gzip_bomb_of_10_gigabytes_is_stopped_at_the_size_that_the_header_claims(tmp_path: Path, ending: str):
    """Reliability 4."""
    bomb = gzip.compress(bytes(100 * 2**20)) * 100  # members of one gzip
    if ending == ".nrrd":
        text = write_nrrd(tmp_path / "scan.nrrd").read_bytes()
        bomb = text[: text.index(b"\n\n") + 2] + bomb
    else:
        bomb = gzip.compress(nifti(tmp_path / "scan.nii").read_bytes()) + bomb
    assert len(bomb) < 11 * 2**20
    (tmp_path / f"bomb{ending}").write_bytes(bomb)
    with pytest.raises(TooLarge, match="unpacks to over"):
        read_image(tmp_path / f"bomb{ending}")


def test_a_picture_that_claims_far_more_than_it_holds_is_refused(tmp_path: Path):
    Picture.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "xray.png")
    content = bytearray((tmp_path / "xray.png").read_bytes())
    struct.pack_into(">2I", content, 16, 30000, 30000)
    struct.pack_into(">I", content, 29, zlib.crc32(bytes(content[12:29])))
    (tmp_path / "xray.png").write_bytes(content)
    with pytest.raises(BadInput, match="cannot hold"):
        read_image(tmp_path / "xray.png")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
def test_of_a_volume_that_is_cut_at_any_percent_no_part_is_an_image_or_a_mask(tmp_path: Path, ending: str):
    """Reliability 3."""
    write = write_nrrd if ending == ".nrrd" else nifti
    content = write(tmp_path / f"whole{ending}", voxels(np.uint8, (20, 20, 20))).read_bytes()
    path = tmp_path / f"cut{ending}"
    for percent in range(1, 100):
        path.write_bytes(content[: len(content) * percent // 100])
        for read in (read_image, read_label):
            with pytest.raises((BadInput, UnsupportedMedia)) as refused:
                read(path)
            assert refused.value.status == 400 or path.stat().st_size < 348
    path.write_bytes(content[:-1])
    with pytest.raises(BadInput, match="cut"):
        read_label(path)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif"])
def test_of_a_cut_picture_no_part_is_an_image(tmp_path: Path, ending: str):
    Picture.fromarray(voxels(np.uint8, (50, 60))).save(tmp_path / f"whole{ending}")
    content = (tmp_path / f"whole{ending}").read_bytes()
    for percent in range(5, 100, 10):
        path = tmp_path / f"cut{ending}"
        path.write_bytes(content[: len(content) * percent // 100])
        with pytest.raises((BadInput, UnsupportedMedia)):
            read_image(path)


def test_a_gzip_with_a_wrong_checksum_is_refused(tmp_path: Path):
    content = bytearray(nifti(tmp_path / "scan.nii.gz").read_bytes())
    content[-6] ^= 1
    (tmp_path / "scan.nii.gz").write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        read_image(tmp_path / "scan.nii.gz")


# Geometry that cannot be


@pytest.mark.parametrize(
    ("offset", "form", "values", "message"),
    [
        (80, "<f", (float("nan"),), r"pixdim\[1\] nan"),
        (84, "<f", (0.0,), r"pixdim\[2\] 0.0"),
        (88, "<f", (float("inf"),), r"pixdim\[3\] inf"),
        (280, "<4f", (float("nan"), 0, 0, 0), "sform .* not finite"),
        (292, "<f", (float("inf"),), "sform .* not finite"),
        (280, "<8f", (1, 1, 0, 0, 0, 0, 0, 0), "sform .* singular"),
        (252, "<2h7f", (1, 0, float("nan"), 0, 0, 0, 0, 0, 0), "qform .* not finite"),
        (252, "<2h7f", (1, 0, 0, 0, 0, 0, float("inf"), 0, 0), "qform .* not finite"),
        (112, "<f", (float("inf"),), "scl_slope inf"),
        (112, "<f", (1e-38,), "scl_slope"),
        (116, "<f", (float("nan"),), "scl_inter nan"),
        (280, "<4f", (0, 0, 0, 0), "sform .* above 0"),
        (284, "<f", (0.4,), "sform .* sheared"),
        (296, "<4f", (1, 0, 0, 0), "sform .* above 0"),
        (40, "<h", (9,), r"dim\[0\] 9"),
        (44, "<h", (-3,), r"dim\[2\] -3"),
        (70, "<h", (1234,), "datatype 1234"),
        (108, "<f", (float("nan"),), "vox_offset nan"),
    ],
)
def test_a_nifti_header_that_cannot_be_is_refused_by_the_fields_name(
    tmp_path: Path, offset: int, form: str, values: tuple[float, ...], message: str
):
    """Reliability 5."""
    with pytest.raises(BadInput, match=message):
        read_image(patched(nifti(tmp_path / "scan.nii"), offset, form, *values))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"(1,0,0)", b"(nan,0,0)", "space directions .* not finite"),
        (b"(1,0,0)", b"(0,0,0)", "space directions .* above 0"),
        (b"(1,0,0)", b"(1,0.9,0)", "space directions .* sheared"),
        (b"(1,0,0)", b"(1,0.9)", "not 3 numbers"),
        (b"space origin: (0,0,0)", b"space origin: (0,inf,0)", "not finite"),
        (b"sizes: 11 9 7", b"sizes: 11 -9 7", "sizes"),
        (b"sizes: 11 9 7", b"sizes: 11 9", "dimension"),
        (b"type: int16", b"type: block", "type 'block'"),
        (b"encoding: gzip", b"encoding: bzip2", "encoding 'bzip2'"),
        (b"space: left-posterior-superior", b"space: scanner-xyz", "space 'scanner-xyz'"),
    ],
)
def test_an_nrrd_header_that_cannot_be_is_refused_by_the_fields_name(
    tmp_path: Path, old: bytes, new: bytes, message: str
):
    """Reliability 5."""
    path = write_nrrd(tmp_path / "scan.nrrd")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises((BadInput, UnsupportedMedia), match=message):
        read_image(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_a_few_voxels_that_are_not_finite_become_the_nearest_finite_ones(tmp_path: Path, ending: str, dtype: str):
    """Reliability 6."""
    array = (voxels() + 5).astype(dtype)
    array[0, 0, :3] = (np.nan, np.inf, -np.inf)
    path = tmp_path / f"scan{ending}"
    if ending == ".nrrd":
        write_nrrd(path, array)
    else:
        header = nib.Nifti1Header(endianness=array.dtype.byteorder.replace("=", "<"))
        nib.save(nib.Nifti1Image(array, np.eye(4), header), path)
    read = read_image(path).array[0]
    assert read[0, 0, :3].tolist() == [array[1:].min(), array[1:].max(), array[1:].min()]
    assert np.array_equal(read[1:], array[1:])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_an_image_of_mostly_nan_is_refused(tmp_path: Path, ending: str):
    """Reliability 6."""
    array = voxels(np.float32)
    array[:8] = np.nan
    write = write_nrrd if ending == ".nrrd" else nifti
    with pytest.raises(BadInput, match="NaN or infinite"):
        read_image(write(tmp_path / f"scan{ending}", array))


@pytest.mark.parametrize(
    "line", ["q" * 3000, "q" * 3000 + ": 5", "units: " + "q" * 3000 + ":=", "kinds: " + "q" * 3000]
)
def test_a_line_too_long_for_an_nrrd_field_is_refused(tmp_path: Path, line: str):
    path = write_nrrd(tmp_path / "scan.nrrd")
    path.write_bytes(path.read_bytes().replace(b"encoding:", line.encode() + b"\nencoding:"))
    with pytest.raises(BadInput, match=r"30\d\d bytes; at most 500"):
        read_image(path)


@pytest.mark.parametrize("line", ["# " + "q" * 3000, "key:=" + "q: " * 1000, "content: " + "q" * 3000])
def test_comments_pairs_and_content_of_an_nrrd_may_be_long(tmp_path: Path, line: str):
    path = write_nrrd(tmp_path / "scan.nrrd")
    path.write_bytes(path.read_bytes().replace(b"encoding:", line.encode() + b"\nencoding:"))
    assert read_image(path).shape == SHAPE


# Labels


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4, 1, 2), (2, 2, 2, 2, 2)])
def test_a_label_of_more_than_three_axes_is_never_sliced(tmp_path: Path, shape: tuple[int, ...]):
    """Reliability 7."""
    with pytest.raises(BadInput, match=r"channels|more than four axes"):
        read_label(nifti(tmp_path / "label.nii.gz", voxels(np.uint8, shape)))


def test_a_label_of_colours_is_refused(tmp_path: Path):
    """Reliability 7."""
    colours = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(BadInput, match="one channel, this has 3"):
        read_label(tmp_path / "label.nii.gz")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_a_label_of_whole_numbers_is_read_from_any_type(tmp_path: Path, dtype: str):
    label = read_label(nifti(tmp_path / "label.nii.gz", voxels(dtype)))
    assert label.array.dtype == np.uint8
    assert np.array_equal(label.array[0], voxels())


@pytest.mark.parametrize("value", [-1, 256, 0.5])
def test_other_label_values_are_refused(tmp_path: Path, value: float):
    array = voxels(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(BadInput, match="label values"):
        read_label(nifti(tmp_path / "label.nii.gz", array))


def segmentation(path: Path, array: np.ndarray, *segments: dict[str, str], **header: Any) -> Path:
    pairs = {f"Segment{index}_{key}": value for index, one in enumerate(segments) for key, value in one.items()}
    return write_nrrd(path, array, **header, **pairs)


def test_a_segmentation_file_says_which_value_is_which_segment(tmp_path: Path):
    segments = (
        {"ID": "a", "Name": "liver", "LabelValue": "7", "Layer": "0"},
        {"ID": "b", "Name": "spleen", "LabelValue": "2"},
    )
    label = read_label(segmentation(tmp_path / "label.seg.nrrd", voxels(np.uint8), *segments))
    assert label.segments == {"liver": 7, "spleen": 2}


LIVER, TUMOUR = {"ID": "a", "Name": "liver", "Layer": "0"}, {"ID": "b", "Name": "tumour", "Layer": "1"}
SPLEEN = {"ID": "c", "Name": "spleen", "Layer": "0", "LabelValue": "5"}


def layered(path: Path, layers: np.ndarray, *segments: dict[str, str], **header: Any) -> Path:
    kinds, directions = ["list", *["domain"] * 3], np.array([[np.nan] * 3, *np.eye(3)])
    return segmentation(path, layers, *segments, kinds=kinds, **{"space directions": directions, **header})


def overlapping_layers(dtype: Any = np.uint8) -> np.ndarray:
    layers = np.zeros((2, *SHAPE), dtype)
    layers[0, :3], layers[0, 3:] = 1, 5
    layers[1, 1:4] = 1
    return layers


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_where_segments_overlap_the_later_one_in_the_list_counts(tmp_path: Path, dtype: str, encoding: str):
    layers, path = overlapping_layers(dtype), tmp_path / "label.seg.nrrd"
    liver, tumour, spleen = np.zeros((3, *SHAPE), bool)
    liver[:3], tumour[1:4], spleen[3:] = True, True, True
    label = read_label(layered(path, layers, LIVER, TUMOUR, SPLEEN, encoding=encoding))
    assert label.segments == {"liver": 1, "tumour": 2, "spleen": 3}
    assert label.array.dtype == np.uint8
    assert np.array_equal(label.array[0], np.select([spleen, tumour, liver], [3, 2, 1]))
    label = read_label(layered(path, layers, SPLEEN, TUMOUR, LIVER, encoding=encoding))
    assert label.segments == {"spleen": 1, "tumour": 2, "liver": 3}
    assert np.array_equal(label.array[0], np.select([liver, tumour, spleen], [3, 2, 1]))


WRONG_LAYERS = {
    "a layer beyond the file's": ((LIVER, {**TUMOUR, "Layer": "2"}, SPLEEN), "'tumour': layer '2'; allowed: 0 to 1"),
    "a layer that is no number": ((LIVER, {**TUMOUR, "Layer": "-1"}, SPLEEN), "'tumour': layer '-1'"),
    "a layer of many digits": ((LIVER, {**TUMOUR, "Layer": "0" * 5000}, SPLEEN), "'tumour': layer"),
    "a value beyond a label map's": ((LIVER, {**TUMOUR, "LabelValue": "256"}), "value '256'; allowed: 1 to 255"),
    "a value of the background": ((LIVER, {**TUMOUR, "LabelValue": "0"}), "value '0'; allowed: 1 to 255"),
    "two segments of one name": ((LIVER, {**TUMOUR, "Name": "liver"}, SPLEEN), "two segments are named 'liver'"),
    "two names but for a blank": ((LIVER, {**TUMOUR, "Name": "liver "}, SPLEEN), "two segments are named 'liver'"),
    "two segments in one place": (
        (LIVER, {**TUMOUR, "Layer": "0"}, SPLEEN),
        "value 1 on layer 0",
    ),
    "voxels of no segment": ((LIVER, TUMOUR), r"layer 0 has the values \[5\]; allowed are \[0, 1\]"),
    "no segments": ((), "2 channels"),
}


@pytest.mark.parametrize(("segments", "message"), WRONG_LAYERS.values(), ids=WRONG_LAYERS)
def test_layers_that_are_not_well_described_are_refused(tmp_path: Path, segments: Any, message: str):
    with pytest.raises(BadInput, match=message):
        read_label(layered(tmp_path / "label.seg.nrrd", overlapping_layers(), *segments))


@pytest.mark.parametrize("name", ["", "  ", "li\x07ver", "\u202erevil", "li\\nver", "x" * 256], ids=ascii)
def test_a_segment_without_a_printable_name_is_refused(tmp_path: Path, name: str):
    path = layered(tmp_path / "label.seg.nrrd", overlapping_layers(), LIVER, TUMOUR, SPLEEN)
    path.write_bytes(path.read_bytes().replace(b"_Name:=tumour", f"_Name:={name}".encode()))
    with pytest.raises(BadInput, match=r"segment 1, '.*', has no 'name' of 1 to 255 printable characters"):
        read_label(path)


def test_a_pair_is_read_as_itk_reads_it(tmp_path: Path):
    parts = ["a\u2028b", "c\u0085d", "e\x0bf", "g\\\\n", "h\\q", "k\\nl"]
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 1 1 1\nencoding: raw\n"
    text += "".join(f"Key{number}:={part}\n" for number, part in enumerate(parts)) + "Last:=1\r\n\n"
    (tmp_path / "label.nrrd").write_bytes(text.encode() + b"\0")
    found = dict(load_itk().imread(str(tmp_path / "label.nrrd")))
    pairs = nrrd_header(text.encode(), "label.nrrd").pairs
    assert len(pairs) == len(parts) + 1
    assert pairs == {key: found[key] for key in pairs}


@pytest.mark.parametrize("part", ["a\rb:=c", "a\r\rb:=c"], ids=ascii)
def test_an_nrrd_whose_lines_itk_would_end_elsewhere_is_refused(tmp_path: Path, part: str):
    path = write_nrrd(tmp_path / "label.nrrd", voxels(np.uint8))
    path.write_bytes(path.read_bytes().replace(b"encoding:", f"Key:={part}\nencoding:".encode()))
    with pytest.raises(BadInput, match="carriage return without a line feed"):
        read_label(path)


TOOLS = ("background", "foreground_scribbles", "background_scribbles")


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_drawn_for_a_tool_is_background(tmp_path: Path, tool: str):
    layers = overlapping_layers()
    label = read_label(layered(tmp_path / "layers.seg.nrrd", layers, LIVER, {**TUMOUR, "Name": tool}, SPLEEN))
    assert label.segments == {"liver": 1, "spleen": 3}
    assert np.array_equal(label.array[0], np.select([layers[0] == 1, layers[0] == 5], [1, 3]))
    label = read_label(segmentation(tmp_path / "plain.seg.nrrd", layers[0], {**LIVER, "Name": tool}, SPLEEN))
    assert label.segments == {"spleen": 5}
    assert np.array_equal(label.array[0], np.where(layers[0] == 5, 5, 0))
    label = read_label(segmentation(tmp_path / "none.seg.nrrd", layers[1], {**LIVER, "Name": tool}))
    assert label.segments == {} and not label.array.any()


def test_many_segments_are_flattened_in_a_pass_a_layer():
    rng = np.random.default_rng(0)
    segments = [Segment(f"s{n}", n % 2, n // 2 + 1) for n in range(250)]
    layers = rng.integers(0, 126, (2, 128, 128, 60), np.uint8)
    start = time.process_time()
    labels = flattened(layers, segments, "label")
    took = time.process_time() - start
    expected = np.zeros(layers.shape[1:], np.uint8)
    for value, one in enumerate(segments, 1):
        expected[layers[one.layer] == one.value] = value
    assert np.array_equal(labels[0], expected)
    assert took < (time.process_time() - start - took) / 3


def test_more_segments_than_a_label_map_has_values_are_refused(tmp_path: Path):
    segments = [{"Name": f"s{n}", "Layer": str(n % 2), "LabelValue": str(n // 2 + 1)} for n in range(256)]
    with pytest.raises(BadInput, match="256 segments; at most 255"):
        read_label(layered(tmp_path / "label.seg.nrrd", overlapping_layers(), *segments))


def test_a_single_layer_names_no_other(tmp_path: Path):
    with pytest.raises(BadInput, match="'tumour': layer '1'; allowed: 0"):
        read_label(segmentation(tmp_path / "label.seg.nrrd", voxels(np.uint8), LIVER, TUMOUR))


@pytest.mark.parametrize("layers", [100, 3])
def test_layers_that_itk_takes_for_an_axis_of_space_are_refused(tmp_path: Path, layers: int):
    array = np.zeros((layers, 5, 5, 3), np.uint8)
    text = f"NRRD0004\ntype: uchar\ndimension: 4\nsizes: {layers} 5 5 3\nkinds: time domain domain domain\n"
    text += f"encoding: raw\nSegment0_Name:=liver\nSegment0_Layer:={layers // 2}\n\n"
    (tmp_path / "label.seg.nrrd").write_bytes(text.encode() + array.tobytes(order="F"))
    with pytest.raises(BadInput, match=rf"ITK finds 3 channels of \[{layers}, 5, 5\], the header says {layers} of"):
        read_label(tmp_path / "label.seg.nrrd")


def test_layers_count_as_voxels_before_any_is_read(tmp_path: Path):
    path = layered(tmp_path / "label.seg.nrrd", overlapping_layers(), LIVER, TUMOUR, SPLEEN)
    size = int(np.prod(SHAPE))
    assert read_label(path, max_voxels=2 * size).array.any()
    with pytest.raises(TooLarge, match="the header claims"):
        read_label(path, max_voxels=2 * size - 1)
    text = path.read_bytes().replace(b"sizes: 2 ", b"sizes: 900000000 ")
    path.write_bytes(text)
    with pytest.raises(TooLarge, match="the header claims"):
        read_label(path)


# DICOM


SERIES = "dicom_brain_mr/11-T1post-18670"


@pytest.mark.parametrize("name", [SERIES, "dicom_brain_mr/11_HCropVolume", "dicom_brain_mr/36468-FLAIRreg-58706"])
def test_a_real_dicom_series_has_the_pixels_and_positions_of_its_files(name: str):
    image = read_image(real(name))
    slices = [pydicom.dcmread(file) for file in real(name).glob("*.dcm")]
    normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
    slices.sort(key=lambda found: float(np.dot(normal, found.ImagePositionPatient)))
    assert image.shape == (slices[0].Columns, slices[0].Rows, len(slices))
    for k, found in enumerate(slices):
        rescaled = found.pixel_array * float(found.get("RescaleSlope", 1)) + float(found.get("RescaleIntercept", 0))
        assert np.array_equal(image.array[0, :, :, k], rescaled.T)
        assert np.allclose((image.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1], found.ImagePositionPatient, atol=1e-2)
    assert np.allclose(read_geometry(real(name)).affine, image.affine, atol=1e-3)
    assert patient_of(real(name)) == slices[0].PatientID


def series(folder: Path, count: int = 5, **changes: Any) -> list[Path]:
    """Write slices 2 mm apart; ``changes`` maps a tag to a value, or to a function of the slice's number."""
    folder.mkdir(exist_ok=True)
    files = []
    uid = pydicom.uid.generate_uid()
    for number in range(count):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
        data.SeriesInstanceUID, data.SeriesDescription, data.PatientID = uid, "T1", "P7"
        data.Modality, data.Rows, data.Columns, data.PixelSpacing = "MR", 6, 8, [0.5, 0.75]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [1, 2, 3 + 2.0 * number]
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelData = (np.arange(48, dtype=np.uint16) + 100 * number).tobytes()
        for tag, change in changes.items():
            value = change(number) if callable(change) else change
            if value is None:
                delattr(data, tag)
            else:
                setattr(data, tag, value)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        files.append(folder / f"{count - number:03d}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def test_slices_are_ordered_by_their_position_whatever_the_files_are_called(tmp_path: Path):
    series(tmp_path / "series")
    image = read_image(tmp_path / "series")
    assert image.shape == (8, 6, 5)
    assert image.array[0, 0, 0].tolist() == [0, 100, 200, 300, 400]
    assert np.allclose(image.affine, [[-0.75, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]])


def test_a_single_dicom_file_is_one_slice(tmp_path: Path):
    file = series(tmp_path / "series", 1)[0]
    assert read_image(file).shape == read_geometry(file).shape == (8, 6, 1)
    assert patient_of(file) == "P7"


@pytest.mark.parametrize("storage", ["ComputedRadiographyImageStorage", "DigitalXRayImageStorageForPresentation"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("slope", "intercept"), [("1", "0"), ("2", "-1024"), ("0.5", "3")])
def test_a_radiograph_shown_white_on_black_is_inverted_within_its_stored_range(
    tmp_path: Path, storage: str, signed: bool, slope: str, intercept: str
):
    changes = {"SOPClassUID": getattr(pydicom.uid, storage), "PhotometricInterpretation": "MONOCHROME1"}
    bits = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(signed)}
    file = series(tmp_path / "xray", 1, **changes, **bits, RescaleSlope=slope, RescaleIntercept=intercept)[0]
    stored = np.arange(48).reshape(6, 8)
    inverted = (-1 if signed else 4095) - stored
    assert np.array_equal(read_image(file).array[0, :, :, 0].T, inverted * float(slope) + float(intercept))


def test_a_compressed_radiograph_is_inverted_alike(tmp_path: Path):
    file = series(tmp_path / "xray", 1, PhotometricInterpretation="MONOCHROME1")[0]
    plain = read_image(file).array
    data = pydicom.dcmread(file)
    data.compress(pydicom.uid.RLELossless)
    data.save_as(file)
    assert np.array_equal(read_image(file).array, plain)
    assert plain.max() == 65535


def test_bits_beyond_the_stored_ones_do_not_turn_round(tmp_path: Path):
    pixels = np.arange(48, dtype=np.uint16)
    pixels[5] = 65535
    bits = {"BitsStored": 12, "HighBit": 11, "PixelData": pixels.tobytes()}
    file = series(tmp_path / "xray", 1, PhotometricInterpretation="MONOCHROME1", **bits)[0]
    assert read_image(file).array.max() == 4095


def test_a_window_for_showing_an_image_changes_no_value(tmp_path: Path):
    file = series(tmp_path / "xray", 1, Modality="DX", WindowCenter="20", WindowWidth="10")[0]
    assert np.array_equal(read_image(file).array[0, :, :, 0].T, np.arange(48).reshape(6, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"PixelSpacing": [0.5, 0]}, "not above 0"),
        ({"ImagePositionPatient": lambda n: [1, 2, 3 + 2.0 * n + (n == 4)]}, "uneven gaps"),
        ({"ImagePositionPatient": lambda n: [1, 2, 3]}, "one position"),
        ({"ImagePositionPatient": lambda n: [1, 2 + 0.5 * n, 3 + 2.0 * n]}, "sideways"),
        ({"ImagePositionPatient": None}, "missing"),
        ({"ImageOrientationPatient": lambda n: [1, 0, 0, 0, 0, -1] if n == 2 else [1, 0, 0, 0, 1, 0]}, "orientations"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular"),
        ({"SeriesInstanceUID": lambda n: f"1.2.{n % 2}"}, "2 series.*1.2.0"),
        ({"Rows": lambda n: 6 - (n == 3)}, "alike"),
        ({"PixelData": lambda n: bytes(96 - 20 * (n == 3))}, "cut"),
        ({"PixelData": lambda n: bytes(96 * (1 + (n == 3)))}, "192 bytes of pixels"),
        ({"RescaleSlope": "nan"}, "RescaleSlope|damaged"),
    ],
)
def test_a_series_that_is_no_volume_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], message: str):
    """Reliability 9."""
    series(tmp_path / "series", **changes)
    with pytest.raises(BadInput, match=message):
        read_image(tmp_path / "series")


@pytest.mark.parametrize("depth", [3, 200, 20_000])
def test_sequences_in_sequences_are_passed_over_or_refused(tmp_path: Path, depth: int):
    """Reliability 9."""
    file = series(tmp_path / "series", 1)[0]
    content = file.read_bytes()
    undefined = struct.pack("<I", 0xFFFFFFFF)
    opened = (
        struct.pack("<2H", 0x0008, 0x1140) + b"SQ\0\0" + undefined + struct.pack("<2H", 0xFFFE, 0xE000) + undefined
    ) * depth
    closed = (struct.pack("<2HI", 0xFFFE, 0xE00D, 0) + struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)) * depth
    place = content.index(struct.pack("<2H", 0x0010, 0x0020) + b"LO")
    file.write_bytes(content[:place] + opened + closed + content[place:])
    try:
        assert np.array_equal(read_image(file).array[0, :, :, 0].T, np.arange(48).reshape(6, 8))
    except BadInput as error:
        assert depth > 100, error
    assert patient_of(series(tmp_path / "series", 1)[0]) == "P7"


def test_several_frames_in_a_file_and_a_folder_without_images_are_refused(tmp_path: Path):
    series(tmp_path / "frames", 1, NumberOfFrames=3)
    with pytest.raises(UnsupportedMedia, match="3 frames"):
        read_image(tmp_path / "frames")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README").write_text("no image")
    with pytest.raises(UnsupportedMedia, match="no DICOM image"):
        read_image(tmp_path / "empty")


def test_a_rescaling_that_differs_from_slice_to_slice_is_read_as_floats(tmp_path: Path):
    series(tmp_path / "pet", RescaleSlope=lambda n: f"{0.5 + n}", RescaleIntercept="0")
    read = read_image(tmp_path / "pet").array
    assert read.dtype == np.float32
    assert read[0, 1, 0].tolist() == pytest.approx([0.5, 1.5 * 101, 2.5 * 201, 3.5 * 301, 4.5 * 401])


def test_a_compressed_series_is_read(tmp_path: Path):
    for file in series(tmp_path / "series"):
        data = pydicom.dcmread(file)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(file)
    assert read_image(tmp_path / "series").array[0, 0, 0].tolist() == [0, 100, 200, 300, 400]


def test_a_folder_of_dicom_may_hold_other_things(tmp_path: Path):
    series(tmp_path / "series")
    (tmp_path / "series" / "README.txt").write_text("from the PACS")
    (tmp_path / "series" / "more").mkdir()
    assert read_image(tmp_path / "series").shape == (8, 6, 5)


def test_the_first_images_of_a_process_may_be_read_by_many_threads_at_once(tmp_path: Path):
    files = [nifti(tmp_path / "a.nii.gz"), write_nrrd(tmp_path / "b.nrrd"), series(tmp_path / "series")[0].parent]
    script = f"""
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import numpy as np
        from labelrounds.reading import read_image
        from labelrounds.writing import write_label

        def work(number):
            if number % 4 == 3:
                path = Path({str(tmp_path)!r}) / f"{{number}}.seg.nrrd"
                return 3, write_label(np.ones((3, 3, 3), np.uint8), np.eye(4), path, ["liver"]).stat().st_size
            return number % 4, int(read_image(Path({[str(file) for file in files]!r}[number % 4])).array.sum())

        with ThreadPoolExecutor(12) as pool:
            found = set(pool.map(work, range(48)))
        assert len(found) == 4, found
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
