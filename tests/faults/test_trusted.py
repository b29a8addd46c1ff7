"""What is checked after each fault would notice one."""

import pytest


def test_a_server_without_a_fault_passes(trusted_server):
    trusted_server.check()


@pytest.mark.parametrize("where", ["outside", "temporary"])
def test_a_file_too_many_is_noticed(trusted_server, where, monkeypatch):
    stray = getattr(trusted_server, where) / "stray"
    stray.write_text("")
    monkeypatch.setattr("tests.faults.trusted.eventually", lambda condition: condition())
    try:
        with pytest.raises(AssertionError, match=r"changed|temporary files"):
            trusted_server.check()
    finally:
        stray.unlink()


def test_an_error_of_the_server_is_noticed(trusted_server, monkeypatch):
    monkeypatch.setattr(trusted_server, "take_log", lambda: "Traceback (most recent call last):\n")
    with pytest.raises(AssertionError, match="Traceback"):
        trusted_server.check()
    monkeypatch.undo()
