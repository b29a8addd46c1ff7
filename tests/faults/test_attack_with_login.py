"""An attack on a server with a login, whose studies lie on a PACS that it has the password of; see `test_attack.py`."""

import base64
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.test_attack import Canary
from tests.faults.trusted import MODEL, TrustedServer, trusted
from tests.pacs_stand_in import DICOMWEB, StandIn, reply, stand_in

PASSWORD = "the-password-of-the-pacs"
ELSEWHERE = b"what only the PACS's own administrator may see"
ROLES = ("user", "annotator", "admin")
UP = "..%2f..%2f"
# Whoever starts the server may turn the log's level down; what it starts with is changed before it is used.
ALL_IS_LOGGED = """
import logging.config
real = logging.config.dictConfig
logging.config.dictConfig = lambda told: real({**told, "root": {**told.get("root", {}), "level": "DEBUG"}})
"""
LIMITS = {"LABELROUNDS_LARGEST_UPLOAD_MB": "3", "LABELROUNDS_LARGEST_BODY_MB": "0.1"}


@pytest.fixture(scope="module")
def pacs() -> Iterator[StandIn]:
    """A PACS that has nothing to give, and beside its DICOMweb what no viewer may see."""
    nothing, secret = reply(200, b"[]"), reply(200, ELSEWHERE)
    with stand_in() as found:
        found.answer = lambda handler: (nothing if is_dicomweb(handler.path) else secret)(handler)
        yield found


