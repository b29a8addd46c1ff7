"""A version's runtime is chosen behind an answer, when nobody waits, and once."""

import threading
import time

import pytest
import torch

import labelrounds.tuning
from labelrounds.checkpoints import Checkpoints
from labelrounds.engine import Engine
from labelrounds.errors import Cancelled, Conflict, TooLarge
from labelrounds.networks import build_network
from labelrounds.served import ServedNetworks
from labelrounds.settings import server_settings
from labelrounds.tuning import Tuning

CPU = torch.device("cpu")
IMAGE = torch.linspace(-1, 1, 24**3).reshape(1, 24, 24, 24)
LABEL = (IMAGE[0] > 0).byte()


@pytest.fixture
def engine():
    found = Engine()
    yield found
    found.close()


@pytest.fixture
def tuning(engine):
    found = Tuning(engine)
    yield found
    engine.close()
    found.close()


class Networks(ServedNetworks):
    """Notes what is settled, in steps."""

    def __init__(self, config, error: Exception | None = None) -> None:
        super().__init__(config)
        self.error, self.images, self.steps = error, [], []
        self.step, self.settled = (lambda stopped: None), threading.Semaphore(0)

    def settle(self, version, device, images, do=None) -> None:
        self.images.append(images)
        for _ in range(3):
            self.steps.append(do(self.step))
        self.settled.release()
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        assert self.settled.acquire(timeout=30)


@pytest.fixture
def version(config):
    return Checkpoints(config).publish(build_network(config).eval(), {})


def next_in_turn(config, tuning) -> Networks:
    """Return the networks of another version once its runtime is settled; what was added before is done by then."""
    networks = Networks(config)
    tuning.add(networks, Checkpoints(config).publish(build_network(config).eval(), {}), CPU, IMAGE, LABEL)
    networks.wait()
    return networks


def test_it_is_chosen_once_by_an_excerpt_of_the_image(config, version, tuning):
    networks = Networks(config)
    for _ in range(3):
        tuning.add(networks, version, CPU, IMAGE, LABEL)
    networks.wait()
    other = next_in_turn(config, tuning)
    assert len(networks.images) == len(other.images) == 1
    assert [image.shape for image in networks.images[0]] == [(1, 12, 12, 12)]


def test_neither_an_empty_answer_nor_a_forced_runtime_starts_anything(make_small, version, tuning):
    networks = Networks(make_small())
    tuning.add(networks, version, CPU, IMAGE, torch.zeros_like(LABEL))
    forced = Networks(make_small(inference={"runtime": "eager"}))
    tuning.add(forced, version, CPU, IMAGE, LABEL)
    tuning.add(networks, version, CPU, IMAGE, LABEL)  # in turn, after what would have been before it
    networks.wait()
    assert not forced.images and len(networks.images) == 1


def test_nothing_is_measured_where_that_is_not_wanted(config, version, tuning, monkeypatch):
    networks = Networks(config)
    with monkeypatch.context() as patch:
        patch.setenv("LABELROUNDS_MEASURE_RUNTIMES", "false")
        tuning.add(networks, version, CPU, IMAGE, LABEL)
    server_settings.cache_clear()
    assert len(next_in_turn(config, tuning).images) == 1 and not networks.images


def test_where_an_image_shows_too_little_another_one_is_taken(config, version, tuning):
    networks, little = Networks(config), torch.zeros_like(LABEL)
    little[0, 0, :20] = 1
    tuning.add(networks, version, CPU, IMAGE + 9, little)
    tuning.add(networks, version, CPU, IMAGE, LABEL)
    networks.wait()
    assert [float(image.max()) < 2 for image in networks.images[0]] == [True]


@pytest.mark.parametrize("error", [Conflict("no label has 200 voxels"), TooLarge("needs 90 GB")], ids=repr)
def test_what_could_not_be_chosen_is_not_tried_again_for_each_image(config, version, tuning, error):
    networks = Networks(config, error)
    for _ in range(3):
        tuning.add(networks, version, CPU, IMAGE, LABEL)
    networks.wait()
    next_in_turn(config, tuning)
    assert len(networks.images) == 1


def test_an_answer_does_not_fail_with_what_the_choice_needs_of_it(config, version, tuning, monkeypatch, caplog):
    def lacking(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(labelrounds.tuning, "excerpt", lacking)
    tuning.add(Networks(config), version, CPU, IMAGE, LABEL)
    assert "tiny version 1 keeps its runtime" in caplog.text and "out of memory" in caplog.text


def test_a_fault_is_logged_and_the_next_version_has_its_turn(config, version, tuning, caplog):
    faulty = Networks(config, RuntimeError("a fault"))
    tuning.add(faulty, version, CPU, IMAGE, LABEL)
    next_in_turn(config, tuning)
    assert "tiny version 1 keeps its runtime" in caplog.text and "a fault" in caplog.text


def test_a_user_waits_for_no_more_than_the_step_under_way(config, version, tuning, engine):
    networks, order = Networks(config), []
    running, go = threading.Event(), threading.Event()

    def step(stopped) -> None:
        running.set()
        assert go.wait(30)
        order.append("step")

    networks.step = step
    tuning.add(networks, version, CPU, IMAGE, LABEL)
    assert running.wait(30)
    with engine.worker(CPU).place("image", "answer", client="user") as place:
        go.set()
        place.compute(lambda stopped: order.append("user"))
    networks.wait()
    assert order == ["step", "user", "step", "step"]


def test_a_step_that_a_user_stops_is_begun_anew(config, version, tuning, engine):
    networks, began, served = Networks(config), threading.Event(), threading.Event()

    def step(stopped) -> str:
        began.set()
        while not served.is_set():
            if stopped():
                raise Cancelled("others wait")
            time.sleep(0.01)
        return "done"

    networks.step = step
    tuning.add(networks, version, CPU, IMAGE, LABEL)
    assert began.wait(30)
    with engine.worker(CPU).place("image", "answer", client="user") as place:
        place.compute(lambda stopped: served.set())
    networks.wait()
    assert networks.steps == ["done"] * 3


def test_the_servers_end_ends_it(config, version, tuning, engine):
    networks, running = Networks(config), threading.Event()

    def step(stopped) -> None:
        running.set()
        while not stopped():
            time.sleep(0.01)

    networks.step = step
    tuning.add(networks, version, CPU, IMAGE, LABEL)
    assert running.wait(30)
    engine.close()
    tuning.close()
    assert not any(thread.is_alive() for thread in tuning._backlog.threads) and len(networks.steps) < 3


def test_it_remembers_no_more_than_the_last_version_of_each_model(config, tuning):
    for _ in range(4):
        next_in_turn(config, tuning)
    assert len(tuning._seen) == 1
