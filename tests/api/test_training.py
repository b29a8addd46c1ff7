"""A training through the server: started, watched, stopped, killed, resumed; what is served changes only by it."""

import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import requests

from labelrounds.checkpoints import Checkpoints
from labelrounds.client import Client
from labelrounds.config import load_configs
from labelrounds.json_files import read_json
from labelrounds.networks import build_network
from labelrounds.phantoms import LABELS, write_studies
from tests import waiting
from tests.api.conftest import MODEL as SHIPPED
from tests.api.conftest import QUICK_MODEL as MODEL
from tests.forked import process_of, running_server

wait_until = partial(waiting.wait_until, timeout_s=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory, truths, quick_configs):
    """A server of its own, with every phantom labelled, and its home folder; of its model something is served."""
    folder = tmp_path_factory.mktemp("training")
    write_studies(folder / "studies", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(folder / "home"))
        config = load_configs([quick_configs], [MODEL])[MODEL]
        Checkpoints(config).publish(build_network(config), {})
    with running_server(folder / "studies", folder / "home", 0, [MODEL], quick_configs) as client:
        for image, label in truths.items():
            client.submit(image, label, LABELS)
        yield client, folder / "home"


@pytest.fixture
def trained(served):
    """The server, on which nothing is trained at the moment, not even what was; what a test begins ends with it."""
    client, home = served
    (home / "models" / MODEL / "progress.json").unlink(missing_ok=True)
    yield client, home
    requests.delete(client.address + "/train/", timeout=60)
    wait_until(lambda: not workers_of(home))


def status(client: Client) -> dict:
    return client.call("GET", "/train/").json()


def epoch(home: Path) -> int:
    return (read_json(home / "models" / MODEL / "progress.json") or {}).get("epoch", 0)


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


def test_a_training_publishes_a_version_or_says_why_not(trained):
    client, home = trained
    task = client.call("POST", f"/train/{MODEL}", json={"epochs": 10, "client_id": "ann"}).json()
    assert task["status"] in ("SUBMITTED", "RUNNING")
    wait_until(lambda: status(client)["progress"].get("epoch", 0) >= 1)
    running = client.call("GET", "/train/?check_if_running=true").json()["progress"]
    assert (running["measure"], running["measure_key"]) == ("Dice", "dice")
    assert running["total_epochs"] >= 2 and running["loss"] > 0 and running["eta_s"] > 0
    assert running["stage"] == "training" or running["stage"].startswith("leave-one-out fold ")
    stats = list(client.follow_training(MODEL))[-1]
    assert status(client)["status"] == "DONE"
    assert stats["epoch"] == stats["total_epochs"] and stats["status"] == "done"
    assert status(client)["progress"] == stats
    assert set(stats["dice"]) == set(LABELS) and "4 case(s) by cross-validation" in stats["judged_on"]
    assert stats["total_time"]  # what tells Slicer's bar that it has ended
    assert 0 <= stats["best_metric"] <= 1
    if stats["published"] is None:
        assert "Not published" in stats["message"]
    else:
        assert (home / "models" / MODEL / "versions" / f"{stats['published']:04d}" / "weights.safetensors").is_file()
        answer = client.call("POST", f"/infer/{MODEL}?image=phantom_000&output=json", data={"params": "{}"})
        assert answer.json()["version"] == stats["published"]
    assert requests.get(client.address + "/train/?check_if_running=true", timeout=30).status_code == 404


def test_of_racing_requests_one_trains_and_a_stop_keeps_what_it_has_reached(trained):
    """Reliability 21."""
    client, home = trained
    answers: list[int] = []

    def start() -> None:
        answers.append(requests.post(f"{client.address}/train/{MODEL}", json={"epochs": 500}, timeout=60).status_code)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [429] * 19
    wait_until(lambda: epoch(home) >= 1)
    stopped = client.call("DELETE", "/train/").json()
    assert stopped["details"]  # Slicer reads the last line of it
    wait_until(lambda: status(client)["status"] == "STOPPED")
    stats = client.call("GET", "/info/").json()["train_stats"][MODEL]
    assert stats["status"] == "stopped"
    assert "ublished" in stats["message"]


