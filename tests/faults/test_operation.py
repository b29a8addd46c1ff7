"""A server under load, watched by its administrator, and told to end while it computes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import yaml

from labelrounds.audit import AuditLog
from labelrounds.client import free_port
from labelrounds.folders import shipped_configs
from labelrounds.phantoms import write_studies
from labelrounds.runtimes import REFERENCE
from tests import waiting

MODEL = "unet_phantom"
PATIENCE_S = 120
SMALL, LARGE = 3, 5
wait_until = partial(waiting.wait_until, timeout_s=PATIENCE_S, pause_s=0.05)


@dataclass
class Served:
    """A server's process, and where it is."""

    process: "subprocess.Popen[bytes]"
    address: str
    home: Path

    def get(self, route: str, **options) -> requests.Response:
        return requests.get(self.address + route, timeout=PATIENCE_S, **options)

    def segment(self, image: str, **options) -> requests.Response:
        route = f"{self.address}/infer/{MODEL}?image={image}&output=image"
        return requests.post(route, data={"params": '{"result_extension": ".nii"}'}, timeout=PATIENCE_S, **options)

    def log_of(self, request: str) -> list[dict]:
        lines = map(json.loads, (self.home / "logs" / "labelrounds.log").read_text().splitlines())
        return [line for line in lines if line.get("request_id") == request]


@contextmanager
def serving(folder: Path, small: int, large: int, **settings: str) -> Iterator[Served]:
    """Run a server that keeps no answer and always computes alike, so that each request costs and none differs."""
    config = yaml.safe_load((shipped_configs() / f"{MODEL}.yaml").read_text())
    config.setdefault("inference", {})["runtime"] = REFERENCE
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / f"{MODEL}.yaml").write_text(yaml.safe_dump(config))
    write_studies(folder / "studies", small + large)
    for number in range(small + large):  # so that the network computes one window, or two
        path = folder / "studies" / f"phantom_{number:03d}.nii.gz"
        whole = nibabel.load(path)
        nibabel.save(whole.slicer[:37, :32, :26] if number < small else whole.slicer[:, :32, :26], path)
    port, home = free_port(), folder / "home"
    home.mkdir()
    command = [sys.executable, "-m", "labelrounds", "start", "--studies", str(folder / "studies"), "--models", MODEL]
    command += ["--configs", str(folder / "configs"), "--port", str(port), "--log-format", "json"]
    environment = {f"LABELROUNDS_{name.upper()}": value for name, value in settings.items()}
    environment |= {"LABELROUNDS_HOME": str(home), "LABELROUNDS_MEMORY_GB": "0"}
    with (home / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT)
    served = Served(process, f"http://127.0.0.1:{port}", home)
    try:
        wait_until(lambda: process.poll() is not None or lives(served))
        yield served
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def lives(served: Served) -> bool:
    try:
        return served.get("/health/live").ok
    except requests.ConnectionError:
        return False


@contextmanager
def watched(served: Served) -> Iterator[list[float]]:
    """Ask all the time whether the server lives, in a process of its own, and note the seconds of each answer."""
    script = (
        "import http.client, sys, time\n"
        "while True:\n"
        "    since = time.perf_counter()\n"
        "    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)\n"
        "    connection.request('GET', '/health/live')\n"
        "    assert connection.getresponse().status == 200\n"
        "    print(time.perf_counter() - since, flush=True)\n"
        "    time.sleep(0.1)\n"
    )
    command = [sys.executable, "-c", script, served.address.removeprefix("http://")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        taken: list[float] = []
        try:
            yield taken
        finally:
            watcher.kill()
            taken.extend(float(line) for line in watcher.stdout or () if line.endswith("\n"))


def check_load(served: Served, images: list[str], requests_at_once: int) -> None:
    """Ask for so many segmentations at once; see `test_fifty_at_once_...`."""
    ready = threading.Barrier(requests_at_once)

    def ask(number: int) -> tuple[str, requests.Response]:
        image = images[number % len(images)]
        ready.wait(PATIENCE_S)
        return image, served.segment(image)

    with watched(served) as taken, ThreadPoolExecutor(requests_at_once) as pool:
        answers = list(pool.map(ask, range(requests_at_once)))
    serial = {image: served.segment(image).content for image in images}
    statuses = [answer.status_code for _, answer in answers]
    assert set(statuses) <= {200, 503} and statuses.count(200) > 1, statuses
    for image, answer in answers:
        if answer.status_code == 200:
            assert answer.content == serial[image]
        else:
            assert int(answer.headers["Retry-After"]) > 0 and "wait for cpu already" in answer.json()["detail"]
    assert np.percentile(taken, 95) < 0.2, sorted(taken)[-5:]
    assert served.get("/health/ready").status_code == 200
    assert served.get("/health/ready").json()["queue"]["waiting"] == {"cpu": 0}


def check_end(served: Served, images: list[str]) -> None:
    """End a server with five requests in flight; see `test_a_server_told_to_end_...`."""
    serial = served.segment(images[0]).content
    with ThreadPoolExecutor(len(images)) as pool:
        in_flight: list[Future[requests.Response]] = [pool.submit(served.segment, image) for image in images]
        wait_until(lambda: f"labelrounds_requests_in_flight {float(len(images))}\n" in served.get("/metrics").text)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: served.get("/health/ready").json()["stopping"])
        assert not all(request.done() for request in in_flight)
        ready, new = served.get("/health/ready"), served.segment(images[0])
        answers = [request.result(PATIENCE_S) for request in in_flight]
    assert ready.status_code == 503 and ready.json()["unfit"] == ["stopping"]
    assert new.status_code == 503 and int(new.headers["Retry-After"]) > 0
    assert new.json()["detail"].startswith("the server is ending")
    assert [answer.status_code for answer in answers] == [200] * len(images)
    assert answers[0].content == serial
    assert served.process.wait(PATIENCE_S) == 0, (served.home / "said.txt").read_text()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """A server on a few small and a few large images, which the last of these tests ends."""
    with serving(tmp_path_factory.mktemp("operation"), SMALL, LARGE) as found:
        yield found


