"""How a server with a small network bears many clients at once: latency, throughput, refusals and memory.

    python -m tests.benchmarks.load [--clients 50] [--seconds 120] [--output tests/benchmarks/results/load.json]

A server of its own, on loopback, of a network of three levels and patches of 32 voxels. Of ten requests a client sends,
seven bring an image that nobody has sent yet to be segmented, so that it is computed; two ask ``/info/``, one lists
the datastore. Each second client opens a connection for every request, the others keep theirs. Who is answered 503
waits as long as ``Retry-After`` says. Ends by itself; nothing leaves this machine.
"""

import argparse
import io
import itertools
import json
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import nibabel
import numpy as np
import psutil
import requests
import yaml
from scipy.stats import theilslopes

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import ModelConfig, load_config
from labelrounds.networks import build_network
from tests.benchmarks import machine

MODEL = "unet_tiny"
SIDE = 32
_CONTENT = {
    "description": "small network of a load test",
    "labels": ["near", "far"],
    "intensity": {"kind": "window", "low": -1000, "high": 1000},
    "network": {"name": "unet", "channels": [4, 8, 16]},
    "patch_size": [SIDE, SIDE, SIDE],
    "inference": {"runtime": "eager", "overlap": 0.25},  # others are measured in the background
}
# What a server may need: caches so small that they are full at once, and no bound on what one address asks.
SETTINGS = {"LABELROUNDS_MEMORY_GB": "0.02", "LABELROUNDS_REQUESTS_PER_SECOND": "1000000"}


@dataclass
class Load:
    """What many clients have seen of a server.

    Attributes:
        statuses: how often each HTTP status came; "none" where the connection broke.
        seconds: of each answer, by what was asked.
        memory_mb: written by the server and its children, about once a second.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"infer": [], "info": [], "list": []})
    memory_mb: list[float] = field(default_factory=list)
    lasted_s: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        asked = {what: np.array(seconds) for what, seconds in self.seconds.items() if seconds}
        return {
            "statuses": dict(sorted(self.statuses.items())),
            "requests_per_s": round(self.statuses.total() / self.lasted_s, 1),
            "inferences_per_s": round(len(self.seconds["infer"]) / self.lasted_s, 1),
            "latency_ms": {what: percentiles(1000 * seconds) for what, seconds in asked.items()},
            "memory_mb": {"first": self.memory_mb[0], "last": self.memory_mb[-1], "highest": max(self.memory_mb)},
            "memory_growth_mb": round(growth(self.memory_mb), 1),
        }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Return what half, 95 and 99 of a hundred values stay below, and the highest."""
    return {f"p{at}": round(float(np.percentile(values, at)), 1) for at in (50, 95, 99)} | {
        "highest": round(float(values.max()), 1)
    }


