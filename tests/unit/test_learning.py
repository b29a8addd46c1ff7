"""A training repeats itself, ends when it should, and keeps the best that it reached."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from learners import StopAfter, dice_of, epochs_of, learner, never, same, scripted, weights

from labelrounds import evaluation, tasks
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.evaluation import evaluate_case, mean_of
from labelrounds.learning import Schedule
from labelrounds.losses import supervised_loss


@pytest.mark.parametrize("network", ["unet", "vnet", "attention_unet"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(make_small, cases, network):
    options = {"depths": [1, 1, 1]} if network == "vnet" else {}
    config = make_small(network={"name": network, "channels": [4, 6, 8], **options})
    first, second = (weights(learner(config, cases, epochs=2).run(lambda epoch: None, never)) for _ in range(2))
    assert same(first, second)


def test_another_seed_draws_other_patches(make_small, cases):
    training = {"epochs": 1, "iterations_per_epoch": 2}
    outcomes = [
        learner(make_small(training={**training, "seed": seed}), cases, epochs=1).run(lambda epoch: None, never)
        for seed in (0, 1)
    ]
    assert not same(weights(outcomes[0]), weights(outcomes[1]))


def test_each_epoch_is_reported_with_its_figures(make_small, cases):
    outcome, reported = epochs_of(learner(make_small(), cases, epochs=3))
    assert [(epoch.number, epoch.total) for epoch in reported] == [(1, 3), (2, 3), (3, 3)]
    assert all(math.isfinite(epoch.loss) and epoch.seconds > 0 for epoch in reported)
    assert set(reported[-1].dice) == {"near", "far"}
    assert (outcome.epochs, outcome.stopped) == (3, False)
    assert outcome.history == [replace(epoch, predictions=[]) for epoch in reported]


def test_it_learns(make_small, make_case):
    config = make_small(
        training={"iterations_per_epoch": 15, "learning_rate": 2e-2, "rotation_degrees": 0.0}, patch_size=[16, 16, 16]
    )
    cases = [make_case(seed, config) for seed in range(3)]
    outcome, reported = epochs_of(learner(config, cases, epochs=6))
    assert reported[-1].loss < 0.7 * reported[0].loss
    assert mean_of(dice_of(outcome.network, cases[2:], config)) > 0.5


def test_stopping_keeps_the_best_that_was_reached(make_small, cases):
    whole, reported = epochs_of(learner(make_small(), cases, epochs=30), StopAfter(10))
    assert whole.stopped and whole.epochs == len(reported) < 20
    kept = mean_of(dice_of(whole.network, cases[2:], make_small()))
    assert kept >= max(mean_of(epoch.dice) for epoch in reported if epoch.dice) - 1e-6


def test_stopping_within_an_epoch_does_not_count_it(make_small, cases):
    config = make_small(training={"iterations_per_epoch": 5})
    # Asked before each step: five of the first epoch, and two of the next.
    outcome, reported = epochs_of(learner(config, cases, epochs=3), StopAfter(7))
    assert [epoch.number for epoch in reported] == [1]
    assert (outcome.epochs, outcome.stopped) == (1, True)


def test_stopping_before_the_first_epoch_changes_nothing(make_small, cases):
    run = learner(make_small(), cases)
    before = {name: value.clone() for name, value in run._network.state_dict().items()}
    outcome, reported = epochs_of(run, lambda: True)
    assert (outcome.epochs, outcome.stopped, reported) == (0, True, [])
    assert same(weights(outcome), before)


def test_the_best_epoch_is_chosen_and_not_the_last(make_small, cases, monkeypatch):
    seen = scripted(monkeypatch, [0.2, 0.9, 0.4])
    outcome, _ = epochs_of(learner(make_small(), cases, epochs=3))
    assert same(weights(outcome), seen[1])
    assert not same(weights(outcome), seen[2])


def test_it_validates_about_twenty_times_and_at_the_end(make_small, cases, monkeypatch):
    config = make_small(training={"iterations_per_epoch": 1})
    scripted(monkeypatch, [0.5] * 30)
    _, reported = epochs_of(learner(config, cases, epochs=45))
    assert [epoch.number for epoch in reported if epoch.dice] == [*range(2, 45, 2), 45]


def test_patience_ends_a_training_whose_moving_average_rises_no_more(make_small, cases, monkeypatch):
    # The average is 0.5, 0.53 and 0.401, and then falls; the best weights are those of the best epoch all the same.
    dice = [0.5, 0.6, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    seen = scripted(monkeypatch, dice)
    outcome, reported = epochs_of(learner(make_small(), cases, epochs=10, patience=3))
    assert [epoch.number for epoch in reported] == [1, 2, 3, 4, 5, 6]
    assert (outcome.epochs, outcome.stopped) == (6, False)
    assert same(weights(outcome), seen[3])
    scripted(monkeypatch, dice)
    assert epochs_of(learner(make_small(), cases, epochs=10))[0].epochs == 10


def test_validations_that_measure_nothing_choose_and_end_nothing(make_small, cases, monkeypatch):
    nan = math.nan
    scripted(monkeypatch, [nan] * 6)
    outcome, _ = epochs_of(learner(make_small(), cases, epochs=6, patience=2))
    assert outcome.epochs == 6
    seen = scripted(monkeypatch, [0.3, nan, 0.2])
    outcome, _ = epochs_of(learner(make_small(), cases, epochs=3))
    assert same(weights(outcome), seen[0])


def test_an_epoch_above_a_falling_average_is_no_reason_to_go_on(make_small, cases, monkeypatch):
    scripted(monkeypatch, [0.8, 0.1, 0.81, 0.1, 0.82, 0.1, 0.1, 0.1])
    assert epochs_of(learner(make_small(), cases, epochs=8, patience=4))[0].epochs == 6


def test_the_moving_average_takes_in_three_tenths_of_each_validation(make_small, cases, monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.1])
    run = learner(make_small(), cases, epochs=3)
    epochs_of(run)
    assert run._standing.moving == pytest.approx(0.7 * (0.7 * 0.5 + 0.3 * 0.6) + 0.3 * 0.1)
    assert (run._standing.best_moving, run._standing.best_moving_epoch) == (pytest.approx(0.53), 2)


def test_without_validation_cases_patience_ends_nothing(make_small, cases):
    assert epochs_of(learner(make_small(), cases[:2], epochs=4, patience=1))[0].epochs == 4


def test_predictions_of_at_most_three_validation_cases_are_shown(make_small, make_case):
    config = make_small()
    many = [make_case(seed, config) for seed in range(7)]
    _, reported = epochs_of(learner(config, many, epochs=1))
    assert len(reported[0].predictions) == 3
    for prediction, case in zip(reported[0].predictions, many[2:], strict=False):
        assert prediction.shape == case.label.shape and prediction.dtype == torch.uint8
    _, reported = epochs_of(learner(config, many[:3], epochs=1))
    assert len(reported[0].predictions) == 1


def test_the_rate_warms_up_and_falls_to_nothing():
    schedule = Schedule(epochs=10, iterations_per_epoch=100, learning_rate=0.01)
    rates = [schedule.rate(step) for step in range(schedule.steps)]
    assert rates[0] == pytest.approx(0.01 / 20) and max(rates) == rates[19]
    assert rates[500] == pytest.approx(0.01 * 0.5**0.9)
    assert all(later < earlier for earlier, later in pairwise(rates[19:]))
    assert 0 < rates[-1] < 0.01 * 0.003


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TooLarge("needs 90 GB")])
def test_a_validation_case_that_the_gpu_has_not_the_memory_for_is_segmented_on_the_cpu(
    make_small, make_case, monkeypatch, error
):
    config, gpu, segmented = make_small(), torch.device("meta"), evaluation.predict

    def limited(network, image, config):
        if image.device == gpu:
            raise error
        return segmented(network, image, config)

    cases = [make_case(seed, config) for seed in range(4)]
    run = learner(config, cases)
    expected = run._evaluate_share()[0]
    monkeypatch.setattr(evaluation, "predict", limited)
    run._steps.device = gpu
    assert run._evaluate_share()[0] == expected
    assert run.notes == ["cases that meta has not the memory for are segmented on the CPU"]
    assert run._steps.batch_size == 2 and run._steps.device == gpu
    assert [evaluate_case(run._network, case, config, gpu, print)[0] for case in cases[2:]] == expected


def test_a_validation_case_that_no_memory_suffices_for_is_left_out_and_named(make_small, make_case, monkeypatch):
    config, segmented = make_small(), evaluation.predict
    cases = [make_case(seed, config, (20, 18, 16 + seed)) for seed in range(4)]

    def limited(network, image, config):
        if image.shape[-1] == 18:
            raise TooLarge("needs 90 GB")
        return segmented(network, image, config)

    monkeypatch.setattr(evaluation, "predict", limited)
    run = learner(config, cases, epochs=2)
    outcome, reported = epochs_of(run)
    assert outcome.epochs == 2 and run.notes == [
        "not measured: case_2 can't be segmented in the memory of the machine: needs 90 GB"
    ]
    monkeypatch.undo()
    run._network.load_state_dict(run._steps.average)
    assert reported[-1].dice == dice_of(run._network, cases[3:], config)


def test_without_validation_cases_the_last_average_counts(make_small, cases):
    outcome, reported = epochs_of(learner(make_small(), cases[:2], epochs=2))
    assert [epoch.dice for epoch in reported] == [None, None]
    assert all(value.isfinite().all() for value in weights(outcome).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverges_ends_with_advice(make_small, cases, monkeypatch, value):
    run = learner(make_small(), cases)
    monkeypatch.setattr(tasks, "supervised_loss", lambda levels, labels: supervised_loss(levels, labels) * value)
    with pytest.raises(LabelRoundsError, match=r"diverges.*epoch 1.*learning_rate below 0\.01"):
        epochs_of(run)


def test_a_2d_model_learns_too(make_small, make_case):
    config = make_small(patch_size=[16, 16, 1])
    cases = [make_case(seed, config) for seed in range(3)]
    outcome, reported = epochs_of(learner(config, cases, epochs=1))
    assert math.isfinite(reported[0].loss)
    assert outcome.network.dimensions == 2
