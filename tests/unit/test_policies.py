"""A quick update or a full training: chosen by what is served and by how far the labels have grown."""

from pathlib import Path

import pytest

from labelrounds.checkpoints import Version
from labelrounds.policies import choose_policy, is_new, labels_at_full, learnt_from, unseen


def version(number: int = 1, **record) -> Version:
    return Version("tiny", number, Path("weights"), record)


@pytest.mark.parametrize(
    ("asked", "served", "labels", "patients", "expected", "why"),
    [
        ("auto", None, 20, 20, "full", "no served version"),
        ("quick", None, 20, 20, "full", "no served version"),
        ("quick", version(labels_at_full=2), 20, 20, "quick", "asked for"),
        ("full", version(labels_at_full=20), 20, 20, "full", "asked for"),
        ("auto", version(labels_at_full=8), 11, 11, "quick", "11 labels, 8 at the last full training: not grown"),
        ("auto", version(labels_at_full=8), 12, 12, "full", "12 labels, 8 at the last full training: grown by half"),
        ("auto", version(labels_at_full=1), 7, 7, "quick", "under 8 patients"),
        ("auto", version(labels_at_full=1), 9, 7, "quick", "under 8 patients"),
        ("auto", version(labels_at_full=1), 8, 8, "full", "grown by half"),
        (
            "auto",
            version(0, cases={"train": ["a"] * 150, "validation": ["b"] * 10}),
            16,
            16,
            "quick",
            "160 at the last",
        ),
        ("auto", version(0, cases={"train": ["a"] * 150, "validation": ["b"] * 10}), 240, 240, "full", "grown by half"),
    ],
    ids=str,
)
def test_auto_trains_in_full_when_labels_have_grown_by_half(asked, served, labels, patients, expected, why):
    policy, reason = choose_policy(asked, served, labels, patients)
    assert policy == expected and why in reason


def test_the_labels_of_the_last_full_training_are_handed_on_or_counted():
    assert labels_at_full({"labels_at_full": 12, "cases": {"train": ["a"]}}) == 12
    assert labels_at_full({"cases": {"train": ["a", "b"], "test": ["c"]}}) == 3
    assert labels_at_full({}) == 0


def test_weights_have_learnt_from_their_own_training_cases_and_their_ancestors():
    assert learnt_from(None) == {}
    quick = version(cases={"train": {"b": "2"}, "validation": {"c": "3"}}, learnt_before={"a": "1", "b": "old"})
    assert learnt_from(quick) == {"a": "1", "b": "2"}
    assert learnt_from(version(0, cases={"train": ["a"]})) == {"a": ""}


def test_a_case_is_new_when_its_image_is_or_its_label_was_corrected(make_case, make_config):
    case = make_case(1, make_config())
    assert is_new(case, {})
    assert not is_new(case, {case.image_id: case.key})
    assert is_new(case, {case.image_id: "another"})
    assert not is_new(case, {case.image_id: ""})  # a card without hashes


def test_seen_is_who_is_known_by_name_by_content_or_by_another_image(make_case, make_config):
    from dataclasses import replace

    cases = [make_case(seed, make_config()) for seed in range(4)]
    follow_up = replace(make_case(9, make_config()), patient=cases[0].patient)
    learnt = {cases[0].image_id: "", "under another name": cases[1].key}
    assert unseen([*cases, follow_up], learnt) == cases[2:]
    assert unseen(cases, {}) == cases
