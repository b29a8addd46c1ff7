"""One task a method runs at a time, can be stopped at any moment, and outlives the server."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests import waiting

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import jobs
from labelrounds.errors import Busy, NotFound, OutOfSpace
from labelrounds.jobs import JobQueue

WORKER = """
import json, os, signal, sys, time
from pathlib import Path

request = json.loads(sys.argv[1])
stop = []
if not request.get("deaf"):
    signal.signal(signal.SIGTERM, lambda *ignored: stop.append(1))
print("works", request.get("model"), flush=True)
for line in request.get("say", []):
    print(line, flush=True)
sys.stdout.buffer.write(bytes(request.get("bytes", [])))
sys.stdout.flush()
until = Path(request["until"]) if "until" in request else None
while until is not None and not until.exists() and not stop:
    time.sleep(0.01)
if stop:
    print("stopped in time", flush=True)
if request.get("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(request.get("exit", 0))
"""
wait_for = partial(waiting.wait_until, timeout_s=30, pause_s=0.005)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No queue of another test, and stand-ins for the worker's process."""
    monkeypatch.setattr(jobs, "_ending", threading.Event())
    monkeypatch.setattr(jobs, "_queues", {})
    monkeypatch.setattr(jobs, "worker_command", lambda request: [sys.executable, "-c", WORKER, json.dumps(request)])


@pytest.fixture
def go(tmp_path) -> Path:
    """The file for which the tasks of a test wait; it is there at the end of the test."""
    file = tmp_path / "go"
    yield file
    file.touch()


@pytest.fixture
def queue(home) -> JobQueue:
    return JobQueue("train")


def wait_till_it_works(task) -> None:
    wait_for(lambda: any("works" in line for line in task["details"]) or task["status"] == "ERROR")


def wait_till_ended(*tasks) -> None:
    wait_for(lambda: all("end_ts" in task for task in tasks))


def note_of(home: Path) -> Path:
    return home / "jobs" / "train.json"


def noted(home: Path) -> list:
    return json.loads(note_of(home).read_text())["requests"]


def test_a_task_runs_and_its_lines_are_kept(queue):
    task = queue.submit({"model": "m", "say": ["epoch 1/2", "", "epoch 2/2"]}, enqueue=False)
    wait_till_ended(task)
    assert task["status"] == "DONE"
    assert list(task["details"]) == ["submitted", "works m", "epoch 1/2", "epoch 2/2"]
    assert task["start_ts"] <= task["end_ts"]
    assert queue.unfinished() == []


def test_only_the_last_lines_are_kept(queue):
    task = queue.submit({"say": [f"epoch {number}" for number in range(100)]}, enqueue=False)
    wait_till_ended(task)
    assert list(task["details"]) == [f"epoch {number}" for number in range(80, 100)]


def test_what_a_task_prints_may_be_anything(queue):
    task = queue.submit({"bytes": [255, 254, 10, 200, 65, 10]}, enqueue=False)
    wait_till_ended(task)
    assert task["status"] == "DONE"
    assert task["details"][-1].endswith("A")


def test_a_process_that_is_killed_is_an_error_that_says_so(queue, home):
    task = queue.submit({"model": "m", "killed": True}, enqueue=False)
    wait_till_ended(task)
    assert task["status"] == "ERROR"
    assert "by signal 9 (SIGKILL)" in task["details"][-1] and "goes on from its last epoch" in task["details"][-1]
    assert not note_of(home).exists()


def test_a_worker_whose_server_has_gone_before_it_began_ends_at_once(home, tmp_path):
    command = [sys.executable, "-m", "labelrounds.worker", "{}", str(2**22 + 1)]  # above any process id
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 1 and ended.stdout == "" and not list(home.rglob("progress.json"))


def test_of_twenty_requests_at_once_one_is_taken(queue, go):
    """Reliability 21."""
    barrier = threading.Barrier(20)

    def ask(number):
        barrier.wait()
        try:
            return queue.submit({"model": f"m{number}", "until": str(go)}, enqueue=False)
        except Busy as error:
            return error

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    taken = [answer for answer in answers if isinstance(answer, dict)]
    refused = [answer for answer in answers if isinstance(answer, Busy)]
    assert (len(taken), len(refused)) == (1, 19)
    assert all(str(error).startswith("a train task runs already (model m") for error in refused)
    go.touch()
    wait_till_ended(taken[0])
    assert len(queue.tasks) == 1


def test_after_one_has_ended_the_next_is_taken(queue):
    for _ in range(2):
        wait_till_ended(queue.submit({}, enqueue=False))
    assert [task["status"] for task in queue.tasks] == ["DONE", "DONE"]


def test_enqueued_tasks_wait_for_their_turn(queue, go):
    first = queue.submit({"model": "one", "until": str(go)}, enqueue=False)
    second = queue.submit({"model": "two"}, enqueue=True)
    wait_till_it_works(first)
    assert (first["status"], second["status"]) == ("RUNNING", "SUBMITTED")
    assert queue.unfinished() == [first, second]
    go.touch()
    wait_till_ended(first, second)
    assert (first["status"], second["status"]) == ("DONE", "DONE")
    assert first["end_ts"] <= second["end_ts"]


def test_what_waits_is_noted_too_until_it_is_stopped(queue, home, go, studies):
    first = queue.submit({"model": "one", "until": str(go)}, enqueue=False)
    second, third = (queue.submit({"model": name, "until": str(go)}, enqueue=True) for name in ("two", "three"))
    assert [entry["request"]["model"] for entry in noted(home)] == ["one", "two", "three"]
    wait_till_it_works(first)
    queue.stop()
    wait_till_it_works(second)
    assert [entry["request"]["model"] for entry in noted(home)] == ["two", "three"]
    go.touch()
    wait_till_ended(second, third)
    wait_for(lambda: not note_of(home).exists())


def test_of_a_hundred_that_wait_the_next_is_refused(queue, go):
    queue.submit({"model": "one", "until": str(go)}, enqueue=False)
    for _ in range(99):
        queue.submit({"model": "two", "until": str(go)}, enqueue=True)
    with pytest.raises(Busy):
        queue.submit({"model": "two"}, enqueue=True)
    for task in queue.unfinished()[1:]:
        task["status"] = "STOPPED"  # none of them is to run after the test


def test_methods_do_not_wait_for_each_other(home, go):
    training, scoring = JobQueue("train"), JobQueue("scoring")
    first = training.submit({"until": str(go)}, enqueue=False)
    wait_till_ended(scoring.submit({}, enqueue=False))
    assert first["status"] in ("SUBMITTED", "RUNNING")
    go.touch()
    wait_till_ended(first)


def test_a_task_that_fails_is_an_error_and_the_next_runs(queue, home):
    task = queue.submit({"exit": 1, "say": ["no label was submitted"]}, enqueue=False)
    after = queue.submit({}, enqueue=True)
    wait_till_ended(task, after)
    assert (task["status"], after["status"]) == ("ERROR", "DONE")
    assert task["details"][-1] == "no label was submitted"
    assert not note_of(home).exists()


def test_a_process_that_can_not_be_started_is_an_error_and_the_next_runs(queue, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "worker_command", lambda request: ["/nowhere/python"])
        task = queue.submit({}, enqueue=False)
        wait_till_ended(task)
    assert task["status"] == "ERROR"
    assert not note_of(home).exists()
    after = queue.submit({}, enqueue=False)
    wait_till_ended(after)
    assert after["status"] == "DONE"


def full(*args):
    raise OutOfSpace("train.json: not written, No space left on device; free some space first")


def test_a_request_that_can_not_be_noted_is_refused_and_the_next_runs(queue):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutOfSpace, match="No space left"):
        patch.setattr(jobs, "write_json", full)
        queue.submit({}, enqueue=False)
    assert queue.tasks == []
    after = queue.submit({}, enqueue=False)
    wait_till_ended(after)
    assert after["status"] == "DONE"


