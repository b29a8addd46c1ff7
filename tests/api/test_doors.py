"""A server with a login, as a hospital runs it: who gets in, where to, and what is refused at the door."""

import http.client
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

from labelrounds.client import Client
from labelrounds.phantoms import write_studies
from labelrounds.users import ROLES, UserFile
from tests.forked import running_server

MODEL = "nobodys"  # which nobody has trained: nothing is computed here
CONFIG = """
description: organs of the invented patients
labels: [liver, spleen, left_kidney, right_kidney, spine]
spacing_mm: [6, 6, 6]
intensity: {kind: window, low: -160, high: 240}
patch_size: [32, 32, 32]
network: {name: unet, channels: [4, 8, 8]}
"""


@dataclass
class Closed:
    """A running server, and the key of a user of each role."""

    client: Client
    folder: Path
    keys: dict[str, str]
    http: requests.Session = field(default_factory=requests.Session)

    def ask(self, method: str, route: str, caller: str = "", **options) -> requests.Response:
        headers = dict(options.pop("headers", {}))
        if caller:
            headers["Authorization"] = f"Bearer {self.keys[caller]}"
        address = self.client.address + route
        return self.http.request(method, address, headers=headers, timeout=60, **options)

    def ask_for(self, method: str, target: str, body: bytes | None = None, kind: str = "application/json") -> int:
        """Ask as admin for a target as it is spelt, which other clients would tidy up."""
        connection = http.client.HTTPConnection(urlsplit(self.client.address).netloc, timeout=60)
        headers = {"Authorization": f"Bearer {self.keys['admin']}", "Content-Type": kind}
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    def files(self) -> dict[str, int]:
        """Return the sizes of all files round the server, its logs, audit and database excepted."""
        written = {self.folder / "home" / folder for folder in ("audit", "logs")}
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not written & {*path.parents}]
        own = (".log", ".lock", ".db", "-wal", "-shm", "-journal")
        return {str(path): path.stat().st_size for path in paths if not path.name.endswith(own)}

    def log(self) -> str:
        return (self.folder / "home" / "server.log").read_text()


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    write_studies(folder / "studies", 2)
    (folder / "home").mkdir()
    (folder / "configs").mkdir()
    (folder / "configs" / f"{MODEL}.yaml").write_text(CONFIG)
    users = UserFile(folder / "home" / "users.json")
    keys = {role: users.add(f"the-{role}", role) for role in ROLES}
    names = folder / "studies", folder / "home", 0, [MODEL], folder / "configs"
    with running_server(*names, key=keys["user"]) as client:
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
    ("POST", "/rounds/review"): "reviewer",
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
    ("GET", "/health/live"): ANYBODY,
    ("GET", "/health/ready"): ANYBODY,
    ("GET", "/health/ready/{model}"): "user",
    ("GET", "/health/details"): "user",
    ("GET", "/metrics"): ANYBODY,  # by a rule of its own: this machine, or who has a token for it
    ("GET", "/ohif"): ANYBODY,
    ("GET", "/ohif/{path:path}"): ANYBODY,
    ("GET", "/proxy/dicom/{path:path}"): "user",
    ("GET", "/datastore/label/history"): "annotator",
    ("POST", "/datastore/label/restore"): "reviewer",
    ("PUT", "/model/{model}"): "admin",
    ("POST", "/model/{model}/rollback"): "admin",
    ("GET", "/model/{model}/versions"): "user",
    ("DELETE", "/model/{model}/versions/{number}"): "admin",
    ("GET", "/model/{model}"): "admin",
    ("GET", "/model/info/{model}"): "admin",
    ("GET", "/train/"): "user",
    ("POST", "/train/"): "reviewer",
    ("POST", "/train/{model}"): "reviewer",
    ("DELETE", "/train/"): "reviewer",
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


