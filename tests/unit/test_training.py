"""A training publishes what is not worse, says what it rests on, and names what it left out."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import folders, learning, progress, training
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Busy, Conflict, LabelRoundsError, OutOfSpace, TooLarge
from labelrounds.learning import Diverged
from labelrounds.networks import build_network
from labelrounds.store import LabelledCase
from labelrounds.training import SegmentationTrainer, TrainingRequest, train_model

NAMES = [f"patient_{number:04d}" for number in range(10)]


def never() -> bool:
    return False


def wanted(epochs=1, policy="auto", device="cpu") -> TrainingRequest:
    return TrainingRequest(policy, epochs, device)


@pytest.fixture
def config(make_config):
    return make_config(patch_size=[8, 8, 8], training={"epochs": 3, "iterations_per_epoch": 2, "learning_rate": 1e-2})


@pytest.fixture
def studies(tmp_path):
    """Ten labelled cases, of which two validate: two boxes, of different brightness, at different places."""
    return [labelled(tmp_path, name, seed) for seed, name in enumerate(NAMES)]


class Recorder:
    """Stands before the learner: what each training was given, in their order."""

    def __init__(self, monkeypatch) -> None:
        self.trainings: list[dict] = []
        learner = training.Learner

        def made(config, network, train, validation, device, schedule, **options):
            start = {name: value.clone() for name, value in network.state_dict().items()}
            self.trainings.append(
                {"train": names(train), "validation": names(validation), "schedule": schedule, "start": start} | options
            )
            return learner(config, network, train, validation, device, schedule, **options)

        monkeypatch.setattr(training, "Learner", made)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


def names(cases) -> list[str]:
    return sorted(case.image_id for case in cases)


def labelled(folder: Path, name: str, seed: int, **changes) -> LabelledCase:
    rng = np.random.default_rng(seed)
    label = np.zeros((14, 12, 12), np.uint8)
    for value in (1, 2):
        label[tuple(slice(at, at + 5) for at in rng.integers(0, 7, 3))] = value
    image = np.array([-0.6, 0.2, 0.8])[label] + rng.normal(0, 0.05, label.shape)
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (image.astype(np.float32), label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    values = {"near": 1, "far": 2}
    return LabelledCase(
        **{"image_id": name, "image": paths[0], "label": paths[1], "values": values, "patient": name} | changes
    )


def seen_progress(monkeypatch) -> list[dict]:
    """Return the list to which everything is added that is written for clients."""
    seen, write = [], progress.write_json
    monkeypatch.setattr(
        progress, "write_json", lambda file, content: (seen.append(dict(content)), write(file, content))
    )
    return seen


def stages_of(seen: list[dict]) -> list[str]:
    return list(dict.fromkeys(figures["stage"] for figures in seen))


def bytes_of(version) -> bytes:
    return version.weights.read_bytes()


def progress_of(config) -> dict:
    return json.loads((Checkpoints(config).folder / "progress.json").read_text())


# Requests


def test_a_request_without_options_takes_the_configurations(config):
    request = TrainingRequest.parse({"model": "tiny"}, config)
    assert (request.epochs, request.policy) == (None, "auto")
    assert (request.epochs_of("full", config), request.epochs_of("quick", config)) == (3, 8)
    assert request.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert TrainingRequest.parse({"epochs": 7, "policy": "full", "device": "cpu"}, config) == wanted(7, "full")
    assert wanted(7).epochs_of("quick", config) == 7


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"epoch": 3}, "'epoch' is not one of client_id, device, epochs"),
        ({"epochs": -1}, "epochs -1 is not a whole number from 1 to 100000, nor 0 for the policy's own"),
        ({"epochs": 10**6}, "epochs 1000000"),
        ({"epochs": "5"}, "epochs '5'"),
        ({"epochs": True}, "epochs True"),
        ({"epochs": 2.5}, r"epochs 2\.5"),
        ({"epochs": None}, "epochs None"),
        ({"policy": "yesterday"}, "policy 'yesterday' is not one of auto, quick, full"),
        ({"policy": ["quick"]}, r"policy \['quick'\]"),
        ({"start": "scratch"}, "'start' is not one of client_id, device, epochs, model, policy"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not on this machine; available: .*cpu"),
        ({"device": "tpu"}, "device 'tpu' is not one of .*cpu"),
        ({"device": ["cpu"]}, r"device \['cpu'\]"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_with_what_is_allowed(config, request_, expected):
    with pytest.raises(BadInput, match=expected):
        TrainingRequest.parse(request_, config)


def test_the_options_that_a_client_shows_are_those_that_are_taken(config):
    shown = SegmentationTrainer(config).config()
    first = {key: value[0] if isinstance(value, list) else value for key, value in shown.items()}
    assert TrainingRequest.parse(first, config).epochs is None
    assert first["policy"] == "auto"


# Runs


def test_a_first_training_publishes_a_version_that_tells_its_story(config, studies):
    result = train_model(config, studies, wanted(2), never)
    version = Checkpoints(config).current()
    assert result["published"] == version.number == 1
    assert result["status"] == "done"
    assert result["message"].startswith("Published version 1. Judged on 2 validation case(s), which also chose")
    record = version.record
    assert (record["policy"], record["parent"], record["started_from"]) == ("full", None, "scratch")
    assert record["reason"] == "there is no served version to start from"
    assert record["epochs"] == 2 and record["seed"] == 0 and record["labels_at_full"] == 10
    assert record["device"] == "cpu" and record["wall_time_s"] > 0 and record["packages"]["torch"]
    assert record["configuration"]["patch_size"] == [8, 8, 8]
    assert {part: len(cases) for part, cases in record["cases"].items()} == {"train": 8, "validation": 2, "test": 0}
    keys = {name: key for cases in record["cases"].values() for name, key in cases.items()}
    assert sorted(keys) == NAMES and len(set(keys.values())) == 10
    assert set(record["scores"]) == set(record["cases"]["validation"])
    assert record["skipped"] == {} and record["learnt_before"] == {} and set(record["dice"]) == {"near", "far"}
    assert record["judged_on"] in result["message"] and record["judged_by"] == "validation"


def test_the_same_seed_gives_the_same_weights_and_full_means_from_nothing(config, studies, recorder):
    train_model(config, studies, wanted(2), never)
    train_model(config, studies, wanted(2, "full"), never)
    first, second = Checkpoints(config).versions()
    assert bytes_of(first) == bytes_of(second)
    assert second.record["parent"] is None and second.record["served_before"] == 1
    untrained = recorder.trainings[0]["start"]
    assert all(torch.equal(value, untrained[name]) for name, value in recorder.trainings[1]["start"].items())
    before = bytes_of(first)
    shutil.rmtree(Checkpoints(config).folder)
    train_model(config, studies, wanted(2), never)
    assert bytes_of(Checkpoints(config).current()) == before


def test_a_quick_update_starts_from_what_is_served_and_draws_the_new_twice_as_often(
    config, studies, tmp_path, recorder
):
    train_model(config, studies[:9], wanted(1), never)
    labelled(tmp_path, NAMES[0], 99)  # the label is corrected
    train_model(config, studies, TrainingRequest("quick", None, "cpu"), never)
    full, quick = recorder.trainings
    assert (full["schedule"].epochs, quick["schedule"].epochs) == (1, config.training.quick_epochs)
    assert quick["schedule"].learning_rate == full["schedule"].learning_rate / 2
    assert full["weights"] is None
    held = set(quick["validation"])
    new = {NAMES[0], NAMES[9]} - held
    assert len(quick["train"]) == 10 - len(held) == len(quick["weights"])
    assert quick["weights"].count(2.0) == len(new) and set(quick["weights"]) == {1.0, 2.0}
    second = Checkpoints(config).version(2)
    assert second.record["parent"] == 1 and second.record["started_from"] == "version 1"
    assert set(second.record["learnt_before"]) == set(Checkpoints(config).version(1).record["cases"]["train"])
    assert second.record["labels_at_full"] == 9
    assert any(not torch.equal(value, full["start"][name]) for name, value in quick["start"].items())


def test_progress_is_what_monai_labels_slicer_module_reads(config, studies, monkeypatch):
    seen = seen_progress(monkeypatch)
    train_model(config, studies, wanted(3), never)
    epochs = [figures["epoch"] for figures in seen]
    assert epochs == sorted(epochs) and set(epochs) == {0, 1, 2, 3}
    for figures in seen:
        assert figures["total_epochs"] == 3
        assert isinstance(figures["best_metric"], float) and 0 <= figures["best_metric"] <= 1
        assert isinstance(figures["started"], float)
        assert ("total_time" in figures) == (figures["status"] == "done")
        json.dumps(figures, allow_nan=False)
    assert stages_of(seen) == [
        "preparing",
        *(f"preparing case {number} of 10" for number in range(1, 11)),
        *("training", "judging", "done"),
    ]
    etas = [figures["eta_s"] for figures in seen if "eta_s" in figures]
    assert etas[0] > 0 and etas[-1] == 0
    assert set(seen[-1]["dice"]) == {"near", "far"} and [entry[0] for entry in seen[-1]["history"]] == [1, 2, 3]
    assert SegmentationTrainer(config).stats() == seen[-1] == progress_of(config)


def test_progress_of_an_earlier_training_is_not_carried_over(config, studies):
    train_model(config, studies, wanted(2), never)
    with pytest.raises(Conflict):
        train_model(config, [], wanted(5), never)
    figures = progress_of(config)
    assert (figures["status"], figures["epoch"], figures["total_epochs"]) == ("failed", 0, 5)
    assert "history" not in figures and "dice" not in figures


def test_tensorboard_gets_curves_and_outlined_predictions(config, studies):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_model(config, studies, wanted(3), never)
    (board,) = (Checkpoints(config).folder / "tensorboard").iterdir()
    events = EventAccumulator(str(board))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "dice/near", "dice/far", "dice/mean"}
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert all(event.value > 0 for event in events.Scalars("learning_rate"))
    picture = events.Images("validation")[-1]
    assert picture.step == 3 and picture.width > picture.height > 200


def test_of_few_validation_cases_no_accuracy_is_claimed(config, studies):
    result = train_model(config, studies, wanted(), never)
    assert "2 validation case(s), which also chose the epoch: too few to claim an accuracy." in result["judged_on"]


def test_a_training_whose_validation_rises_no_more_ends_early_and_the_bar_still_fills(
    config, studies, recorder, monkeypatch
):
    monkeypatch.setattr("labelrounds.learning.dice_per_label", lambda *_: {"near": 0.5, "far": 0.5})
    train_model(config, studies, wanted(12), never)
    assert recorder.trainings[0]["schedule"].patience == 8
    record, figures = Checkpoints(config).current().record, progress_of(config)
    assert figures["epoch"] == figures["total_epochs"] == record["epochs"] == 10
    assert record["epochs_planned"] == 12


# Few patients


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_patients_train_by_a_fixed_schedule_and_claim_nothing(config, studies, recorder, count):
    result = train_model(config, studies[:count], wanted(), never)
    assert [one["train"] for one in recorder.trainings] == [NAMES[:count]]
    assert recorder.trainings[0]["schedule"].patience is None
    assert f"Judged on the {count} training case(s)" in result["judged_on"]
    assert "it says nothing about new cases" in result["message"]
    assert result["dice_test"] is None


@pytest.mark.parametrize(
    ("count", "folds", "kind"), [(3, 3, "leave-one-out"), (5, 5, "leave-one-out"), (7, 5, "cross-validation")]
)
def test_of_three_to_seven_patients_all_train_and_each_is_left_out_once(
    config, studies, recorder, monkeypatch, count, folds, kind
):
    seen = seen_progress(monkeypatch)
    result = train_model(config, studies[:count], wanted(3), never)
    first, *others = recorder.trainings
    assert first["train"] == NAMES[:count] and len(others) == folds
    left_out = [set(NAMES[:count]) - set(one["train"]) for one in others]
    assert sorted(name for group in left_out for name in group) == NAMES[:count]
    assert all(one["schedule"].epochs == 1 and one["validation"] == [] for one in others)
    for one in others:
        assert all(torch.equal(value, first["start"][name]) for name, value in one["start"].items())
    assert [stage for stage in stages_of(seen) if "fold" in stage] == [
        f"{kind} fold {number} of {folds}" for number in range(1, folds + 1)
    ]
    assert f"Judged on {count} case(s) by cross-validation" in result["judged_on"]
    assert ("too few to claim an accuracy" in result["judged_on"]) == (count < 5)
    epochs = [figures["epoch"] for figures in seen]
    assert epochs == sorted(epochs) and epochs[-1] == seen[-1]["total_epochs"] == 3 + folds
    assert sorted(Checkpoints(config).current().record["scores"]) == NAMES[:count]


def test_cross_validation_changes_nothing_in_what_is_published(config, studies, monkeypatch):
    train_model(config, studies[:4], wanted(2), never)
    whole = bytes_of(Checkpoints(config).current())
    shutil.rmtree(Checkpoints(config).folder)
    monkeypatch.setattr(training, "_folds", lambda cases, learnt: [])
    train_model(config, studies[:4], wanted(2), never)
    assert bytes_of(Checkpoints(config).current()) == whole


def test_all_images_of_a_patient_are_left_out_together(config, studies, tmp_path, recorder):
    again = labelled(tmp_path, "follow_up", 50, patient=NAMES[0])
    train_model(config, [*studies[:3], again], wanted(), never)
    for one in recorder.trainings[1:]:
        assert (NAMES[0] in one["train"]) == ("follow_up" in one["train"])
    assert len(recorder.trainings) == 4


def test_who_was_trained_on_while_there_were_few_is_never_held_back(config, studies):
    train_model(config, studies[:6], wanted(), never)
    train_model(config, studies, wanted(1, "full"), never)
    split = json.loads((Checkpoints(config).folder / "split.json").read_text())
    assert [split[name] for name in NAMES[:6]] == ["train"] * 6
    assert sorted(split[name] for name in NAMES[6:]) == ["train", "train", "validation", "validation"]
    assert progress_of(config)["cases"] == {"train": 8, "validation": 2, "test": 0}


def test_a_quick_update_leaves_out_only_whom_its_start_has_not_seen_and_compares_on_them(config, studies, recorder):
    train_model(config, studies[:4], wanted(), never)
    del recorder.trainings[:]
    result = train_model(config, studies[:5], wanted(2), never)
    update, fold = recorder.trainings
    assert update["train"] == NAMES[:5] and fold["train"] == NAMES[:4]
    assert fold["schedule"].epochs == 2  # as many as the update, or the comparison would not be fair
    assert result["comparison"]["cases"] == 1
    assert "Judged on 1 case(s) by cross-validation" in result["judged_on"]


def test_a_quick_update_without_a_new_patient_is_compared_on_training_cases(config, studies, recorder):
    train_model(config, studies[:4], wanted(), never)
    del recorder.trainings[:]
    result = train_model(config, studies[:4], wanted(1, "quick"), never)
    assert len(recorder.trainings) == 1
    assert "Judged on the 4 training case(s)" in result["judged_on"]
    assert "Compared on the training cases." in result["judged_on"]
    assert result["comparison"]["cases"] == 4


def test_a_full_training_of_few_is_not_compared_out_of_fold_with_what_has_learnt_the_cases(config, studies):
    train_model(config, studies[:4], wanted(), never)
    result = train_model(config, studies[:4], wanted(1, "full"), never)
    assert result["comparison"] == {
        "difference": 0.0,
        "interval_95": None,
        "per_label": {"near": 0, "far": 0},
        "cases": 4,
    }
    assert "by cross-validation" in result["judged_on"] and "Compared on the training cases." in result["judged_on"]


# The comparison


def test_a_worse_result_is_not_published(config, studies, monkeypatch):
    train_model(config, studies, wanted(), never)
    true_evaluate, served, judged = training.evaluate, Checkpoints(config).current(), []

    def flattering(network, cases, config, device):
        """The second network that is judged is the served one; it finds everything."""
        if not any(network is known for known in judged):
            judged.append(network)
        scores = true_evaluate(network, cases, config, device)
        return [dict.fromkeys(score, 0.99) for score in scores] if network is judged[-1] and judged[1:] else scores

    monkeypatch.setattr(training, "evaluate", flattering)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert len(judged) == 2
    assert result["published"] is None
    assert result["message"].startswith("Not published: mean Dice 0.")
    assert "below the served version's 0.990 on the same 2 case(s)" in result["message"]
    assert Checkpoints(config).current() == served
    assert progress_of(config)["published"] is None


def test_a_trained_version_is_not_replaced_by_one_step_from_scratch(make_config, studies):
    config = make_config(
        patch_size=[12, 12, 12],
        training={"iterations_per_epoch": 12, "learning_rate": 2e-2, "rotation_degrees": 0.0},
    )
    good = train_model(config, studies, wanted(6), never)
    assert good["best_metric"] > 0.4, "the first training has not learned enough for the comparison"
    hasty = config.model_copy(update={"training": config.training.model_copy(update={"iterations_per_epoch": 1})})
    result = train_model(hasty, studies, wanted(1, "full"), never)
    assert result["published"] is None and result["message"].startswith("Not published: ")
    assert result["dice_before"] == pytest.approx(good["dice"], abs=1e-4)
    assert result["comparison"]["difference"] < -0.005
    assert Checkpoints(config).current().number == 1


def test_a_version_for_other_labels_is_no_hindrance(make_config, config, studies):
    other = make_config(labels=["near", "far", "third"], patch_size=[8, 8, 8])
    Checkpoints(other).publish(build_network(other), {})
    result = train_model(config, studies, wanted(), never)
    assert result["published"] == 2 and result["dice_before"] is None
    assert progress_of(config)["started_from"] == "scratch"


@pytest.fixture
def ship(config, tmp_path, monkeypatch):
    """Ship a version of which the card names the cases that it has learnt from."""

    def ship(learnt: list[str]) -> None:
        version = Checkpoints(config).publish(build_network(config), {})
        (tmp_path / "weights").mkdir()
        shutil.move(version.weights, tmp_path / "weights" / "tiny.safetensors")
        shutil.rmtree(Checkpoints(config).folder)
        card = {"labels": ["near", "far"], "cases": {"train": learnt, "validation": [], "test": []}}
        (tmp_path / "weights" / "tiny.json").write_text(json.dumps(card))
        monkeypatch.setattr(folders, "shipped_weights", lambda: tmp_path / "weights")

    return ship


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


def hold_back_two(config) -> None:
    """Write the split of a time before a version was shipped that has learnt from some who validate."""
    folder = Checkpoints(config).folder
    folder.mkdir(parents=True)
    split = dict.fromkeys(NAMES, "train") | dict.fromkeys(NAMES[:2], "validation")
    (folder / "split.json").write_text(json.dumps(split))


def test_a_shipped_version_is_compared_on_cases_that_it_has_not_learnt_from(config, studies, ship):
    ship([NAMES[0], "of_others"])
    hold_back_two(config)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert result["comparison"]["cases"] == 1
    assert "Compared on the 1 that the served version has not learnt from." in result["judged_on"]


def test_where_a_shipped_version_has_learnt_from_all_validation_cases_that_is_said(config, studies, ship):
    ship(NAMES)
    hold_back_two(config)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert "The served version has learnt from these cases, which favours it." in result["judged_on"]


def test_patients_are_recognised_by_any_of_their_images(config, studies, tmp_path, ship, recorder):
    ship([NAMES[0]])
    again = labelled(tmp_path, "follow_up", 50, patient=NAMES[0])
    train_model(config, [*studies[:3], again], wanted(), never)
    left_out = [set(NAMES[:3]) - set(one["train"]) for one in recorder.trainings[1:]]
    assert left_out == [{NAMES[1]}, {NAMES[2]}] or left_out == [{NAMES[2]}, {NAMES[1]}]


def test_test_cases_are_reported_of_both_and_decide_nothing(config, studies):
    folder = Checkpoints(config).folder
    folder.mkdir(parents=True)
    split = (
        dict.fromkeys(NAMES[:6], "train") | dict.fromkeys(NAMES[6:8], "validation") | dict.fromkeys(NAMES[8:], "test")
    )
    (folder / "split.json").write_text(json.dumps(split))
    first = train_model(config, studies, wanted(), never)
    assert set(first["dice_test"]) == {"near", "far"} and first["dice_test_before"] is None
    second = train_model(config, studies, wanted(1, "full"), never)
    assert second["dice_test_before"] == first["dice_test"] == second["dice_test"]


# Versions


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


def test_a_rollback_during_a_training_is_not_undone_by_its_end(config, studies, monkeypatch):
    train_model(config, studies, wanted(), never)
    Checkpoints(config).publish(build_network(config), {})

    def rolled_back(self, *arguments):
        Checkpoints(config).rollback()
        return judge(self, *arguments)

    judge = training._Training._judge
    monkeypatch.setattr(training._Training, "_judge", rolled_back)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert Checkpoints(config).current().number == 1
    assert result["published"] is None
    assert "Version 3 is kept but not served" in result["message"]
    assert "`labelrounds rollback --model tiny --to 3`" in result["message"]
    assert Checkpoints(config).version(3).record["policy"] == "full"


# What can't be used


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


# A full disk


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_when_the_progress_can_not_be_written_the_training_goes_on(config, studies, monkeypatch):
    monkeypatch.setattr(progress, "write_json", full)
    assert train_model(config, studies, wanted(), never)["published"] == 1


def test_when_the_curves_can_not_be_written_the_training_goes_on(config, studies, monkeypatch):
    monkeypatch.setattr(progress.SummaryWriter, "add_scalar", full)
    assert train_model(config, studies, wanted(), never)["published"] == 1


def test_when_a_version_can_not_be_written_the_old_one_serves_and_nothing_is_trained_again(
    config, studies, monkeypatch
):
    train_model(config, studies, wanted(), never)
    served = bytes_of(Checkpoints(config).current())
    with monkeypatch.context() as patch, pytest.raises(OutOfSpace, match="version 2 of tiny could not be written"):
        patch.setattr("labelrounds.checkpoints.save_file", full)
        train_model(config, studies, wanted(2, "full"), never)
    assert progress_of(config)["status"] == "failed" and "No space left" in progress_of(config)["message"]
    assert Checkpoints(config).current().number == 1 and bytes_of(Checkpoints(config).current()) == served
    epochs = reported(monkeypatch)
    assert train_model(config, studies, wanted(2, "full"), never)["published"] == 2
    assert epochs == []


# Stopping


def test_stopping_while_cases_are_prepared_decides_nothing(config, studies):
    result = train_model(config, studies, wanted(), lambda: True)
    assert (result["status"], result["published"]) == ("stopped", None)
    assert "while the cases were prepared" in result["message"]
    assert not (Checkpoints(config).folder / "split.json").exists()
    assert progress_of(config)["total_time"]


def test_stopping_before_the_first_epoch_publishes_nothing(config, studies):
    calls = []
    result = train_model(config, studies, wanted(), lambda: bool(calls.append(1)) or len(calls) > 11)
    assert (result["status"], result["published"]) == ("stopped", None)
    assert "before the first epoch ended" in result["message"]
    assert Checkpoints(config).current() is None


def test_stopping_later_publishes_what_was_reached(config, studies):
    calls = []
    result = train_model(config, studies, wanted(50), lambda: bool(calls.append(1)) or len(calls) > 20)
    assert (result["status"], result["published"]) == ("stopped", 1)
    assert 1 <= progress_of(config)["epoch"] < 50


@pytest.mark.parametrize("folds", [0, 2])
def test_stopping_the_cross_validation_keeps_the_training_and_what_is_judged_by_then(config, studies, recorder, folds):
    def stopped() -> bool:
        return len(recorder.trainings) > 1 + folds

    result = train_model(config, studies[:4], wanted(2), stopped)
    assert (result["status"], result["published"]) == ("stopped", 1)
    assert Checkpoints(config).current().record["epochs"] == 2
    assert (
        f"Stopped after {folds} of 4 cross-validation trainings; the training itself was complete" in result["message"]
    )
    if folds:
        assert "Judged on 2 case(s) by cross-validation" in result["judged_on"]
    else:
        assert "Judged on the 4 training case(s)" in result["judged_on"]


def test_a_training_that_is_stopped_before_its_end_is_not_cross_validated(config, studies, recorder):
    calls = []
    result = train_model(config, studies[:4], wanted(50), lambda: bool(calls.append(1)) or len(calls) > 20)
    assert (result["status"], result["published"]) == ("stopped", 1) and len(recorder.trainings) == 1
    epochs = Checkpoints(config).current().record["epochs"]
    assert f"Stopped after epoch {epochs} of 50." in result["message"]
    assert "complete" not in result["message"] and "Judged on the 4 training case(s)" in result["message"]


# Folds and cases that fail


def test_a_fold_that_fails_is_named_and_the_training_is_kept(config, studies, monkeypatch):
    run, runs = training.Learner.run, []

    def failing(self, *arguments):
        runs.append(1)
        self.notes.append("a smaller batch")
        if len(runs) == 3:
            raise Diverged("the training diverges")
        return run(self, *arguments)

    monkeypatch.setattr(training.Learner, "run", failing)
    result = train_model(config, studies[:4], wanted(), never)
    assert len(runs) == 5 and (result["status"], result["published"]) == ("done", 1)
    assert "Leave-one-out fold 2 of 4 could not be judged: the training diverges." in result["message"]
    assert "Judged on 3 case(s) by cross-validation" in result["message"]
    assert "Stopped" not in result["message"] and result["notes"].count("a smaller batch") == 1


def test_a_folds_notes_are_told(config, studies, monkeypatch):
    run, runs = training.Learner.run, []

    def noting(self, *arguments):
        runs.append(1)
        self.notes += [f"run {len(runs)}"]
        return run(self, *arguments)

    monkeypatch.setattr(training.Learner, "run", noting)
    assert train_model(config, studies[:3], wanted(), never)["notes"] == ["run 1", "run 2", "run 3", "run 4"]


@pytest.mark.parametrize("every", [False, True])
def test_a_case_that_no_memory_suffices_for_is_not_measured_and_named(config, studies, monkeypatch, every):
    train_model(config, studies, wanted(), never)
    held = sorted(Checkpoints(config).current().record["cases"]["validation"])
    true_segment = learning._segment

    def limited(network, case, *rest):
        if every or case.image_id == held[0]:
            raise TooLarge(f"{case.image_id}: needs 90 GB")
        return true_segment(network, case, *rest)

    monkeypatch.setattr(learning, "_segment", limited)
    if every:
        with pytest.raises(TooLarge, match=f"none of the .* fits into memory .*not measured: {held[0]}: needs 90 GB"):
            train_model(config, studies, wanted(1, "full"), never)
        assert Checkpoints(config).current().number == 1
        return
    result = train_model(config, studies, wanted(1, "full"), never)
    assert "Judged on 1 validation case(s)" in result["message"] and result["comparison"]["cases"] == 1
    assert result["notes"] == [f"not measured: {held[0]}: needs 90 GB"]


def test_a_label_that_no_judged_case_has_is_shown_as_unknown(make_config, tmp_path):
    config = make_config(labels=["near", "far", "third"], patch_size=[8, 8, 8])
    values = {"near": 1, "far": 2, "third": 3}
    items = [labelled(tmp_path, name, seed, values=values) for seed, name in enumerate(NAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "dice_per_label", lambda *_: {"near": 0.5, "far": 0.7, "third": float("nan")})
        result = train_model(config, items, wanted(), never)
    assert result["dice"] == {"near": 0.5, "far": 0.7, "third": None} and result["best_metric"] == 0.6
    figures = progress_of(config)
    assert figures["dice"]["third"] is None and figures["history"] == [[1, 0.6]]


# Kills


class Killed(BaseException):
    """Stands in for the end of the process."""


def reported(monkeypatch) -> list[int]:
    """Return the list to which the number of each epoch of the training itself is added."""
    epochs, take = [], progress.Watch.epoch
    monkeypatch.setattr(progress.Watch, "epoch", lambda self, epoch: (epochs.append(epoch.number), take(self, epoch)))
    return epochs


def kill_in(monkeypatch, method: str, after: int, config, studies, epochs: int) -> None:
    """Train, and end at the given call of a method of the watch."""
    calls, take = [], getattr(progress.Watch, method)

    def killed(self, *arguments):
        take(self, *arguments)
        calls.append(1)
        if len(calls) == after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(progress.Watch, method, killed)
        train_model(config, studies, wanted(epochs), never)


def test_a_killed_training_goes_on_where_it_was_and_then_forgets(config, studies, monkeypatch):
    kill_in(monkeypatch, "epoch", 1, config, studies, 3)
    before = progress_of(config)
    assert "total_time" not in before and before["history"][0][0] == 1
    epochs, seen = reported(monkeypatch), seen_progress(monkeypatch)
    train_model(config, studies, wanted(3), never)
    assert epochs == [2, 3]
    assert all(figures["epoch"] >= 1 and figures["history"][0] == before["history"][0] for figures in seen)
    assert [entry[0] for entry in seen[-1]["history"]] == [1, 2, 3]
    assert all(figures["best_metric"] >= before["best_metric"] for figures in seen if figures["status"] != "done")
    assert len(list((Checkpoints(config).folder / "tensorboard").iterdir())) == 1
    assert not list(Checkpoints(config).folder.glob("state*"))
    train_model(config, studies, wanted(2), never)
    assert epochs == [2, 3, 1, 2]


def test_a_killed_training_ends_in_the_weights_of_one_that_was_not(config, studies, monkeypatch):
    kill_in(monkeypatch, "epoch", 2, config, studies, 3)
    train_model(config, studies, wanted(3), never)
    resumed = bytes_of(Checkpoints(config).current())
    shutil.rmtree(Checkpoints(config).folder)
    train_model(config, studies, wanted(3), never)
    assert bytes_of(Checkpoints(config).current()) == resumed


def test_a_run_that_is_killed_in_its_cross_validation_does_one_fold_again(config, studies, monkeypatch, recorder):
    kill_in(monkeypatch, "side_epoch", 3, config, studies[:4], 2)
    done = [one["train"] for one in recorder.trainings[1:3]]
    del recorder.trainings[:]
    epochs = reported(monkeypatch)
    result = train_model(config, studies[:4], wanted(2), never)
    assert epochs == []  # the training itself was complete
    assert len(recorder.trainings) == 3 and not [one for one in recorder.trainings[1:] if one["train"] in done]
    assert "Judged on 4 case(s) by cross-validation" in result["judged_on"]
    assert progress_of(config)["epoch"] == progress_of(config)["total_epochs"]
    assert not (Checkpoints(config).folder / "folds.json").exists()


@pytest.mark.parametrize("change", ["epochs", "label", "served", "patient", "release"])
def test_a_killed_training_of_something_else_is_not_gone_on_with(config, studies, tmp_path, monkeypatch, change):
    kill_in(monkeypatch, "epoch", 1, config, studies, 2)
    if change == "label":
        labelled(tmp_path, NAMES[0], 77)
    if change == "patient":
        studies[0] = replace(studies[0], patient=studies[1].patient)
    if change == "release":
        monkeypatch.setattr(training, "__version__", "99.0")
    if change == "served":
        Checkpoints(config).publish(build_network(config), {})
    epochs = reported(monkeypatch)
    train_model(config, studies, wanted(3 if change == "epochs" else 2, "full"), never)
    assert epochs[0] == 1
    assert [entry[0] for entry in progress_of(config)["history"]] == epochs


@pytest.mark.parametrize("content", ["", '{"epoch": ', "[1]"])
def test_damaged_figures_are_left_out_and_hinder_no_resume(config, studies, monkeypatch, caplog, content):
    kill_in(monkeypatch, "epoch", 1, config, studies, 2)
    (Checkpoints(config).folder / "progress.json").write_text(content)
    assert SegmentationTrainer(config).stats() == {} and "progress.json is damaged" in caplog.text
    epochs = reported(monkeypatch)
    assert train_model(config, studies, wanted(2), never)["status"] == "done"
    assert epochs == [2]


@pytest.mark.parametrize("error", [LabelRoundsError("the disk sings"), RuntimeError("the disk sings"), MemoryError()])
def test_a_failure_is_written_where_clients_look(config, studies, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(training, "evaluate", fails)
    with pytest.raises(type(error)):
        train_model(config, studies, wanted(), never)
    figures = progress_of(config)
    assert figures["status"] == "failed" and figures["total_time"]
    assert figures["message"] == (str(error) or "MemoryError")


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_that_trains_the_model_is_not_disturbed(config, studies):
    folder = Checkpoints(config).folder
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "training.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(Busy, match="a training of tiny runs already"):
            train_model(config, studies, wanted(), never)
        assert not (folder / "progress.json").exists()
        process.stdin.close()
    assert train_model(config, studies, wanted(), never)["published"] == 1


def test_another_model_can_train_at_the_same_time(config, make_config, studies):
    folder = Checkpoints(make_config(name="other")).folder
    folder.mkdir(parents=True)
    with FileLock(folder / "training.lock"):
        assert train_model(config, studies, wanted(), never)["published"] == 1


def test_the_trainer_takes_its_cases_from_the_datastore(config, studies):
    class Datastore:
        def training_items(self):
            return studies

    result = SegmentationTrainer(config)({"model": "tiny", "epochs": 1, "device": "cpu"}, Datastore())
    assert result["published"] == 1
