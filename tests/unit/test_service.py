"""What the README gives to the IT department to run the server with: a systemd unit and a container."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from labelrounds.cli import app
from labelrounds.settings import ServerSettings

TEXT = (Path(__file__).parents[2] / "README.md").read_text()


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return found


def options_of_start() -> set[str]:
    start = typer.main.get_command(app).commands["start"]
    return {name for parameter in start.params for name in parameter.opts}


def service() -> list[tuple[str, str]]:
    lines = [line for line in block("ini").splitlines() if "=" in line]
    return [tuple(line.split("=", 1)) for line in lines]


def test_the_unit_starts_the_server_with_options_that_there_are():
    command = shlex.split(dict(service())["ExecStart"])
    assert Path(command[0]).name == "labelrounds" and command[1] == "start"
    given = {word for word in command if word.startswith("--")}
    assert given and given <= options_of_start()


def test_the_container_starts_the_server_with_options_that_there_are_and_not_as_root():
    lines = dict(re.findall(r"^(USER|CMD|ENTRYPOINT|HEALTHCHECK) (.*)$", block("dockerfile"), re.MULTILINE))
    command = [*json.loads(lines["ENTRYPOINT"]), *json.loads(lines["CMD"])]
    assert command[1] == "start"
    given = {word for word in command if word.startswith("--")}
    assert given and given <= options_of_start()
    assert lines["USER"] not in ("root", "0") and "/health/live" in lines["HEALTHCHECK"]
    compile(json.loads(lines["HEALTHCHECK"].partition("CMD ")[2])[2], "healthcheck", "exec")


def test_unit_and_container_set_only_what_the_server_reads():
    known = {f"LABELROUNDS_{name.upper()}" for name in ServerSettings.model_fields} | {"LABELROUNDS_HOME"}
    assert set(re.findall(r"\b(LABELROUNDS_\w+)=", block("ini") + block("dockerfile"))) <= known


def test_the_unit_lets_the_server_write_where_it_has_to_and_end_in_its_own_time():
    unit = dict(service())
    assert unit["ProtectSystem"] == "strict" and unit["NoNewPrivileges"] == "true"
    command = shlex.split(unit["ExecStart"])
    assert command[command.index("--studies") + 1] in unit["ReadWritePaths"].split()
    home, stop_s = (re.search(rf"LABELROUNDS_{name}=(\S+)", unit["Environment"])[1] for name in ("HOME", "STOP_S"))
    assert home == f"/var/lib/{unit['StateDirectory']}"
    assert int(unit["TimeoutStopSec"]) >= float(stop_s) + 30
    assert unit["KillMode"] == "mixed"  # SIGTERM would have a training publish what it has instead of going on later


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / "labelrounds.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", block("ini"), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