# Stopping


def test_stopping_a_running_task_lets_it_end_by_itself(queue, go):
    task = queue.submit({"until": str(go)}, enqueue=False)
    wait_till_it_works(task)
    assert queue.stop() is task
    wait_till_ended(task)
    assert task["status"] == "STOPPED"
    assert list(task["details"])[-2:] == ["stopping", "stopped in time"]


def test_a_task_that_is_stopped_while_its_process_starts_is_stopped_and_no_error(queue, go):
    task = queue.submit({"until": str(go), "deaf": True}, enqueue=False)
    wait_till_it_works(task)
    queue.stop()
    wait_till_ended(task)
    assert task["status"] == "STOPPED"


def test_stopping_at_any_moment_of_the_start_ends_in_stopped(queue, go):
    for delay in (0.0, 0.0, 0.001, 0.003, 0.01, 0.03):
        task = queue.submit({"until": str(go)}, enqueue=True)
        time.sleep(delay)
        queue.stop()
        wait_for(lambda task=task: "end_ts" in task and task not in queue.unfinished())
        wait_for(lambda: queue._process is None)
        assert task["status"] == "STOPPED"


def test_a_waiting_task_that_is_stopped_never_starts(queue):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "_thread", threading.current_thread())  # so that nothing is taken up yet
        waiting = queue.submit({"model": "one"}, enqueue=False)
        assert queue.stop() is waiting
    assert waiting["status"] == "STOPPED" and queue.unfinished() == []
    after = queue.submit({"model": "two"}, enqueue=False)
    wait_till_ended(after)
    assert (waiting["status"], after["status"]) == ("STOPPED", "DONE")
    assert list(waiting["details"]) == ["submitted", "stopping"]


