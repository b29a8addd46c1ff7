"""A server with a login, as a hospital runs it: who gets in, where to, and what is refused at the door."""

import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

from labelrounds.client import Client, running_server
from labelrounds.phantoms import LABELS, write_studies
from labelrounds.users import ROLES, UserFile
from tests.api.conftest import MODEL


@dataclass
class Closed:
    """A running server, and the key of a user of each role."""

    client: Client
    folder: Path
    keys: dict[str, str]

    def ask(self, method: str, route: str, caller: str = "", **options) -> requests.Response:
        headers = dict(options.pop("headers", {}))
        if caller:
            headers["Authorization"] = f"Bearer {self.keys[caller]}"
        address = self.client.address + route
        return requests.request(method, address, headers=headers, timeout=60, **options)

    def files(self) -> set[str]:
        paths = self.folder.rglob("*")
        return {str(path) for path in paths if path.suffix not in (".log", ".lock", ".db-wal", ".db-shm")}

    def log(self) -> str:
        return (self.folder / "home" / "server.log").read_text()


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    write_studies(folder / "studies", 2)
    (folder / "home").mkdir()
    users = UserFile(folder / "home" / "users.json")
    keys = {role: users.add(f"the-{role}", role) for role in ROLES}
    with running_server(folder / "studies", folder / "home", 0, [MODEL], key=keys["user"]) as client:
        yield Closed(client, folder, keys)
        said = Closed(client, folder, keys).log()
        assert not [key for key in keys.values() if key in said]
        assert "Traceback" not in said


ANYBODY = "anybody"
# Who may call a route; each role may do what those before it in users.ROLES may.
LEAST = {
    ("GET", "/"): ANYBODY,
    ("GET", "/auth/"): ANYBODY,
    ("POST", "/auth/token"): ANYBODY,
    ("GET", "/auth/token/valid"): "user",
    ("GET", "/openapi.json"): "user",
    ("HEAD", "/openapi.json"): "user",
    ("GET", "/info/"): "user",
    ("POST", "/infer/{model}"): "user",
    ("POST", "/activelearning/{strategy}"): "user",
    ("GET", "/rounds/"): "user",
    ("POST", "/rounds/lease"): "annotator",
    ("POST", "/rounds/aside"): "annotator",
    ("DELETE", "/rounds/aside"): "annotator",
    ("GET", "/datastore/"): "user",
    ("PUT", "/datastore/"): "annotator",
    ("DELETE", "/datastore/"): "admin",
    ("GET", "/datastore/image"): "user",
    ("HEAD", "/datastore/image"): "user",
    ("PUT", "/datastore/image"): "annotator",
    ("DELETE", "/datastore/image"): "admin",
    ("GET", "/datastore/image/info"): "user",
    ("PUT", "/datastore/image/info"): "annotator",
    ("GET", "/datastore/label"): "user",
    ("HEAD", "/datastore/label"): "user",
    ("PUT", "/datastore/label"): "annotator",
    ("DELETE", "/datastore/label"): "admin",
    ("GET", "/datastore/label/info"): "user",
    ("PUT", "/datastore/label/info"): "annotator",
    ("GET", "/datastore/dataset"): "annotator",
    ("PUT", "/session/"): "user",
    ("GET", "/session/{session_id}"): "user",
    ("DELETE", "/session/{session_id}"): "user",
    ("GET", "/model/{model}"): "admin",
    ("GET", "/model/info/{model}"): "admin",
    ("GET", "/train/"): "user",
    ("POST", "/train/"): "admin",
    ("POST", "/train/{model}"): "admin",
    ("DELETE", "/train/"): "admin",
}


def routes_of(router, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of all routes, those of routers within included; ``*`` where all methods are meant."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes_of(inner, prefix)
        else:
            yield from ((method, prefix + route.path) for method in getattr(route, "methods", None) or ("*",))


def test_every_route_is_in_the_table_of_roles():
    """Reliability 27."""
    from labelrounds.server import app

    assert set(routes_of(app)) == set(LEAST)


@pytest.mark.parametrize(("method", "path"), LEAST, ids=[" ".join(pair) for pair in LEAST])
def test_a_route_lets_in_those_of_its_role_and_above_and_nobody_else(closed, method, path):
    """Reliability 27."""
    least = LEAST[method, path]
    route = path.replace("{", "").replace("}", "")
    anonymous = closed.ask(method, route)
    assert (anonymous.status_code == 401) is (least != ANYBODY), anonymous.text
    if least == ANYBODY:
        return
    assert anonymous.headers["WWW-Authenticate"] == "Bearer"
    for role in ROLES:
        answer = closed.ask(method, route, role)
        if ROLES.index(role) < ROLES.index(least):
            assert answer.status_code == 403, role
            assert method == "HEAD" or f"needs the role {least}" in answer.json()["detail"]
        else:
            assert answer.status_code not in (401, 403), (role, answer.text)
            assert answer.status_code < 500, (role, answer.text)


def test_a_route_that_nobody_made_tells_a_stranger_no_more_than_one_that_is_there(closed):
    assert closed.ask("GET", "/nothing").status_code == closed.ask("GET", "/info/").status_code == 401
    assert closed.ask("GET", "/nothing", "user").status_code == 404
