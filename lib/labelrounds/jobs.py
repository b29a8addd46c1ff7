"""Background tasks of the server: trainings first of all, each in a child process.

Takes the place of the host's ``AsyncTask``, whose children can't import the host (see ``host.py``), which can only
kill, and which takes two trainings that are asked for at once. The routes stay the host's.

Concurrency: a lock guards the list; one thread a method runs its tasks one after the other. Crash rules: the
requests that run or wait are written to ``home()/jobs/<method>.json``, each until its process has ended, so a server
that was killed finds them at its next start and asks for them again in their order; the training that ran goes on from
its own saved state. A child whose server is gone ends by itself (``worker.py``).
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
from labelrounds.errors import BadInput, Busy, NotFound, OutOfSpace
from labelrounds.telemetry import training_done

logger = logging.getLogger(__name__)

Task = dict[str, Any]
_LINES_KEPT, _TASKS_KEPT = 20, 100
_UNFINISHED = ("SUBMITTED", "RUNNING")
_JUST_ENDED_S = 10.0


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
        self._told_to_run: Task | None = None
        self._foreign: list[dict[str, Any]] = []  # left by servers of other studies or models, for their next start

    def submit(self, request: dict[str, Any], enqueue: bool) -> Task:
        """Take a task.

        Raises:
            Busy: one runs or waits already and ``enqueue`` is not asked for, or a hundred wait.
            OutOfSpace: the request can't be written down; nothing is started.
        """
        with self._lock:
            running = self.unfinished()
            if running and not (enqueue and len(running) < _TASKS_KEPT):
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
            self._note([*running, task])
            self.tasks = [*self.tasks[-_TASKS_KEPT:], task]
            self._waiting.put(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"jobs-{self.method}", daemon=True)
                self._thread.start()
        return task

    def unfinished(self) -> list[Task]:
        """Return the tasks that run or wait, in their order."""
        return [task for task in self.tasks if task["status"] in _UNFINISHED]

    def tell(self, task: Task) -> Task:
        """Return a task as JSON can take it, and note whether a client is told that it runs.

        The lines that it has printed may grow while they are copied.
        """
        lines: list[str] = []
        with contextlib.suppress(RuntimeError):
            lines = list(task["details"])
        told = {**task, "details": lines}
        if told["status"] in _UNFINISHED:
            self._told_to_run = task
        elif self._told_to_run is task:
            self._told_to_run = None
        return told

    def seen_to_run(self) -> Task | None:
        """Return the task that runs, or that has ended just now and that clients still take for running.

        Slicer asks whether a training runs, and if so how far it is: in between it may end.
        """
        running, told = self.unfinished(), self._told_to_run
        if not running and told is not None and time.time() - told.get("ended", 0.0) < _JUST_ENDED_S:
            return told
        return running[0] if running else None

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
                self._note_rest(task)
            task["stopping"] = True
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
            return task

    def resume(self, studies: str, models: Container[str]) -> list[Task]:
        """Ask again for the tasks that a killed server left, those about these studies and these models.

        The others stay written down for a server that has theirs.
        """
        try:
            left = (read_json(self._file) or {}).get("requests", [])
        except BadInput as error:
            logger.warning("Resume nothing: %s", error)
            return []
        left = [entry for entry in left if isinstance(entry, dict)] if isinstance(left, list) else []
        self._foreign, resumed = left, []
        try:
            for entry in [entry for entry in left if _is_of(entry, studies, models)]:
                logger.info("Resume the interrupted %s of %s", self.method, entry["request"]["model"])
                self._foreign = [other for other in self._foreign if other is not entry]
                resumed.append(self.submit({**entry["request"], "resumed": True}, enqueue=True))
        except OutOfSpace as error:
            logger.warning("Resume no more until the next start: %s", error)
        return resumed

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
                task["began"] = time.time()
            try:
                self._run(task)
            except Exception as error:
                logger.exception("The %s task could not be run", self.method)
                task["details"].append(f"the task could not be run: {error}")
                with self._lock:
                    self._process = None
                    self._end(task, "ERROR")

    def _note(self, tasks: list[Task]) -> None:
        """Write down what runs and waits.

        Raises:
            OutOfSpace: the disk is full; what was written down before stays.
        """
        from monailabel.config import settings

        mine = [{"request": task["request"], "studies": settings.MONAI_LABEL_STUDIES} for task in tasks]
        if mine or self._foreign:
            write_json(self._file, {"requests": [*mine, *self._foreign]})
        else:
            self._file.unlink(missing_ok=True)

    def _note_rest(self, ended: Task) -> None:
        """Write down what is left after a task; at worst, a server that is killed runs it once more."""
        try:
            self._note([task for task in self.unfinished() if task is not ended])
        except (OSError, OutOfSpace) as error:
            logger.warning("The queue of %s tasks can't be written down: %s", self.method, error)

    def _run(self, task: Task) -> None:
        command = worker_command(task["request"])
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
            is_abandoned = process.returncode == -signal.SIGKILL and _ending.is_set()
            if process.returncode < 0 and not is_abandoned and not task.get("stopping"):
                task["details"].append(_killed(process.returncode))
                task["interrupted"] = True
            self._end(task, _status(process.returncode, task.get("stopping", False)), not is_abandoned)

    def _end(self, task: Task, status: str, is_over: bool = True) -> None:
        """Say how a task has ended; one that is not over stays written down for the next server."""
        if is_over:
            training_done(str(task["request"].get("model")), status)
            self._note_rest(task)
        task["status"], task["end_ts"], task["ended"] = status, _now(), time.time()


def worker_command(request: dict[str, Any]) -> list[str]:
    """Return the command line of a task's process."""
    return [sys.executable, "-m", "labelrounds.worker", json.dumps(request), str(os.getpid())]


