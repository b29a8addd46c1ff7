"""A case is measured in the memory that there is, or named."""

import math
from dataclasses import replace

import pytest
from learners import CPU, out_of_the_cpus_memory

from labelrounds import evaluation
from labelrounds.errors import TooLarge
from labelrounds.evaluation import evaluate, evaluate_case, mean_dice, mean_of
from labelrounds.networks import build_network


def test_means_leave_out_the_cases_without_the_label():
    nan = math.nan
    scores = [{"a": 1.0, "b": nan, "c": nan}, {"a": 0.5, "b": 0.25, "c": nan}]
    assert mean_dice(scores) == pytest.approx({"a": 0.75, "b": 0.25, "c": nan}, nan_ok=True)
    assert mean_of({"a": 0.75, "b": 0.25, "c": nan}) == 0.5
    assert mean_dice([]) == {} and math.isnan(mean_of({})) and math.isnan(mean_of({"a": nan}))


def test_a_case_that_the_cpu_runs_out_of_memory_with_is_named(make_small, cases, monkeypatch):
    monkeypatch.setattr(evaluation, "predict", out_of_the_cpus_memory)
    with pytest.raises(TooLarge, match=r"case_2 can't be segmented in the memory of the machine: .*can't allocate"):
        evaluate_case(build_network(make_small()), cases[2], make_small(), CPU, print)


def test_a_case_that_the_machine_has_not_the_memory_for_is_named(make_small, cases, monkeypatch):
    monkeypatch.setattr("labelrounds.inference.free_bytes", lambda device: 1000)
    with pytest.raises(TooLarge, match=r"case_2 .*: at the model's spacing the image has 20 x 18 x 16 voxels"):
        evaluate_case(build_network(make_small()), cases[2], make_small(), CPU, print)


def test_of_several_cases_one_that_no_memory_suffices_for_is_left_out_and_noted(make_small, cases, monkeypatch):
    config, segmented, notes = make_small(), evaluation.predict, []
    network, large = build_network(config), replace(cases[1], image=cases[1].image.repeat(1, 1, 1, 2))

    def limited(network, image, config):
        if image.shape == large.image.shape:
            raise TooLarge("needs 90 GB")
        return segmented(network, image, config)

    monkeypatch.setattr(evaluation, "predict", limited)
    assert evaluate(network, [cases[0], large, cases[2]], config, notes.append) == {
        case.image_id: evaluate_case(network, case, config, CPU, print)[0] for case in (cases[0], cases[2])
    }
    assert notes == ["not measured: case_1 can't be segmented in the memory of the machine: needs 90 GB"]