def growth(values: list[float]) -> float:
    """Return by how much a series has grown after its first third, by Theil's slope, which no single peak moves.

    DOI 10.1007/978-94-011-2546-8_20.
    """
    later = values[len(values) // 3 :]
    return float(theilslopes(later).slope) * (len(later) - 1)


def write_model(folder: Path) -> Path:
    """Write the small model's file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{MODEL}.yaml"
    file.write_text(yaml.safe_dump(_CONTENT))
    return file


def publish(file: Path, home: Path) -> int:
    """Publish a version of the model for the server of ``home``; return its number. The weights are always the same."""
    import torch

    config: ModelConfig = load_config(file)
    torch.manual_seed(0)
    with patch.dict(os.environ, LABELROUNDS_HOME=str(home)):
        return Checkpoints(config).publish(build_network(config), {}).number


def images() -> Iterator[bytes]:
    """Make NIfTI images without end, each another."""
    for seed in itertools.count():
        voxels = np.random.default_rng(seed).normal(0, 300, (SIDE, SIDE, SIDE)).astype(np.int16)
        yield nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()


def form_of(image: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an upload."""
    upload = {"file": ("image.nii", io.BytesIO(image))}
    prepared = requests.Request("POST", "http://localhost", files=upload, data={"params": "{}"}).prepare()
    assert isinstance(prepared.body, bytes)
    return prepared.body, {"Content-Type": prepared.headers["Content-Type"]}


def memory_mb(process: psutil.Process) -> float:
    """Return what a process and its children have written that is theirs alone.

    Not what they have read of files, such as the libraries' code: when others that share it end, that counts for more
    though nothing was taken.
    """
    found = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(OSError):  # it has ended
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
            found += sum(map(int, re.findall(r"^Private_Dirty: *(\d+) kB$", rollup, re.MULTILINE)))
    return round(found * 1024 / 1e6, 1)


class Connection:
    """One client's requests, each over a connection of its own or all over one."""

    def __init__(self, address: str, keep: bool, headers: dict[str, str]) -> None:
        self._place, self._keep, self._headers = urlsplit(address).netloc, keep, headers
        self._open: HTTPConnection | None = None

    def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[str, float]:
        """Return the status, "none" where there was no answer, and the seconds that the server asks to wait."""
        connection = self._open or HTTPConnection(self._place, timeout=120)
        try:
            connection.request(method, target, body, {**self._headers, **(headers or {})})
            answer = connection.getresponse()
            answer.read()
            self._open = connection if self._keep else None
            return str(answer.status), float(answer.headers.get("Retry-After") or 0)
        except (OSError, HTTPException):
            self._open = None
            return "none", 0
        finally:
            if self._open is None:
                connection.close()


def put_load(
    address: str,
    model: str,
    process: psutil.Process,
    clients: int,
    seconds: float,
    headers: dict[str, str] | None = None,
) -> Load:
    """Have so many clients ask a server for so long.

    Args:
        address: of the server.
        model: what it segments with.
        process: the server's.
        clients: how many ask at once.
        seconds: after which no client begins another request.
        headers: of each request, such as a login's.
    """
    load, lock, made, end = Load(), threading.Lock(), images(), time.monotonic() + seconds

    def new_image() -> bytes:
        with lock:
            return next(made)

    def ask_on(number: int) -> None:
        connection = Connection(address, number % 2 == 0, headers or {})
        for turn in itertools.count(number):
            if time.monotonic() >= end:
                return
            what, request = request_of(turn % 10, model, new_image)
            began = time.perf_counter()
            status, wait_s = connection.ask(*request)
            took = time.perf_counter() - began
            with lock:
                load.statuses[status] += 1
                if status == "200":
                    load.seconds[what].append(took)
            time.sleep(max(0.0, min(wait_s, end - time.monotonic())))

    began = time.monotonic()
    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        load.memory_mb.append(memory_mb(process))
        time.sleep(min(1.0, seconds / 20))
    load.lasted_s = time.monotonic() - began
    return load


def request_of(turn: int, model: str, new_image: Callable[[], bytes]) -> tuple[str, tuple[Any, ...]]:
    """Return what a client asks at a turn: its kind, and method, target, body and headers."""
    if turn < 7:
        return "infer", ("POST", f"/infer/{model}?output=image", *form_of(new_image()))
    if turn < 9:
        return "info", ("GET", "/info/")
    return "list", ("GET", "/datastore/?output=all")


@contextmanager
def small_server(folder: Path) -> Iterator[Any]:
    """Run a server of the small model in ``folder``; see `tests.faults.trusted.TrustedServer`."""
    from tests.faults.trusted import trusted

    file = write_model(folder / "configs")
    publish(file, folder / "home")
    (folder / "studies").mkdir()
    image = nibabel.Nifti1Image.from_bytes(next(images()))
    nibabel.save(image, folder / "studies" / "phantom_000.nii.gz")  # small: each version scores it again
    with trusted(folder, SETTINGS, model=MODEL, configs=file.parent) as server:
        yield server


def main() -> None:
    """Put load on a server of its own, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "load.json")
    options = parser.parse_args()
    beside = round(os.getloadavg()[0])  # what the machine does besides
    with tempfile.TemporaryDirectory() as folder, small_server(Path(folder)) as server:
        load = put_load(server.address, MODEL, server.process(), options.clients, options.seconds)
    figures = {
        "load": beside,
        "clients": options.clients,
        "seconds": options.seconds,
        **load.figures(),
        "machine": machine.describe(),
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
