"""A patient's part is decided once and for good, and few are held back while there are few."""

import errno
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from labelrounds.errors import BadInput, OutOfSpace
from labelrounds.splits import TEST, TRAIN, VALIDATION, assign_parts

NAMES = [f"patient_{number:04d}" for number in range(2000)]


def counts_of(count: int, file: Path) -> tuple[int, int, int]:
    found = Counter(assign_parts(NAMES[:count], file).values())
    return found[TRAIN], found[VALIDATION], found[TEST]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (2, 0, 0)),
        (7, (7, 0, 0)),
        (9, (7, 2, 0)),
        (11, (9, 2, 0)),
        (12, (9, 3, 0)),
        (16, (12, 4, 0)),
        (20, (15, 5, 0)),
        (25, (20, 5, 0)),
        (26, (20, 5, 1)),
        (31, (22, 6, 3)),
        (39, (25, 7, 7)),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_as_many_are_held_back_as_there_are_patients_for(tmp_path: Path, count, expected, at_once):
    for before in () if at_once else range(1, count):
        assign_parts(NAMES[:before], tmp_path / "split.json")
    assert counts_of(count, tmp_path / "split.json") == expected


def test_of_eight_at_once_two_validate_and_of_seven_and_one_that_one(tmp_path: Path):
    assert counts_of(8, tmp_path / "once.json") == (6, 2, 0)
    assert counts_of(7, tmp_path / "split.json") == (7, 0, 0)
    assert counts_of(8, tmp_path / "split.json") == (7, 1, 0)


def test_while_there_are_few_no_more_than_a_quarter_is_held_back_and_none_tested_before_five_validate(tmp_path):
    for count in range(1, 30):
        _, validation, test = counts_of(count, tmp_path / "split.json")
        assert validation + test <= count / 4
        assert test == 0 or validation >= 5


def test_the_parts_of_many_are_about_six_to_two_to_two(tmp_path: Path):
    counts = Counter(assign_parts(NAMES, tmp_path / "split.json").values())
    assert sum(counts.values()) == 2000
    assert abs(counts[TRAIN] - 1200) < 70
    assert abs(counts[VALIDATION] - 400) < 60
    assert abs(counts[TEST] - 400) < 60


@pytest.mark.parametrize("count", [5, 16, 30, 300])
def test_neither_order_nor_repetition_moves_anyone(tmp_path: Path, count):
    shuffled = NAMES[:count] * 2
    random.Random(0).shuffle(shuffled)
    assert assign_parts(NAMES[:count], tmp_path / "a.json") == assign_parts(shuffled, tmp_path / "b.json")


def test_growing_data_moves_nobody(tmp_path: Path):
    file = tmp_path / "split.json"
    known: dict[str, str] = {}
    for count in (1, 2, 3, 7, 8, 10, 11, 25, 39, 40, 41, 100, 2000):
        parts = assign_parts(NAMES[:count], file)
        assert {name: parts[name] for name in known} == known
        known = parts
    assert assign_parts(NAMES, file) == known


def test_from_forty_on_the_way_of_growing_does_not_matter(tmp_path: Path):
    first = NAMES[:40]
    assign_parts(first, tmp_path / "a.json")
    assign_parts(first, tmp_path / "b.json")
    for count in range(200, 40, -1):
        assign_parts([*first, *NAMES[count:200]], tmp_path / "a.json")
    assert assign_parts(NAMES[:200], tmp_path / "a.json") == assign_parts(NAMES[:200], tmp_path / "b.json")


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


def test_a_split_that_held_more_back_is_kept_and_evened_out_by_the_new(tmp_path: Path):
    file = tmp_path / "split.json"
    old = {name: (TRAIN, VALIDATION, TEST)[index % 3] for index, name in enumerate(NAMES[:9])}
    file.write_text(json.dumps(old))
    parts = assign_parts(NAMES[:14], file)
    assert {name: parts[name] for name in old} == old
    assert {parts[name] for name in NAMES[9:14]} == {TRAIN}


@pytest.mark.parametrize("count", [10, 30, 60])
def test_whom_weights_have_learnt_from_before_train_and_the_places_go_to_others(tmp_path: Path, count):
    without = assign_parts(NAMES[:count], tmp_path / "without.json")
    learnt = [name for name in NAMES[:count] if without[name] != TRAIN]
    parts = assign_parts(NAMES[:count], tmp_path / "split.json", learnt)
    assert {parts[name] for name in learnt} == {TRAIN}
    if count < 40:
        assert Counter(parts.values()) == Counter(without.values())
    assert set(assign_parts(NAMES[:count], tmp_path / "all.json", NAMES[:count]).values()) == {TRAIN}


def test_whoever_is_held_back_stays_so_whatever_is_learnt_elsewhere(tmp_path: Path):
    parts = assign_parts(NAMES[:10], tmp_path / "split.json")
    assert assign_parts(NAMES[:10], tmp_path / "split.json", NAMES[:10]) == parts


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


def test_a_full_disk_assigns_nobody(tmp_path: Path, monkeypatch):
    file = tmp_path / "split.json"
    before = assign_parts(NAMES[:5], file)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutOfSpace, match=r"split\.json: not written"):
        assign_parts(NAMES[:9], file)
    monkeypatch.undo()
    assert json.loads(file.read_text()) == before
