"""What `labelrounds` says when it can't do what it is asked for: one line, before anything is made or started."""

import json
import os
import socket
import subprocess
import sys

import pytest

from labelrounds.client import free_port, running_server
from labelrounds.phantoms import write_studies
from tests.api.conftest import MODEL


def run(home, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "labelrounds", *map(str, arguments)],
        env={**os.environ, "LABELROUNDS_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(done: subprocess.CompletedProcess, words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_in_use_is_said_before_anything_is_made(tmp_path, taken_port):
    assert_one_line(run(tmp_path / "home", "start", "--port", taken_port), f"port {taken_port} of 127.0.0.1")
    assert not (tmp_path / "home").exists()


def test_a_misspelt_model_is_said_before_patients_are_made(tmp_path):
    assert_one_line(run(tmp_path / "home", "start", "--models", "unt"), "'unt' is not one of")
    assert not (tmp_path / "home" / "phantom-studies").exists()


@pytest.mark.parametrize("command", [("start",), ("train", "--model", MODEL, "--studies", ".")])
def test_a_home_that_is_a_file_is_said(tmp_path, command):
    (tmp_path / "home").write_text("a file")
    assert_one_line(run(tmp_path / "home", *command), "LABELROUNDS_HOME")


WRONG = [
    (("start", "--studies", "nowhere"), "'nowhere'"),
    (("start", "--configs", "nowhere"), "nowhere"),
    (("predict", "--model", "unt", "--image", "a.nii", "--output", "b.nii"), "'unt' is not one of"),
    (("predict", "--model", MODEL, "--image", "nowhere.nii", "--output", "b.nii"), "nowhere.nii"),
    (("predict", "--model", MODEL, "--image", "a", "--output", "nowhere/b.nii"), "the folder does not exist"),
    (("rollback", "--model", "unt"), "'unt' is not one of"),
    (("rollback", "--model", MODEL), f"version 0 of {MODEL} is served, and there is no version before it"),
    (("rollback", "--model", MODEL, "--to", "7"), f"model {MODEL} has no version 7"),
    (("train", "--model", "unt", "--studies", "."), "'unt' is not one of"),
    (("train", "--model", MODEL, "--studies", ".", "--policy", "never"), "'never' is not one of"),
    (("train", "--model", MODEL, "--studies", ".", "--device", "tpu"), "'tpu'"),
    (("train", "--model", MODEL, "--studies", "."), "no label was submitted yet"),
]
# Each command in a process of its own, which does not import everything anew.
_EACH_FORKED = """
import json, os, sys
import labelrounds.app, labelrounds.starting
from labelrounds.cli import main

for number, arguments in enumerate(json.loads(sys.argv[1])):
    if os.fork():
        _, status = os.wait()
        print(number, os.waitstatus_to_exitcode(status), flush=True)
        continue
    os.environ["LABELROUNDS_HOME"] = os.path.abspath(f"home-{number}")
    output = os.open(f"said-{number}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    sys.argv = ["labelrounds", *arguments]
    main()
    sys.exit(0)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory) -> list[tuple[int, str]]:
    """The exit status and the words of each wrong command."""
    folder = tmp_path_factory.mktemp("wrong")
    commands = json.dumps([arguments for arguments, _ in WRONG])
    done = subprocess.run(
        [sys.executable, "-c", _EACH_FORKED, commands], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    statuses = [int(line.split()[1]) for line in done.stdout.splitlines()]
    return [(status, (folder / f"said-{number}.txt").read_text()) for number, status in enumerate(statuses)]


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_argument_is_said_in_a_line(refusals, number):
    status, said = refusals[number]
    assert status == 2, said
    assert WRONG[number][1] in said
    assert "Traceback" not in said


def test_a_second_server_in_the_same_home_is_refused(tmp_path):
    write_studies(tmp_path / "studies", 1)
    with running_server(tmp_path / "studies", tmp_path / "home", 0, [MODEL]):
        second = run(tmp_path / "home", "start", "--studies", tmp_path / "studies", "--port", free_port())
        assert_one_line(second, "another server works with")