def test_a_round_works_with_a_login_as_slicer_asks_for_it(closed, truths):
    assert closed.ask("GET", "/auth/").json() == {"enabled": True}
    form = {"username": "the-annotator", "password": closed.keys["annotator"], "grant_type": "password"}
    token = closed.ask("POST", "/auth/token", data=form).json()
    header = {"headers": {"Authorization": f"{token['token_type']} {token['access_token']}"}}
    assert closed.keys["annotator"] not in str(token)
    told = closed.ask("GET", "/auth/token/valid", **header).json()
    assert (told["username"], told["role"]) == ("the-annotator", "annotator")
    image = closed.ask("POST", "/activelearning/random", json={}, **header).json()["id"]

    (other,) = {"phantom_000", "phantom_001"} - {image}
    for asked in (f"image={other}", f"image={image}&image={other}", f"image={other}&image={image}"):
        assert closed.ask("GET", f"/datastore/image?{asked}").status_code == 401
    downloaded = closed.ask("GET", f"/datastore/image?image={image}")
    assert downloaded.content == (closed.folder / "studies" / f"{image}.nii.gz").read_bytes()
    assert closed.ask("GET", f"/datastore/image?image={image}").status_code == 401

    label = {"label": (truths[image].name, truths[image].read_bytes())}
    submitted = closed.ask("PUT", f"/datastore/label?image={image}", files=label, **header)
    assert submitted.ok, submitted.text
    assert token["access_token"] not in closed.log()
    assert closed.ask("DELETE", f"/datastore/label?id={image}&tag=final", "admin").ok


def test_a_user_who_was_removed_is_out_at_once_and_one_who_was_added_in(closed):
    users = UserFile(closed.folder / "home" / "users.json")
    key = users.add("guest", "user")
    form = {"username": "guest", "password": key}
    shown = [key, closed.ask("POST", "/auth/token", data=form).json()["access_token"]]
    headers = [{"Authorization": f"Bearer {token}"} for token in shown]
    assert all(closed.ask("GET", "/info/", headers=header).ok for header in headers)
    assert requests.get(f"{closed.client.address}/info/", auth=("guest", key), timeout=60).ok
    users.remove("guest")
    assert [closed.ask("GET", "/info/", headers=header).status_code for header in headers] == [401, 401]


def test_a_wrong_name_and_a_wrong_key_are_refused_in_the_same_words(closed):
    tried = [("nobody", closed.keys["admin"]), ("the-admin", "lrk_wrong"), ("the-admin", closed.keys["user"])]
    answers = [
        closed.ask("POST", "/auth/token", data={"username": name, "password": key, "grant_type": "password"})
        for name, key in tried
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["detail"] for answer in answers}) == 1


PARTS = [
    "..",
    "../",
    "..\\",
    "/",
    "//",
    "/etc/passwd",
    "\0",
    "%2e%2e",
    "%2e%2e/",
    "~",
    "C:",
    ";",
    "\n",
    "*",
    "|",
    "ä",
    " ",
    "x",
]
NAMED = [
    ("GET", "/datastore/image?image={}"),
    ("HEAD", "/datastore/image?image={}"),
    ("DELETE", "/datastore/image?id={}"),
    ("PUT", "/datastore/image?image={}"),
    ("GET", "/datastore/image/info?image={}"),
    ("PUT", "/datastore/image/info?image={}"),
    ("GET", "/datastore/label?label={}&tag=final"),
    ("GET", "/datastore/label?label=phantom_000&tag={}"),
    ("DELETE", "/datastore/label?id={}&tag=final"),
    ("DELETE", "/datastore/label?id=phantom_000&tag={}"),
    ("PUT", "/datastore/label?image={}"),
    ("PUT", "/datastore/label?image=phantom_000&tag={}"),
    ("PUT", "/datastore/label/info?label=phantom_000&tag={}"),
    ("GET", "/session/{}"),
    ("DELETE", "/session/{}"),
    ("POST", "/infer/{}?image=phantom_000"),
    ("POST", f"/infer/{MODEL}?image={{}}"),
    ("POST", f"/infer/{MODEL}?session_id={{}}"),
    ("POST", "/train/{}"),
    ("GET", "/model/{}"),
    ("GET", "/model/info/{}"),
    ("POST", "/activelearning/{}"),
    ("GET", "/rounds/?strategy={}"),
    ("GET", "/rounds/?model={}"),
    ("DELETE", "/rounds/aside?image={}"),
]


def hostile_names(count: int, seed: int) -> list[str]:
    """Return names that lead out of a folder, can't be a file's, or are too long for one."""
    chosen = random.Random(seed)
    fixed = ["..", "../evil", "/etc/hostname", "a\0b", "%2e%2e%2fevil", "x" * 300, "..%2f..%2fevil", ".", "a/../b"]
    made = ["../" + "".join(chosen.choices(PARTS, k=chosen.randint(1, 5))) for _ in range(count)]
    return fixed + made


