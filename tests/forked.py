"""Start `labelrounds` without the seconds that importing all of it takes: fork it from a process that has done so.

There is one such process for each process of tests. What it starts sees the environment that it is given, as a new
process would, except for the host's own settings (``MONAI_LABEL_...``), and is not found by its command line. The tests
of attacks and of faults start the command itself.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil

from labelrounds import client

KILLED = -signal.SIGKILL


class Forked:
    """What `subprocess.Popen` would tell of the process.

    Args:
        pid: of the process, which is another one's child.
        status: the file that its exit status is in once it has ended, unless it was killed.
    """

    def __init__(self, pid: int, status: Path) -> None:
        self.pid, self._process, self._status = pid, psutil.Process(pid), status

    def poll(self) -> int | None:
        if self._process.is_running():
            return None
        return int(self._status.read_text()) if self._status.exists() else KILLED

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("labelrounds", timeout)
            time.sleep(0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self._process.is_running():
            self._process.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[object],
    env: dict[str, str],
    stdout: IO,
    stderr: IO | int = subprocess.STDOUT,
    cwd: Path | None = None,
    start_new_session: bool = True,
) -> Forked:
    """Start what `subprocess.Popen` would by the same arguments: ``labelrounds``, or Python with ``-m labelrounds``."""
    arguments = [str(word) for word in command]
    arguments = arguments[arguments.index("labelrounds") + 1 :] if "labelrounds" in arguments else arguments[1:]
    status = Path(tempfile.mkdtemp(prefix="forked-")) / "status"
    outputs = [stdout.name, stdout.name if isinstance(stderr, int) else stderr.name]
    folder = str(cwd or Path.cwd())
    wanted = {"arguments": arguments, "env": dict(env), "folder": folder, "outputs": outputs, "status": str(status)}
    forking = _forking()
    forking.stdin.write(json.dumps(wanted) + "\n")
    forking.stdin.flush()
    return Forked(int(forking.stdout.readline()), status)


running_server = partial(client.running_server, start=start)


def process_of(address: str) -> psutil.Process:
    """Return the process that listens at an address."""
    port = urlsplit(address).port
    listening = psutil.net_connections("tcp")
    return psutil.Process(next(one.pid for one in listening if one.laddr.port == port and one.status == "LISTEN"))


@cache
def _forking() -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.forked"]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    atexit.register(process.stdin.close)  # upon which it ends
    return process


def _fork_what_is_wanted() -> None:
    """Fork for each line of the standard input, and answer with the process' number; the forked ones go on."""
    import labelrounds.app
    import labelrounds.starting  # noqa: F401
    from labelrounds.cli import main
    from labelrounds.settings import server_settings

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for what has ended
    for line in sys.stdin:
        wanted = json.loads(line)
        if pid := os.fork():
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, path in enumerate((os.devnull, *wanted["outputs"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(wanted["env"])
        os.chdir(wanted["folder"])
        tempfile.tempdir = None
        server_settings.cache_clear()
        sys.argv = ["labelrounds", *wanted["arguments"]]
        ended = 1
        try:
            main()
            ended = 0
        except SystemExit as ending:
            ended = ending.code or 0
        finally:
            Path(wanted["status"]).write_text(str(ended))
        return


if __name__ == "__main__":
    _fork_what_is_wanted()
