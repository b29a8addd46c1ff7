"""Several processes train what one would, agree when to stop, and go on together after a kill."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_together
from safetensors.torch import load_file

from labelrounds import distributed
from labelrounds.errors import Conflict
from labelrounds.learning import Schedule
from labelrounds.together import SharedRun, follow

CPU = torch.device("cpu")
# The networks compute in float64, the loss in float32: its sums over the shares of a batch have another order and so
# other last bits, which the steps of Adam enlarge, as it divides each gradient by its own size. A step moves a weight
# by up to 1e-2.
TOLERANCE = 1e-5


def torchrun(*arguments: str | Path, restarts: int = 0) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, "--max-restarts", str(restarts), *map(str, arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def both(folder) -> list[dict]:
    """The figures of two processes; the first two were killed and started anew."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LABELROUNDS_HOME": str(folder / "home"),
        # A store of its own for each start: in a shared one they look for the killed processes' addresses.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command = torchrun(training_together.__file__, folder, restarts=1)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"figures_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict, Path]:
    """The figures of one process, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelrounds.devices.low_precision", lambda device_type: False)
        return {
            "even": training_together.run(folder, "even", training_together.learner(2, 3)),
            "uneven": training_together.run(folder, "uneven", training_together.learner(3, 2)),
        }, folder


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_two_processes_get_the_weights_of_one(both, alone, folder, name):
    expected = load_file(alone[1] / f"{name}_0.safetensors")
    start = training_together.learner(2, 1)._network.state_dict()
    for rank in (0, 1):
        found = load_file(folder / f"{name}_{rank}.safetensors")
        assert found.keys() == expected.keys()
        assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < TOLERANCE
    assert max(float((start[key] - expected[key]).abs().max()) for key in expected) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_both_know_the_figures_of_one(both, alone, name):
    expected = alone[0][name]
    assert both[0][name] == both[1][name]
    assert both[0][name]["epochs"] == expected["epochs"]
    assert both[0][name]["loss"] == pytest.approx(expected["loss"], abs=TOLERANCE)
    for found, dice, shown, predicted in zip(
        both[0][name]["dice"],
        expected["dice"],
        both[0][name]["predictions"],
        expected["predictions"],
        strict=True,
    ):
        assert found == pytest.approx(dice, abs=2e-3)
        assert shown == pytest.approx(predicted, rel=0.01)


def test_process_0_alone_says_when_to_stop_and_the_other_follows(both):
    assert [figures["stopped"]["stopped"] for figures in both] == [True, True]
    assert [figures["stopped"]["epochs"] for figures in both] == [[1], [1]]
    assert [figures["only another is told"]["stopped"] for figures in both] == [False, False]


def test_nothing_is_pickled_to_agree_before_a_step(both):
    assert [figures["even"]["pickled"] for figures in both] == [0, 0]


def test_after_a_kill_all_go_on_from_what_process_0_had_saved(both, folder):
    assert [figures["states"] for figures in both] == [["state_0.safetensors"]] * 2
    assert [figures["resumed"]["epochs"] for figures in both] == [[2, 3], [2, 3]]
    for rank in (0, 1):
        whole, resumed = (load_file(folder / f"{name}_{rank}.safetensors") for name in ("even", "resumed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_more_processes_than_patches_are_refused(both):
    for figures in both:
        assert figures["too many"] == (
            "2 processes can't share training.batch_size 1: start at most 1, or choose a larger batch_size"
        )


def test_errors_reach_all_processes(both):
    for figures in both:
        assert "batch_size 2 does not fit into the memory of cpu; choose a smaller" in figures["out of memory"]
        assert "the training diverges" in figures["diverged"]


def test_a_process_of_its_own_has_nobody_to_agree_with():
    assert (distributed.processes(), distributed.rank(), distributed.launched()) == (1, 0, False)
    assert distributed.join(CPU) == CPU
    assert distributed.share("stop") == "stop" and distributed.share_flag(True, CPU) and distributed.gather(3) == [3]
    value, module = torch.tensor([1.0, 2.0]), torch.nn.Linear(2, 2)
    assert torch.equal(distributed.total(value), value) and torch.equal(distributed.mean(value), value)
    assert distributed.synchronised(module, CPU) is module
    distributed.leave()


@pytest.mark.parametrize(("size", "expected"), [("1", False), ("2", True)])
def test_torchrun_is_known_by_its_number_of_processes(monkeypatch, size, expected):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert distributed.launched() is expected


def test_one_of_several_ends_before_the_interpreter_is_taken_down_and_loses_no_output(monkeypatch):
    program = "import atexit; from labelrounds import distributed; atexit.register(print, 'taken down')\n"
    program += "print('all is said'); distributed.end(); print('goes on')"
    said = {}
    for size in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", size)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        said[size] = done.stdout.splitlines()
    assert said == {"1": ["all is said", "goes on", "taken down"], "2": ["all is said"]}


def test_a_machine_with_another_case_does_not_train_along(monkeypatch):
    case = replace(training_together.case_of(0), key="as process 0 has it")
    wanted = SharedRun([("case_0", "as process 0 has it")], [], Schedule(1, 1, 0.1), None)
    config = training_together.learner(2, 1)._config
    learnt = []

    class Learnt:
        def __init__(self, config, network, train, validation, device, schedule, weights):
            learnt.append((train, validation, schedule, weights))

        def run(self, report, stopped):
            assert not stopped()

    monkeypatch.setattr("labelrounds.together.Learner", Learnt)
    for prepared, message in (
        ([case], None),
        ([replace(case, key="corrected")], "case_0 has another image or label here"),
        ([], "case_0 is not usable here"),
    ):
        runs = iter([wanted, None])
        monkeypatch.setattr(distributed, "share", lambda content, runs=runs: next(runs))
        monkeypatch.setattr("labelrounds.together.prepare_cases", lambda items, config, tensors_of, p=prepared: (p, {}))
        if message is None:
            follow(config, [], CPU)
            continue
        with pytest.raises(Conflict, match=f"process 0 can't take part in the training: {message}; all machines need"):
            follow(config, [], CPU)
    assert learnt == [([case], [], wanted.schedule, None)]
