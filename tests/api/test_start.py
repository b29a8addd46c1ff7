"""What `labelrounds` says when it can't do what it is asked for: one line, before anything is made or started."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from labelrounds.client import free_port
from labelrounds.phantoms import write_studies
from tests.api.conftest import MODEL
from tests.forked import running_server, start


def run(folder: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a command in a folder, with its home in it."""
    environment = {**os.environ, "LABELROUNDS_HOME": str(folder / "home")}
    command = ["labelrounds", *arguments]
    output, errors = folder / "output.txt", folder / "errors.txt"
    with output.open("w") as written, errors.open("w") as complaints:
        ended = start(command, env=environment, stdout=written, stderr=complaints, cwd=folder).wait(120)
    return subprocess.CompletedProcess(command, ended, output.read_text(), errors.read_text())


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
    assert_one_line(run(tmp_path, "start", "--port", taken_port), f"port {taken_port} of 127.0.0.1")
    assert not (tmp_path / "home").exists()


def test_a_misspelt_model_is_said_before_patients_are_made(tmp_path):
    assert_one_line(run(tmp_path, "start", "--models", "unt"), "'unt' is not one of")
    assert not (tmp_path / "home" / "phantom-studies").exists()


@pytest.mark.parametrize("command", [("start",), ("train", "--model", MODEL, "--studies", ".")])
def test_a_home_that_is_a_file_is_said(tmp_path, command):
    (tmp_path / "home").write_text("a file")
    assert_one_line(run(tmp_path, *command), "LABELROUNDS_HOME")


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


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_a_wrong_argument_is_said_in_a_line(tmp_path, arguments, words):
    assert_one_line(run(tmp_path, *arguments), words)


def test_a_second_server_in_the_same_home_is_refused(tmp_path):
    write_studies(tmp_path / "studies", 1)
    with running_server(tmp_path / "studies", tmp_path / "home", 0, [MODEL]):
        second = run(tmp_path, "start", "--studies", tmp_path / "studies", "--port", free_port())
        assert_one_line(second, "another server works with")