def test_a_task_that_fails_while_it_is_stopped_is_an_error(queue, go):
    task = queue.submit({"until": str(go), "exit": 3}, enqueue=False)
    wait_till_it_works(task)
    queue.stop()
    wait_till_ended(task)
    assert task["status"] == "ERROR"


def test_stopping_twice_is_as_good_as_once_and_stopping_nothing_is_none(queue, go):
    assert queue.stop() is None
    task = queue.submit({"until": str(go)}, enqueue=False)
    wait_till_it_works(task)
    assert queue.stop() is queue.stop() is task
    wait_till_ended(task)
    assert task["status"] == "STOPPED"
    assert queue.stop() is None


# Outliving the server


@pytest.fixture
def studies(monkeypatch) -> str:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "/studies")
    return "/studies"


def test_the_request_is_noted_while_it_runs_and_forgotten_after(queue, home, go, studies):
    task = queue.submit({"model": "m", "until": str(go)}, enqueue=False)
    wait_till_it_works(task)
    assert noted(home) == [{"request": task["request"], "studies": "/studies"}]
    go.touch()
    wait_till_ended(task)
    wait_for(lambda: not note_of(home).exists())


def test_what_a_killed_server_left_is_asked_for_again(queue, home, studies):
    note_of(home).parent.mkdir(parents=True)
    left = [{"request": {"model": name}, "studies": "/studies"} for name in ("m", "n", "m")]
    note_of(home).write_text(json.dumps({"requests": left}))
    tasks = queue.resume("/studies", ["m", "n"])
    wait_till_ended(*tasks)
    assert [task["request"] for task in tasks] == [{**entry["request"], "resumed": True} for entry in left]
    assert [task["status"] for task in tasks] == ["DONE"] * 3
    wait_for(lambda: not note_of(home).exists())
    assert queue.resume("/studies", ["m"]) == []


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "{", "[]", "{}", '{"requests": 7}', '{"requests": [7, {}, {"studies": "/studies"}]}'),
        '{"requests": [{"studies": "/studies", "request": 7}, {"request": {}}]}',
    ],
)
def test_nothing_is_resumed_from_a_note_that_says_nothing(queue, home, content):
    note_of(home).parent.mkdir(parents=True)
    if content is not None:
        note_of(home).write_text(content)
    assert queue.resume("/studies", ["m"]) == []
    assert queue.tasks == []


def test_requests_of_other_studies_or_models_are_left_for_a_server_that_has_them(queue, home, studies):
    note_of(home).parent.mkdir(parents=True)
    elsewhere = {"request": {"model": "m"}, "studies": "/elsewhere"}
    unknown = {"request": {"model": "another"}, "studies": "/studies"}
    mine = {"request": {"model": "m"}, "studies": "/studies"}
    note_of(home).write_text(json.dumps({"requests": [elsewhere, mine, unknown]}))
    (task,) = queue.resume("/studies", ["m"])
    wait_till_ended(task, queue.submit({"model": "m"}, enqueue=True))
    wait_for(lambda: len(noted(home)) == 2)
    assert noted(home) == [elsewhere, unknown]


def test_a_full_disk_at_the_start_ends_no_server_and_loses_no_request(queue, home, studies, monkeypatch):
    note_of(home).parent.mkdir(parents=True)
    note_of(home).write_text(json.dumps({"requests": [{"request": {"model": "m"}, "studies": "/studies"}]}))
    monkeypatch.setattr(jobs, "write_json", full)
    assert queue.resume("/studies", ["m"]) == []
    assert noted(home) == [{"request": {"model": "m"}, "studies": "/studies"}]


