"""Many clients, one device: who is answered when, what the server does meanwhile, and what it keeps."""

import json
import re
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import requests
import torch

from labelrounds.checkpoints import Checkpoints
from labelrounds.client import Client
from labelrounds.config import load_configs
from labelrounds.engine import MOST_WAITING
from labelrounds.networks import build_network
from labelrounds.phantoms import LABELS, write_studies
from tests import waiting
from tests.forked import process_of, running_server

IMAGES = [f"phantom_{number:03}" for number in range(6)]
QUICK, SLOW, ENDLESS = "quick", "slow", "endless"
# A tiny network; the second model asks it some hundred times an image, the third some thousand times. The runtime
# is given, as choosing one would compute meanwhile, and answer anew.
MODELS = {QUICK: (12.0, 0.0), SLOW: (4.0, 0.5), ENDLESS: (4.0, 0.8)}
CONFIG = f"""
description: five organs of the invented patients, by a network that has learnt nothing
labels: [{", ".join(LABELS)}]
spacing_mm: [{{0}}, {{0}}, {{0}}]
intensity: {{{{kind: window, low: -160, high: 240}}}}
patch_size: [16, 16, 16]
inference: {{{{overlap: {{1}}, runtime: eager}}}}
network: {{{{name: unet, channels: [4, 8, 8]}}}}
"""
wait_until = partial(waiting.wait_until, timeout_s=240, pause_s=0.05)


