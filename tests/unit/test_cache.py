"""A case is prepared once: for the same content and preparation it comes from the disk, for any other it does not."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from labelrounds import cases as cases_module
from labelrounds.budgets import budget_bytes
from labelrounds.cache import BUDGET, DEFAULT_BUDGET_GB, PreparedCache, key_of
from labelrounds.cases import prepare_cases
from labelrounds.errors import BadInput
from labelrounds.store import LabelledCase


def save(array: np.ndarray, file: Path) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), file)
    return file


@pytest.fixture
def labelled(tmp_path):
    """Three cases on disk."""

    def make(index: int) -> LabelledCase:
        rng = np.random.default_rng(index)
        label = np.zeros((12, 10, 8), np.uint8)
        label[2:5, 2:5, 2:5], label[6:9, 5:8, 4:7] = 1, 2
        return LabelledCase(
            image_id=f"case_{index}",
            image=save(rng.normal(size=label.shape).astype(np.float32), tmp_path / f"case_{index}.nii.gz"),
            label=save(label, tmp_path / f"label_{index}.nii.gz"),
            values={"near": 1, "far": 2},
            patient=f"patient_{index}",
        )

    return [make(index) for index in range(3)]


@pytest.fixture
def prepared(monkeypatch):
    """The names of the images that were read, in their order."""
    read, names = cases_module.read_image, []

    def observed(path, **options):
        names.append(path.name.split(".")[0])
        return read(path, **options)

    monkeypatch.setattr(cases_module, "read_image", observed)
    return names


@pytest.fixture
def kept(home):
    return lambda: sorted((home / "cache").iterdir())


def same(one, other) -> bool:
    tensors = [(case.image, case.label, *case.foreground) for case in (one, other)]
    return (
        len(tensors[0]) == len(tensors[1])
        and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*tensors, strict=True))
        and (one.spacing_mm, one.key, one.image_id) == (other.spacing_mm, other.key, other.image_id)
    )


def test_the_second_time_no_image_is_read(labelled, make_config, prepared, monkeypatch):
    first, _ = prepare_cases(labelled, make_config())
    assert len(prepared) == 3

    def fails(*args, **options):
        raise AssertionError("an image was read")

    monkeypatch.setattr(cases_module, "read_image", fails)
    monkeypatch.setattr(cases_module, "read_label", fails)
    second, skipped = prepare_cases(labelled, make_config())
    assert skipped == {}
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_a_changed_label_is_prepared_anew_and_no_other_case(labelled, make_config, prepared):
    before, _ = prepare_cases(labelled, make_config())
    changed = np.zeros((12, 10, 8), np.uint8)
    changed[1:6, 1:6, 1:6], changed[8, 8, 6] = 2, 1
    save(changed, labelled[1].label)
    prepared.clear()
    after, _ = prepare_cases(labelled, make_config())
    assert prepared == ["case_1"]
    assert int((after[1].label == 2).sum()) == 125 and after[1].key != before[1].key
    assert same(after[0], before[0]) and same(after[2], before[2])


def test_a_changed_image_is_prepared_anew(labelled, make_config, prepared):
    prepare_cases(labelled, make_config())
    save(np.ones((12, 10, 8), np.float32), labelled[2].image)
    prepared.clear()
    assert prepare_cases(labelled, make_config())[0][2].image.std() == 0
    assert prepared == ["case_2"]


def test_a_case_that_was_moved_or_touched_is_still_known(labelled, make_config, prepared, tmp_path):
    prepare_cases(labelled, make_config())
    os.utime(labelled[0].image, (1, 1))
    moved = labelled[1].image.rename(tmp_path / "elsewhere.nii.gz")
    prepared.clear()
    prepare_cases([labelled[0], replace(labelled[1], image=moved, image_id="renamed")], make_config())
    assert prepared == []


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": [2.0, 2.0, 2.0]},
        {"intensity": {"kind": "zscore"}},
        {"labels": ["far", "near"]},
        {"labels": ["near"]},
        {"patch_size": [16, 16, 1]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_preparation_is_another_case(labelled, make_config, prepared, change):
    prepare_cases(labelled, make_config())
    prepared.clear()
    prepare_cases(labelled, make_config(**change))
    assert len(prepared) == 3


def test_what_a_preparation_does_not_depend_on_is_no_reason_for_another(labelled, make_config, prepared):
    prepare_cases(labelled, make_config())
    prepared.clear()
    change = {"name": "other", "patch_size": [8, 8, 8], "mirror": ["left_right"], "training": {"seed": 5}}
    prepare_cases(labelled, make_config(**change))
    assert prepared == []


def test_other_values_of_the_labels_are_another_case(labelled, make_config):
    keys = {
        key_of(replace(labelled[0], values=values), make_config())
        for values in (None, {"near": 1, "far": 2}, {"near": 2, "far": 1})
    }
    assert len(keys) == 3
    assert key_of(replace(labelled[0], values={"far": 2, "near": 1}), make_config()) in keys


def test_the_key_of_a_series_is_that_of_all_its_files(labelled, make_config, tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    for index in range(3):
        (series / f"{index}.dcm").write_bytes(bytes([index]))
    case = replace(labelled[0], image=series)
    before = key_of(case, make_config())
    (series / "2.dcm").write_bytes(b"other")
    assert key_of(case, make_config()) != before


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-50], lambda whole: b"", lambda whole: b"\xff" * 8 + whole[8:]]
)
def test_a_damaged_file_is_told_and_prepared_anew(labelled, make_config, prepared, kept, caplog, damage):
    before, _ = prepare_cases(labelled[:1], make_config())
    before = [replace(case, image=case.image.clone(), label=case.label.clone()) for case in before]
    file = kept()[0]
    whole = file.read_bytes()
    file.unlink()  # the case above lies in it
    file.write_bytes(damage(whole))
    prepared.clear()
    with caplog.at_level(logging.WARNING):
        after, skipped = prepare_cases(labelled[:1], make_config())
    assert prepared == ["case_0"] and skipped == {}
    assert same(before[0], after[0])
    assert file.name in caplog.text and "damaged" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_costs_time_and_no_case(labelled, make_config, prepared, kept, caplog, monkeypatch, error):
    def full(tensors, file):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr("labelrounds.cache.save_file", full)
    with caplog.at_level(logging.WARNING):
        found, skipped = prepare_cases(labelled, make_config())
    assert len(found) == 3 and skipped == {}
    assert "No space left" in caplog.text
    assert kept() == []


def test_a_home_that_can_not_be_written_costs_time_and_no_case(labelled, make_config, home):
    home.write_text("a file where the folder should be")
    found, skipped = prepare_cases(labelled, make_config())
    assert len(found) == 3 and skipped == {}


def entry(value: float) -> dict[str, torch.Tensor]:
    return {"image": torch.full((250,), value, dtype=torch.float32)}  # 1000 bytes


def budget(monkeypatch, size: float) -> PreparedCache:
    monkeypatch.setenv("LABELROUNDS_CACHE_GB", str(size / 1e9))
    return PreparedCache()


def age(home: Path, key: str, seconds: int) -> None:
    """Let an entry have been used that long ago."""
    file = home / "cache" / f"{key}.safetensors"
    os.utime(file, ns=(file.stat().st_mtime_ns - seconds * 10**9,) * 2)


def test_what_was_not_used_for_longest_makes_room(monkeypatch, home):
    cache = budget(monkeypatch, 3400)  # three entries with their headers
    for index, key in enumerate("abc"):
        cache.write(key, entry(index))
        age(home, key, 100 - index)
    assert cache.read("a") is not None  # which is a use
    cache.write("d", entry(3))
    assert [cache.read(key) is not None for key in "abcd"] == [True, False, True, True]
    assert torch.equal(cache.read("d")["image"], entry(3)["image"])


def test_a_case_that_no_training_used_for_ninety_days_is_removed(labelled, make_config, prepared, kept, home):
    prepare_cases(labelled, make_config())
    keys = [key_of(case, make_config()) for case in labelled]
    for key, days in zip(keys, (91, 91, 89), strict=True):
        age(home, key, days * 24 * 3600)
    prepared.clear()
    prepare_cases(labelled[1:], make_config())
    assert prepared == ["case_1"]
    assert [file.stem for file in kept()] == sorted(keys[1:])


def test_a_budget_that_was_lowered_holds_from_the_next_training_on(labelled, make_config, kept, monkeypatch):
    prepare_cases(labelled, make_config())
    monkeypatch.setenv("LABELROUNDS_CACHE_GB", "0")
    prepare_cases(labelled, make_config())
    assert kept() == []


def test_what_a_killed_process_left_half_written_makes_room_too(monkeypatch, home):
    cache = budget(monkeypatch, 3400)
    cache.write("a", entry(0))
    left = home / "cache" / "b.1.new"
    left.write_bytes(bytes(2500))
    os.utime(left, (1, 1))
    cache = budget(monkeypatch, 3400)  # the next training's
    cache.write("c", entry(1))
    assert not left.exists()
    assert cache.read("a") is not None and cache.read("c") is not None


def test_a_case_larger_than_the_budget_does_not_push_the_others_out(monkeypatch):
    cache = budget(monkeypatch, 2500)
    cache.write("a", entry(0))
    cache.write("large", {"image": torch.zeros(10_000)})
    assert cache.read("a") is not None and cache.read("large") is None


def test_a_budget_of_nothing_keeps_nothing(labelled, make_config, prepared, home, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_CACHE_GB", "0")
    for _ in range(2):
        assert len(prepare_cases(labelled, make_config())[0]) == 3
    assert len(prepared) == 6
    assert not (home / "cache").exists()


@pytest.mark.parametrize("given", ["lots", "-1", "nan", "inf", "20 GB"])
def test_a_budget_that_is_none_is_an_error_that_says_so(labelled, make_config, monkeypatch, given):
    monkeypatch.setenv("LABELROUNDS_CACHE_GB", given)
    with pytest.raises(BadInput, match=f"LABELROUNDS_CACHE_GB '{given}' is not a number of gigabytes, 0 or more"):
        prepare_cases(labelled, make_config())


@pytest.mark.parametrize(("given", "expected"), [("", 20e9), ("0.5", 5e8), ("100", 1e11)])
def test_the_budget_is_twenty_gigabytes_or_what_is_said(monkeypatch, given, expected):
    monkeypatch.setenv("LABELROUNDS_CACHE_GB", given)
    assert budget_bytes(BUDGET, DEFAULT_BUDGET_GB) == expected
