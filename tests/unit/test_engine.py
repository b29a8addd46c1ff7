"""Who computes when: one at a time, in turn, no more than fit, and nobody for a client that has gone."""

import gc
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from tests import waiting

from labelrounds import engine
from labelrounds.engine import DeviceWorker, Engine
from labelrounds.errors import Cancelled, Overloaded

PATIENCE_S = 30
wait_until = partial(waiting.wait_until, timeout_s=PATIENCE_S, pause_s=0.002)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(engine, "_POLL_S", 0.01)


@pytest.fixture
def worker():
    made = DeviceWorker("cpu", admitted=1)
    yield made
    made.close()


class Request:
    """A request in a thread of its own, which computes until it is told to end."""

    def __init__(self, worker: DeviceWorker, pool: ThreadPoolExecutor, log: list[str], name: str, **about):
        self.worker, self.log, self.name = worker, log, name
        self.image, self.answer = about.pop("image", name), about.pop("answer", name)
        reads_long = about.pop("reads_long", False)
        self.about = {"gone": lambda: self.left, **about}
        self.left = False
        self.loading, self.running, self.end = threading.Event(), threading.Event(), threading.Event()
        self.load = threading.Event()
        if not reads_long:
            self.load.set()
        self.result: Future[str] = pool.submit(self._run)

    def _run(self) -> str:
        with self.worker.place(self.image, self.answer, **self.about) as place:
            self.loading.set()
            assert self.load.wait(PATIENCE_S)
            return place.compute(self._compute)

    def _compute(self, stopped) -> str:
        self.log.append(self.name)
        self.running.set()
        while not self.end.wait(0.005):
            if stopped():
                raise Cancelled(self.name)
        return self.name

    def finish(self) -> str:
        self.end.set()
        return self.result.result(PATIENCE_S)


@pytest.fixture
def log() -> list[str]:
    """The names of the requests in the order in which they computed."""
    return []


@pytest.fixture
def ask(worker, log):
    """Start a request and wait until it has its place, so that the order of arrival is what the test says."""
    with ThreadPoolExecutor(40) as pool:
        started: list[Request] = []

        def start(name: str, **about) -> Request:
            places = len(worker._places)
            request = Request(worker, pool, log, name, **about)
            started.append(request)
            wait_until(lambda: len(worker._places) > places or request.result.done())
            return request

        yield start
        for request in started:
            request.load.set()
            request.end.set()


def test_one_request_at_a_time_computes_and_each_gets_its_own_answer(worker):
    inside, most = [], []

    def count(stopped):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.005)
        inside.pop()
        return threading.current_thread().name

    def ask(number):
        with worker.place(number, number) as place:
            return number, place.compute(count)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(12)))
    assert [number for number, _ in answers] == list(range(12))
    assert {thread for _, thread in answers} == {"engine-cpu"}
    assert max(most) == 1 and len(most) == 12


def test_the_next_image_is_read_while_another_is_computed_and_only_that_one(ask):
    first, second, third = (ask(name) for name in "abc")
    assert first.running.wait(PATIENCE_S) and second.loading.wait(PATIENCE_S)
    assert not third.loading.wait(0.05)
    first.finish()
    assert second.running.wait(PATIENCE_S) and third.loading.wait(PATIENCE_S)


