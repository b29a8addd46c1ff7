"""How a server ends; `tests/faults/test_operation.py` ends real ones."""

import asyncio
import signal

import pytest
import uvicorn

from labelrounds import stopping as module
from labelrounds.stopping import GracefulServer, Stopping


@pytest.fixture
def state(monkeypatch) -> Stopping:
    fresh = Stopping()
    monkeypatch.setattr(module, "stopping", fresh)
    return fresh


@pytest.fixture
def server(state) -> GracefulServer:
    made = GracefulServer(uvicorn.Config(lambda: None), patience_s=100)
    made.started = True
    return made


@pytest.fixture
def given_up(monkeypatch) -> list[str]:
    """What was stopped because the time is over."""
    said: list[str] = []
    monkeypatch.setattr(module, "_give_up", lambda: said.append("stopped"))
    return said


def tick(server: GracefulServer) -> bool:
    return asyncio.run(server.on_tick(1))


def test_a_signal_waits_for_those_in_flight_and_is_not_raised_again(server, state):
    state.in_flight = 2
    assert not tick(server)
    server.handle_exit(signal.SIGTERM, None)
    assert not tick(server) and state.begun
    state.in_flight = 0
    assert tick(server) and not server.force_exit
    assert server._captured_signals == []  # uvicorn would end the process by it, and not with status 0


def test_those_in_flight_have_so_much_time_and_no_more(server, state, given_up, monkeypatch):
    state.in_flight = 1
    server.handle_exit(signal.SIGTERM, None)
    assert not tick(server) and given_up == []
    monkeypatch.setattr(server, "_patience_s", 0)
    assert tick(server) and given_up == ["stopped"]


def test_a_second_signal_ends_the_waiting_and_a_third_ctrl_c_forces_it(server, state):
    state.in_flight = 1
    for forced in (None, False, True):
        server.handle_exit(signal.SIGINT, None)
        assert server.should_exit is (forced is not None) and server.force_exit is bool(forced)


def test_a_signal_during_the_start_ends_it(server):
    server.started = False
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit
