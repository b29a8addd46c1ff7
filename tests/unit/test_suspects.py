"""Labels to look at again are named by models that did not learn from them; those corrected since are not."""

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from labelrounds.checkpoints import Version
from labelrounds.suspects import (
    CORRECTION,
    Evidence,
    evidence_of_corrections,
    evidence_of_versions,
    out_of_fold_probabilities,
    outliers,
    wrong_classes,
)

ENDED = 1_700_000_000.0


def version(number: int, scores: dict, judged_by: str = "validation", ended: float = ENDED, **record) -> Version:
    created = datetime.fromtimestamp(ended, timezone.utc).isoformat(timespec="seconds")
    content = {"scores": scores, "judged_by": judged_by, "created": created, "wall_time_s": 100.0, **record}
    return Version("tiny", number, Path("weights"), content)


def agreeing(count: int = 12, **others: float) -> list[Evidence]:
    alike = {f"case_{index}": 0.9 + 0.005 * (index % 3) for index in range(count)}
    return [Evidence(image, {"liver": score}, 3, "validation") for image, score in {**alike, **others}.items()]


def test_a_label_far_below_the_others_is_suspect_and_says_why():
    (found,) = outliers(agreeing(swapped=0.31))
    assert (found.image, found.score, found.label) == ("swapped", 0.31, "liver")
    assert "Dice of liver 0.31" in found.reason
    assert "version 3" in found.reason
    assert "median of 13" in found.reason


def test_the_worst_comes_first_and_a_case_is_named_once():
    two = [Evidence(each.image, {"liver": each.scores["liver"], "spleen": 0.9}, 3, "validation") for each in agreeing()]
    two.append(Evidence("bad", {"liver": 0.4, "spleen": 0.1}, 3, "validation"))
    two.append(Evidence("worse", {"liver": 0.0, "spleen": 0.9}, 3, "validation"))
    found = outliers(two)
    assert [each.image for each in found] == ["worse", "bad"]
    assert found[1].label == "spleen"


def test_nobody_is_suspect_where_all_are_about_the_same_or_too_few():
    assert outliers(agreeing(slightly=0.85)) == []
    assert outliers(agreeing(4, swapped=0.0)) == []
    assert outliers([]) == []


def test_many_wrong_labels_do_not_hide_each_other():
    wrong = {f"wrong_{index}": 0.1 for index in range(5)}
    assert {each.image for each in outliers(agreeing(14, **wrong))} == set(wrong)


def test_versions_are_compared_each_with_its_own_cases():
    weak = [Evidence(f"early_{index}", {"liver": 0.4}, 1, "cross-validation") for index in range(7)]
    assert outliers([*agreeing(), *weak]) == []


def test_the_newest_version_that_did_not_learn_from_a_label_speaks():
    saved = {"a": ENDED - 1000, "b": ENDED - 1000}
    first = version(1, {"a": {"liver": 0.5}, "b": {"liver": 0.6}}, "cross-validation")
    second = version(2, {"a": {"liver": 0.8}})
    trained_on = version(3, {"a": {"liver": 1.0}, "b": {"liver": 1.0}}, "train")
    found = {each.image: each for each in evidence_of_versions([first, second, trained_on], saved)}
    assert found["a"].scores == {"liver": 0.8}
    assert found["b"].version == 1


@pytest.mark.parametrize("saved", [ENDED - 50, ENDED + 50])
def test_a_label_saved_after_the_training_began_is_not_judged_by_its_former_self(saved):
    judged = version(1, {"a": {"liver": 0.1}}, out_of_fold={"a": [0.1, 0.9]})
    assert evidence_of_versions([judged], {"a": saved}) == []
    assert out_of_fold_probabilities([judged], {"a": saved}) == {}


def test_a_removed_label_a_missing_score_and_a_damaged_record_say_nothing():
    assert evidence_of_versions([version(1, {"gone": {"liver": 0.1}})], {}) == []
    assert evidence_of_versions([version(1, {"a": {"liver": None}})], {"a": 0.0}) == []
    assert evidence_of_versions([Version("tiny", 1, Path("w"), {"scores": {"a": {"liver": 0.1}}})], {"a": 0.0}) == []


