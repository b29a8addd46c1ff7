"""A training is planned from the cases that can be used and from what is served."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from learners import never
from training_runs import NAMES, labelled, progress_of, wanted

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import Conflict
from labelrounds.networks import build_network
from labelrounds.store import LabelledCase
from labelrounds.training import train_model


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_patients_train_by_a_fixed_schedule_and_claim_nothing(config, studies, recorder, count):
    result = train_model(config, studies[:count], wanted(), never)
    assert [one["train"] for one in recorder.trainings] == [NAMES[:count]]
    assert recorder.trainings[0]["schedule"].patience is None
    assert f"Judged on the {count} training case(s)" in result["judged_on"]
    assert "it says nothing about new cases" in result["message"]
    assert result["dice_test"] is None


def test_who_was_trained_on_while_there_were_few_is_never_held_back(config, studies):
    train_model(config, studies[:6], wanted(), never)
    train_model(config, studies, wanted(1, "full"), never)
    split = json.loads((Checkpoints(config).folder / "split.json").read_text())
    assert [split[name] for name in NAMES[:6]] == ["train"] * 6
    assert sorted(split[name] for name in NAMES[6:]) == ["train", "train", "validation", "validation"]
    assert progress_of(config)["cases"] == {"train": 8, "validation": 2, "test": 0}


def test_a_version_for_other_labels_is_no_hindrance(make_config, config, studies):
    other = make_config(labels=["near", "far", "third"], patch_size=[8, 8, 8])
    Checkpoints(other).publish(build_network(other), {})
    result = train_model(config, studies, wanted(), never)
    assert result["published"] == 2 and result["dice_before"] is None
    assert progress_of(config)["started_from"] == "scratch"


def test_whom_a_shipped_version_has_learnt_from_is_trained_on_and_never_held_back(config, studies, ship):
    train_model(config, studies, wanted(), never)
    held = sorted(Checkpoints(config).current().record["cases"]["validation"])
    ship([*held, "of_others"])
    result = train_model(config, studies, wanted(1, "quick"), never)
    parts = Checkpoints(config).current().record["cases"]
    assert not set(held) & set(parts["validation"]) and len(parts["validation"]) == 2
    assert result["comparison"]["cases"] == 2
    assert "Compared on" not in result["judged_on"]
    assert progress_of(config)["started_from"] == "version 0"


@pytest.mark.parametrize("policy", ["quick", "full"])
def test_where_a_shipped_version_has_learnt_from_all_patients_all_train(config, studies, ship, recorder, policy):
    ship(NAMES)
    result = train_model(config, studies, wanted(1, policy), never)
    assert [one["train"] for one in recorder.trainings] == [NAMES]
    assert "Judged on the 10 training case(s), as there is no other: it says nothing" in result["judged_on"]
    assert "Compared on the training cases." in result["judged_on"]


@pytest.mark.parametrize("damage", ["pointer", "record", "removed", "weights"])
def test_where_the_served_version_can_not_be_used_training_starts_anew_and_says_so(config, studies, damage):
    version = Checkpoints(config).publish(build_network(config), {})
    if damage == "pointer":
        (Checkpoints(config).folder / "current.json").write_text('{"version": ')
    if damage == "record":
        (version.weights.parent / "version.json").write_text("{")
    if damage == "removed":
        shutil.rmtree(version.weights.parent)
    if damage == "weights":
        version.weights.write_bytes(b"damaged")
    result = train_model(config, studies[:2], wanted(), never)
    assert result["published"] is not None and Checkpoints(config).current().record["started_from"] == "scratch"
    assert "Started anew and compared with nothing, as what is served can't be used: " in result["message"]
    assert "`labelrounds rollback --model tiny --to NUMBER`" in result["message"]


def test_after_a_rollback_the_next_training_starts_from_what_is_served_then(config, studies):
    train_model(config, studies, wanted(), never)
    Checkpoints(config).publish(build_network(config), {})
    Checkpoints(config).rollback()
    train_model(config, studies, wanted(1, "quick"), never)
    assert progress_of(config)["started_from"] == "version 1"


def test_without_a_label_there_is_nothing_to_train_on(config):
    with pytest.raises(Conflict, match=r"0 labels submitted, 0 usable.*submit labels for near, far"):
        train_model(config, [], wanted(), never)
    assert Checkpoints(config).current() is None


def test_cases_that_can_not_be_used_are_skipped_and_named(config, studies, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a study")
    others = [
        labelled(tmp_path, "unreadable", 7, image=broken),
        labelled(tmp_path, "other_organs", 8, values={"liver": 1}),
        labelled(tmp_path, "gone", 9, label=tmp_path / "gone.nii.gz"),
        another_grid(tmp_path),
        unknown_value(tmp_path, "unknown_value", None),
        unknown_value(tmp_path, "nameless_value", {"near": 1, "far": 2, "liver": 4}),
    ]
    result = train_model(config, [*others, *studies], wanted(), never)
    record = Checkpoints(config).current().record
    assert result["published"] == 1
    unusable = {"unreadable", "other_organs", "gone", "another_grid", "unknown_value", "nameless_value"}
    assert set(record["skipped"]) == set(progress_of(config)["skipped"]) == unusable
    assert "not annotated: near, far (has liver)" in record["skipped"]["other_organs"]
    assert "Skipped 6: unreadable: " in result["message"] and "; and 3 more." in result["message"]
    assert "its label" in record["skipped"]["another_grid"]
    assert "value 3" in record["skipped"]["unknown_value"]
    assert "value 3, which none of its names has: near 1, far 2, liver 4" in record["skipped"]["nameless_value"]
    assert sorted(name for part in record["cases"].values() for name in part) == NAMES


def another_grid(folder: Path) -> LabelledCase:
    case = labelled(folder, "another_grid", 10)
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), case.label)
    return case


def unknown_value(folder: Path, name: str, values: dict[str, int] | None) -> LabelledCase:
    case = labelled(folder, name, 11, values=values)
    label = np.asarray(nib.load(case.label).dataobj).copy()
    label[0, 0, 0] = 3
    nib.save(nib.Nifti1Image(label.astype(np.uint8), np.eye(4)), case.label)
    return case


def emptied(case: LabelledCase) -> LabelledCase:
    nib.save(nib.Nifti1Image(np.zeros((14, 12, 12), np.uint8), np.eye(4)), case.label)
    return case


def test_when_no_case_can_be_used_the_reason_is_given(config, tmp_path):
    items = [labelled(tmp_path, f"case_{seed}", seed, values={"liver": 1}) for seed in range(5)]
    with pytest.raises(Conflict, match=r"5 labels submitted, 0 usable.*case_0: not annotated: near, far"):
        train_model(config, items, wanted(), never)


def test_an_empty_label_among_others_is_a_patient_without_any_and_said(config, studies):
    emptied(studies[0])
    result = train_model(config, studies[:2], wanted(), never)
    assert result["published"] == 1
    assert f"Empty labels, learnt as patients without any: {NAMES[0]}." in result["message"]


def test_when_all_labels_are_empty_that_is_refused(config, studies):
    items = [emptied(case) for case in studies[:3]]
    with pytest.raises(Conflict, match="all of the 3 usable labels are empty, without a voxel of near, far"):
        train_model(config, items, wanted(), never)
    assert not (Checkpoints(config).folder / "versions").exists()


def test_a_label_that_no_case_has_is_named(make_config, tmp_path):
    config = make_config(labels=["near", "far", "third"], patch_size=[8, 8, 8])
    values = {"near": 1, "far": 2, "third": 3}
    items = [labelled(tmp_path, name, seed, values=values) for seed, name in enumerate(NAMES[:2])]
    assert "No training case has a voxel of third." in train_model(config, items, wanted(), never)["message"]
