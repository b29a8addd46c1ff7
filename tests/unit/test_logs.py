"""Lines of the log: one an event, in either format, with the request's id, and none that a client has written."""

import json
import logging
import logging.config
import sys
import threading

import pytest
from timeloop import Timeloop

from labelrounds.engine import DeviceWorker
from labelrounds.logs import Context, JsonFormatter, TextFormatter, accepted_id, current, log_config, request_id

FORGED = "scan\n2026-11-28T00:00:00.000Z INFO labelrounds: admin logged in\r\x1b[2K\u2028\x85\ud800"


class Ann:
    username = "ann"


def record(message="said", *args, error=None, **about) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("labelrounds.x", logging.WARNING, "x.py", 1, message, args, info)
    made.__dict__.update(about)
    return made


@pytest.fixture
def of_a_request():
    token = current.set(Context("r-1", {"user": Ann()}))
    yield
    current.reset(token)


def raised(words: str) -> Exception:
    try:
        raise ValueError(words)
    except ValueError as error:
        return error


def test_a_json_line_has_time_level_logger_message_and_whose_it_is(of_a_request):
    line = json.loads(JsonFormatter().format(record("%s %d", "read", 3, route="/infer/{model}", status=200)))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "labelrounds.x",
        "message": "read 3",
        "request_id": "r-1",
        "user": "ann",
        "route": "/infer/{model}",
        "status": 200,
    }


def test_a_text_line_has_the_same(of_a_request):
    assert TextFormatter().format(record("read %d", 3)).endswith("Z WARNING labelrounds.x [r-1]: read 3")


def test_outside_a_request_there_is_no_id():
    assert "request_id" not in json.loads(JsonFormatter().format(record()))
    assert "[" not in TextFormatter().format(record())


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_line_cant_be_forged_by_what_a_client_sends(formatter):
    line = formatter.format(record("image %s", FORGED))
    assert len(line.splitlines()) == 1 and "\x1b" not in line
    assert line.encode() and "admin logged in" in line


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_nor_by_the_words_of_an_exception(formatter):
    lines = formatter.format(record(error=raised(FORGED))).splitlines()
    assert "ValueError" in "".join(lines)
    assert [line for line in lines[1:] if not line.startswith("    ")] == []


@pytest.mark.parametrize("sent", ["a", "7f3-x.Y_2", "a" * 64])
def test_an_id_that_fits_is_kept(sent):
    assert accepted_id(sent) == sent


@pytest.mark.parametrize("sent", ["", "a" * 65, "a b", "a\nb", "../x", "<b>", "ä", "-a", ".a"])
def test_an_id_that_does_not_fit_is_replaced(sent):
    assert accepted_id(sent) != sent and accepted_id(accepted_id(sent))


def test_the_devices_thread_logs_on_behalf_of_the_request(of_a_request):
    worker = DeviceWorker("cpu")
    with worker.place("image", "answer") as place:
        ids = place.compute(lambda stopped: (request_id(), threading.current_thread().name))
    worker.close()
    assert ids == ("r-1", "engine-cpu")


@pytest.fixture
def loggers():
    """The loggers that a server sets up, put back as they were."""
    found = logging.getLogger(), logging.getLogger("timeloop")
    before = [(one.handlers[:], one.filters[:], one.level) for one in found]
    yield found
    for handler in found[0].handlers:
        handler.close()
    for one, (handlers, filters, level) in zip(found, before, strict=True):
        one.handlers[:], one.filters[:] = handlers, filters
        one.setLevel(level)


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_terminal_and_the_file_get_the_same_lines(form, home, monkeypatch, loggers):
    said = []
    monkeypatch.setattr(sys, "stderr", type("Screen", (), {"write": said.append, "flush": lambda self: None})())
    logging.config.dictConfig(log_config(form))
    logging.getLogger("labelrounds.x").info("begun")
    for handler in loggers[0].handlers:
        handler.flush()
    written = (home / "logs" / "labelrounds.log").read_text()
    assert "".join(said) == written
    assert ("begun" in json.loads(written)["message"]) if form == "json" else written.endswith("x: begun\n")


def test_what_the_host_starts_writes_no_line_in_another_format(home, capsys, loggers):
    logging.config.dictConfig(log_config("json"))
    Timeloop().start()
    logging.getLogger("labelrounds.x").info("begun")
    told = capsys.readouterr()
    assert told.out == "" and json.loads(told.err)["message"] == "begun"
