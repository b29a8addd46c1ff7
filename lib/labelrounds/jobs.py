"""Background tasks of the server: trainings first of all, each in a child process.

Takes the place of the host's ``AsyncTask``, whose children can't import the host (see ``host.py``), which can only
kill, and which takes two trainings that are asked for at once. The routes stay the host's.

Concurrency: a lock guards the list; one thread a method runs its tasks one after the other. Crash rules: the
request that runs is written to ``home()/jobs/<method>.json`` and removed when its process has ended, so a server
that was killed finds it at its next start and asks for it again; the training goes on from its own saved state.
A child whose server is gone ends by itself (``worker.py``).
"""

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Container
from datetime import datetime
from typing import Any

from labelrounds import folders
from labelrounds.checkpoints import read_json, write_json
from labelrounds.errors import BadInput, Busy, NotFound

logger = logging.getLogger(__name__)

Task = dict[str, Any]
_LINES_KEPT, _TASKS_KEPT = 20, 100
_UNFINISHED = ("SUBMITTED", "RUNNING")


class JobQueue:
    """The tasks of one method (``train``), run one after the other."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.tasks: list[Task] = []
        self._lock = threading.Lock()
        self._waiting: queue.Queue[Task] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._file = folders.home() / "jobs" / f"{method}.json"

    def submit(self, request: dict[str, Any], enqueue: bool) -> Task:
        """Take a task.

        Raises:
            Busy: one runs or waits already and ``enqueue`` is not asked for.
        """
        with self._lock:
            running = self.unfinished()
            if running and not enqueue:
                model = running[0]["request"].get("model")
                raise Busy(f"a {self.method} task runs already (model {model}); wait for it or stop it")
            task = {
                "id": str(uuid.uuid4()),
                "status": "SUBMITTED",
                "request": request,
                "start_ts": _now(),
                "submitted": time.time(),
                "details": deque(["submitted"], maxlen=_LINES_KEPT),
            }
            self.tasks = [*self.tasks[-_TASKS_KEPT:], task]
            self._waiting.put(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"jobs-{self.method}", daemon=True)
                self._thread.start()
        return task

    def unfinished(self) -> list[Task]:
        """Return the tasks that run or wait, in their order."""
        return [task for task in self.tasks if task["status"] in _UNFINISHED]

    def stop(self) -> Task | None:
        """Ask the first unfinished task to end, keeping what it has reached; return it, or None if there is none."""
        with self._lock:
            running = self.unfinished()
            if not running:
                return None
            task = running[0]
            task["details"].append("stopping")
            if task["status"] == "SUBMITTED":
                task["status"], task["end_ts"] = "STOPPED", _now()
            task["stopping"] = True
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
            return task

    def resume(self, studies: str, models: Container[str]) -> Task | None:
        """Ask again for the task that a killed server left, if it was about these studies and one of these models."""
        try:
            left = read_json(self._file) or {}
        except BadInput as error:
            logger.warning("Resume nothing: %s", error)
            return None
        request = left.get("request")
        if left.get("studies") != studies or not isinstance(request, dict) or request.get("model") not in models:
            return None
        logger.info("Resume the interrupted %s of %s", self.method, request.get("model"))
        return self.submit(request, enqueue=True)

    def abandon(self) -> None:
        """End the child at once because the server ends; its request stays written down for the next start."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def _work(self) -> None:
        while True:
            task = self._waiting.get()
            with self._lock:
                if task["status"] != "SUBMITTED" or _ending.is_set():
                    continue
                task["status"] = "RUNNING"  # from here on stopping it goes through its process
            try:
                self._run(task)
            except Exception as error:
                logger.exception("The %s task could not be run", self.method)
                task["details"].append(f"the task could not be run: {error}")
                self._forget()
                with self._lock:
                    self._process = None
                    task["status"], task["end_ts"] = "ERROR", _now()

    def _forget(self) -> None:
        with contextlib.suppress(OSError):  # the queue goes on; at worst the task is run once more
            self._file.unlink()

    def _run(self, task: Task) -> None:
        from monailabel.config import settings

        command = worker_command(task["request"])
        write_json(self._file, {"request": task["request"], "studies": settings.MONAI_LABEL_STUDIES})
        # Threads that spin while they wait slow a training beside an inference down many times.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            with self._lock:
                self._process = process
                if task.get("stopping"):
                    process.send_signal(signal.SIGTERM)
            for line in process.stdout or ():
                if line.strip():
                    task["details"].append(line.rstrip())
                    logger.info("%s: %s", self.method, line.rstrip())
        with self._lock:
            self._process = None
            if process.returncode != -signal.SIGKILL or not _ending.is_set():
                self._forget()
            task["status"] = _status(process.returncode, task.get("stopping", False))
            task["end_ts"] = _now()


def worker_command(request: dict[str, Any]) -> list[str]:
    """Return the command line of a task's process."""
    return [sys.executable, "-m", "labelrounds.worker", json.dumps(request)]


def _status(returncode: int, stopping: bool) -> str:
    """Return how a task ended; one that is stopped while its process starts ends by the signal itself."""
    if stopping and returncode in (0, -signal.SIGTERM):
        return "STOPPED"
    return "DONE" if returncode == 0 else "ERROR"


_ending = threading.Event()
_queues: dict[str, JobQueue] = {}
_queues_lock = threading.Lock()


def job_queue(method: str) -> JobQueue:
    """Return the queue of a method, making it at the first call."""
    with _queues_lock:
        return _queues.setdefault(method, JobQueue(method))


def abandon_all() -> None:
    """End all children, because the server ends."""
    _ending.set()
    for jobs in _queues.values():
        jobs.abandon()


def install(check: Callable[[dict[str, Any]], None]) -> None:
    """Let the host's routes use these queues.

    Args:
        check: called with the request before a task is taken; raises what the client is told.
    """
    from monailabel.utils.async_tasks.task import AsyncTask

    def run(
        method: str, request: Any = None, params: Any = None, force_sync: bool = False, enqueue: bool = False
    ) -> tuple[Task | None, str | None]:
        # force_sync would train inside the server's event loop; the task is queued like any other.
        asked = {**(params or {}), **(request or {})}
        check(asked)
        return _shown(job_queue(method).submit(asked, enqueue)), None

    def status(method: str, all: bool = False, check_if_running: bool = False) -> tuple[Any, str | None]:
        jobs = job_queue(method)
        tasks = jobs.unfinished()[:1] if check_if_running else jobs.tasks
        if not tasks:
            return None, f"No {method} task {'runs' if check_if_running else 'was started yet'}"
        return ([_shown(task) for task in tasks] if all else _shown(tasks[-1])), None

    def stop(method: str) -> Task:
        task = job_queue(method).stop()
        if task is None:
            raise NotFound(f"no {method} task runs")
        return _shown(task)

    AsyncTask.run, AsyncTask.status, AsyncTask.stop = staticmethod(run), staticmethod(status), staticmethod(stop)


def _shown(task: Task) -> Task:
    """Return a task as JSON can take it; the lines it has printed may grow while it is copied."""
    lines: list[str] = []
    with contextlib.suppress(RuntimeError):
        lines = list(task["details"])
    return {**task, "details": lines}


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