def form_with(field_name: str, content: bytes) -> tuple[bytes, str]:
    head = f'--b\r\nContent-Disposition: form-data; name="{field_name}"; filename="a.nii.gz"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def check_names(closed: Closed, method: str, target: str, names: list[str]) -> None:
    before = closed.files()
    image = (closed.folder / "studies" / "phantom_000.nii.gz").read_bytes()
    body, kind = b"{}", "application/json"
    if method == "PUT":
        body, kind = form_with("label" if "label?" in target else "file", image)
    elif target.startswith("/infer"):
        body, kind = b"params=%7B%7D", "application/x-www-form-urlencoded"
    for name in names:
        for spelt in {quote(name, safe=""), quote(name, safe="%")}:
            status = closed.ask_for(method, target.format(spelt), body if method in ("PUT", "POST") else None, kind)
            assert 400 <= status < 500 or status == 307, (name, status)  # 307: to the same without a slash at its end
    assert closed.files() == before


@pytest.mark.parametrize(("method", "target"), NAMED, ids=[" ".join(pair) for pair in NAMED])
def test_a_name_that_leads_elsewhere_is_refused_and_changes_nothing(closed, method, target):
    """Reliability 10."""
    check_names(closed, method, target, hostile_names(2, seed=len(target)))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "target"), NAMED, ids=[" ".join(pair) for pair in NAMED])
def test_a_thousand_names_that_lead_elsewhere_are_refused(closed, method, target):
    """Reliability 10."""
    check_names(closed, method, target, hostile_names(1000, seed=len(target)))


@pytest.mark.parametrize("image", ["../evil", "/etc/hostname", "a\0b", "x" * 300, ["phantom_000"], {}])
def test_a_name_in_a_body_is_checked_too(closed, image):
    """Reliability 10."""
    before = closed.files()
    for route in ("/rounds/lease", "/rounds/aside"):
        answer = closed.ask("POST", route, "annotator", json={"image": image, "kind": "skip"})
        assert 400 <= answer.status_code < 500
    assert closed.files() == before


OVERRIDES = [
    {"image": "/etc/hostname"},
    {"uploaded": True},
    {"model": "other"},
    {"label_tag": "../../x"},
    {"logging": "DEBUG"},
]


@pytest.mark.parametrize("params", OVERRIDES, ids=map(str, OVERRIDES))
def test_params_of_a_segmentation_override_nothing_of_the_request(closed, params):
    """Reliability 11."""
    before = closed.files()
    answer = closed.ask("POST", f"/infer/{MODEL}?image=phantom_000", "user", data={"params": json.dumps(params)})
    assert answer.status_code == 400
    assert f"{next(iter(params))!r} is not one of" in answer.json()["detail"]
    assert closed.files() == before


TRAINING = ["train_ds", "val_ds", "dataset", "local_rank", "run_id", "pretrained_path"]


@pytest.mark.parametrize("key", TRAINING)
def test_params_of_a_training_name_no_files(closed, key):
    """Reliability 11."""
    before = closed.files()
    for params in ({key: ["/etc/hostname"]}, {MODEL: {key: ["/etc/hostname"]}}):
        answer = closed.ask("POST", f"/train/{MODEL}", "admin", json=params)
        assert answer.status_code == 400, answer.text
    assert closed.files() == before


def test_a_request_that_is_too_large_is_refused_before_it_is_read(closed):
    connection = http.client.HTTPConnection(urlsplit(closed.client.address).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {closed.keys['user']}", "Content-Type": "multipart/form-data; boundary=b"}
    connection.request("PUT", "/session/", headers=headers | {"Content-Length": str(10**12)})
    assert connection.getresponse().status == 413
    connection.close()
    chunks = (b"x" * 1_000_000 for _ in range(12))
    connection.request("POST", "/activelearning/random", chunks, headers | {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, "more than the 10 MB" in answer.read().decode()) == (413, True)
    connection.close()


def test_a_request_of_too_many_files_is_refused(closed):
    answer = closed.ask("PUT", "/session/", "user", files=[("files", (f"{i}.dcm", b"x")) for i in range(1001)])
    assert answer.status_code == 400 and "Too many files" in answer.json()["detail"]


def test_what_is_answered_of_patients_is_kept_by_no_browser(closed):
    for route in ("/info/", "/datastore/image?image=phantom_000", "/nothing"):
        headers = closed.ask("GET", route, "user").headers
        assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_page_that_a_browser_opens_asks_for_name_and_key(closed):
    answer = closed.ask("GET", "/info/", headers={"Sec-Fetch-Mode": "navigate"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
