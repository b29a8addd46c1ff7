"""What a server holds after many requests, many versions and under many clients: no more than after the first ones."""

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from labelrounds.engine import _IDLE_S
from tests.benchmarks import load
from tests.faults.trusted import TrustedServer, eventually

# By how much memory may seem to grow that does not: what the allocator keeps of one moment's peak.
SLACK_MB = 40
RESTING_S = _IDLE_S + 3.0  # without a request, until the memory that was kept is surely given back
SLACK_FILES = 2


@pytest.fixture(scope="module")
def _small_server(tmp_path_factory) -> Iterator[TrustedServer]:
    with load.small_server(tmp_path_factory.mktemp("small")) as server:
        yield server


@pytest.fixture
def small_server(_small_server) -> Iterator[TrustedServer]:
    """Lend a server of a small network; then it is checked as `trusted_server` is."""
    yield _small_server
    _small_server.check()


def memory_at_rest(process: psutil.Process) -> float:
    """Return the memory in MB of a server that nobody asks: what it keeps for a next computation it gives back soon."""
    seen = []
    for _ in range(10):
        time.sleep(RESTING_S / 10)
        seen.append(load.memory_mb(process))
    return min(seen)


def endure(server: TrustedServer, inferences: int, publications: int) -> tuple[list[float], list[int]]:
    """Segment so many images and publish so many versions; return memory in MB, at rest, and open files on the way."""
    process, image, file = server.process(), load.images(), server.configs / f"{load.MODEL}.yaml"
    memory, files = [], []
    # Each reader has read, a new version was served and the pool is scored: all have taken what they keep.
    load.publish(file, server.home)
    load.put_load(server.address, load.MODEL, process, 4, 3)
    assert eventually(lambda: is_scored(server), 60)
    for number in range(inferences):
        if number * publications // inferences != (number + 1) * publications // inferences:
            load.publish(file, server.home)
        body, headers = load.form_of(next(image))
        status, answer = server.raw("POST", f"/infer/{load.MODEL}?output=image", body, headers)
        assert status == 200, answer
        if number % (inferences // 50) == 0:
            files.append(process.num_fds())
        if number % (inferences // 5) == 0:
            memory.append(memory_at_rest(process))
    memory.append(memory_at_rest(process))
    return memory, files


def is_scored(server: TrustedServer) -> bool:
    """Tell whether the background has scored all images."""
    figures = server.call("GET", "/metrics").text.splitlines()
    left = [line for line in figures if line.startswith("labelrounds_scoring_images{") and 'state="left"' in line]
    return bool(left) and all(line.endswith(" 0.0") for line in left)


def assert_nothing_grows(server: TrustedServer, inferences: int, publications: int) -> None:
    memory, files = endure(server, inferences, publications)
    print(f"memory {memory} MB, open files {files[0]} to {files[-1]}")
    assert load.growth(memory) < SLACK_MB, memory
    first, settled = files[: len(files) // 3], files[len(files) // 3 :]
    assert max(settled) <= max(first) + SLACK_FILES, files
    assert load.growth(settled) < 1, files


def test_neither_memory_nor_open_files_grow_with_inferences_and_versions(small_server):
    """Reliability 30. Reduced: 100 inferences and 10 publications."""
    assert_nothing_grows(small_server, 100, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_neither_memory_nor_open_files_grow_with_a_thousand_inferences(small_server):
    """Reliability 30. In full: 1,000 inferences and 50 publications."""
    assert_nothing_grows(small_server, 1000, 50)


def test_a_growth_is_told_from_a_peak():
    steady = [500.0, *[600.0, 601.0] * 20]
    assert abs(load.growth(steady)) < 2
    assert abs(load.growth([*steady[:30], 900.0, *steady[30:]])) < 2
    assert load.growth([500.0 + 3 * number for number in range(42)]) > SLACK_MB


def assert_load_is_borne(server: TrustedServer, clients: int, seconds: float, warm: bool = True) -> None:
    borne = load.put_load(server.address, load.MODEL, server.process(), clients, seconds)
    figures = borne.figures()
    print(figures)
    assert set(borne.statuses) <= {"200", "503"}, figures
    assert all(borne.seconds.values()), "of each kind some are answered"
    if warm:  # a few seconds are spent on what is kept for later requests
        assert figures["memory_growth_mb"] < SLACK_MB, borne.memory_mb
    # Each client's connection that is kept has a file; they close with it.
    assert eventually(lambda: len(server.process().net_connections()) < clients / 2)


def test_fifty_clients_at_once_are_answered_or_told_to_come_again(small_server):
    assert_load_is_borne(small_server, 50, 5, warm=False)


@pytest.mark.slow
def test_fifty_clients_are_borne_for_two_minutes(small_server):
    assert_load_is_borne(small_server, 50, 120)


def leave(server: TrustedServer, after: int | None) -> None:
    """Send a request for a segmentation, or the first bytes of one, and hang up without reading the answer."""
    body, headers = load.form_of(next(load.images()))
    head = [f"POST /infer/{load.MODEL} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    request = "\r\n".join([*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(request[:after])


@pytest.mark.parametrize("after", [1000, 40_000, None], ids=["at the start", "mid-upload", "mid-inference"])
def test_clients_that_hang_up_leave_no_file_and_no_place_taken(small_server, after):
    """Reliability 22. Fifty of each; that the places are free is seen by more clients at once than have one."""
    before = small_server.process().num_fds()
    for _ in range(50):
        leave(small_server, after)
    body, headers = load.form_of(next(load.images()))
    status, answer = small_server.raw("POST", f"/infer/{load.MODEL}?output=image", body, headers)
    assert status == 200, answer
    assert eventually(lambda: small_server.process().num_fds() <= before + SLACK_FILES)