def test_a_correction_counts_as_long_as_the_label_is_that_one():
    ledger = [
        {"image": "a", "dice": 0.4, "label": "sha-a", "version": 2},
        {"image": "b", "dice": 0.4, "label": "former", "version": 2},
        {"image": "c", "dice": None, "label": "sha-c", "version": 2},
        {"image": "d", "event": "handed_out"},
        {"image": "e", "dice": 0.4, "label": "sha-e", "version": 2},
    ]
    checksums = {name: f"sha-{name}" for name in "abce"}
    (found,) = evidence_of_corrections(ledger, checksums, {2: {"e"}})
    assert found == Evidence("a", {"": 0.4}, 2, CORRECTION)


def test_corrections_of_all_versions_are_compared_with_each_other():
    usual = [Evidence(f"case_{index}", {"": 0.9}, index, CORRECTION) for index in range(8)]
    (found,) = outliers([*usual, Evidence("turned", {"": 0.05}, 3, CORRECTION)])
    assert found.image == "turned"
    assert "between the prediction of version 3 and the label made from it" in found.reason


def classified(wrong: int, count: int = 40, classes: int = 3) -> tuple[dict, dict, list[str]]:
    rng = np.random.default_rng(0)
    names = [f"class {index}" for index in range(classes)]
    truth = rng.integers(classes, size=count)
    given = truth.copy()
    given[:wrong] = (truth[:wrong] + 1) % classes
    rows = 0.7 * np.eye(classes)[truth] + 0.3 * rng.dirichlet(np.ones(classes), size=count)
    images = [f"image_{index:02d}" for index in range(count)]
    return (
        {image: row.tolist() for image, row in zip(images, rows, strict=True)},
        {image: [names[label]] for image, label in zip(images, given, strict=True)},
        names,
    )


def test_wrong_classes_are_found_and_the_right_ones_left_alone():
    probabilities, given, names = classified(wrong=3)
    found = wrong_classes(probabilities, given, names, multilabel=False)
    assert {each.image for each in found} == {"image_00", "image_01", "image_02"}
    assert all("did not learn from this image" in each.reason for each in found)
    assert f"labelled {given[found[0].image][0]}" in found[0].reason


def test_a_class_that_no_image_has_does_not_disturb():
    probabilities, given, names = classified(wrong=2)
    more = {image: [*row, 0.0] for image, row in probabilities.items()}
    found = wrong_classes(more, given, [*names, "never seen"], multilabel=False)
    assert {each.image for each in found} == {"image_00", "image_01"}


def test_of_several_classes_the_least_likely_is_named():
    rng = np.random.default_rng(1)
    truth = rng.random((40, 2)) < 0.5
    rows = np.where(truth, 0.95, 0.05) + 0.02 * rng.random((40, 2))
    truth[0, 1] = not truth[0, 1]
    images = [f"image_{index:02d}" for index in range(40)]
    given = {
        image: [name for name, has in zip(("mass", "effusion"), row, strict=True) if has]
        for image, row in zip(images, truth, strict=True)
    }
    found = wrong_classes(dict(zip(images, rows.tolist(), strict=True)), given, ["mass", "effusion"], multilabel=True)
    assert [each.image for each in found] == ["image_00"]
    assert found[0].label == "effusion"


def test_too_few_images_one_class_and_unusable_rows_name_nobody():
    probabilities, given, names = classified(wrong=1, count=8)
    assert wrong_classes(probabilities, given, names, multilabel=False) == []
    probabilities, given, names = classified(wrong=0)
    alike = {image: [names[0]] for image in given}
    assert wrong_classes(probabilities, alike, names, multilabel=False) == []
    broken = {image: [float("nan")] * 3 for image in probabilities}
    assert wrong_classes(broken, given, names, multilabel=False) == []
