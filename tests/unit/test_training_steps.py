"""A step learns from what it should, in the memory that there is."""

import math
from dataclasses import replace

import pytest
import torch
from learners import CPU, epochs_of, learner, never, out_of_memory, out_of_the_cpus_memory, same, weights

from labelrounds import tasks, training_steps
from labelrounds.errors import LabelRoundsError
from labelrounds.learning import Learner, Schedule
from labelrounds.losses import supervised_loss
from labelrounds.networks import build_network
from labelrounds.training_steps import copy_weights


@pytest.mark.parametrize("lowest", [1, 2, 3])
def test_gradients_are_those_of_full_precision_however_small_the_lowest_level(make_small, make_case, lowest):
    config = make_small(patch_size=[4 * lowest, 16, 16])
    gradients = []
    for full_precision in (False, True):
        run = learner(config, [make_case(seed, config) for seed in range(3)])
        with torch.autocast("cpu", enabled=False), pytest.MonkeyPatch.context() as patch:
            if full_precision:
                patch.setattr("labelrounds.training_steps.autocast", lambda *args: torch.autocast("cpu", enabled=False))
            patch.setattr("torch.nn.utils.clip_grad_norm_", lambda parameters, limit: torch.ones(()))
            for _ in range(3):
                run._steps._compute_gradients(0)
        gradients.append({name: value.grad for name, value in run._network.named_parameters()})
    for name, exact in gradients[1].items():
        assert (gradients[0][name] - exact).norm() <= 0.3 * exact.norm() + 1e-3, name


def test_cases_are_drawn_by_their_weights(make_small, cases):
    config = make_small()
    bright = [replace(case, image=torch.full_like(case.image, 5.0 * at)) for at, case in enumerate(cases)]
    run = Learner(config, build_network(config), bright, [], CPU, Schedule(1, 1, 1e-3), weights=[0, 1, 0])
    drawn = torch.cat([run._steps._sampler.draw(run._steps._generators(step))[0] for step in range(10)])
    assert ((drawn.mean(dim=(1, 2, 3, 4)) - 5).abs() < 2).all()


def test_a_step_without_a_finite_loss_is_left_out(make_small, cases, monkeypatch):
    config = make_small(training={"iterations_per_epoch": 4})
    run, calls = learner(config, cases, epochs=1), []

    def sometimes(levels, labels):
        calls.append(1)
        return supervised_loss(levels, labels) * (math.nan if len(calls) % 2 else 1.0)

    monkeypatch.setattr(tasks, "supervised_loss", sometimes)
    outcome, reported = epochs_of(run)
    assert len(calls) == 4
    assert math.isfinite(reported[0].loss)
    assert all(value.isfinite().all() for value in weights(outcome).values())


@pytest.mark.parametrize("fails", [out_of_memory, out_of_the_cpus_memory])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_small, cases, monkeypatch, caplog, fails):
    config = make_small(training={"batch_size": 7, "iterations_per_epoch": 3})
    run = learner(config, cases, epochs=2)
    sizes, draw = [], run._steps._sampler.draw

    def limited(generators):
        sizes.append(len(generators))
        return fails() if len(generators) > 2 else draw(generators)

    monkeypatch.setattr(run._steps._sampler, "draw", limited)
    outcome, reported = epochs_of(run)
    assert outcome.epochs == 2 and all(math.isfinite(epoch.loss) for epoch in reported)
    assert sizes == [7, 3, 1, *[1] * 5]
    assert run.notes == ["batch size 7 -> 3: out of memory on cpu", "batch size 3 -> 1: out of memory on cpu"]
    assert all(note in caplog.text for note in run.notes)