def test_clients_are_served_in_turn_however_much_one_asks_for(ask, log):
    requests = [ask(name, client=name[0]) for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2", "d1")]
    for request in requests:
        request.end.set()
    for request in requests:
        request.finish()
    # The first runs and the second is read already when the others come.
    assert log == ["a1", "a2", "b1", "c1", "d1", "b2", "a3", "a4"]


def test_new_clients_do_not_put_off_another_ones_requests_for_ever(ask, log):
    requests = {name: ask(name, client="a") for name in ("a0", "a1", "a2", "a3")}
    assert requests["a0"].running.wait(PATIENCE_S)
    for number in range(25):
        name = f"n{number}"
        requests[name] = ask(name, client=name)
        requests[log[-1]].finish()
        wait_until(lambda seen=number + 2: len(log) == seen)
    assert "a3" in log


def test_who_finds_the_queue_full_is_refused_and_the_others_are_served(ask, log, worker):
    requests = [ask(f"r{number}", client=str(number)) for number in range(engine.MOST_WAITING + 1)]
    assert requests[0].running.wait(PATIENCE_S)
    assert worker.waiting == engine.MOST_WAITING
    refused = ask("late", client="late")
    with pytest.raises(Overloaded, match="16 requests wait for cpu already"):
        refused.result.result(PATIENCE_S)
    for request in requests:
        request.end.set()
    assert [request.finish() for request in requests] == log
    assert worker.waiting == 0
    assert ask("later").finish() == "later"


def test_a_waiting_request_whose_client_has_gone_frees_its_place_and_never_computes(ask, log, worker):
    first, second, third = (ask(name) for name in "abc")
    second.left = third.left = True
    for request in (second, third):
        with pytest.raises(Cancelled, match="the client has gone"):
            request.result.result(PATIENCE_S)
    assert worker.waiting == 0
    assert first.finish() == "a"
    assert log == ["a"]


def test_a_running_request_whose_client_has_gone_stops_and_the_next_one_runs(ask, log):
    first, second = ask("a"), ask("b")
    assert first.running.wait(PATIENCE_S)
    first.left = True
    with pytest.raises(Cancelled):
        first.result.result(PATIENCE_S)
    assert second.running.wait(PATIENCE_S)
    assert second.finish() == "b"


@pytest.mark.parametrize("error", [ValueError("bad"), MemoryError(), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_is_the_requests_own_and_the_next_one_is_served(worker, error):
    def fails(stopped):
        raise error

    for _ in range(3):
        with pytest.raises(type(error)), worker.place("image", "answer") as place:
            place.compute(fails)
    with worker.place("image", "answer") as place:
        assert place.compute(lambda stopped: "served") == "served"


def test_nothing_of_a_request_that_failed_or_ended_stays_in_memory(worker):
    class Big:
        pass

    def ask(fails: bool) -> weakref.ref:
        big = Big()

        def task(stopped):
            if fails:
                raise ValueError(big)
            return weakref.ref(big)

        with worker.place("image", "answer") as place:
            return place.compute(task)

    gc.disable()
    try:
        assert ask(False)() is None
        caught = []
        try:
            ask(True)
        except ValueError as error:
            caught.append(weakref.ref(error.args[0]))
        wait_until(lambda: caught[0]() is None)
    finally:
        gc.enable()


def test_requests_about_one_image_come_one_after_the_other_and_hold_up_no_other(ask):
    first, same, other = ask("a", image="x"), ask("b", image="x"), ask("c", image="y")
    assert first.running.wait(PATIENCE_S)
    assert other.loading.wait(PATIENCE_S) and not same.loading.is_set()
    first.finish()
    assert other.running.wait(PATIENCE_S) and same.loading.wait(PATIENCE_S)


def test_background_work_waits_while_a_user_has_a_place(ask, log):
    user = ask("user")
    background = ask("background", background=True)
    later = ask("later")
    user.finish()
    assert later.running.wait(PATIENCE_S)
    assert not background.loading.is_set()
    later.finish()
    assert background.running.wait(PATIENCE_S)
    assert background.finish() == "background"
    assert log == ["user", "later", "background"]


def test_background_work_does_not_count_as_waiting(ask, worker):
    ask("first")
    for number in range(engine.MOST_WAITING + 2):
        ask(f"b{number}", background=True)
    assert worker.waiting == 0


def test_running_background_work_stops_for_a_user(ask, log):
    background = ask("background", background=True)
    assert background.running.wait(PATIENCE_S)
    user = ask("user")
    with pytest.raises(Cancelled):
        background.result.result(PATIENCE_S)
    assert user.running.wait(PATIENCE_S)
    assert user.finish() == "user"


def test_background_work_goes_on_for_the_user_who_asks_for_the_same(ask, log):
    background = ask("background", image="x", answer="x by m", background=True)
    assert background.running.wait(PATIENCE_S)
    same, other = ask("same", image="x", answer="x by m"), ask("other")
    assert not background.result.done()
    assert background.finish() == "background"
    same.end.set()
    other.end.set()
    assert (same.finish(), other.finish()) == ("same", "other")
    assert log[0] == "background"


def test_background_work_whose_image_a_user_wants_for_something_else_gives_way(ask):
    background = ask("background", image="x", answer="x by m", background=True, reads_long=True)
    assert background.loading.wait(PATIENCE_S)
    user = ask("user", image="x", answer="x by n")
    background.load.set()
    with pytest.raises(Cancelled):
        background.result.result(PATIENCE_S)
    assert user.running.wait(PATIENCE_S)
    assert user.finish() == "user"


def test_background_work_that_has_its_image_keeps_it_while_users_compute(ask, log):
    background = ask("background", background=True, reads_long=True)
    assert background.loading.wait(PATIENCE_S)
    user = ask("user")
    background.load.set()
    assert user.running.wait(PATIENCE_S)
    user.finish()
    assert background.running.wait(PATIENCE_S)
    assert background.finish() == "background"
    assert log == ["user", "background"]


def test_closing_refuses_who_waits_stops_who_runs_and_ends_the_thread(ask, worker):
    running, ready, waiting = (ask(name) for name in "abc")
    assert running.running.wait(PATIENCE_S) and ready.loading.wait(PATIENCE_S)
    worker.close()
    with pytest.raises(Cancelled):
        running.result.result(PATIENCE_S)
    for request in (ready, waiting):
        with pytest.raises(Overloaded, match="the server is ending"):
            request.result.result(PATIENCE_S)
    assert not worker._thread.is_alive()
    with pytest.raises(Overloaded, match="the server is ending"), worker.place("image", "answer"):
        pass


def test_every_device_has_one_worker_of_its_own():
    made = Engine()
    cpu, gpu = made.worker(torch.device("cpu")), made.worker(torch.device("cuda:1"))
    assert cpu is made.worker(torch.device("cpu")) and cpu is not gpu
    for worker in (cpu, gpu):
        with worker.place("image", "answer") as place:
            assert place.compute(lambda stopped: threading.current_thread().name) == f"engine-{worker.name}"
    made.close()
    assert not cpu._thread.is_alive() and not gpu._thread.is_alive()


@pytest.fixture
def gpus():
    """Two devices of an engine, by name alone: nothing here computes on them."""
    made = Engine()
    yield made, [torch.device("cuda:0"), torch.device("cuda:1")]
    made.close()


def test_of_several_devices_the_one_with_the_fewest_before_it_is_taken_else_the_first(gpus):
    made, (first, second) = gpus
    with ExitStack() as held:

        def taken(name, devices, **about) -> torch.device:
            return held.enter_context(made.place(dict.fromkeys(devices, name), name, **about)).device

        assert taken("a", [second, first], background=True) == second
        assert taken("b", [second, first]) == first
        assert taken("c", [first, second]) == second  # background work is no user's place


def test_the_same_answer_is_waited_for_where_it_is_being_made(gpus):
    made, (first, second) = gpus

    def join() -> torch.device:
        with made.place({first: "answer at 0", second: "answer at 1"}, "image") as place:
            return place.device

    with ThreadPoolExecutor(1) as pool:
        with made.worker(second).place("image", "answer at 1"):
            joined = pool.submit(join)
            wait_until(lambda: made.worker(second).waiting == 2)
            assert made.worker(first).waiting == 0 and not joined.done()
        assert joined.result(PATIENCE_S) == second
