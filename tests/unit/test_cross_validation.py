"""Of few patients each is left out once, of which nothing is lost by a stop, a failure or a kill."""

import shutil

import pytest
import torch
from learners import never
from training_runs import NAMES, bytes_of, kill_in, labelled, progress_of, reported, seen_progress, stages_of, wanted

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import training, training_plan
from labelrounds.checkpoints import Checkpoints
from labelrounds.learning import Diverged
from labelrounds.training import train_model


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
    monkeypatch.setattr(training_plan, "_folds", lambda cases, learnt: [])
    train_model(config, studies[:4], wanted(2), never)
    assert bytes_of(Checkpoints(config).current()) == whole


def test_where_the_served_version_knows_all_patients_cross_validation_is_as_short_as_without_one(
    config, studies, recorder
):
    train_model(config, studies[:4], wanted(3), never)
    recorder.trainings.clear()
    result = train_model(config, studies[:4], wanted(3, "full"), never)
    assert "Compared on the training cases." in result["judged_on"]
    first, *others = recorder.trainings
    assert first["schedule"].epochs == 3 and [one["schedule"].epochs for one in others] == [1] * 4


def test_all_images_of_a_patient_are_left_out_together(config, studies, tmp_path, recorder):
    again = labelled(tmp_path, "follow_up", 50, patient=NAMES[0])
    train_model(config, [*studies[:3], again], wanted(), never)
    for one in recorder.trainings[1:]:
        assert (NAMES[0] in one["train"]) == ("follow_up" in one["train"])
    assert len(recorder.trainings) == 4


def test_a_quick_update_leaves_out_only_whom_its_start_has_not_seen_and_compares_on_them(config, studies, recorder):
    train_model(config, studies[:4], wanted(), never)
    del recorder.trainings[:]
    result = train_model(config, studies[:5], wanted(2), never)
    update, fold = recorder.trainings
    assert update["train"] == NAMES[:5] and fold["train"] == NAMES[:4]
    assert fold["schedule"].epochs == 2  # as many as the update, or the comparison would not be fair
    assert result["comparison"]["cases"] == 1
    assert "Judged on 1 case(s) by cross-validation" in result["judged_on"]


def test_patients_are_recognised_by_any_of_their_images(config, studies, tmp_path, ship, recorder):
    ship([NAMES[0]])
    again = labelled(tmp_path, "follow_up", 50, patient=NAMES[0])
    train_model(config, [*studies[:3], again], wanted(), never)
    left_out = [set(NAMES[:3]) - set(one["train"]) for one in recorder.trainings[1:]]
    assert left_out == [{NAMES[1]}, {NAMES[2]}] or left_out == [{NAMES[2]}, {NAMES[1]}]


@pytest.mark.parametrize("folds", [0, 2])
def test_stopping_the_cross_validation_keeps_the_training_and_what_is_judged_by_then(config, studies, recorder, folds):
    def stopped() -> bool:
        return len(recorder.trainings) > 1 + folds

    result = train_model(config, studies[:4], wanted(2), stopped)
    assert (result["status"], result["published"]) == ("stopped", 1)
    record = Checkpoints(config).current().record
    assert record["epochs"] == 2 and "runtime" not in record  # who stops it does not wait for them to be measured
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
