"""What surrounds a request: ids, problem details, log lines and audit lines, whatever its route does."""

import json
import logging
import threading

import pytest
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException
from prometheus_client import generate_latest
from starlette.testclient import TestClient

from labelrounds import audit, problem, settings, stopping, tracing
from labelrounds.audit import audit_log
from labelrounds.errors import BadInput, Busy, Cancelled, LabelRoundsError, OutOfSpace, Overloaded, TooLarge
from labelrounds.logs import request_id
from labelrounds.telemetry import registry, telemetry
from labelrounds.tracing import TracingMiddleware, note

# isort: split
from fastapi import FastAPI, HTTPException, Request

SECRET = "/srv/studies/secret.nii.gz"


class Ann:
    username = "ann"


FAILURES = {
    "bad": (BadInput("image id 'x': allowed are letters"), 400, "image id 'x': allowed are letters"),
    "large": (TooLarge("9 GB"), 413, "9 GB"),
    "busy": (Busy("a training runs"), 429, "a training runs"),
    "gone": (Cancelled("the client has gone"), 499, "the client has gone"),
    "full": (Overloaded("16 wait"), 503, "16 wait"),
    "disk": (OutOfSpace("no space left"), 507, "no space left"),
    "host": (MONAILabelException(MONAILabelError.INVALID_INPUT, "no model"), 400, "no model"),
    "image": (ImageNotFoundException("no image"), 404, "no image"),
    "refused": (HTTPException(403, 'Role "admin" is required'), 403, 'Role "admin" is required'),
    "structured": (HTTPException(409, {"a": [1]}), 409, '{"a": [1]}'),
    "inside": (HTTPException(500, SECRET), 500, "the server failed at this request"),
    "ours": (LabelRoundsError(SECRET), 500, "the server failed at this request"),
    "bug": (ZeroDivisionError(SECRET), 500, "the server failed at this request"),
    "surrogate": (BadInput("\ud800 is no name"), 400, "? is no name"),
}


def build() -> FastAPI:
    application = FastAPI()

    @application.get("/fail/{model}")
    def fail(model: str) -> None:
        raise FAILURES[model][0]

    @application.get("/datastore/image")
    def see(http: Request, image: str, params: str = "", number: int = 0) -> dict[str, str]:
        http.state.user = Ann()
        logging.getLogger("labelrounds.test").info("read in %s", threading.current_thread().name)
        return {"id": request_id(), "image": image}

    @application.put("/datastore/image")
    def add() -> dict[str, str]:
        note(image="added")
        return {}

    @application.put("/datastore/label")
    def label() -> dict[str, str]:
        return {}

    @application.get("/info/")
    def info() -> dict[str, str]:
        return {}

    @application.get("/health/live")
    async def live() -> dict[str, str]:
        return {}

    application.include_router(telemetry)
    problem.install(application)
    application.add_middleware(TracingMiddleware)
    return application


@pytest.fixture(autouse=True)
def state(monkeypatch):
    """A server that is not ending."""
    fresh = stopping.Stopping()
    monkeypatch.setattr(tracing, "stopping", fresh)
    return fresh


@pytest.fixture
def client():
    with TestClient(build(), client=("127.0.0.1", 5)) as made:
        yield made


@pytest.fixture
def options(monkeypatch):
    """Set settings for a test."""

    def choose(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"LABELROUNDS_{name.upper()}", value)
        settings.server_settings.cache_clear()

    yield choose
    monkeypatch.undo()
    settings.server_settings.cache_clear()


def assert_problem(answer, status: int, words: str) -> None:
    content = answer.json()
    assert answer.status_code == content["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in content["detail"] and next(iter(content)) == "detail"
    assert content["instance"] == answer.headers["x-request-id"]
    assert content["title"] and content["type"] == "about:blank"
    assert SECRET not in answer.text and "Traceback" not in answer.text
    assert ("retry-after" in answer.headers) is (status in (429, 503))


@pytest.mark.parametrize("kind", FAILURES)
def test_every_failure_is_a_problem_in_a_sentence(client, caplog, kind):
    error, status, words = FAILURES[kind]
    caplog.set_level(logging.INFO)
    answer = client.get(f"/fail/{kind}")
    assert_problem(answer, status, words)
    if status == 500:  # what is behind it stands in the log, with its traceback
        assert [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]


def test_a_middleware_may_raise_as_a_route_does(caplog):
    class Door:
        def __init__(self, app) -> None:
            pass

        async def __call__(self, scope, receive, send) -> None:
            raise TooLarge("2 GB are more than 1 GB")

    application = FastAPI()
    application.add_middleware(Door)
    application.add_middleware(TracingMiddleware)
    assert_problem(TestClient(application).get("/info/"), 413, "more than 1 GB")


def test_an_answer_that_breaks_off_is_not_taken_for_whole():
    async def breaks(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TestClient(TracingMiddleware(breaks)).get("/info/")


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "there is nothing at this address"),
        ("PATCH", "/info/", 405, "allowed: GET"),
        ("GET", "/datastore/image", 422, "query.image"),
        ("GET", "/datastore/image?image=a&number=x", 422, "query.number"),
    ],
)
def test_what_the_framework_refuses_is_a_problem_too(client, method, path, status, words):
    assert_problem(client.request(method, path), status, words)


