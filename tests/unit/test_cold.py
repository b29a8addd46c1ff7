"""An embedding without a model says what an image shows, not how it was stored, and is kept by the image's content."""

import time

import nibabel as nib
import numpy as np
import pytest
from blobs import classifier, picture, volume
from PIL import Image as Picture

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.cold import SCHEMA, ColdStore, embed
from labelrounds.database import Database
from labelrounds.errors import LabelRoundsError


def stored(folder, name, array, affine=None):
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4) if affine is None else affine), folder / name)
    return folder / name


def shape_of(kind: str, size: int = 40) -> np.ndarray:
    """A ball or plates in a volume, without noise."""
    x, y, z = np.indices((size, size, size)) / size
    return (np.hypot(np.hypot(x - 0.5, y - 0.5), z - 0.4) < 0.3) * 100.0 if kind == "ball" else (x * 8 % 2 < 1) * 100.0


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_what_is_shown_decides_and_neither_brightness_nor_contrast_nor_the_voxels_size(make_config, tmp_path):
    config = make_config()
    ball = embed(stored(tmp_path, "ball.nii.gz", shape_of("ball")), config)
    bright = embed(stored(tmp_path, "bright.nii.gz", 5 * shape_of("ball") + 1000), config)
    coarse = embed(stored(tmp_path, "coarse.nii.gz", shape_of("ball", 28), np.diag([1.4, 1.4, 1.4, 1])), config)
    plates = embed(stored(tmp_path, "plates.nii.gz", shape_of("plates")), config)
    assert ball.dtype == np.float32 and ball.shape == bright.shape == coarse.shape == plates.shape
    assert alike(ball, bright) > 0.999
    assert alike(ball, coarse) > 0.9
    assert alike(ball, plates) < 0.6


def test_the_same_anatomy_stored_the_other_way_round_is_the_same(make_config, tmp_path):
    config, array = make_config(), shape_of("ball") + 30 * shape_of("plates")
    plain = embed(stored(tmp_path, "plain.nii.gz", array), config)
    affine = np.array([[0.0, -1, 0, 39], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    # Axis 0 runs along S, axis 1 towards L, axis 2 along A.
    turned = embed(stored(tmp_path, "turned.nii.gz", array[::-1].transpose(2, 0, 1), affine), config)
    assert alike(plain, turned) > 0.999


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 5), (300, 200, 3), (35, 51, 35)], ids=str)
@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=["3-D", "2-D"])
def test_images_of_any_size_have_embeddings_of_one_length(make_config, tmp_path, shape, patch_size):
    config = make_config(patch_size=patch_size)
    array = np.random.default_rng(0).normal(size=shape)
    found = embed(stored(tmp_path, "image.nii.gz", array, np.diag([0.5, 0.7, 5, 1])), config)
    expected = embed(stored(tmp_path, "other.nii.gz", np.zeros((9, 9, 9)) + 3), config)
    assert found.shape == expected.shape and np.isfinite(found).all() and not expected.any()


def test_pictures_colours_and_volumes_of_a_2d_model(tmp_path):
    grey, colour = classifier(), classifier(channels=3)
    file = picture(tmp_path, "grey", 0, True)
    rgb = np.repeat(np.asarray(Picture.open(file))[..., None], 3, axis=2)
    Picture.fromarray(rgb).save(tmp_path / "colour.png")
    assert alike(embed(file, grey), embed(tmp_path / "colour.png", colour)) > 0.999
    assert embed(volume(tmp_path, "volume", 0, True), grey).shape == embed(file, grey).shape


def test_images_with_a_blob_at_one_place_are_nearest_to_each_other(tmp_path):
    config = classifier()
    files = [picture(tmp_path, f"{n}_{c}", n, True, centre=(c, c)) for c in (5, 11) for n in range(6)]
    found = np.stack([embed(file, config) for file in files])
    distances = np.linalg.norm(found[:, None] - found[None], axis=2) + np.eye(12) * 1e9
    assert (distances.argmin(1) // 6 == np.arange(12) // 6).mean() > 0.9


def test_a_hippocampus_sized_image_takes_tens_of_milliseconds(make_config, tmp_path):
    config, array = make_config(), np.random.default_rng(0).normal(size=(35, 51, 35))
    file = stored(tmp_path, "image.nii.gz", array)
    embed(file, config)
    seconds = []
    for _ in range(5):
        since = time.thread_time()
        embed(file, config)
        seconds.append(time.thread_time() - since)
    assert min(seconds) < 0.1


def test_an_image_that_can_not_be_read_is_told(make_config, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(LabelRoundsError, match=r"bad\.nii\.gz"):
        embed(tmp_path / "bad.nii.gz", make_config())


def test_embeddings_are_kept_until_the_image_changes_and_shared_by_models_that_see_alike(make_config, tmp_path):
    base, config = Database(tmp_path / "rounds.sqlite", SCHEMA), make_config()
    store, images = ColdStore(base, config), {name: tmp_path / name for name in ("a", "b", "c")}
    for path in images.values():
        path.write_text("content")
    store.put(images["a"], np.array([1, 2.5], np.float32))
    store.put_failure(images["b"], "b: cut off")
    for one in (store, ColdStore(base, make_config(name="other"))):
        embeddings, failed = one.known(images)
        assert {name: found.tolist() for name, found in embeddings.items()} == {"a": [1, 2.5]}
        assert failed == {"b": "b: cut off"}
    assert ColdStore(base, make_config(patch_size=[16, 16, 1])).known(images) == ({}, {})
    for name in ("a", "b"):
        images[name].write_text("another")
    assert store.known(images) == ({}, {})
    store.put(images["b"], np.array([3], np.float32))
    assert store.known(images)[0].keys() == {"b"}
    for file in tmp_path.glob("rounds.sqlite*"):
        file.unlink()
    assert store.known(images) == ({}, {})
