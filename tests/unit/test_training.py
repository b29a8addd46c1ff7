"""A training publishes a version, shows how far it is, and goes on where it was stopped."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from learners import never
from training_runs import (
    NAMES,
    bytes_of,
    full,
    kill_in,
    labelled,
    progress_of,
    reported,
    seen_progress,
    stages_of,
    wanted,
)

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import progress, training, training_plan
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import Busy, Conflict, LabelRoundsError
from labelrounds.judging import Comparison
from labelrounds.networks import build_network
from labelrounds.training import Trainer, train_model
from labelrounds.training_request import TrainingRequest


def test_the_options_that_a_client_shows_are_those_that_are_taken(config):
    shown = Trainer(config).config()
    first = {key: value[0] if isinstance(value, list) else value for key, value in shown.items()}
    assert TrainingRequest.parse(first, config).epochs is None
    assert first["policy"] == "auto"


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
    assert Trainer(config).stats() == seen[-1] == progress_of(config)


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


def test_a_training_whose_validation_rises_no_more_ends_early_and_the_bar_still_fills(
    config, studies, recorder, monkeypatch
):
    monkeypatch.setattr("labelrounds.evaluation.dice_per_label", lambda *_: {"near": 0.5, "far": 0.5})
    train_model(config, studies, wanted(12), never)
    assert recorder.trainings[0]["schedule"].patience == 8
    record, figures = Checkpoints(config).current().record, progress_of(config)
    assert figures["epoch"] == figures["total_epochs"] == record["epochs"] == 10
    assert record["epochs_planned"] == 12


def test_when_the_progress_can_not_be_written_the_training_goes_on(config, studies, monkeypatch):
    monkeypatch.setattr(progress, "write_json", full)
    assert train_model(config, studies, wanted(), never)["published"] == 1


def test_when_the_curves_can_not_be_written_the_training_goes_on(config, studies, monkeypatch):
    monkeypatch.setattr(progress.SummaryWriter, "add_scalar", full)
    assert train_model(config, studies, wanted(), never)["published"] == 1


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


def test_a_training_that_is_stopped_while_it_is_worse_is_gone_on_with(config, studies, monkeypatch):
    train_model(config, studies, wanted(1), never)
    epochs = reported(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "objection", "worse by far")
        result = train_model(config, studies, wanted(4), lambda: bool(epochs))
    assert (result["status"], result["published"]) == ("stopped", None)
    assert "worse by far" in result["message"] and "goes on from there" in result["message"]
    result = train_model(config, studies, wanted(4), never)
    assert epochs == [1, 2, 3, 4] and result["status"] == "done"
    assert not list(Checkpoints(config).folder.glob("state*"))


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


@pytest.mark.parametrize("change", ["epochs", "label", "served", "patient", "release"])
def test_a_killed_training_of_something_else_is_not_gone_on_with(config, studies, tmp_path, monkeypatch, change):
    kill_in(monkeypatch, "epoch", 1, config, studies, 2)
    if change == "label":
        labelled(tmp_path, NAMES[0], 77)
    if change == "patient":
        studies[0] = replace(studies[0], patient=studies[1].patient)
    if change == "release":
        monkeypatch.setattr(training_plan, "__version__", "99.0")
    if change == "served":
        Checkpoints(config).publish(build_network(config), {})
    epochs = reported(monkeypatch)
    result = train_model(config, studies, wanted(3 if change == "epochs" else 2, "full"), never)
    assert epochs[0] == 1
    what = "labels" if change == "label" else "settings"
    assert f"began anew, as the {what} are others than those of the training that was interrupted" in result["notes"]
    assert [entry[0] for entry in progress_of(config)["history"]] == epochs


def test_a_training_that_the_next_server_resumes_goes_on_with_its_own_cases(config, studies, tmp_path, monkeypatch):
    kill_in(monkeypatch, "epoch", 1, config, studies, 3)
    studies.append(labelled(tmp_path, "submitted_meanwhile", 50))
    epochs = reported(monkeypatch)
    result = train_model(config, studies, replace(wanted(3), resumed=True), never)
    assert epochs == [2, 3]
    assert "went on with its 10 cases; 1 submitted since wait for the next training" in result["notes"]
    assert "submitted_meanwhile" not in str(Checkpoints(config).current().record["cases"])
    assert not (Checkpoints(config).folder / "begun.json").exists()
    train_model(config, studies, wanted(1), never)
    assert "submitted_meanwhile" in str(Checkpoints(config).current().record["cases"])


@pytest.mark.parametrize("by", ["the user", "the next server"])
def test_a_killed_training_whose_labels_are_others_begins_anew_and_says_so(config, studies, tmp_path, monkeypatch, by):
    kill_in(monkeypatch, "epoch", 1, config, studies, 2)
    if by == "the user":
        studies.append(labelled(tmp_path, "submitted_meanwhile", 50))
    else:
        labelled(tmp_path, NAMES[0], 77)  # corrected, so that what was learnt from it is out of date
    epochs = reported(monkeypatch)
    result = train_model(config, studies, replace(wanted(2), resumed=by != "the user"), never)
    assert epochs == [1, 2]
    assert "began anew, as the labels are others than those of the training that was interrupted" in result["notes"]


@pytest.mark.parametrize("content", ["", '{"epoch": ', "[1]"])
def test_damaged_figures_are_left_out_and_hinder_no_resume(config, studies, monkeypatch, caplog, content):
    kill_in(monkeypatch, "epoch", 1, config, studies, 2)
    (Checkpoints(config).folder / "progress.json").write_text(content)
    assert Trainer(config).stats() == {} and "progress.json is damaged" in caplog.text
    epochs = reported(monkeypatch)
    assert train_model(config, studies, wanted(2), never)["status"] == "done"
    assert epochs == [2]


def test_a_client_is_told_what_a_model_is_that_nobody_has_trained(config):
    told = Trainer(config).info()
    assert (told["task"], told["labels"]) == ("segmentation", list(config.labels)) and "policy" in told["config"]


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
        def training_items(self, label_tag):
            return studies

    result = Trainer(config)({"model": "tiny", "epochs": 1, "device": "cpu"}, Datastore())
    assert result["published"] == 1
