"""A patient's part is decided once, and depends on nothing but the name."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from labelrounds.errors import BadInput
from labelrounds.splits import TEST, TRAIN, VALIDATION, assign_parts

NAMES = [f"patient_{number:04d}" for number in range(2000)]


def test_the_parts_are_about_six_to_two_to_two(tmp_path: Path):
    counts = Counter(assign_parts(NAMES, tmp_path / "split.json").values())
    assert sum(counts.values()) == 2000
    assert abs(counts[TRAIN] - 1200) < 70
    assert abs(counts[VALIDATION] - 400) < 60
    assert abs(counts[TEST] - 400) < 60


def test_neither_order_nor_repetition_moves_anyone(tmp_path: Path):
    shuffled = NAMES[:300] * 2
    random.Random(0).shuffle(shuffled)
    assert assign_parts(NAMES[:300], tmp_path / "a.json") == assign_parts(shuffled, tmp_path / "b.json")


def test_growing_data_moves_nobody(tmp_path: Path):
    file = tmp_path / "split.json"
    known: dict[str, str] = {}
    for count in (1, 2, 3, 10, 11, 100, 2000):
        parts = assign_parts(NAMES[:count], file)
        assert {name: parts[name] for name in known} == known
        known = parts
    assert assign_parts(NAMES, file) == known


def test_but_for_the_first_two_the_way_of_growing_does_not_matter(tmp_path: Path):
    at_once = assign_parts(NAMES[:200], tmp_path / "once.json")
    for name in reversed(NAMES[:200]):
        one_by_one = assign_parts([name], tmp_path / "slowly.json")
    one_by_one = assign_parts(NAMES[:200], tmp_path / "slowly.json")
    assert sum(at_once[name] != one_by_one[name] for name in at_once) <= 4


@pytest.mark.parametrize("start", range(8))
def test_the_first_two_patients_train(tmp_path: Path, start: int):
    file = tmp_path / "split.json"
    for name in NAMES[start : start + 2]:
        assert assign_parts([name], file) == {name: TRAIN}
    both = assign_parts(NAMES[start : start + 2], tmp_path / "together.json")
    assert set(both.values()) == {TRAIN}


def test_a_decision_is_written_down_and_outlives_the_rule(tmp_path: Path):
    file = tmp_path / "split.json"
    parts = assign_parts(NAMES[:50], file)
    assert json.loads(file.read_text()) == parts
    file.write_text(json.dumps({**parts, NAMES[7]: "test"}))
    assert assign_parts(NAMES[:60], file)[NAMES[7]] == TEST


def test_a_patient_who_is_gone_keeps_the_part_for_a_return(tmp_path: Path):
    file = tmp_path / "split.json"
    parts = assign_parts(NAMES[:20], file)
    assert assign_parts(NAMES[:5], file) == {name: parts[name] for name in NAMES[:5]}
    assert assign_parts(NAMES[:20], file) == parts


def test_nothing_new_writes_nothing(tmp_path: Path):
    file = tmp_path / "split.json"
    assert assign_parts([], file) == {}
    assert not file.exists()
    assign_parts(NAMES[:5], file)
    before = file.stat().st_ino, file.stat().st_mtime_ns
    assign_parts(NAMES[:5], file)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


def test_a_damaged_split_is_named_and_not_drawn_again(tmp_path: Path):
    file = tmp_path / "split.json"
    file.write_text('{"patient_0000": ')
    with pytest.raises(BadInput, match=r"split\.json is damaged"):
        assign_parts(NAMES[:3], file)
    assert file.read_text() == '{"patient_0000": '
