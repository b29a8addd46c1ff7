"""A labelling client without a viewer, and a server to talk to: what the demo and the benchmarks are made of."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests

from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.reading import read_label

_NAME = "labelrounds"  # by which a server knows whose case it is
_START_TIMEOUT_S, _TRAIN_TIMEOUT_S = 120, 4 * 3600


class Client:
    """The calls that a labelling client makes, over HTTP."""

    def __init__(self, address: str, key: str = "") -> None:
        self.address = address
        self._http = requests.Session()
        self._http.trust_env = False  # a proxy is for other hosts than this one
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"

    def call(self, method: str, route: str, **options: Any) -> requests.Response:
        """Make a request and return the answer.

        Raises:
            LabelRoundsError: the server answered with an error; its own words.
        """
        answer = self._http.request(method, self.address + route, timeout=300, **options)
        if not answer.ok:
            raise LabelRoundsError(f"{method} {route}: {answer.status_code} {answer.text[:500]}")
        return answer

    def segment(self, model: str, file: Path | None = None, image: str = "") -> np.ndarray:
        """Return the label map ``(X, Y, Z)`` of a file or of an image of the datastore."""
        upload = {} if file is None else {"files": {"file": (file.name, file.read_bytes())}}
        answer = self.call("POST", f"/infer/{model}?image={image}&output=image", **upload)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prediction.nrrd"
            path.write_bytes(answer.content)
            return read_label(path).array[0]

    def next_case(self, strategy: str) -> dict[str, Any]:
        """Return the next case of a strategy, with the reason for it; empty where there is none."""
        found: dict[str, Any] = self.call("POST", f"/activelearning/{strategy}", json={"client_id": _NAME}).json()
        return found

    def submit(self, image: str, label: Path, labels: Sequence[str]) -> None:
        """Submit a label as Slicer does: the segments' names in the order of their voxel values."""
        segments = [{"name": name, "idx": index} for index, name in enumerate(labels, start=1)]
        info = {"label_info": segments, "client_id": _NAME}
        self.call(
            "PUT",
            f"/datastore/label?image={image}",
            files={"label": (label.name, label.read_bytes())},
            data={"params": json.dumps(info)},
        )

    def follow_training(self, model: str) -> Iterator[dict[str, Any]]:
        """Yield a training's figures, once a second while it runs and once when it has ended.

        Raises:
            LabelRoundsError: the training failed, or did not end in time.
        """
        deadline = time.monotonic() + _TRAIN_TIMEOUT_S
        while time.monotonic() < deadline:
            task = self.call("GET", "/train/").json()
            yield self.call("GET", "/info/").json()["train_stats"][model]
            if task["status"] == "ERROR":
                raise LabelRoundsError("the training failed: " + " / ".join(task["details"][-3:]))
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return
            time.sleep(1)
        raise LabelRoundsError(f"the training did not end within {_TRAIN_TIMEOUT_S} s")


@contextmanager
def running_server(
    studies: Path | str,
    home: Path,
    port: int,
    models: Sequence[str],
    configs: Path | None = None,
    key: str = "",
    start: Callable[..., Any] = subprocess.Popen,
) -> Iterator[Client]:
    """Run a server on loopback, in a process of its own, for as long as the block lasts.

    Args:
        studies: the folder of the images, or the address of a DICOMweb server.
        home: the folder of model versions and logs, the server's ``LABELROUNDS_HOME``.
        port: the port; 0 for any that is free.
        models: names of the models to serve.
        configs: a folder of models beside the shipped ones.
        key: a user's, where the home folder has a list of users.
        start: starts the process, as `subprocess.Popen` does.

    Raises:
        BadInput: the port is in use.
        LabelRoundsError: the server did not start; its last words.
    """
    port = free_port(port)
    command = [sys.executable, "-m", "labelrounds", "start", "--studies", str(studies), "--port", str(port)]
    command += [] if configs is None else ["--configs", str(configs)]
    home.mkdir(parents=True, exist_ok=True)
    log_file = home / "server.log"
    with log_file.open("w") as log:
        process = start(
            [*command, "--models", ",".join(models)],
            env={**os.environ, "LABELROUNDS_HOME": str(home)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends the server in good order
        )
    try:
        client = Client(f"http://127.0.0.1:{port}", key)
        _wait_until_ready(client, process, log_file)
        yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(client: Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LabelRoundsError(f"the server ended at its start; its last words:\n{log.read_text()[-2000:]}")
        try:
            client.call("GET", "/info/")
            return
        except requests.ConnectionError:
            time.sleep(0.05)
    raise LabelRoundsError(f"the server did not answer within {_START_TIMEOUT_S} s; see {log}")


def free_port(wanted: int = 0, host: str = "127.0.0.1") -> int:
    """Return the wanted port, or any free one for 0.

    Raises:
        BadInput: it is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            reason = error.strerror or str(error)
            raise BadInput(
                f"port {wanted} of {host} can't be listened on: {reason}; choose another with --port"
            ) from error
        return int(probe.getsockname()[1])