def test_a_server_that_ends_leaves_its_request_for_the_next(home, go, studies):
    queue = jobs.job_queue("train")
    task = queue.submit({"model": "m", "until": str(go)}, enqueue=False)
    waiting = [queue.submit({"model": name}, enqueue=True) for name in ("another", "a third")]
    wait_till_it_works(task)
    jobs.abandon_all()
    wait_till_ended(task)
    wait_for(lambda: queue._waiting.empty())
    assert [entry["request"]["model"] for entry in noted(home)] == ["m", "another", "a third"]
    assert list(waiting[0]["details"]) == ["submitted"], "the ending server has started another task"
    jobs._ending.clear()
    go.touch()
    resumed = JobQueue("train").resume("/studies", ["m", "another", "a third"])
    wait_till_ended(*resumed)
    assert [one["request"] for one in resumed] == [{**one["request"], "resumed": True} for one in (task, *waiting)]
    assert [one["status"] for one in resumed] == ["DONE"] * 3


def test_ending_a_server_that_does_nothing_does_nothing(home):
    jobs.job_queue("train")
    jobs.abandon_all()
    assert not note_of(home).exists()


def test_a_process_that_the_system_kills_is_an_error_and_not_tried_again(queue, home, go):
    task = queue.submit({"until": str(go)}, enqueue=False)
    wait_till_it_works(task)
    queue._process.kill()
    wait_till_ended(task)
    assert task["status"] == "ERROR"
    wait_for(lambda: not note_of(home).exists())


# The host's routes


@pytest.fixture
def host_task(monkeypatch):
    """The host's class with the queues behind it, as it was afterwards."""
    from monailabel.utils.async_tasks.task import AsyncTask

    for name in ("run", "status", "stop"):
        monkeypatch.setattr(AsyncTask, name, vars(AsyncTask)[name])
    checked = []
    jobs.install(checked.append, lambda task: {"epoch": 3, "of": task["request"]["model"]})
    AsyncTask.checked = checked
    yield AsyncTask
    del AsyncTask.checked


def test_the_hosts_routes_run_show_and_stop_a_task(host_task, home, go):
    task, error = host_task.run("train", request={"model": "m"}, params={"until": str(go)})
    assert error is None and task["status"] in ("SUBMITTED", "RUNNING")
    assert host_task.checked == [{"model": "m", "until": str(go)}]
    with pytest.raises(Busy):
        host_task.run("train", request={"model": "m"})
    shown, error = host_task.status("train", check_if_running=True)
    assert error is None and shown["id"] == task["id"]
    assert shown["progress"] == {"epoch": 3, "of": "m"}
    json.dumps(host_task.status("train", all=True)[0])
    assert host_task.stop("train")["id"] == task["id"]
    wait_for(lambda: host_task.status("train")[0]["status"] == "STOPPED")
    assert host_task.status("train", check_if_running=True) == (None, "No train task runs")


def test_the_hosts_route_shows_the_task_that_runs_and_not_the_last_that_waits(host_task, home, go):
    first, _ = host_task.run("train", request={"model": "m"}, params={"until": str(go)})
    host_task.run("train", request={"model": "n"}, enqueue=True)
    assert host_task.status("train")[0]["id"] == first["id"]
    assert [task["request"]["model"] for task in host_task.status("train", all=True)[0]] == ["m", "n"]
    go.touch()
    wait_for(lambda: host_task.status("train")[0]["request"]["model"] == "n")


def test_a_task_is_seen_to_run_until_its_end_was_told(host_task, home, go, monkeypatch):
    queue = jobs.job_queue("train")
    assert queue.seen_to_run() is None
    host_task.run("train", request={"model": "m"}, params={"until": str(go)})
    (task,) = queue.tasks
    assert queue.seen_to_run() is task
    go.touch()
    wait_till_ended(task)
    assert queue.seen_to_run() is task
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: task["ended"] + 60)
        assert queue.seen_to_run() is None  # nobody may ever ask again
    assert host_task.status("train")[0]["status"] == "DONE"
    assert queue.seen_to_run() is None


def test_without_a_task_the_hosts_routes_say_so(host_task, home):
    assert host_task.status("train") == (None, "No train task was started yet")
    with pytest.raises(NotFound, match="no train task runs"):
        host_task.stop("train")


def test_a_request_that_is_refused_starts_nothing(monkeypatch, home):
    from monailabel.utils.async_tasks.task import AsyncTask

    for name in ("run", "status", "stop"):
        monkeypatch.setattr(AsyncTask, name, vars(AsyncTask)[name])

    def refuse(request):
        raise NotFound("no such model")

    jobs.install(refuse, lambda task: {})
    with pytest.raises(NotFound):
        AsyncTask.run("train", request={"model": "m"})
    assert jobs.job_queue("train").tasks == []