def test_a_killed_server_leaves_no_orphan_and_the_next_one_resumes_within_an_epoch_and_keeps_what_waits(
    tmp_path, submit_all, quick_configs
):
    """Reliability 17, for a killed server; for a killed training see below."""
    studies, home = tmp_path / "studies", tmp_path / "home"
    write_studies(studies, 4)
    with running_server(studies, home, 0, [MODEL], quick_configs) as client:
        submit_all(client)
        for epochs in (500, 400):
            client.call("POST", f"/train/{MODEL}?enqueue=true", json={"epochs": epochs})
        first, second = client.call("GET", "/train/?all=true").json()
        assert (first["request"]["epochs"], second["progress"]) == (500, {"status": "waiting", "before_it": 1})
        assert status(client)["id"] == first["id"]
        wait_until(lambda: epoch(home) >= 2)
        before = epoch(home)
        server = process_of(client.address).pid
        children = children_of(server)
        assert children
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), timeout_s=30)
    assert not (home / "models" / MODEL / "versions").exists()  # nothing served has changed
    with running_server(studies, home, 0, [MODEL], quick_configs) as client:
        wait_until(lambda: status_or_none(client) is not None)
        tasks = client.call("GET", "/train/?all=true").json()
        assert [task["request"]["epochs"] for task in tasks] == [500, 400]
        wait_until(lambda: max(epochs_of(home)) > before + 1)
        trained = epochs_of(home)
        assert len(trained) - len(set(trained)) <= 1  # the epochs before are not trained again
        client.call("DELETE", "/train/")
        wait_until(lambda: client.call("GET", "/train/?all=true").json()[0]["status"] == "STOPPED")
        client.call("DELETE", "/train/")


def first_epoch(client: Client) -> int | None:
    lines = [line for line in status(client)["details"] if line.startswith("epoch ")]
    return int(lines[0].split()[1].split("/")[0]) if lines else None


def epochs_of(home: Path) -> list[int]:
    """The epochs that the server's log tells of, in turn."""
    log = (home / "logs" / "labelrounds.log").read_text()
    return [int(number) for number in re.findall(r"train: epoch (\d+)/", log)] or [0]


def test_a_rollback_takes_effect_in_a_running_server(trained, monkeypatch, quick_configs):
    client, home = trained
    monkeypatch.setenv("LABELROUNDS_HOME", str(home))
    config = load_configs([quick_configs], [MODEL])[MODEL]
    Checkpoints(config).publish(build_network(config), {})
    new = int(versions_of(home)[-1])

    def served() -> int:
        answer = client.call("POST", f"/infer/{MODEL}?image=phantom_000&output=json", data={"params": "{}"})
        return answer.json()["version"]

    assert served() == new
    command = [sys.executable, "-m", "labelrounds", "rollback", "--model", MODEL, "--configs", str(quick_configs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"{MODEL} version {new - 1} is served from now on instead of version {new}" in done.stdout, done.stderr
    assert served() == new - 1


def status_or_none(client: Client) -> dict | None:
    answer = requests.get(client.address + "/train/", timeout=30)
    return answer.json() if answer.ok else None


def workers_of(home: Path) -> list[int]:
    listed = subprocess.run(["pgrep", "-f", "labelrounds.worker"], capture_output=True, text=True).stdout
    return [one for one in map(int, listed.split()) if str(home).encode() in Path(f"/proc/{one}/environ").read_bytes()]


def versions_of(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "models" / MODEL / "versions").glob("*"))


def test_a_killed_training_process_is_interrupted_the_server_lives_and_it_can_go_on(trained):
    """Reliability 17, for a killed training; for a killed server see above."""
    client, home = trained
    asked = f"/infer/{MODEL}?image=phantom_000&output=image"
    before, served = client.call("POST", asked, data={"params": "{}"}).content, versions_of(home)
    client.call("POST", f"/train/{MODEL}", json={"epochs": 500})
    wait_until(lambda: epoch(home) >= 1)
    for worker in workers_of(home):
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: status(client)["status"] == "ERROR")
    assert "SIGKILL" in status(client)["details"][-1]
    for shown in (status(client)["progress"], client.call("GET", "/info/").json()["train_stats"][MODEL]):
        assert shown["status"] == "interrupted" and shown["total_time"] and "SIGKILL" in shown["message"]
    assert workers_of(home) == []
    assert versions_of(home) == served
    assert client.call("POST", asked, data={"params": "{}"}).content == before
    reached = epoch(home)
    client.call("POST", f"/train/{MODEL}", json={"epochs": 500})
    wait_until(lambda: first_epoch(client) is not None)
    assert first_epoch(client) >= reached  # that one at most is trained again


def test_the_hosts_own_command_serves_the_same(tmp_path):
    root = Path(__file__).parents[2]
    write_studies(tmp_path / "studies", 1)
    from labelrounds.client import free_port

    port = free_port()
    command = [
        *(sys.executable, "-m", "monailabel.main", "start_server", "--uvicorn_app", "labelrounds.server:app"),
        *("--app", str(root / "apps" / "radiology"), "--studies", str(tmp_path / "studies")),
        *("--host", "127.0.0.1", "--port", str(port), "--conf", "models", SHIPPED),
    ]
    environment = {**os.environ, "LABELROUNDS_HOME": str(tmp_path / "home")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        client = Client(f"http://127.0.0.1:{port}")
        wait_until(lambda: process.poll() is None and answers(client))
        info = client.call("GET", "/info/").json()
        assert info["name"] == "LabelRounds"
        assert list(info["models"]) == [SHIPPED]
        assert client.segment(SHIPPED, image="phantom_000").any()
    finally:
        process.terminate()
        process.wait(30)


def answers(client: Client) -> bool:
    try:
        return client.call("GET", "/info/").ok
    except requests.ConnectionError:
        return False