def test_a_gpu_without_the_memory_for_one_patch_is_given_up_for_the_cpu(make_small, cases, monkeypatch):
    run, config = learner(make_small(), cases), make_small()
    whole = weights(learner(config, cases).run(lambda epoch: None, never))
    # Without a GPU it takes one by name alone; the step is where it would fail.
    run._steps.device, step, tried = torch.device("cuda:0"), run._steps._compute_gradients, []

    def without_gpu(number):
        tried.append((run._steps.device.type, run._steps.batch_size))
        return out_of_memory() if run._steps.device.type == "cuda" else step(number)

    monkeypatch.setattr(run._steps, "_compute_gradients", without_gpu)
    outcome, _ = epochs_of(run)
    assert tried[:3] == [("cuda", 2), ("cuda", 1), ("cpu", 2)]
    assert run.notes == [
        "batch size 2 -> 1: out of memory on cuda:0",
        "cuda:0 -> cpu: out of memory with a batch of one",
    ]
    assert same(weights(outcome), whole)


@pytest.mark.parametrize("fails", [out_of_memory, out_of_the_cpus_memory])
def test_a_machine_without_the_memory_for_one_patch_ends_with_advice(make_small, cases, monkeypatch, fails):
    run = learner(make_small(), cases)
    monkeypatch.setattr(run._steps._sampler, "draw", fails)
    with pytest.raises(LabelRoundsError, match=r"batch_size 1 does not fit into the memory of cpu; choose a smaller"):
        epochs_of(run)


def test_a_step_that_may_have_changed_weights_is_not_taken_again(make_small, cases, monkeypatch):
    run, taken = learner(make_small(), cases), []
    monkeypatch.setattr(run._steps._optimizer, "step", lambda: (taken.append(1), out_of_memory()))
    with pytest.raises(LabelRoundsError, match="batch_size 2 does not fit into the memory of cpu; choose a smaller"):
        epochs_of(run)
    assert len(taken) == 1 and run.notes == []


def test_a_step_without_a_finite_loss_leaves_no_trace_in_the_batch_normalisation(make_small, cases, monkeypatch):
    config = make_small(network={"name": "residual_unet", "channels": [4, 6, 8]})
    steps = learner(config, cases)._steps
    draw, before = steps._sampler.draw, copy_weights(steps._network)
    monkeypatch.setattr(steps._sampler, "draw", lambda of: (draw(of)[0] * math.inf, draw(of)[1]))
    assert math.isnan(steps.take(0, 1e-3))
    assert all(torch.equal(value, before[name]) for name, value in copy_weights(steps._network).items())
    monkeypatch.setattr(steps._sampler, "draw", draw)
    assert math.isfinite(steps.take(0, 1e-3))
    assert any(not torch.equal(value, before[name]) for name, value in steps._network.named_buffers())


def test_an_error_of_another_kind_is_not_taken_for_one_of_memory(make_small, cases, monkeypatch):
    run = learner(make_small(), cases)

    def fails(generators):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(run._steps._sampler, "draw", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        epochs_of(run)


@pytest.mark.parametrize(("module", "part"), [(training_steps, "place"), (tasks, "PatchSampler")])
def test_a_gpu_without_the_memory_for_network_or_cases_is_given_up_before_the_first_step(
    make_small, cases, monkeypatch, module, part
):
    config, gpu, whole, place = make_small(), torch.device("cuda:0"), getattr(module, part), training_steps.place
    expected = weights(learner(config, cases).run(lambda epoch: None, never))
    # Without a GPU it is one by name alone.
    monkeypatch.setattr(training_steps, "place", lambda network, device, dimensions: place(network, CPU, dimensions))
    monkeypatch.setattr(module, part, lambda *args: out_of_memory() if gpu in args else whole(*args))
    run = learner(config, cases, device=gpu)
    assert run.notes == ["cuda:0 -> cpu: out of memory before the first step"]
    assert same(weights(run.run(lambda epoch: None, never)), expected)


@pytest.mark.parametrize(("module", "part"), [(training_steps, "place"), (tasks, "PatchSampler")])
def test_a_machine_without_the_memory_for_network_or_cases_ends_with_advice(
    make_small, cases, monkeypatch, module, part
):
    monkeypatch.setattr(module, part, out_of_the_cpus_memory)
    with pytest.raises(LabelRoundsError, match="does not fit into the memory of cpu; choose a smaller batch_size, pat"):
        learner(make_small(), cases)
