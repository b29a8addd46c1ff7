"""A training repeats itself, goes on where it was killed, and keeps the best that it reached."""

import logging
import math
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from labelrounds import learning
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.learning import Learner, Schedule, evaluate, mean_dice, mean_of
from labelrounds.losses import supervised_loss
from labelrounds.networks import build_network

CPU = torch.device("cpu")


def never() -> bool:
    return False


class StopAfter:
    """Says stop from the given call on."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def make_config(make_config):
    """Make a model of the smallest patches that its networks take."""
    return lambda **changes: make_config(**{"patch_size": [8, 8, 8], **changes})


@pytest.fixture
def cases(make_config, make_case):
    config = make_config()
    return [make_case(seed, config) for seed in range(3)]


def learner(config, cases, epochs=3, device=CPU, state=None, fingerprint="one", seed=0, change=None, patience=None):
    torch.manual_seed(seed)
    network = build_network(config)
    if change is not None:
        change(network)
    training = config.training
    return Learner(
        config,
        network,
        cases[:2],
        cases[2:],
        device,
        Schedule(epochs, training.iterations_per_epoch, training.learning_rate, patience),
        state=state,
        fingerprint=fingerprint,
    )


def weights(outcome) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in outcome.network.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def epochs_of(run, stopped=never) -> tuple:
    reported = []
    return run.run(reported.append, stopped), reported


@pytest.mark.parametrize("network", ["unet", "vnet", "attention_unet"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(make_config, cases, network):
    options = {"depths": [1, 1, 1]} if network == "vnet" else {}
    config = make_config(network={"name": network, "channels": [4, 6, 8], **options})
    first, second = (weights(learner(config, cases, epochs=2).run(lambda epoch: None, never)) for _ in range(2))
    assert same(first, second)


@pytest.mark.parametrize("lowest", [1, 2, 3])
def test_gradients_are_those_of_full_precision_however_small_the_lowest_level(make_config, make_case, lowest):
    config = make_config(patch_size=[4 * lowest, 16, 16])
    gradients = []
    for full_precision in (False, True):
        run = learner(config, [make_case(seed, config) for seed in range(3)])
        with torch.autocast("cpu", enabled=False), pytest.MonkeyPatch.context() as patch:
            if full_precision:
                patch.setattr("labelrounds.learning.autocast", lambda *args: torch.autocast("cpu", enabled=False))
            patch.setattr("torch.nn.utils.clip_grad_norm_", lambda parameters, limit: torch.ones(()))
            for _ in range(3):
                run._compute_gradients(0)
        gradients.append({name: value.grad for name, value in run._network.named_parameters()})
    for name, exact in gradients[1].items():
        assert (gradients[0][name] - exact).norm() <= 0.3 * exact.norm() + 1e-3, name


def test_another_seed_draws_other_patches(make_config, cases):
    training = {"epochs": 1, "iterations_per_epoch": 2}
    outcomes = [
        learner(make_config(training={**training, "seed": seed}), cases, epochs=1).run(lambda epoch: None, never)
        for seed in (0, 1)
    ]
    assert not same(weights(outcomes[0]), weights(outcomes[1]))


def test_each_epoch_is_reported_with_its_figures(make_config, cases):
    outcome, reported = epochs_of(learner(make_config(), cases, epochs=3))
    assert [(epoch.number, epoch.total) for epoch in reported] == [(1, 3), (2, 3), (3, 3)]
    assert all(math.isfinite(epoch.loss) and epoch.seconds > 0 for epoch in reported)
    assert set(reported[-1].dice) == {"near", "far"}
    assert (outcome.epochs, outcome.stopped) == (3, False)
    assert outcome.history == [replace(epoch, predictions=[]) for epoch in reported]


def test_it_learns(make_config, make_case):
    config = make_config(
        training={"iterations_per_epoch": 15, "learning_rate": 2e-2, "rotation_degrees": 0.0}, patch_size=[16, 16, 16]
    )
    cases = [make_case(seed, config) for seed in range(3)]
    outcome, reported = epochs_of(learner(config, cases, epochs=6))
    assert reported[-1].loss < 0.7 * reported[0].loss
    assert mean_of(mean_dice(evaluate(outcome.network, cases[2:], config, CPU))) > 0.5


class Interrupted(Exception):
    """Stands in for the end of the process just after an epoch was saved."""


@pytest.mark.parametrize("killed_after", [1, 3])
@pytest.mark.parametrize("network", ["unet", "attention_unet"])
def test_a_killed_training_goes_on_to_the_same_bits(make_config, cases, tmp_path, network, killed_after):
    config = make_config(network={"name": network, "channels": [4, 6, 8]})
    state = tmp_path / "state.safetensors"
    whole = weights(learner(config, cases, epochs=3).run(lambda epoch: None, never))

    def killed(epoch):
        if epoch.number == killed_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases, epochs=3, state=state).run(killed, never)
    outcome, reported = epochs_of(learner(config, cases, epochs=3, state=state, seed=99))
    assert [epoch.number for epoch in reported] == list(range(killed_after + 1, 4))
    assert same(weights(outcome), whole)


def test_dropout_is_drawn_again_as_before(make_config, cases, tmp_path):
    def with_dropout(network):
        network.net.bottleneck.register_forward_hook(
            lambda module, inputs, output: nn.functional.dropout(output, 0.5, module.training)
        )

    state, config = tmp_path / "state.safetensors", make_config()
    # Without validation cases, so that the last weights count.
    whole = weights(learner(config, cases[:2], epochs=2, change=with_dropout).run(lambda epoch: None, never))

    def killed(epoch):
        raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases[:2], epochs=2, state=state, change=with_dropout).run(killed, never)
    torch.rand(7)
    resumed = learner(config, cases[:2], epochs=2, state=state, change=with_dropout).run(lambda epoch: None, never)
    assert same(weights(resumed), whole)


def test_a_state_of_another_run_is_ignored(make_config, cases, tmp_path):
    state, config = tmp_path / "state.safetensors", make_config()
    learner(config, cases, epochs=2, state=state, fingerprint="one").run(lambda epoch: None, never)
    _, reported = epochs_of(learner(config, cases, epochs=2, state=state, fingerprint="another"))
    assert [epoch.number for epoch in reported] == [1, 2]


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def damage_header(file: Path) -> None:
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def damage_empty(file: Path) -> None:
    file.write_bytes(b"")


def rewritten(change):
    def damage(file: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(file, "pt") as opened:
            note, tensors = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        change(note, tensors)
        save_file(tensors, file, metadata=note)

    return damage


def first_of(tensors, part):
    return next(key for key in tensors if key.startswith(part))


DAMAGES = {
    "cut": damage_cut,
    "another header": damage_header,
    "empty": damage_empty,
    "no standing": rewritten(lambda note, tensors: note.pop("standing")),
    "a standing that is none": rewritten(lambda note, tensors: note.update(standing="many")),
    "an unknown standing": rewritten(lambda note, tensors: note.update(standing='{"finished": 1}')),
    "a tensor missing": rewritten(lambda note, tensors: tensors.pop(first_of(tensors, "network/"))),
    "an average missing": rewritten(lambda note, tensors: tensors.pop(first_of(tensors, "average/"))),
    "a tensor of another shape": rewritten(
        lambda note, tensors: tensors.update({first_of(tensors, "best/"): torch.zeros(1, 2)})
    ),
    "a tensor too many": rewritten(lambda note, tensors: tensors.update({"loose": torch.zeros(1)})),
    "an unknown part": rewritten(lambda note, tensors: tensors.update({"more/weight": torch.zeros(1)})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_told_and_the_training_starts_over(make_config, cases, tmp_path, caplog, damage):
    state, config = tmp_path / "state.safetensors", make_config()
    whole = weights(learner(config, cases, epochs=1, state=state).run(lambda epoch: None, never))
    damage(state)
    with caplog.at_level(logging.WARNING):
        again = learner(config, cases, epochs=1, state=state)
    assert "Start over" in caplog.text and "state.safetensors" in caplog.text
    outcome, reported = epochs_of(again)
    assert [epoch.number for epoch in reported] == [1]
    assert same(weights(outcome), whole)


def test_a_state_that_can_not_be_saved_does_not_end_the_training(make_config, cases, tmp_path, caplog, monkeypatch):
    def full(tensors, file, metadata=None):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelrounds.learning.save_file", full)
    outcome, _ = epochs_of(learner(make_config(), cases, epochs=2, state=tmp_path / "state.safetensors"))
    assert outcome.epochs == 2
    assert "No space left" in caplog.text
    assert list(tmp_path.glob("state*")) == []


def test_stopping_keeps_the_best_that_was_reached(make_config, cases):
    whole, reported = epochs_of(learner(make_config(), cases, epochs=30), StopAfter(10))
    assert whole.stopped and whole.epochs == len(reported) < 20
    kept = mean_of(mean_dice(evaluate(whole.network, cases[2:], make_config(), CPU)))
    assert kept >= max(mean_of(epoch.dice) for epoch in reported if epoch.dice) - 1e-6


def test_stopping_within_an_epoch_does_not_count_it(make_config, cases):
    config = make_config(training={"iterations_per_epoch": 5})
    # Asked before each step: five of the first epoch, and two of the next.
    outcome, reported = epochs_of(learner(config, cases, epochs=3), StopAfter(7))
    assert [epoch.number for epoch in reported] == [1]
    assert (outcome.epochs, outcome.stopped) == (1, True)


def test_stopping_before_the_first_epoch_changes_nothing(make_config, cases):
    run = learner(make_config(), cases)
    before = {name: value.clone() for name, value in run._network.state_dict().items()}
    outcome, reported = epochs_of(run, lambda: True)
    assert (outcome.epochs, outcome.stopped, reported) == (0, True, [])
    assert same(weights(outcome), before)


def scripted(monkeypatch, dice) -> list[dict[str, torch.Tensor]]:
    """Let each validation, of one case, find the next of these Dice; return the weights that were validated."""
    values, seen = iter(dice), []

    def observed(network, image, config):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.zeros(image.shape[1:], dtype=torch.uint8)

    def next_of(prediction, label, labels):
        return dict.fromkeys(labels, next(values))

    monkeypatch.setattr("labelrounds.learning.predict", observed)
    monkeypatch.setattr("labelrounds.learning.dice_per_label", next_of)
    return seen


def test_the_best_epoch_is_chosen_and_not_the_last(make_config, cases, monkeypatch):
    seen = scripted(monkeypatch, [0.2, 0.9, 0.4])
    outcome, _ = epochs_of(learner(make_config(), cases, epochs=3))
    assert same(weights(outcome), seen[1])
    assert not same(weights(outcome), seen[2])


def test_it_validates_about_twenty_times_and_at_the_end(make_config, cases, monkeypatch):
    config = make_config(training={"iterations_per_epoch": 1})
    scripted(monkeypatch, [0.5] * 30)
    _, reported = epochs_of(learner(config, cases, epochs=45))
    assert [epoch.number for epoch in reported if epoch.dice] == [*range(2, 45, 2), 45]


def test_patience_ends_a_training_whose_moving_average_rises_no_more(make_config, cases, monkeypatch):
    # The average is 0.5, 0.53 and 0.401, and then falls; the best weights are those of the best epoch all the same.
    dice = [0.5, 0.6, 0.1, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    seen = scripted(monkeypatch, dice)
    outcome, reported = epochs_of(learner(make_config(), cases, epochs=10, patience=3))
    assert [epoch.number for epoch in reported] == [1, 2, 3, 4, 5, 6]
    assert (outcome.epochs, outcome.stopped) == (6, False)
    assert same(weights(outcome), seen[3])
    scripted(monkeypatch, dice)
    assert epochs_of(learner(make_config(), cases, epochs=10))[0].epochs == 10


def test_validations_that_measure_nothing_choose_and_end_nothing(make_config, cases, monkeypatch):
    nan = math.nan
    scripted(monkeypatch, [nan] * 6)
    outcome, _ = epochs_of(learner(make_config(), cases, epochs=6, patience=2))
    assert outcome.epochs == 6
    seen = scripted(monkeypatch, [0.3, nan, 0.2])
    outcome, _ = epochs_of(learner(make_config(), cases, epochs=3))
    assert same(weights(outcome), seen[0])


def test_an_epoch_above_a_falling_average_is_no_reason_to_go_on(make_config, cases, monkeypatch):
    scripted(monkeypatch, [0.8, 0.1, 0.81, 0.1, 0.82, 0.1, 0.1, 0.1])
    assert epochs_of(learner(make_config(), cases, epochs=8, patience=4))[0].epochs == 6


def test_the_moving_average_takes_in_three_tenths_of_each_validation(make_config, cases, monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.1])
    run = learner(make_config(), cases, epochs=3)
    epochs_of(run)
    assert run._standing.moving == pytest.approx(0.7 * (0.7 * 0.5 + 0.3 * 0.6) + 0.3 * 0.1)
    assert (run._standing.best_moving, run._standing.best_moving_epoch) == (pytest.approx(0.53), 2)


def test_a_resumed_training_is_as_patient_as_one_that_was_not_killed(make_config, cases, monkeypatch, tmp_path):
    state = tmp_path / "state.safetensors"

    def killed(epoch):
        if epoch.number == 4:
            raise Interrupted

    scripted(monkeypatch, [0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    with pytest.raises(Interrupted):
        learner(make_config(), cases, epochs=10, patience=3, state=state).run(killed, never)
    _, reported = epochs_of(learner(make_config(), cases, epochs=10, patience=3, state=state))
    assert [epoch.number for epoch in reported] == [5, 6]


def test_without_validation_cases_patience_ends_nothing(make_config, cases):
    assert epochs_of(learner(make_config(), cases[:2], epochs=4, patience=1))[0].epochs == 4


def test_predictions_of_at_most_three_validation_cases_are_shown(make_config, make_case):
    config = make_config()
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


# Memory


def out_of_memory(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def out_of_the_cpus_memory(*args):
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("fails", [out_of_memory, out_of_the_cpus_memory])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_config, cases, monkeypatch, caplog, fails):
    config = make_config(training={"batch_size": 7, "iterations_per_epoch": 3})
    run = learner(config, cases, epochs=2)
    sizes, draw = [], run._sampler.draw

    def limited(generators):
        sizes.append(len(generators))
        return fails() if len(generators) > 2 else draw(generators)

    monkeypatch.setattr(run._sampler, "draw", limited)
    outcome, reported = epochs_of(run)
    assert outcome.epochs == 2 and all(math.isfinite(epoch.loss) for epoch in reported)
    assert sizes == [7, 3, 1, *[1] * 5]
    assert run.notes == ["batch size 7 -> 3: out of memory on cpu", "batch size 3 -> 1: out of memory on cpu"]
    assert all(note in caplog.text for note in run.notes)


def test_a_gpu_without_the_memory_for_one_patch_is_given_up_for_the_cpu(make_config, cases, monkeypatch):
    run, config = learner(make_config(), cases), make_config()
    whole = weights(learner(config, cases).run(lambda epoch: None, never))
    # Without a GPU it takes one by name alone; the step is where it would fail.
    run._device, step, tried = torch.device("cuda:0"), run._compute_gradients, []

    def without_gpu(number):
        tried.append((run._device.type, run._standing.batch_size))
        return out_of_memory() if run._device.type == "cuda" else step(number)

    monkeypatch.setattr(run, "_compute_gradients", without_gpu)
    outcome, _ = epochs_of(run)
    assert tried[:3] == [("cuda", 2), ("cuda", 1), ("cpu", 2)]
    assert run.notes == [
        "batch size 2 -> 1: out of memory on cuda:0",
        "cuda:0 -> cpu: out of memory with a batch of one",
    ]
    assert same(weights(outcome), whole)


@pytest.mark.parametrize("fails", [out_of_memory, out_of_the_cpus_memory])
def test_a_machine_without_the_memory_for_one_patch_ends_with_advice(make_config, cases, monkeypatch, fails):
    run = learner(make_config(), cases)
    monkeypatch.setattr(run._sampler, "draw", fails)
    with pytest.raises(LabelRoundsError, match=r"batch_size 1 does not fit into the memory of cpu; choose a smaller"):
        epochs_of(run)


def test_a_step_that_may_have_changed_weights_is_not_taken_again(make_config, cases, monkeypatch):
    run, taken = learner(make_config(), cases), []
    monkeypatch.setattr(run._optimizer, "step", lambda: (taken.append(1), out_of_memory()))
    with pytest.raises(LabelRoundsError, match="batch_size 2 does not fit into the memory of cpu; choose a smaller"):
        epochs_of(run)
    assert len(taken) == 1 and run.notes == []


def test_an_error_of_another_kind_is_not_taken_for_one_of_memory(make_config, cases, monkeypatch):
    run = learner(make_config(), cases)

    def fails(generators):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(run._sampler, "draw", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        epochs_of(run)


@pytest.mark.parametrize("part", ["place", "PatchSampler"])
def test_a_gpu_without_the_memory_for_network_or_cases_is_given_up_before_the_first_step(
    make_config, cases, monkeypatch, part
):
    config, gpu, whole, place = make_config(), torch.device("cuda:0"), getattr(learning, part), learning.place
    expected = weights(learner(config, cases).run(lambda epoch: None, never))
    # Without a GPU it is one by name alone.
    monkeypatch.setattr(learning, "place", lambda network, device, dimensions: place(network, CPU, dimensions))
    monkeypatch.setattr(learning, part, lambda *args: out_of_memory() if gpu in args else whole(*args))
    run = learner(config, cases, device=gpu)
    assert run.notes == ["cuda:0 -> cpu: out of memory before the first step"]
    assert same(weights(run.run(lambda epoch: None, never)), expected)


@pytest.mark.parametrize("part", ["place", "PatchSampler"])
def test_a_machine_without_the_memory_for_network_or_cases_ends_with_advice(make_config, cases, monkeypatch, part):
    monkeypatch.setattr(learning, part, out_of_the_cpus_memory)
    with pytest.raises(LabelRoundsError, match="does not fit into the memory of cpu; choose a smaller batch_size, pat"):
        learner(make_config(), cases)


def test_a_case_that_the_cpu_runs_out_of_memory_with_is_named(make_config, cases, monkeypatch):
    monkeypatch.setattr(learning, "predict", out_of_the_cpus_memory)
    with pytest.raises(TooLarge, match=r"case_2 can't be segmented in the memory of the machine: .*can't allocate"):
        evaluate(build_network(make_config()), cases[2:], make_config(), CPU)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TooLarge("needs 90 GB")])
def test_a_validation_case_that_the_gpu_has_not_the_memory_for_is_segmented_on_the_cpu(
    make_config, make_case, monkeypatch, error
):
    config, gpu, segmented = make_config(), torch.device("meta"), learning.predict

    def limited(network, image, config):
        if image.device == gpu:
            raise error
        return segmented(network, image, config)

    cases = [make_case(seed, config) for seed in range(4)]
    run = learner(config, cases)
    expected = run._evaluate_share()[0]
    monkeypatch.setattr(learning, "predict", limited)
    run._device = gpu
    assert run._evaluate_share()[0] == expected
    assert run.notes == ["cases that meta has not the memory for are segmented on the CPU"]
    assert run._standing.batch_size == 2 and run._device == gpu
    assert evaluate(run._network, cases[2:], config, gpu) == expected


def test_a_case_that_the_machine_has_not_the_memory_for_is_named(make_config, cases, monkeypatch):
    monkeypatch.setattr("labelrounds.inference.free_bytes", lambda device: 1000)
    with pytest.raises(TooLarge, match=r"case_2 .*: at the model's spacing the image has 20 x 18 x 16 voxels"):
        evaluate(build_network(make_config()), cases[2:], make_config(), CPU)


def test_a_validation_case_that_no_memory_suffices_for_is_left_out_and_named(make_config, make_case, monkeypatch):
    config, segmented = make_config(), learning.predict
    cases = [make_case(seed, config, (20, 18, 16 + seed)) for seed in range(4)]

    def limited(network, image, config):
        if image.shape[-1] == 18:
            raise TooLarge("needs 90 GB")
        return segmented(network, image, config)

    monkeypatch.setattr(learning, "predict", limited)
    run = learner(config, cases, epochs=2)
    outcome, reported = epochs_of(run)
    assert outcome.epochs == 2 and run.notes == [
        "not measured: case_2 can't be segmented in the memory of the machine: needs 90 GB"
    ]
    monkeypatch.undo()
    run._network.load_state_dict(run._average)
    assert reported[-1].dice == mean_dice(evaluate(run._network, cases[3:], config, CPU))


def test_a_smaller_batch_is_kept_over_a_restart(make_config, cases, monkeypatch, tmp_path):
    state, config = tmp_path / "state.safetensors", make_config(training={"batch_size": 4, "iterations_per_epoch": 2})

    def sizes_of(run, killed):
        sizes, draw = [], run._sampler.draw

        def limited(generators):
            sizes.append(len(generators))
            return out_of_memory() if len(generators) > 2 else draw(generators)

        def kill(epoch):
            if killed:
                raise Interrupted

        monkeypatch.setattr(run._sampler, "draw", limited)
        with suppress(Interrupted):
            run.run(kill, never)
        return sizes

    assert sizes_of(learner(config, cases, epochs=2, state=state), True) == [4, 2, 2]
    again = learner(config, cases, epochs=2, state=state)
    assert sizes_of(again, False) == [2, 2]
    assert again.notes == ["batch size 2 as before the restart, as memory did not suffice for more"]


def test_cases_are_drawn_by_their_weights(make_config, cases):
    config = make_config()
    bright = [replace(case, image=torch.full_like(case.image, 5.0 * at)) for at, case in enumerate(cases)]
    run = Learner(config, build_network(config), bright, [], CPU, Schedule(1, 1, 1e-3), weights=[0, 1, 0])
    drawn = torch.cat([run._sampler.draw(run._generators(step))[0] for step in range(10)])
    assert ((drawn.mean(dim=(1, 2, 3, 4)) - 5).abs() < 2).all()


# What comes out


def test_without_validation_cases_the_last_average_counts(make_config, cases):
    outcome, reported = epochs_of(learner(make_config(), cases[:2], epochs=2))
    assert [epoch.dice for epoch in reported] == [None, None]
    assert all(value.isfinite().all() for value in weights(outcome).values())


def test_a_step_without_a_finite_loss_is_left_out(make_config, cases, monkeypatch):
    config = make_config(training={"iterations_per_epoch": 4})
    run, calls = learner(config, cases, epochs=1), []

    def sometimes(levels, labels):
        calls.append(1)
        return supervised_loss(levels, labels) * (math.nan if len(calls) % 2 else 1.0)

    monkeypatch.setattr(learning, "supervised_loss", sometimes)
    outcome, reported = epochs_of(run)
    assert len(calls) == 4
    assert math.isfinite(reported[0].loss)
    assert all(value.isfinite().all() for value in weights(outcome).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverges_ends_with_advice(make_config, cases, monkeypatch, value):
    run = learner(make_config(), cases)
    monkeypatch.setattr(learning, "supervised_loss", lambda levels, labels: supervised_loss(levels, labels) * value)
    with pytest.raises(LabelRoundsError, match=r"diverges.*epoch 1.*learning_rate below 0\.01"):
        epochs_of(run)


def test_means_leave_out_the_cases_without_the_label():
    nan = math.nan
    scores = [{"a": 1.0, "b": nan, "c": nan}, {"a": 0.5, "b": 0.25, "c": nan}]
    assert mean_dice(scores) == pytest.approx({"a": 0.75, "b": 0.25, "c": nan}, nan_ok=True)
    assert mean_of({"a": 0.75, "b": 0.25, "c": nan}) == 0.5
    assert mean_dice([]) == {} and math.isnan(mean_of({})) and math.isnan(mean_of({"a": nan}))


def test_a_2d_model_learns_too(make_config, make_case):
    config = make_config(patch_size=[16, 16, 1])
    cases = [make_case(seed, config) for seed in range(3)]
    outcome, reported = epochs_of(learner(config, cases, epochs=1))
    assert math.isfinite(reported[0].loss)
    assert outcome.network.dimensions == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_killed_training_goes_on_on_a_gpu(make_config, cases, tmp_path):
    state, config, cuda = tmp_path / "state.safetensors", make_config(), torch.device("cuda:0")
    whole = weights(learner(config, cases, epochs=3, device=cuda).run(lambda epoch: None, never))

    def killed(epoch):
        raise Interrupted

    with pytest.raises(Interrupted):
        learner(config, cases, epochs=3, device=cuda, state=state).run(killed, never)
    resumed, reported = epochs_of(learner(config, cases, epochs=3, device=cuda, state=state))
    assert [epoch.number for epoch in reported] == [2, 3]
    # Sums on a GPU have no fixed order, and so no fixed last bits.
    for name, value in weights(resumed).items():
        assert torch.allclose(value, whole[name], atol=0.05), name