def _is_of(entry: dict[str, Any], studies: str, models: Container[str]) -> bool:
    request = entry.get("request")
    return entry.get("studies") == studies and isinstance(request, dict) and request.get("model") in models


def _status(returncode: int, stopping: bool) -> str:
    """Return how a task ended; one that is stopped while its process starts ends by the signal itself."""
    if stopping and returncode in (0, -signal.SIGTERM):
        return "STOPPED"
    return "DONE" if returncode == 0 else "ERROR"


def _killed(returncode: int) -> str:
    """Say that something outside has ended a process."""
    name = signal.Signals(-returncode).name
    return (
        f"the process was ended from outside by signal {-returncode} ({name}), as the system does when memory runs out;"
        " nothing served has changed, and the same training asked for again goes on from its last epoch"
    )


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


def install(check: Callable[[dict[str, Any]], None], figures: Callable[[Task], dict[str, Any]]) -> None:
    """Let the host's routes use these queues.

    Args:
        check: called with the request before a task is taken; raises what the client is told.
        figures: returns how far a task is, which is shown as its ``progress``.
    """
    from monailabel.utils.async_tasks.task import AsyncTask

    def run(
        method: str, request: Any = None, params: Any = None, force_sync: bool = False, enqueue: bool = False
    ) -> tuple[Task | None, str | None]:
        # force_sync would train inside the server's event loop; the task is queued like any other.
        asked = {**(params or {}), **(request or {})}
        check(asked)
        jobs = job_queue(method)
        return shown(jobs, jobs.submit(asked, enqueue)), None

    def status(method: str, all: bool = False, check_if_running: bool = False) -> tuple[Any, str | None]:
        jobs = job_queue(method)
        running = jobs.unfinished()[:1]
        tasks = running if check_if_running else jobs.tasks
        if not tasks:
            return None, f"No {method} task {'runs' if check_if_running else 'was started yet'}"
        # Of several the one that runs, even if others wait behind it: clients take any other status for the end.
        return ([shown(jobs, task) for task in tasks] if all else shown(jobs, (running or tasks[-1:])[0])), None

    def stop(method: str) -> Task:
        jobs = job_queue(method)
        task = jobs.stop()
        if task is None:
            raise NotFound(f"no {method} task runs")
        return shown(jobs, task)

    def shown(jobs: JobQueue, task: Task) -> Task:
        return {**jobs.tell(task), "progress": figures(task)}

    AsyncTask.run, AsyncTask.status, AsyncTask.stop = staticmethod(run), staticmethod(status), staticmethod(stop)


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