def test_a_request_has_one_id_everywhere(client, caplog):
    caplog.set_level(logging.INFO)
    sent = client.get("/datastore/image?image=scan_1", headers={"X-Request-ID": "from-proxy.7"})
    assert sent.json()["id"] == sent.headers["x-request-id"] == "from-proxy.7"
    assert [line["request"] for line in audit_log().lines()] == ["from-proxy.7"]
    made = client.get("/datastore/image?image=scan_1", headers={"X-Request-ID": "two words"})
    assert made.json()["id"] == made.headers["x-request-id"] != "two words"


def test_the_log_has_a_line_for_a_request_without_what_it_was_about(client, caplog):
    caplog.set_level(logging.INFO)
    client.get("/datastore/image?image=MUELLER_HANS&params=secret")
    (line,) = [record for record in caplog.records if record.name == "labelrounds.tracing"]
    assert (line.method, line.route, line.status, line.address) == ("GET", "/datastore/image", 200, "127.0.0.1")
    assert line.duration_s >= 0
    said = "".join(record.getMessage() for record in caplog.records if record.name != "httpx")
    assert "MUELLER" not in said and "secret" not in said


def test_the_audit_log_says_who_saw_or_changed_what_and_no_parameters(client):
    client.get("/datastore/image?image=scan_1&params=secret")
    client.put("/datastore/image?params=secret")
    lines = list(audit_log().lines())
    assert [(line["user"], line["method"], line["route"], line["ids"], line["status"]) for line in lines] == [
        ("ann", "GET", "/datastore/image", {"image": "scan_1"}, 200),
        (None, "PUT", "/datastore/image", {"image": "added"}, 200),
    ]
    assert "secret" not in json.dumps(lines)


def test_refused_attempts_are_in_the_audit_log_and_polls_are_not(client):
    client.get("/fail/refused")
    for path in ("/info/", "/health/live", "/nowhere"):
        client.get(path)
    assert [(line["route"], line["status"], line["ids"]) for line in audit_log().lines()] == [
        ("/fail/{model}", 403, {"model": "refused"})
    ]


@pytest.fixture
def full_disk(monkeypatch):
    """Take no more line of the audit log."""
    monkeypatch.setattr(audit.os, "write", lambda *of: 0)


def test_with_a_full_disk_requests_are_served_and_the_failure_is_known(client, full_disk):
    assert client.get("/datastore/image?image=scan_1").status_code == 200
    assert audit_log().failing


def test_where_the_audit_log_is_required_nothing_is_shown_that_is_not_in_it(client, full_disk, options):
    options(audit_required="true")
    for _ in range(2):  # the first is found out by writing, the second before it is answered
        answer = client.get("/datastore/image?image=scan_1")
        assert_problem(answer, 507, "audit log")
        assert "scan_1" not in answer.text
    assert client.get("/health/live").status_code == 200


def test_a_server_that_is_ending_refuses_all_but_health(client, state):
    state.begin()
    answer = client.get("/info/")
    assert_problem(answer, 503, "the server is ending")
    assert answer.headers["connection"] == "close"
    assert client.get("/health/live").status_code == 200
    assert state.in_flight == 0


def figures() -> dict[str, float]:
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_requests_are_counted_by_templates_and_never_by_what_a_client_sends(client):
    before = figures()
    for number in range(5):
        client.get(f"/fail/bad?x={number}")
        client.get(f"/nowhere/{number}")
        client.request(f"WHAT{number}", "/info/")
    client.put("/datastore/label")
    after = figures()
    grown = {name for name in after if after[name] != before.get(name, 0)}
    assert 'labelrounds_requests_total{method="GET",route="/fail/{model}",status="400"}' in grown
    assert 'labelrounds_requests_total{method="GET",route="(none)",status="404"}' in grown
    assert 'labelrounds_requests_total{method="other",route="/info/",status="405"}' in grown
    assert after["labelrounds_labels_submitted_total"] == before.get("labelrounds_labels_submitted_total", 0) + 1
    assert not [name for name in grown if "nowhere" in name or "WHAT" in name]


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200)])
def test_figures_are_for_this_machine(host, status):
    assert TestClient(build(), client=(host, 5)).get("/metrics").status_code == status


@pytest.mark.parametrize("host", ["10.0.0.7", "::ffff:10.0.0.7", "evil.example", ""])
def test_figures_are_for_nobody_else(host):
    assert_problem(TestClient(build(), client=(host, 5)).get("/metrics"), 403, "LABELROUNDS_METRICS_TOKEN")


def test_figures_are_for_who_has_the_token_where_there_is_one(options):
    options(metrics_token="a-token-of-the-monitor")
    remote, local = (TestClient(build(), client=(host, 5)) for host in ("10.0.0.7", "127.0.0.1"))
    for sent in ("", "Bearer wrong", "a-token-of-the-monitor", "Bearer ä"):
        for asked in (remote, local):
            answer = asked.get("/metrics", headers={"Authorization": sent.encode()})
            assert_problem(answer, 401, "token")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert remote.get("/metrics", headers={"Authorization": "Bearer a-token-of-the-monitor"}).status_code == 200
    assert "a-token" not in repr(settings.server_settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [("log_format", "xml"), ("stop_s", "-1"), ("metrics_token", "short"), ("audit_required", "perhaps")],
)
def test_a_wrong_setting_is_said_with_its_variable_and_not_its_value(options, name, value):
    options(**{name: value})
    with pytest.raises(BadInput, match=f"LABELROUNDS_{name.upper()}: ") as refused:
        settings.server_settings()
    assert name != "metrics_token" or value not in str(refused.value)