def is_dicomweb(path: str) -> bool:
    return path.startswith(f"{DICOMWEB}/") and ".." not in path


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, str]:
    """The keys of a user of each role, by role, as `labelrounds users add` prints them."""
    home = tmp_path_factory.mktemp("login") / "home"
    found = {"home": str(home)}
    for role in ROLES:
        command = [sys.executable, "-m", "labelrounds", "users", "add", f"one_{role}", "--role", role]
        environment = {**os.environ, "LABELROUNDS_HOME": str(home)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[role] = done.stdout.strip()
    return found


@pytest.fixture(scope="module")
def _login_server(keys, pacs, tmp_path_factory) -> Iterator[TrustedServer]:
    folder = tmp_path_factory.getbasetemp() / "login0"
    start = tmp_path_factory.mktemp("start")
    (start / "sitecustomize.py").write_text(ALL_IS_LOGGED)
    settings = {
        **LIMITS,
        "MONAI_LABEL_DICOMWEB_USERNAME": "labelrounds",
        "MONAI_LABEL_DICOMWEB_PASSWORD": PASSWORD,
        "PYTHONPATH": os.pathsep.join([str(start), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with trusted(folder, settings, keys["admin"], studies=pacs.address) as server:
        yield server


@pytest.fixture
def login_server(_login_server) -> Iterator[TrustedServer]:
    """Lend the server; then it is checked as `trusted_server` is."""
    yield _login_server
    _login_server.check()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def unsigned(claims: dict) -> str:
    """Return a JSON web token that says that it needs no signature."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "none"}, claims)]
    return b".".join([*parts, b""]).decode()


def test_a_key_that_the_command_has_printed_lets_its_user_in(login_server, keys):
    """Stock MONAI Label answers 401 to every valid token."""
    for role in ROLES:
        assert login_server.raw("GET", "/info/", headers=bearer(keys[role]))[0] == 200, role


def test_nobody_comes_in_without_a_key_or_with_a_wrong_one(login_server, keys):
    wrong = (
        {},
        bearer(""),
        bearer("wrong"),
        bearer(keys["admin"][:-1]),
        bearer(keys["admin"] + "x"),
        bearer(unsigned({"preferred_username": "one_admin", "realm_access": {"roles": ["monailabel-admin"]}})),
        {"Authorization": "Basic " + base64.b64encode(b"one_admin:wrong").decode()},
        {"Authorization": f"Bearer {keys['admin']}\x00"},
        {"Cookie": f"access_token={keys['admin']}"},
    )
    routes = ["/info/", "/datastore/?output=all", "/openapi.json", "/train/", f"/model/{MODEL}", "/session/x"]
    for headers in wrong:
        for route in routes:
            status, answer = login_server.raw("GET", route, headers={"Authorization": "", **headers})
            assert 400 <= status < 500, (route, headers, answer)


def test_an_annotator_may_neither_replace_nor_remove_weights(login_server, keys, tmp_path):
    canary = tmp_path / "canary"
    for role in ("user", "annotator"):
        for name, content in (("x.pt", pickle.dumps(Canary(str(canary)))), ("x.safetensors", b"x")):
            body, headers = login_server.form({}, {"file": (name, content)})
            status, answer = login_server.raw("PUT", f"/model/{MODEL}", body, {**headers, **bearer(keys[role])})
            assert status == 403, answer
        for route in (f"/model/{MODEL}", f"/model/{MODEL}/versions/0"):
            assert login_server.raw("DELETE", route, headers=bearer(keys[role]))[0] in (403, 404, 405)
    assert not canary.exists()


def test_an_administrators_pickle_is_refused_and_not_run(login_server, tmp_path):
    canary = tmp_path / "canary"
    for name in ("x.pt", "x.safetensors"):
        body, headers = login_server.form({}, {"file": (name, pickle.dumps(Canary(str(canary))))})
        status, answer = login_server.raw("PUT", f"/model/{MODEL}", body, headers)
        assert 400 <= status < 500, answer
    assert not canary.exists()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_proxy_reaches_nothing_but_dicomweb(login_server, pacs, method):
    for path in (
        "../../admin",
        f"wado/{UP}admin",
        f"qido/studies/{UP}{UP}admin",
        "qido/%2e%2e/%2e%2e/admin",
        "stow/../../admin",
        "wado/..%252f..%252fadmin",
        "wado//evil.example/admin",
        "qido/@evil.example/",
        "qido/studies/1.2.3/../../../admin",
        "qido/studies%0d%0aX-Evil:%201",
        "wado/studies?x=%0d%0aX-Evil:%201",
    ):
        status, answer = login_server.raw(method, f"/proxy/dicom/{path}")
        assert 400 <= status < 500, (path, answer)
        assert ELSEWHERE not in answer
    assert [path for path, _ in pacs.asked if not is_dicomweb(path)] == []


def test_no_secret_is_in_any_log_though_all_is_logged(login_server, pacs, keys):
    """The PACS's password goes to the PACS, and the keys come in; the log's level is DEBUG."""
    login_server.raw("GET", "/info/", headers=bearer(keys["annotator"]))
    login_server.raw("GET", f"/info/?access_token={keys['annotator']}", headers=bearer(keys["annotator"]))
    form = f"username=one_annotator&password={keys['annotator']}".encode()
    login_server.raw("POST", "/auth/token", form, {"Content-Type": "application/x-www-form-urlencoded"})
    login_server.raw("GET", "/datastore/?output=all")
    basic = base64.b64encode(f"labelrounds:{PASSWORD}".encode()).decode()
    assert f"Basic {basic}" in {headers.get("Authorization") for _, headers in pacs.asked}, "the password is used"
    files = [
        file for file in [*login_server.home.rglob("*.log*"), *login_server.home.rglob("*.jsonl")] if file.is_file()
    ]
    logged = "\n".join(file.read_text(errors="replace") for file in files)
    assert "DEBUG" in logged
    for secret in (PASSWORD, basic, *(keys[role] for role in ROLES)):
        assert secret not in logged


def test_the_logs_are_closed_to_administrators_too(login_server):
    for route in ("/logs/", "/logs/?lines=9", "/logs/gpu"):
        assert login_server.raw("GET", route)[0] in (404, 405)


def test_more_than_the_limit_is_refused_before_it_is_kept(login_server):
    body, headers = login_server.form({"params": "{}"}, {"file": ("x.nii", bytes(4_000_000))})
    status, answer = login_server.raw("PUT", "/datastore/image?image=large", body, headers)
    assert status == 413, answer
    status, answer = login_server.raw(
        "POST", f"/train/{MODEL}", b'{"x": "' + bytes(200_000) + b'"}', {"Content-Type": "application/json"}
    )
    assert status == 413, answer


def test_a_server_without_a_login_is_not_opened_to_others(tmp_path):
    command = [sys.executable, "-m", "labelrounds", "start", "--host", "192.0.2.1"]  # an address of nobody's
    environment = {**os.environ, "LABELROUNDS_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "nobody has to log in" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
