"""The same picture under two names is found; two patients whom a network takes for alike are not."""

import time

import nibabel
import numpy as np
import pytest

from labelrounds import duplicates
from labelrounds.duplicates import find_duplicates, near_pairs


@pytest.fixture
def images(tmp_path):
    """Write images, a copy of one with other intensities, and return their paths."""

    def write(name: str, array: np.ndarray) -> None:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")

    rng = np.random.default_rng(0)
    arrays = {f"image_{index}": rng.random((30, 30, 12)) for index in range(6)}
    for name, array in arrays.items():
        write(name, array)
    write("copy", 2 * arrays["image_0"] + 5)
    return lambda image: tmp_path / f"{image}.nii.gz"


def pool(*, twins: dict[str, str], count: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = {f"image_{index}": rng.normal(size=16).astype(np.float32) for index in range(count)}
    return {**found, **{name: found[of] + np.float32(1e-4) for name, of in twins.items()}}


def test_a_copy_is_found_also_with_other_intensities(images):
    (found,) = find_duplicates(pool(twins={"copy": "image_0"}), images)
    assert found.images == ("copy", "image_0")
    assert found.cosine == pytest.approx(1, abs=1e-4)
    assert found.correlation == pytest.approx(1, abs=1e-4)


def test_the_same_embedding_of_another_picture_is_no_duplicate(images):
    embeddings = pool(twins={})
    embeddings["image_1"] = embeddings["image_0"] + np.float32(1e-4)
    assert len(near_pairs(embeddings)) == 1
    assert find_duplicates(embeddings, images) == []


def test_copies_under_two_patients_say_so(images):
    patients = {"copy": "ANNA", "image_0": "BERTA"}
    (found,) = find_duplicates(pool(twins={"copy": "image_0"}), images, patients.get)
    assert found.across_patients
    (same,) = find_duplicates(pool(twins={"copy": "image_0"}), images, lambda image: "ANNA")
    assert not same.across_patients
    (unknown,) = find_duplicates(pool(twins={"copy": "image_0"}), images)
    assert not unknown.across_patients


def test_an_image_that_has_gone_and_one_that_nobody_had_time_for_stay_candidates(images):
    (gone,) = find_duplicates(pool(twins={"gone": "image_0"}), images)
    assert gone.correlation is None
    (later,) = find_duplicates(pool(twins={"copy": "image_0"}), images, seconds=0)
    assert later.correlation is None


def test_a_pool_that_is_alike_as_a_whole_has_no_pair():
    base = np.ones(16, np.float32)
    rng = np.random.default_rng(2)
    alike = {f"image_{index}": base + 0.01 * rng.normal(size=16).astype(np.float32) for index in range(50)}
    assert near_pairs(alike) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_have_no_pair(count):
    assert near_pairs(pool(twins={}, count=count)) == []


def test_an_embedding_that_is_not_finite_is_left_out():
    embeddings = pool(twins={"copy": "image_0"})
    embeddings["broken"] = np.full(16, np.nan, np.float32)
    assert [pair[:2] for pair in near_pairs(embeddings)] == [("copy", "image_0")]


def test_pairs_are_found_across_the_blocks_that_are_computed_at_once(monkeypatch):
    expected = near_pairs(pool(twins={"copy": "image_0", "other": "image_5"}))
    monkeypatch.setattr(duplicates, "_ROWS", 3)
    found = near_pairs(pool(twins={"copy": "image_0", "other": "image_5"}))
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    assert len(found) == 2


def test_one_pair_is_found_among_more_than_a_thousand():
    rng = np.random.default_rng(3)
    many = {f"image_{index}": rng.normal(size=64).astype(np.float32) for index in range(1500)}
    many["twin"] = many["image_7"]
    assert [pair[:2] for pair in near_pairs(many)] == [("image_7", "twin")]


def test_a_pair_is_found_in_a_moment_among_classes_that_a_model_takes_for_alike():
    rng = np.random.default_rng(4)
    classes = rng.normal(size=(3, 64))
    many = {
        f"image_{index}": (classes[index % 3] + 0.02 * rng.normal(size=64)).astype(np.float32) for index in range(1500)
    }
    many["twin"] = many["image_7"]
    since = time.process_time()
    assert [pair[:2] for pair in near_pairs(many)] == [("image_7", "twin")]
    assert time.process_time() - since < 3
