"""A result is published if it is not worse, and says what it rests on."""

import json

import pytest
from learners import never
from training_runs import NAMES, bytes_of, full, labelled, progress_of, reported, wanted

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import evaluation, promotion, runtime_choice, runtime_measurement, tasks, training
from labelrounds.checkpoints import Checkpoints
from labelrounds.devices import choose_device
from labelrounds.errors import OutOfSpace, TooLarge
from labelrounds.judging import compare
from labelrounds.networks import build_network
from labelrounds.runtime_measurement import machine, read_measurement
from labelrounds.training import train_model


def test_of_few_validation_cases_no_accuracy_is_claimed(config, studies):
    result = train_model(config, studies, wanted(), never)
    assert "2 validation case(s), which also chose the epoch: too few to claim an accuracy." in result["judged_on"]


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


def test_a_worse_result_is_not_published(config, studies, monkeypatch):
    train_model(config, studies, wanted(), never)
    true_evaluate, served, judged = training.evaluate, Checkpoints(config).current(), []

    def flattering(network, cases, config, note, measured):
        """The second network that is judged is the served one; it finds everything."""
        if not any(network is known for known in judged):
            judged.append(network)
        scores = true_evaluate(network, cases, config, note, measured)
        if network is not judged[-1] or not judged[1:]:
            return scores
        return {image: dict.fromkeys(score, 0.99) for image, score in scores.items()}

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


def test_a_rollback_during_a_training_is_not_undone_by_its_end(config, studies, monkeypatch):
    train_model(config, studies, wanted(), never)
    Checkpoints(config).publish(build_network(config), {})

    def rolled_back(candidate, served, measure):
        Checkpoints(config).rollback()
        return compare(candidate, served, measure)

    monkeypatch.setattr(promotion, "compare", rolled_back)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert Checkpoints(config).current().number == 1
    assert result["published"] is None
    assert "Version 3 is kept but not served" in result["message"]
    assert "`labelrounds rollback --model tiny --to 3`" in result["message"]
    assert Checkpoints(config).version(3).record["policy"] == "full"


@pytest.mark.parametrize("every", [False, True])
def test_a_case_that_no_memory_suffices_for_is_not_measured_and_named(config, studies, monkeypatch, every):
    train_model(config, studies, wanted(), never)
    held = sorted(Checkpoints(config).current().record["cases"]["validation"])
    true_segment = evaluation._segment

    def limited(network, case, *rest):
        if every or case.image_id == held[0]:
            raise TooLarge(f"{case.image_id}: needs 90 GB")
        return true_segment(network, case, *rest)

    monkeypatch.setattr(evaluation, "_segment", limited)
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
        patch.setattr(evaluation, "dice_per_label", lambda *_: {"near": 0.5, "far": 0.7, "third": float("nan")})
        result = train_model(config, items, wanted(), never)
    assert result["dice"] == {"near": 0.5, "far": 0.7, "third": None} and result["best_metric"] == 0.6
    figures = progress_of(config)
    assert figures["dice"]["third"] is None and figures["history"] == [[1, 0.6]]


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


def test_a_version_is_published_with_its_quickest_runtime_which_its_record_tells(config, studies, monkeypatch):
    monkeypatch.setattr(runtime_choice, "_FEWEST_VOXELS", 1)  # whatever so short a training finds
    train_model(config, studies, wanted(), never)
    version = Checkpoints(config).current()
    measured = read_measurement(version.weights.parent, config, choose_device())
    assert measured is not None and set(measured.runtimes) == set(
        runtime_measurement.available(config, choose_device())
    )
    told = version.record["runtime"]
    assert told["chosen"] == measured.chosen and told["machine"] == machine(choose_device())
    assert told["lowest_dice"] >= 0.995 and told["speedup"] == measured.runtimes[measured.chosen].speedup


def test_where_runtimes_are_not_to_be_measured_a_version_is_published_without(config, studies, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_MEASURE_RUNTIMES", "false")
    monkeypatch.setattr(runtime_choice, "_FEWEST_VOXELS", 1)
    assert train_model(config, studies, wanted(), never)["published"] == 1
    assert "runtime" not in Checkpoints(config).current().record


def test_a_rollback_while_a_version_is_written_is_not_undone_and_is_what_a_rollback_goes_back_to(
    config, studies, monkeypatch
):
    train_model(config, studies, wanted(), never)
    Checkpoints(config).publish(build_network(config), {})

    def measure(subject, images):
        Checkpoints(config).rollback()
        raise RuntimeError("a fault")

    monkeypatch.setattr(tasks, "measure", measure)
    result = train_model(config, studies, wanted(1, "full"), never)
    assert Checkpoints(config).current().number == 1
    assert result["published"] is None and "Version 3 is kept but not served" in result["message"]
    assert Checkpoints(config).version(3).record["served_before"] == 1


def test_a_measurement_that_fails_hinders_no_publication(config, studies, monkeypatch, caplog):
    def measure(subject, images):
        assert images and subject.windows
        raise RuntimeError("a fault")

    monkeypatch.setattr(tasks, "measure", measure)
    assert train_model(config, studies, wanted(), never)["published"] == 1
    assert "The runtimes of tiny are not measured: a fault" in caplog.text
    version = Checkpoints(config).current()
    assert "runtime" not in version.record and not (version.weights.parent / "runtime.json").exists()


def test_who_stops_a_training_waits_for_no_measurement(config, studies, monkeypatch):
    monkeypatch.setattr(tasks, "measure", lambda *_: pytest.fail("measured"))
    stops = iter([False] * 20)
    result = train_model(config, studies, wanted(50), lambda: next(stops, True))
    assert result["status"] == "stopped" and result["published"] == 1
