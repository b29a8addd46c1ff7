"""The numbers said of a classification are those worked out by hand, and scikit-learn's."""

import json
import math
import time

import numpy as np
import pytest
from sklearn import metrics as sklearn

from labelrounds.classification.metrics import (
    brier_score,
    calibration_error,
    class_metrics,
    quadratic_score,
    reliability,
)
from labelrounds.errors import BadInput

ABC = ["a", "b", "c"]


def one_hot(classes, count: int = 3) -> np.ndarray:
    return np.eye(count, dtype=int)[np.asarray(classes)]


def random_task(cases: int, labels: int, multilabel: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right more often than chance, rounded so that some are equal, and the truth."""
    generator = np.random.default_rng(seed)
    if multilabel:
        truth = (generator.random((cases, labels)) < 0.3).astype(int)
        return (0.4 * truth + 0.6 * generator.random((cases, labels))).round(2), truth
    truth = one_hot(generator.integers(labels, size=cases), labels)
    raw = np.exp(1.2 * truth + generator.normal(size=(cases, labels))).round(1) + 0.1
    return raw / raw.sum(axis=1, keepdims=True), truth


def test_single_label_metrics_are_those_worked_out_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    found = class_metrics(probabilities, one_hot([0, 0, 1, 2]), ABC, multilabel=False)
    assert found["accuracy"] == 0.5
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["per_class"]["a"] == pytest.approx(
        {"precision": 1, "recall": 0.5, "specificity": 1, "f1": 2 / 3, "auroc": 1, "support": 2}
    )
    assert found["per_class"]["b"] == pytest.approx(
        {"precision": 1 / 3, "recall": 1, "specificity": 1 / 3, "f1": 0.5, "auroc": 1, "support": 1}
    )
    never_told = found["per_class"]["c"]
    assert never_told["precision"] is None and never_told["f1"] == 0 and never_told["auroc"] == 0.5
    assert found["macro"]["precision"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["macro"]["auroc"] == pytest.approx(2.5 / 3)
    assert found["brier"] == pytest.approx((0.14 + 0.62 + 0.06 + 1.26) / 4)
    # The winners' 0.7, 0.5, 0.8 and 0.6 lie in bins of their own; the first and the third are right.
    assert found["ece"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.6) / 4)


def test_multilabel_metrics_are_those_worked_out_by_hand():
    probabilities = np.array([[0.9, 0.5], [0.2, 0.4], [0.6, 0.1], [0.3, 0.8]])
    truth = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    found = class_metrics(probabilities, truth, ["a", "b"], multilabel=True)
    assert found["accuracy"] == 0.25
    assert found["confusion"] == {"a": [[1, 1], [1, 1]], "b": [[2, 1], [0, 1]]}
    assert found["balanced_accuracy"] == pytest.approx((0.5 + (1 + 2 / 3) / 2) / 2)
    assert found["per_class"]["a"]["auroc"] == 0.5
    assert found["per_class"]["b"]["auroc"] == pytest.approx(2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.36 + 0.09 + 0.25 + 0.16 + 0.01 + 0.64) / 8)


@pytest.mark.parametrize("multilabel", [False, True])
def test_on_random_cases_every_score_is_scikit_learns(multilabel):
    probabilities, truth = random_task(400, 4, multilabel)
    labels = list("abcd")
    found = class_metrics(probabilities, truth, labels, multilabel)
    told = probabilities >= 0.5 if multilabel else one_hot(probabilities.argmax(1), 4)
    expected = sklearn.precision_recall_fscore_support(truth, told, average=None)
    for index, name in enumerate(("precision", "recall", "f1", "support")):
        assert [found["per_class"][label][name] for label in labels] == pytest.approx(expected[index])
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, told))
    assert found["macro"]["auroc"] == pytest.approx(sklearn.roc_auc_score(truth, probabilities, average="macro"))
    if multilabel:
        assert [found["confusion"][label] for label in labels] == sklearn.multilabel_confusion_matrix(
            truth, told
        ).tolist()
    else:
        classes, winners = truth.argmax(1), told.argmax(1)
        assert found["confusion"] == sklearn.confusion_matrix(classes, winners).tolist()
        assert found["balanced_accuracy"] == pytest.approx(sklearn.balanced_accuracy_score(classes, winners))


def test_of_two_classes_the_recalls_are_sensitivity_and_specificity():
    probabilities, truth = random_task(50, 2, False)
    found = class_metrics(probabilities, truth, ["healthy", "ill"], False)["per_class"]
    assert found["ill"]["specificity"] == found["healthy"]["recall"]
    assert found["healthy"]["specificity"] == found["ill"]["recall"]


def test_what_is_always_right_and_sure_has_perfect_scores():
    truth = one_hot([0, 1, 2] * 4)
    found = class_metrics(truth.astype(float), truth, ABC, False)
    assert found["accuracy"] == found["balanced_accuracy"] == found["macro"]["auroc"] == found["macro"]["f1"] == 1
    assert found["brier"] == found["ece"] == 0
    assert found["intervals_95"] == {name: [1, 1] for name in ("accuracy", "balanced_accuracy", "macro_auroc")}


def test_what_always_says_the_same_is_no_better_than_chance():
    found = class_metrics(np.tile([0.5, 0.3, 0.2], (9, 1)), one_hot([0, 1, 2] * 3), ABC, False)
    assert found["accuracy"] == found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["macro"]["auroc"] == 0.5
    assert found["intervals_95"]["macro_auroc"] == [0.5, 0.5]


@pytest.mark.parametrize("multilabel", [False, True])
def test_an_absent_class_has_no_recall_and_no_auroc_and_is_left_out_of_means(multilabel):
    probabilities, truth = random_task(60, 2, False)
    third = np.zeros((60, 1))
    found = class_metrics(np.hstack([probabilities, third]), np.hstack([truth, third]), ABC, multilabel)
    assert found["per_class"]["c"] == dict(precision=None, recall=None, specificity=1.0, f1=None, auroc=None, support=0)
    two = class_metrics(probabilities, truth, ["a", "b"], multilabel)
    for name in ("precision", "recall", "f1", "auroc"):
        assert found["macro"][name] == pytest.approx(two["macro"][name])
    assert (found["accuracy"], found["balanced_accuracy"]) == (two["accuracy"], two["balanced_accuracy"])
    assert found["intervals_95"] == two["intervals_95"]


def test_where_every_case_is_of_one_class_no_auroc_is_defined():
    found = class_metrics(np.tile([0.6, 0.4], (8, 1)), one_hot([0] * 8, 2), ["a", "b"], False)
    assert found["accuracy"] == found["balanced_accuracy"] == 1
    assert found["macro"]["auroc"] is None and found["intervals_95"]["macro_auroc"] is None
    assert found["per_class"]["a"]["specificity"] is None


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("cases", [1, 7])
def test_the_metrics_of_few_cases_are_json_without_nan(multilabel, cases):
    probabilities, truth = random_task(cases, 3, multilabel)
    found = class_metrics(probabilities.astype(np.float32), truth, ABC, multilabel, bootstraps=50)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["intervals_95"]["accuracy"] is None) == (cases < 5)


def test_one_label_that_does_not_exclude_others_can_be_judged_alone():
    probabilities, truth = random_task(40, 1, True)
    found = class_metrics(probabilities, truth, ["a"], True)
    assert found["per_class"]["a"]["auroc"] == sklearn.roc_auc_score(truth[:, 0], probabilities[:, 0])
    assert found["intervals_95"]["macro_auroc"] is not None


# Intervals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
def test_intervals_are_percentiles_of_scores_that_scikit_learn_gives_the_same_resamples(multilabel):
    probabilities, truth = random_task(40, 3, multilabel)
    found = class_metrics(probabilities, truth, ABC, multilabel, bootstraps=200, seed=3)["intervals_95"]
    told = probabilities >= 0.5 if multilabel else one_hot(probabilities.argmax(1))
    accuracies, balanced, aurocs = [], [], []
    for drawn in np.random.default_rng(3).integers(40, size=(200, 40)):
        p, y, said = probabilities[drawn], truth[drawn], told[drawn]
        accuracies.append(sklearn.accuracy_score(y, said))
        aurocs.append(sklearn.roc_auc_score(y, p, average="macro"))
        if multilabel:
            balanced.append(np.mean([sklearn.balanced_accuracy_score(y[:, k], said[:, k]) for k in range(3)]))
        else:
            balanced.append(sklearn.balanced_accuracy_score(y.argmax(1), said.argmax(1)))
    for name, values in (("accuracy", accuracies), ("balanced_accuracy", balanced), ("macro_auroc", aurocs)):
        assert found[name] == pytest.approx(np.percentile(values, (2.5, 97.5)).tolist())


def test_the_same_seed_gives_the_same_intervals_and_none_are_made_without_resamples():
    probabilities, truth = random_task(30, 3, False)

    def intervals(**options: int) -> dict:
        return class_metrics(probabilities, truth, ABC, False, **options)["intervals_95"]

    assert intervals(seed=1) == intervals(seed=1) != intervals(seed=2)
    assert set(intervals(bootstraps=0).values()) == {None}


def test_resamples_without_a_rare_class_are_skipped():
    probabilities, truth = random_task(30, 2, False)
    rare_truth = np.vstack([np.hstack([truth, np.zeros((30, 1))]), [0, 0, 1]])
    rare = np.vstack([np.hstack([probabilities, np.zeros((30, 1))]), [0, 0, 1]])
    low, _ = class_metrics(rare, rare_truth, ABC, False)["intervals_95"]["balanced_accuracy"]
    recall = class_metrics(probabilities, truth, ["a", "b"], False)["intervals_95"]["balanced_accuracy"][0]
    # With the rare class's recall of 1 in every resample that counts, the bound is about a third of the way up to 1.
    assert low == pytest.approx((2 * recall + 1) / 3, abs=0.05)


def test_the_resamples_of_two_thousand_cases_take_under_three_seconds():
    probabilities, truth = random_task(2000, 6, True)
    class_metrics(probabilities[:20], truth[:20], list("abcdef"), True)
    start = time.process_time()
    class_metrics(probabilities, truth, list("abcdef"), True)
    assert time.process_time() - start < 3


# Calibration ---------------------------------------------------------------------------------------------------------


def test_the_calibration_error_of_what_is_right_as_often_as_it_says_is_nought():
    probabilities = np.tile([0.75, 0.25], (8, 1))
    assert calibration_error(probabilities, one_hot([0] * 6 + [1] * 2, 2).astype(bool), False) == 0
    told = np.array([[0.8]] * 5 + [[0.2]] * 5)
    assert calibration_error(told, np.array([[1]] * 4 + [[0]] * 5 + [[1]]), True) == pytest.approx(0)


def test_the_calibration_error_of_over_confidence_is_the_gap():
    probabilities = np.tile([0.95, 0.05], (10, 1))
    truth = one_hot([0] * 6 + [1] * 4, 2).astype(bool)
    assert calibration_error(probabilities, truth, False) == pytest.approx(0.35)
    # Each label is as far off as the other: 0.95 came true in 0.6, 0.05 in 0.4 of the cases.
    assert calibration_error(probabilities, truth, True) == pytest.approx(0.35)


def test_a_probability_on_a_bins_upper_edge_belongs_to_that_bin():
    counts, means, shares = reliability(np.array([[0.0], [0.2], [1.0]]), np.array([[0], [1], [1]]), True)
    assert counts[[0, 2, 14]].tolist() == [1, 1, 1] and counts.sum() == 3
    assert means[[0, 2, 14]].tolist() == [0, 0.2, 1] and shares[[0, 2, 14]].tolist() == [0, 1, 1]


def test_the_brier_score_of_two_classes_is_twice_scikit_learns():
    probabilities, truth = random_task(50, 2, False)
    assert brier_score(probabilities, truth, False) == pytest.approx(
        2 * sklearn.brier_score_loss(truth[:, 1], probabilities[:, 1])
    )


# A case's score ------------------------------------------------------------------------------------------------------


def test_a_cases_quadratic_score_stands_under_its_own_class():
    found = quadratic_score(np.array([0.2, 0.7, 0.1]), np.array([0, 1, 0]), ABC, False)
    assert found["b"] == pytest.approx(1 - 0.5 * (0.04 + 0.09 + 0.01))
    assert math.isnan(found["a"]) and math.isnan(found["c"])


def test_a_case_of_many_labels_has_a_quadratic_score_under_each():
    found = quadratic_score(np.array([0.2, 0.7, 1.0]), np.array([0, 1, 0]), ABC, True)
    assert found == pytest.approx({"a": 0.96, "b": 0.91, "c": 0})


def test_sure_and_right_scores_one_and_sure_and_wrong_nought():
    assert quadratic_score(np.array([0, 1]), np.array([0, 1]), "ab", False)["b"] == 1
    assert quadratic_score(np.array([1, 0]), np.array([0, 1]), "ab", False)["b"] == 0


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_network_that_has_diverged_scores_nought(multilabel):
    assert quadratic_score(np.array([math.nan, 0.5]), np.array([0, 1]), "ab", multilabel)["b"] == 0


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "truth", "message"),
    [
        ([[0.5, 0.5]], [[1, 0, 0]], "truth (1, 3)"),
        ([[0.5, 0.5, 0]], [[1, 0, 0]], "each of 2 labels"),
        (np.empty((0, 2)), np.empty((0, 2)), "0 cases"),
        ([[1.5, -0.5]], [[1, 0]], "from -0.5 to 1.5"),
        ([[math.nan, 0.5]], [[1, 0]], "from nan"),
        ([[0.5, 0.5]], [[2, 0]], "only 0 and 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [[1, 0], [1, 1]], "case 1 has 2 labels"),
        ([[0.5, 0.5]], [[0, 0]], "case 0 has 0 labels"),
    ],
    ids=str,
)
def test_unusable_input_is_refused_with_what_was_received(probabilities, truth, message):
    with pytest.raises(BadInput) as refused:
        class_metrics(np.array(probabilities), np.array(truth), ["a", "b"], False)
    assert message in str(refused.value)
