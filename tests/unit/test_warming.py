"""What a first request would wait for is ready before it, within a budget, and in nobody's way."""

import threading

import pytest
import torch

from labelrounds import warming
from labelrounds.errors import BadInput, Cancelled
from labelrounds.warming import WarmUp

PATIENCE_S = 30
GB = 10**9


class Model:
    """Notes where it is made ready; fails as often as it is told."""

    def __init__(self, size: int = 1, errors: tuple[Exception, ...] = ()) -> None:
        self.size, self.errors, self.devices = size, list(errors), []

    def weights_bytes(self) -> int:
        return self.size

    def warm_up(self, device: torch.device) -> None:
        self.devices.append(str(device))
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def readings(monkeypatch) -> list[str]:
    """Two GPUs by name alone, of 10 GB each; nothing computes on them. Returns what has loaded the parsers."""
    loaded = []
    monkeypatch.setattr(warming, "_AFTER_S", 0.0)
    monkeypatch.setattr(warming, "make_ready", lambda: loaded.append(threading.current_thread().name))
    monkeypatch.setattr(warming, "choose_devices", lambda: [torch.device("cuda:0"), torch.device("cuda:1")])
    monkeypatch.setattr(warming, "free_bytes", lambda device: 10 * GB)
    return loaded


def run(**models: Model) -> None:
    made = WarmUp(models)
    made.start()
    made._thread.join(PATIENCE_S)
    assert not made._thread.is_alive()


def test_every_served_model_is_made_ready_on_every_device_and_so_is_reading(readings):
    served, untrained = Model(), Model(size=0)
    run(served=served, untrained=untrained)
    assert served.devices == ["cuda:0", "cuda:1"] and untrained.devices == []
    assert readings == ["warm-up"]


def test_only_as_many_models_are_loaded_as_a_tenth_of_the_free_memory_holds(caplog):
    models = {"first": Model(GB // 2), "second": Model(GB // 2), "third": Model(1)}
    with caplog.at_level("INFO", "labelrounds.warming"):
        run(**models)
    assert [len(model.devices) for model in models.values()] == [2, 2, 0]
    assert "Not made ready on cuda:1: third and what follows, for want of memory" in caplog.text


def test_what_a_user_was_in_the_way_of_is_done_again():
    model = Model(errors=(Cancelled("others wait"), Cancelled("others wait")))
    run(model=model)
    assert model.devices == ["cuda:0"] * 3 + ["cuda:1"]


@pytest.mark.parametrize("error", [BadInput("damaged weights"), RuntimeError("a fault of ours")], ids=repr)
def test_a_model_that_can_not_be_made_ready_is_left_and_the_next_one_is(error, caplog):
    faulty, sound = Model(errors=(error,)), Model()
    with caplog.at_level("INFO", "labelrounds.warming"):
        run(faulty=faulty, sound=sound)
    assert faulty.devices == sound.devices == ["cuda:0", "cuda:1"]
    assert "Not made ready: faulty on cuda:0" in caplog.text and str(error) in caplog.text


def test_nothing_more_is_begun_when_the_server_ends():
    class Endless(Model):
        begun, go = threading.Event(), threading.Event()

        def warm_up(self, device):
            super().warm_up(device)
            self.begun.set()
            assert self.go.wait(PATIENCE_S)

    first, second = Endless(), Model()
    made = WarmUp({"first": first, "second": second})
    made.start()
    assert first.begun.wait(PATIENCE_S)
    closing = threading.Thread(target=made.close)
    closing.start()
    while not made._closed.is_set():
        closing.join(0.01)
    first.go.set()
    closing.join(PATIENCE_S)
    assert not made._thread.is_alive()
    assert first.devices == ["cuda:0"] and second.devices == []


def test_nothing_is_begun_while_the_server_starts(readings, monkeypatch):
    monkeypatch.setattr(warming, "_AFTER_S", float(PATIENCE_S))
    model = Model()
    made = WarmUp({"model": model})
    made.start()
    made.close()
    assert not made._thread.is_alive()
    assert readings == model.devices == []


def test_ending_what_never_began_is_no_error():
    model = Model()
    WarmUp({"model": model}).close()
    assert model.devices == []
