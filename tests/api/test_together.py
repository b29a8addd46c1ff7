"""A training of several processes: from the server, which stays its only judge, and by torchrun from the terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests

from labelrounds.client import Client
from labelrounds.json_files import read_json
from labelrounds.phantoms import LABELS, write_studies, write_truth
from tests import waiting
from tests.api.conftest import QUICK_MODEL as MODEL
from tests.forked import running_server

pytestmark = pytest.mark.timeout(600)  # most of it for processes that start, several at once
wait_until = partial(waiting.wait_until, timeout_s=250)


@pytest.fixture(scope="module")
def served(tmp_path_factory, truths, quick_configs):
    """A server of its own, with two labelled phantoms, and its home folder."""
    folder = tmp_path_factory.mktemp("together")
    write_studies(folder / "studies", 2)
    with running_server(folder / "studies", folder / "home", 0, [MODEL], quick_configs) as client:
        for image, label in list(truths.items())[:2]:
            client.submit(image, label, LABELS)
        yield client, folder / "home"


def train(client: Client, **request) -> requests.Response:
    return requests.post(f"{client.address}/train/{MODEL}", json={"device": "cpu", **request}, timeout=60)


def task(client: Client) -> dict:
    return client.call("GET", "/train/").json()


def figures(home: Path) -> dict:
    return read_json(home / "models" / MODEL / "progress.json") or {}


def ranks(home: Path) -> dict[int, psutil.Process]:
    """The processes that train together for the server of a home folder, by rank."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get("LABELROUNDS_HOME") == str(home) and "RANK" in environment:
                found[int(environment["RANK"])] = process
    return found


def versions(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models" / MODEL / "versions").glob("[0-9]*"))


@pytest.mark.slow
def test_a_process_that_dies_is_started_anew_and_the_training_comes_to_its_one_end(served):
    client, home = served
    assert train(client, policy="full", epochs=30, processes=2).status_code == 200
    wait_until(lambda: figures(home).get("epoch", 0) >= 1)
    before = ranks(home)
    assert set(before) == {0, 1}
    before[1].send_signal(signal.SIGKILL)
    at = figures(home)["epoch"]
    wait_until(lambda: task(client)["status"] != "RUNNING")
    ended = task(client)
    assert ended["status"] == "DONE", ended["details"]
    assert (ended["progress"]["status"], ended["progress"]["epoch"]) == ("done", 30)
    assert not any(process.is_running() for process in before.values())
    assert versions(home) == ["0001"] and ended["progress"]["published"] == 1
    log = (home / "logs" / "labelrounds.log").read_text()
    epochs = [int(number) for number in re.findall(r"train: epoch (\d+)/30", log)]
    assert sorted(set(epochs)) == list(range(1, 31))
    assert len(epochs) <= 32, f"it began anew, and not where it was, at {at}"


@pytest.mark.slow
def test_a_stop_reaches_all_and_keeps_the_best_so_far(served):
    client, home = served
    known = versions(home)
    assert train(client, policy="full", epochs=5000, processes=2).status_code == 200
    wait_until(lambda: figures(home).get("total_epochs") == 5000 and figures(home)["epoch"] >= 1)
    client.call("DELETE", "/train/")
    wait_until(lambda: task(client)["status"] != "RUNNING", timeout_s=300)
    ended = task(client)
    assert ended["status"] == "STOPPED", ended["details"]
    assert ended["progress"]["status"] == "stopped" and 1 <= ended["progress"]["epoch"] < 5000
    assert len(versions(home)) == len(known) + 1 or "Not published" in ended["progress"]["message"]
    wait_until(lambda: not ranks(home), timeout_s=30)


@pytest.mark.parametrize("wanted", [3, -1, "two", True])
def test_a_number_of_processes_that_can_not_be_is_refused(served, wanted):
    answer = train(served[0], processes=wanted)
    assert answer.status_code == 400
    assert f"processes {wanted!r} is not a whole number from 1 to 2" in answer.text
    assert f"training.batch_size of {MODEL}" in answer.text


def test_torchrun_trains_from_the_terminal_with_one_result(tmp_path, quick_configs):
    write_studies(tmp_path / "studies", 3)
    write_truth(tmp_path / "studies" / "labels" / "final", 3)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "labelrounds", "train", "--studies", str(tmp_path / "studies"), "--model", MODEL]
    command += ["--configs", str(quick_configs), "--epochs", "1", "--device", "cpu"]
    environment = {**os.environ, "LABELROUNDS_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 1/1") == 1
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert "3 case(s) by cross-validation" in result["judged_on"]
    assert result["published"] == 1 and versions(tmp_path / "home") == ["0001"]
    assert len(list((tmp_path / "home" / "models" / MODEL / "tensorboard").glob("*/events.*"))) == 1
