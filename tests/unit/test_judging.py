"""Nothing worse is served: two versions are compared within each case."""

import math

import pytest
from scipy import stats

from labelrounds.judging import compare

NAN = math.nan


def cases(*pairs) -> list[dict[str, float]]:
    return [dict(zip("ab", pair, strict=True)) for pair in pairs]


SERVED = cases((0.8, 0.6), (0.9, 0.7))


@pytest.mark.parametrize(
    ("candidate", "objection"),
    [
        (cases((0.8, 0.6), (0.9, 0.7)), None),
        (cases((0.9, 0.7), (0.9, 0.7)), None),
        (cases((0.795, 0.595), (0.895, 0.695)), None),
        (cases((0.794, 0.594), (0.894, 0.694)), "mean Dice 0.744 is below the served version's 0.750 on the same 2"),
        (cases((0.9, 0.58), (0.9, 0.68)), None),
        (cases((0.9, 0.57), (0.9, 0.68)), r"Dice of b is 0\.025 below the served version's"),
        (cases((0.0, 0.0), (0.0, 0.0)), "mean Dice 0.000 is below the served version's 0.750"),
    ],
    ids=str,
)
def test_the_mean_may_fall_by_half_a_hundredth_and_no_label_by_more_than_two(candidate, objection):
    found = compare(candidate, SERVED).objection
    assert (found is None) == (objection is None)
    assert objection is None or objection.replace("\\", "") in found


def test_the_difference_is_paired_and_its_interval_is_students():
    served = cases(*((0.1 * k, 0.1 * k) for k in range(6)))
    gains = [0.01, 0.03, 0.02, 0.05, -0.01, 0.02]
    candidate = [{"a": one["a"] + gain, "b": one["b"] + gain} for one, gain in zip(served, gains, strict=True)]
    found = compare(candidate, served)
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx(0.02)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.per_label == pytest.approx({"a": 0.02, "b": 0.02})
    assert "+0.020 (95 % interval" in str(found)
    assert found.figures()["cases"] == 6


def test_under_five_cases_there_is_no_interval():
    assert compare(SERVED * 2, SERVED * 2).interval is None
    assert compare(SERVED * 3, SERVED * 3).interval == (0.0, 0.0)
    assert "interval" not in str(compare(SERVED, SERVED))


def test_a_label_that_is_rightly_not_found_is_worth_as_much_as_one_found():
    better = compare(cases((0.8, NAN)), cases((0.8, 0.0)))
    assert better.difference == 0.5 and better.objection is None
    assert compare(cases((0.8, 0.0)), cases((0.8, NAN))).objection is not None


def test_the_means_that_are_said_are_those_that_were_compared():
    found = compare(cases((0.8, 0.0), (0.5, 0.5), (NAN, NAN)), cases((0.8, NAN), (0.5, 0.5), (NAN, NAN)))
    assert (found.candidate, found.served) == pytest.approx((0.45, 0.7))
    assert found.difference == pytest.approx(found.candidate - found.served)
    assert "mean Dice 0.450 is below the served version's 0.700 on the same 2 case(s), by 0.250" in found.objection
    assert found.figures()["cases"] == 2


def test_a_labels_fall_is_told_with_the_cases_that_have_the_label():
    found = compare(cases((0.9, 0.6), (0.9, NAN)), cases((0.8, 0.65), (0.8, NAN)))
    assert found.objection is not None and found.objection.startswith("Dice of b is 0.050 below")
    assert "on the same 1 case(s)" in found.objection


def test_what_neither_has_anything_to_find_says_nothing():
    found = compare(cases((0.8, NAN), (NAN, NAN)), cases((0.7, NAN), (NAN, NAN)))
    assert found.difference == pytest.approx(0.1)
    assert set(found.per_label) == {"a"}
    nothing = compare(cases((NAN, NAN)), cases((NAN, NAN)))
    assert (nothing.objection, nothing.cases, nothing.difference) == (None, 0, 0.0)
    assert "nothing to find" in str(nothing)