@contextmanager
def server_of(folder: Path, **environment: str) -> Iterator[Client]:
    """A server with the models; its temporary files lie in ``folder/temporary``."""
    for name in ("configs", "temporary"):
        (folder / name).mkdir()
    for model, values in MODELS.items():
        (folder / "configs" / f"{model}.yaml").write_text(CONFIG.format(*values))
    write_studies(folder / "studies", len(IMAGES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(folder / "home"))
        patch.setenv("TMPDIR", str(folder / "temporary"))
        for name, value in environment.items():
            patch.setenv(name, value)
        for config in load_configs([folder / "configs"]).values():
            torch.manual_seed(0)
            Checkpoints(config).publish(build_network(config), {})
        with running_server(folder / "studies", folder / "home", 0, list(MODELS), folder / "configs") as client:
            yield client


class Served:
    """A server, its folder, and what it has logged since the test began."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder
        self._before = len(self._text())
        for image in (folder / "studies").glob("*.nii.gz"):
            image.touch()  # which makes it another image to the server: nothing is kept of it

    def ask(self, model: str, image: str, client: str = "me", **params) -> requests.Response:
        return ask(self.client, model, image, client, **params)

    def log(self) -> str:
        return self._text()[self._before :]

    def answered(self, kind: str) -> int:
        return len(re.findall(rf" {kind} [0-9a-f]{{32}}: ", self.log()))

    def waits(self) -> int:
        """Return how many requests wait for the device."""
        found = re.findall(r'^labelrounds_queue_length\{device="cpu"\} (\d+)', self._figures(), re.MULTILINE)
        return sum(map(int, found))

    def is_idle(self) -> bool:
        """Tell whether no case is left to be segmented in the background."""
        return "\nlabelrounds_ahead_length 0.0\n" in self._figures()

    def temporary_files(self) -> list[Path]:
        return temporary_files(self.folder)

    def _figures(self) -> str:
        return str(self.client.call("GET", "/metrics").text)

    def _text(self) -> str:
        return (self.folder / "home" / "logs" / "labelrounds.log").read_text()


def temporary_files(folder: Path) -> list[Path]:
    """The server's temporary files; the readers' folder stays as long as they do."""
    return [file for file in (folder / "temporary").iterdir() if not file.name.startswith("labelrounds-readers-")]


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[Client, Path]]:
    folder = tmp_path_factory.mktemp("inference")
    with server_of(folder) as client:
        assert ask(client, QUICK, IMAGES[0]).ok  # ITK is loaded
        yield client, folder


@pytest.fixture
def server(running) -> Served:
    return Served(*running)


def ask(server: Client, model: str, image: str, client: str = "me", **params) -> requests.Response:
    data = {"params": json.dumps({"client_id": client, **params})}
    return requests.post(f"{server.address}/infer/{model}?image={image}&output=json", data=data, timeout=280)


def next_case(server: Client) -> str:
    return server.call("POST", "/activelearning/random", json={"client_id": "me"}).json()["id"]


@contextmanager
def request_that_can_be_left(server: Client, model: str, image: str) -> Iterator[socket.socket]:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /infer/{model}?image={image}&output=json HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head.encode())
        yield connection


def test_a_client_with_many_requests_does_not_keep_the_others_waiting_to_the_end(server):
    ended: list[str] = []

    def timed(client: str, image: str) -> None:
        assert server.ask(SLOW, image, client).ok
        ended.append(client)

    with ThreadPoolExecutor(6) as pool:
        # All of them wait while this one computes; otherwise a fast machine would have answered the first by then.
        with request_that_can_be_left(server.client, ENDLESS, IMAGES[0]):
            time.sleep(1)
            asked = []
            for image in IMAGES[:3]:
                asked.append(pool.submit(timed, "greedy", image))
            wait_until(lambda: server.waits() == 3)
            asked += [pool.submit(timed, name, image) for name, image in zip("abc", IMAGES[3:], strict=True)]
            wait_until(lambda: server.waits() == 6)
        for one in asked:
            one.result(280)
    assert sorted(ended) == ["a", "b", "c", *["greedy"] * 3]
    assert ended[-1] == "greedy"


def test_more_requests_than_may_wait_are_told_to_come_again_and_the_server_lives(server):
    count = MOST_WAITING + 14
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda number: server.ask(SLOW, IMAGES[number % 4], str(number)), range(count)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 1 <= len(refused) <= count - MOST_WAITING
    for answer in refused:
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert f"{MOST_WAITING} requests wait for cpu already" in answer.json()["detail"]
    assert server.ask(SLOW, IMAGES[0]).json()["cached"] == "result"


def test_a_client_that_hangs_up_frees_the_device_and_leaves_nothing(server):
    with (
        request_that_can_be_left(server.client, ENDLESS, IMAGES[0]) as running,
        request_that_can_be_left(server.client, ENDLESS, IMAGES[1]) as waiting,
    ):
        wait_until(lambda: server.waits() == 1)
        running.close()
        waiting.close()
        assert server.ask(QUICK, IMAGES[2]).ok
    wait_until(lambda: server.log().count("the client has gone") == 2)
    assert server.answered("request") == 1  # that of the quick model
    wait_until(lambda: server.temporary_files() == [], timeout_s=10)


def test_the_server_answers_at_once_while_it_segments(server):
    with ThreadPoolExecutor(4) as pool:
        segmentations = [pool.submit(server.ask, SLOW, image, image) for image in IMAGES[:4]]
        seconds = []
        while not all(one.done() for one in segmentations):
            since = time.perf_counter()
            assert requests.get(server.client.address + "/info/", timeout=60).ok
            seconds.append(time.perf_counter() - since)
            time.sleep(0.02)
        assert all(one.result().ok for one in segmentations)
    # Milliseconds on a machine of one's own; a loaded one stretches everything.
    assert statistics.median(seconds) < 0.25


def test_a_case_that_was_handed_out_is_segmented_before_it_is_asked_for(server):
    assert server.ask(QUICK, IMAGES[0], result_extension=".nii.gz").ok
    image = next_case(server.client)
    wait_until(lambda: server.answered("background") >= 1)  # it, and then those that come next
    answer = server.ask(QUICK, image, result_extension=".nii.gz").json()
    assert answer["cached"] == "result"
    assert answer["latencies"]["segment"] == answer["latencies"]["read"] == 0


def test_an_image_kept_for_a_session_is_segmented_before_it_is_asked_for(server):
    image = server.folder / "studies" / f"{IMAGES[0]}.nii.gz"
    assert server.ask(QUICK, IMAGES[0]).ok
    wait_until(server.is_idle)  # no case of the tests before is left
    before = server.answered("background")
    kept = server.client.call("PUT", "/session/", files={"files": (image.name, image.read_bytes())}).json()
    wait_until(lambda: server.answered("background") > before)
    answer = server.client.call("POST", f"/infer/{QUICK}?session_id={kept['session_id']}&output=json").json()
    assert answer["cached"] == "result"


def test_a_new_version_and_another_image_of_the_same_name_are_never_answered_from_memory(server, monkeypatch):
    assert [server.ask(QUICK, IMAGES[0]).json()["cached"] for _ in range(2)] == ["nothing", "result"]
    monkeypatch.setenv("LABELROUNDS_HOME", str(server.folder / "home"))
    config = load_configs([server.folder / "configs"])[QUICK]
    Checkpoints(config).publish(build_network(config), {})
    answer = server.ask(QUICK, IMAGES[0]).json()
    assert (answer["version"], answer["cached"]) == (2, "image")
    Checkpoints(config).rollback()
    answer = server.ask(QUICK, IMAGES[0]).json()
    assert (answer["version"], answer["cached"]) == (1, "result")
    other = (server.folder / "studies" / f"{IMAGES[1]}.nii.gz").read_bytes()
    server.client.call("PUT", f"/datastore/image?image={IMAGES[0]}", files={"file": (f"{IMAGES[0]}.nii.gz", other)})
    assert server.ask(QUICK, IMAGES[0]).json()["cached"] == "nothing"


def check_many_requests(folder: Path, count: int) -> None:
    """Ask again and again, with hardly any memory to keep answers in, and compare the end with the beginning."""
    with server_of(folder, LABELROUNDS_MEMORY_GB="0.001") as server:
        process, seen, cached = process_of(server.address), [], set()
        for number in range(count):
            extension = (".nrrd", ".nii.gz", ".seg.nrrd")[number % 3]
            answer = ask(server, QUICK, IMAGES[number // 2 % 6], result_extension=extension)
            cached.add(answer.json()["cached"])
            if number % 10 == 0:
                next_case(server)
            if number in (count // 3, count - 1):
                seen.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        assert "nothing" in cached
        wait_until(lambda: not temporary_files(folder))  # the last is removed once it has been sent
    (memory, files, threads), (memory_after, files_after, threads_after) = seen
    assert memory_after < memory + 20e6
    assert files_after <= files + 5
    assert threads_after <= threads + 5


def test_three_hundred_requests_leave_no_file_and_take_no_more_memory(tmp_path):
    check_many_requests(tmp_path, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_requests_leave_no_file_and_take_no_more_memory(tmp_path):
    check_many_requests(tmp_path, 1000)


def test_a_server_that_is_told_to_end_ends_in_good_order_while_it_works_ahead(tmp_path):
    with server_of(tmp_path) as server:
        assert ask(server, SLOW, IMAGES[0]).ok
        process = process_of(server.address)
        for _ in range(4):
            next_case(server)
    assert not process.is_running()
    log = (tmp_path / "home" / "server.log").read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
    assert list((tmp_path / "temporary").iterdir()) == []