def names(first: int, count: int) -> list[str]:
    return [f"phantom_{number:03d}" for number in range(first, first + count)]


def test_fifty_at_once_are_answered_as_one_by_one_or_told_to_come_again(served):
    """Reliability 20: each is 200 and equal to its serial answer, or 503; /health/live answers within 200 ms (p95)."""
    check_load(served, names(0, SMALL), 50)


def test_an_administrator_reads_the_figures_of_what_was_asked(served):
    text = served.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    route = 'labelrounds_requests_total{method="POST",route="/infer/{model}",status="%d"}'
    answers = {status: float(figures.get(route % status, 0)) for status in (200, 503)}
    assert answers[200] > SMALL and answers[200] + answers[503] == 50 + SMALL
    assert float(figures['labelrounds_refused_requests_total{status="503"}']) == answers[503]
    segmented = f'labelrounds_inference_stage_seconds_count{{model="{MODEL}",stage="segment"}}'
    assert float(figures[segmented]) == answers[200]
    assert float(figures['labelrounds_queue_length{device="cpu"}']) == 0


def test_each_request_is_in_the_log_once_and_each_look_at_an_image_in_the_audit_log(served):
    sent = served.segment("phantom_001", headers={"X-Request-ID": "look-1"})
    assert sent.headers["X-Request-ID"] == "look-1"
    wait_until(lambda: len(served.log_of("look-1")) > 1)  # the last line comes after the answer
    lines = served.log_of("look-1")
    assert [line["logger"] for line in lines] == ["labelrounds.inferer", "labelrounds.tracing"]
    assert (lines[1]["route"], lines[1]["status"]) == ("/infer/{model}", 200)
    audit = AuditLog(served.home / "audit")
    (line,) = [line for line in audit.lines() if line["request"] == "look-1"]
    assert line["ids"] == {"image": "phantom_001", "model": MODEL} and line["status"] == 200
    assert audit.verify().faults == []


def test_a_server_told_to_end_answers_what_it_has_taken_and_refuses_the_rest(served):
    """Reliability 25: SIGTERM with five in flight: they finish, new ones get 503, exit 0."""
    check_end(served, names(SMALL, LARGE))
    assert AuditLog(served.home / "audit").verify().faults == []


@pytest.mark.slow
def test_those_that_do_not_finish_in_time_are_told_to_come_again(tmp_path):
    """Reliability 25, where the time is short: nobody is left without an answer, and the server ends all the same."""
    images = names(0, 8)
    with serving(tmp_path, 0, len(images), stop_s="0.2") as served:
        with ThreadPoolExecutor(len(images)) as pool:
            in_flight = [pool.submit(served.segment, image) for image in images]
            wait_until(lambda: sum(served.get("/health/ready").json()["queue"]["waiting"].values()) > 5)
            served.process.send_signal(signal.SIGTERM)
            answers = [request.result(PATIENCE_S) for request in in_flight]
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert 503 in {answer.status_code for answer in answers}
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
        assert served.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_times_fifty_at_once(tmp_path):
    """Reliability 20 in full."""
    images = names(0, 12)
    with serving(tmp_path, 0, len(images)) as served:
        for _ in range(20):
            check_load(served, images, 50)
