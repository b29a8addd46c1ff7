"""The budget curve says what the labels have brought, and the advice never more than the data can."""

from pathlib import Path

import numpy as np
import pytest

from labelrounds.budget import (
    Pick,
    Point,
    PoolMean,
    advise,
    budget_curve,
    gain_reason,
    monitor_curve,
    plateau_reason,
    target_reason,
)
from labelrounds.checkpoints import Version


def version(number: int, labels: int, scores: dict, judged_by: str = "validation", **record) -> Version:
    train = {f"case_{index}": f"key{index}" for index in range(labels)}
    content = {"scores": scores, "judged_by": judged_by, "cases": {"train": train}, **record}
    return Version("tiny", number, Path("weights"), content)


def cases(mean: float, count: int = 20, spread: float = 0.05, seed: int = 0) -> dict[str, dict[str, float]]:
    values = mean + spread * np.random.default_rng(seed).standard_normal(count)
    return {f"held_{index}": {"liver": float(value)} for index, value in enumerate(values)}


def point(number: int, labels: int, scores: list[float], judged_by: str = "validation") -> Point:
    table = {f"held_{index}": {"liver": value} for index, value in enumerate(scores)}
    return budget_curve([version(number, labels, table, judged_by)])[0]


def test_the_curve_has_the_mean_over_labels_of_the_mean_over_cases():
    scores = {
        "a": {"liver": 0.9, "spleen": 0.5},
        "b": {"liver": 0.7, "spleen": None},
        "c": {"liver": 0.8, "spleen": 0.7},
    }
    (found,) = budget_curve([version(1, 5, scores)])
    assert found.labels == 5
    assert found.score == pytest.approx((0.8 + 0.6) / 2)
    assert found.by_case == pytest.approx({"a": 0.7, "b": 0.7, "c": 0.75})


def test_the_interval_is_as_wide_as_the_standard_error_says():
    (found,) = budget_curve([version(1, 5, cases(0.8))])
    values = [score["liver"] for score in cases(0.8).values()]
    expected = np.std(values, ddof=1) / np.sqrt(len(values))
    assert found.error == pytest.approx(expected, rel=0.15)
    low, high = found.interval
    assert low < found.score < high
    assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.15)


def test_two_cases_give_no_interval():
    (found,) = budget_curve([version(1, 2, cases(0.8, count=2))])
    assert found.interval is None
    assert found.error is None


def test_labels_of_ancestors_count_and_those_that_the_shipped_version_learnt_from_do_not():
    shipped = Version("tiny", 0, Path("w"), {"cases": {"train": ["ship_1", "ship_2"]}})
    learnt = {"ship_1": "", "ship_2": "", "case_0": "key0", "old": "key"}
    (found,) = budget_curve([shipped, version(1, 3, cases(0.8), learnt_before=learnt)])
    assert found.labels == 4


@pytest.mark.parametrize("scores", [None, {}, {"a": {"liver": None}}, {"a": None}, "damaged"])
def test_a_version_without_scores_is_left_out(scores):
    assert budget_curve([version(1, 5, scores)]) == []


def test_two_small_gains_in_a_row_are_a_reason_to_stop():
    rng = np.random.default_rng(1)
    base = 0.8 + 0.05 * rng.standard_normal(20)
    points = [
        point(1, 10, list(base)),
        *(point(n, 10 * n, list(base + 0.02 * rng.standard_normal(20) - 0.004)) for n in (2, 3)),
    ]
    found = gain_reason(points)
    assert found.holds is True
    assert "from 10 to 20 labels" in found.sentence
    assert "from 20 to 30 labels" in found.sentence


def test_a_gain_that_all_cases_share_is_none():
    base = [0.5 + 0.01 * index for index in range(20)]
    grown = [[value + step + 0.001 * (index % 2) for index, value in enumerate(base)] for step in (0, 0.001, 0.05)]
    found = gain_reason([point(n + 1, 10 * (n + 1), scores) for n, scores in enumerate(grown)])
    assert found.holds is False


def test_training_scores_and_a_second_version_of_the_same_labels_make_no_step():
    held = [0.8, 0.81, 0.79, 0.8]
    points = [point(1, 4, held, "train"), point(2, 8, held), point(3, 8, held), point(4, 12, held)]
    found = gain_reason(points)
    assert found.holds is None
    assert found.sentence.startswith("Too early: 2 versions")


def test_the_pools_score_is_on_a_plateau_only_after_two_small_changes():
    flat = [PoolMean(1, 0.200, 50), PoolMean(2, 0.201, 48), PoolMean(3, 0.199, 44)]
    assert plateau_reason(flat).holds is True
    assert plateau_reason([PoolMean(1, 0.3, 50), *flat[1:]]).holds is False
    assert plateau_reason(flat[:2]).holds is None
    assert "2 versions" in plateau_reason(flat[:2]).sentence


def test_the_target_has_to_be_passed_by_a_standard_error():
    well = [Pick(1, dice) for dice in (0.95, 0.94, 0.96, 0.95, 0.95)]
    assert target_reason(well, 0.9).holds is True
    assert target_reason(well, 0.95).holds is False
    assert target_reason([Pick(1, dice) for dice in (0.5, 1.0, 1.0, 1.0, 1.0, 1.0)], 0.9).holds is False
    assert target_reason(well[:4], 0.9).holds is None


def test_only_the_last_random_cases_count_for_the_target():
    picks = [Pick(1, 0.2)] * 10 + [Pick(2, 0.95)] * 20
    assert target_reason(picks, 0.9).holds is True


def test_the_monitor_curve_has_a_point_a_version():
    found = monitor_curve([Pick(2, 0.9), Pick(1, 0.5), Pick(2, 0.8), Pick(2, 0.85)])
    assert [(each["version"], each["cases"]) for each in found] == [(1, 1), (2, 3)]
    assert found[0]["low"] is None
    assert found[1]["low"] <= found[1]["dice"] == pytest.approx(0.85)


def test_nothing_known_is_no_advice_to_stop():
    found = advise([], [], [])
    assert found["stop"] is False
    assert [reason["holds"] for reason in found["reasons"]] == [None, None, None]
    assert "too early" in found["sentence"]


def test_one_reason_that_holds_is_advice_to_consider_it():
    found = advise([], [], [Pick(1, 0.99)] * 6)
    assert found["stop"] is True
    assert "1 of 3" in found["sentence"]
