"""What the Slicer extension asks a server, without Slicer: each failure ends in a sentence that says what to do."""

import ast
import hashlib
import importlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import labelrounds

EXTENSION = Path(__file__).parents[2] / "apps" / "slicer"
MODULE = EXTENSION / "LabelRounds"
SCRIPTS = sorted(MODULE.rglob("*.py"))
WITHOUT_SLICER = ("background", "case_in_hand", "client", "failures", "http", "translation", "wording")
INFO = {"models": {"unet": {}}, "version": "0.1.0"}


@pytest.fixture(scope="module", autouse=True)
def extension():
    sys.path.insert(0, str(MODULE))
    yield
    sys.path.remove(str(MODULE))


@pytest.fixture
def client_of():
    return importlib.import_module("LabelRoundsLib.client").Client


@pytest.fixture
def failed():
    return importlib.import_module("LabelRoundsLib.failures").Failed


class Scripted(BaseHTTPRequestHandler):
    """Answers by the function that the test has set."""

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.server.reads else b""
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.server.script(self)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_):
        pass

    def answer(self, status, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve():
    """Serve by a script; returns the address and the server, whose ``requests`` are what was asked."""
    servers = []

    def serve_(script, reads=True):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        server.script, server.requests, server.reads, server.daemon_threads = script, [], reads, True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", server

    yield serve_
    for server in servers:
        server.shutdown()
        server.server_close()


def problem(status, detail, **headers):
    return lambda handler: handler.answer(status, {"detail": detail, "status": status}, **headers)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "sentence"),
    [
        (400, {}, "refused", "The server refuses this: no such thing."),
        (401, {}, "login", "no such thing."),
        (403, {}, "refused", "You are not allowed to do this: no such thing."),
        (413, {}, "too_large", "This is larger than the server takes: no such thing."),
        (429, {"Retry_After": "5"}, "busy", "The server can't do this now: no such thing. Try again in 5 s."),
        (503, {"Retry_After": "7"}, "busy", "The server can't do this now: no such thing. Try again in 7 s."),
        (503, {}, "busy", "The server can't do this now: no such thing. Try again in a moment."),
        (500, {}, "failed", "The server failed at this (status 500): no such thing."),
        (507, {}, "failed", "The server failed at this (status 507): no such thing."),
    ],
)
def test_refusal_is_a_sentence_in_the_servers_words(serve, client_of, failed, status, headers, kind, sentence):
    address, _ = serve(problem(status, "no such thing.", **headers))
    with pytest.raises(failed) as told:
        client_of(address).info()
    assert told.value.kind == kind and str(told.value).endswith(sentence)


def test_refusal_without_problem_details_says_that_no_reason_was_given(serve, client_of, failed):
    address, _ = serve(lambda handler: handler.answer(502, b"<html>Bad Gateway</html>"))
    with pytest.raises(failed, match="it gave no reason"):
        client_of(address).info()


@pytest.mark.parametrize("content", [b"<html>hello</html>", {"hello": "world"}, [1]])
def test_other_server_is_told_apart(serve, client_of, failed, content):
    address, _ = serve(lambda handler: handler.answer(200, content))
    with pytest.raises(failed, match="is not a LabelRounds server"):
        client_of(address).info()


@pytest.mark.parametrize("address", ["", "localhost", "localhost:8000", "ftp://host", "http://", "http://host:port"])
def test_address_that_is_none_is_a_sentence(client_of, failed, address):
    with pytest.raises(failed, match="No server answers at") as told:
        client_of(address).info()
    assert told.value.kind == "unreachable"


def test_server_that_dies_before_or_within_its_answer_is_a_sentence(serve, client_of, failed):
    def half(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    for script in (lambda handler: None, half):
        address, _ = serve(script)
        with pytest.raises(failed, match="was lost before it had answered") as told:
            client_of(address).info()
        assert told.value.kind == "lost"


def test_upload_that_is_refused_before_it_was_read_says_why(serve, client_of, failed, tmp_path):
    image = tmp_path / "image.nii.gz"
    image.write_bytes(bytes(20_000_000))

    def refuse(handler):
        handler.answer(413, {"detail": "20 MB; at most 1 MB"}, Connection="close")
        handler.rfile.read(1 << 20)

    address, _ = serve(refuse, reads=False)
    with pytest.raises(failed) as told:
        client_of(address).predict("unet", tmp_path, file=image)
    assert told.value.kind in ("too_large", "lost")  # the network may drop the answer with the rest of the upload


def test_slow_answer_is_cancelled_at_once(serve, client_of, failed):
    http, released = importlib.import_module("LabelRoundsLib.http"), threading.Event()
    address, server = serve(lambda handler: released.wait(20))
    call, began = http.Call(), time.monotonic()
    threading.Timer(0.2, call.cancel).start()
    with pytest.raises(failed, match="Cancelled") as told:
        client_of(address).info(call)
    released.set()
    assert told.value.kind == "cancelled" and time.monotonic() - began < 5 and server.requests
    with pytest.raises(failed, match="Cancelled"):
        client_of(address).info(call)  # the next step of the same work


def test_prediction_is_read_whatever_bytes_are_in_it(serve, client_of, tmp_path):
    voxels = b"NRRD\r\n\r\n--x\r\n\x00\xff--bound" + bytes(range(256))
    parts = [b'name="params"\r\n\r\n' + json.dumps({"label_names": {"liver": 1}, "version": 3}).encode()]
    parts.append(b'name="image"; filename="a.nrrd"\r\nContent-Type: application/octet-stream\r\n\r\n' + voxels)
    body = b"".join(b"--boundary1\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    kind = "multipart/form-data; boundary=boundary1"
    address, server = serve(lambda handler: handler.answer(200, body + b"--boundary1--\r\n", Content_Type=kind))
    image = tmp_path / "Doe^John.nii.gz"
    image.write_bytes(b"pixels")
    found = client_of(address, token="secret").predict("u net/1", tmp_path, file=image)
    assert found.file.read_bytes() == voxels and found.names == {"liver": 1} and found.version == 3
    ((_, path, headers, sent),) = server.requests
    assert path == "/infer/u%20net%2F1?output=all"
    assert headers["Authorization"] == "Bearer secret"
    assert b"pixels" in sent and b'filename="image.nii.gz"' in sent and b"Doe" not in sent


def test_login_sends_the_key_once_and_keeps_the_token_alone(serve, client_of):
    address, server = serve(lambda handler: handler.answer(200, {"access_token": "abc", **INFO}))
    client = client_of(address)
    client.log_in("ann", "the & key")
    client.info()
    (_, path, _, body), (_, _, headers, _) = server.requests
    assert path == "/auth/token" and b"password=the+%26+key" in body
    assert headers["Authorization"] == "Bearer abc" and "key" not in str(vars(client))


def test_no_case_left_is_the_servers_reason(serve, client_of, tmp_path):
    address, _ = serve(lambda handler: handler.answer(200, {}, X_LabelRounds_Message="all are labelled"))
    assert client_of(address).next_case("auto", "", tmp_path) == "all are labelled"


@pytest.mark.parametrize(
    ("info", "names"),
    [
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}], "labels": {"liver": 2, "spleen": 5}}, [2, 5]),
        ({"label_info": [{"name": "liver"}, {"name": "spleen"}]}, [1, 2]),
        ({}, []),
    ],
)
def test_label_is_opened_by_its_own_ending_and_values_whatever_the_images_name(serve, client_of, tmp_path, info, names):
    def script(handler):
        if "label/info" in handler.path:
            return handler.answer(200, info)
        content = b"label" if "/label" in handler.path else b"image"
        handler.answer(200, content, Content_Disposition='attachment; filename="label.seg.nrrd"')

    case = client_of(serve(script)[0]).reopen("label", tmp_path)
    assert case.names == dict(zip(["liver", "spleen"], names, strict=False))
    assert (case.label.name, case.label.read_bytes(), case.file.read_bytes()) == ("label.seg.nrrd", b"label", b"image")


def versions_in_between(*contents, noted=()):
    """Return a script in which another version of the label comes before each answer; what is noted may differ."""
    digests = [*noted] or [hashlib.sha256(content).hexdigest() for content in contents]
    told, sent = iter(digests[::2]), iter(contents[1::2])

    def script(handler):
        if "label/info" in handler.path:
            return handler.answer(200, {"sha256": next(told), "labels": {"liver": 1}})
        content = next(sent) if "/label" in handler.path else b"image"
        handler.answer(200, content, Content_Disposition='attachment; filename="case.nii.gz"')

    return script


def test_label_and_what_is_known_of_it_are_of_one_version(serve, client_of, tmp_path):
    address, server = serve(versions_in_between(b"old", b"new", b"new", b"new"))
    case = client_of(address).reopen("case", tmp_path)
    assert case.label.read_bytes() == b"new" and case.told["sha256"] == hashlib.sha256(b"new").hexdigest()
    assert case.file.read_bytes() == b"image"
    assert len([path for _, path, _, _ in server.requests if "/label" in path]) == 4


def test_label_that_never_stays_is_a_sentence_after_the_second_time(serve, client_of, failed, tmp_path):
    address, server = serve(versions_in_between(b"1", b"2", b"3", b"4", b"5", b"6"))
    with pytest.raises(failed, match="replaced again and again"):
        client_of(address).reopen("case", tmp_path)
    assert len(server.requests) == 4


def test_label_that_was_edited_in_the_servers_folder_is_opened(serve, client_of, tmp_path):
    script = versions_in_between(*[b"edited"] * 4, noted=["5" * 64] * 4)
    assert client_of(serve(script)[0]).reopen("case", tmp_path).label.read_bytes() == b"edited"


def test_background_hands_over_in_the_thread_that_asks(failed):
    background = importlib.import_module("LabelRoundsLib.background").Background()
    said, here = [], threading.get_ident()

    def work(call):
        call.progress(0.5)
        assert threading.get_ident() != here
        raise ValueError("disk full")

    listener = lambda kind: lambda what: said.append((kind, str(what), threading.get_ident()))  # noqa: E731
    background.start(work, listener("done"), listener("failed"), listener("progress"))
    deadline = time.monotonic() + 10
    while background.busy and time.monotonic() < deadline:
        background.deliver()
    assert said == [("progress", "0.5", here), ("failed", "This failed in Slicer: disk full", here)]


def test_questions_in_passing_are_asked_one_of_a_kind_at_a_time(failed):
    module = importlib.import_module("LabelRoundsLib.background")
    background, found, asked, released = module.Background(), [], [], threading.Event()
    lookout = module.Lookout(background, found.append)

    def refuse(call):
        raise failed("lost", "gone")

    def answer(call):
        asked.append(call)
        released.wait(10)
        return "training"

    def deliver():
        released.set()
        deadline = time.monotonic() + 10
        while background.busy and time.monotonic() < deadline:
            background.deliver()

    assert lookout.is_due("training", 60)
    lookout.ask("training", answer, found.append)
    lookout.ask("training", answer, found.append)
    assert not lookout.is_due("training", 60) and lookout.is_due("server", 60)
    deliver()
    assert found == ["training"] and len(asked) == 1
    lookout.ask("training", refuse, found.append)
    deliver()
    lookout.ask("training", answer, found.append)
    deliver()
    assert [str(each) for each in found] == ["training", "gone", "training"]
    released.clear()
    lookout.ask("training", answer, found.append)
    lookout.forget()
    assert lookout.is_due("training", 60)
    deliver()
    assert len(found) == 3  # what another server was asked
    lookout.note("training")
    assert not lookout.is_due("training", 60)


def test_lease_is_renewed_in_its_second_half(monkeypatch):
    module, now = importlib.import_module("LabelRoundsLib.case_in_hand"), [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    told = {"reason": "It is blurred.", "score": 0.5, "strategy": "auto", "rank": 2, "queue": 3, "lease_s": 3600}
    hand = module.CaseInHand(module.Case("a", Path("a.nii"), told))
    assert hand.reason() == "It is blurred. Score 0.5 by auto, rank 2. 3 more wait."
    now[0] += 1799
    assert not hand.should_be_kept() and "another 30 min" in hand.lease()
    now[0] += 1
    assert hand.should_be_kept()
    hand.kept(3600)
    assert not hand.should_be_kept() and "another 60 min" in hand.lease()


@pytest.mark.parametrize(
    ("status", "progress", "said"),
    [
        ("RUNNING", {"epoch": 3, "total_epochs": 40, "eta_s": 150}, "Epoch 3 of 40. About 2 min left."),
        ("RUNNING", {"stage": "preparing case 2 of 9", "eta_s": 9}, "Epoch 0 of ?. Now preparing case 2 of 9."),
        (
            "RUNNING",
            {"eta_s": 8000, "best_metric": 0.81, "measure": "F1"},
            "Epoch 0 of ?. About 2.2 h left. Best F1 0.81.",
        ),
        ("SUBMITTED", {"status": "waiting", "before_it": 1}, "Waiting for another training."),
        (
            "DONE",
            {"message": "Published version 2.", "best_metric": 0.8},
            "The training has ended. Published version 2.",
        ),
        ("ERROR", {}, "The training failed: no memory"),
    ],
)
def test_training_in_words(status, progress, said):
    wording = importlib.import_module("LabelRoundsLib.wording")
    task = {"status": status, "progress": progress, "details": ["submitted", "no memory"]}
    assert wording.training(task, ran=True).startswith(said)
    assert (wording.training(task, ran=False) == "") is (status in ("DONE", "ERROR"))


def test_cancelled_requests_call_nobody_any_more():
    background, said = importlib.import_module("LabelRoundsLib.background").Background(), []
    released = threading.Event()
    background.start(lambda call: released.wait(10), said.append, said.append)
    background.cancel_all()
    released.set()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and not said:
        background.deliver()
    assert said == [] and not background.busy


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_python_3_9_and_import_what_slicer_has_alone(script):
    tree = ast.parse(script.read_text(encoding="utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    roots = {name.partition(".")[0] for name in names}
    allowed = {"LabelRoundsLib"} | ({"slicer", "qt"} if script.stem == "translation" else set())
    if script.stem not in WITHOUT_SLICER:
        allowed |= {"qt", "ctk", "slicer", "vtk", "numpy"}
    assert roots - set(sys.stdlib_module_names) <= allowed
    if script.stem == "logic":
        assert "qt" not in roots


def test_build_lists_every_file_and_the_version_is_the_servers():
    listed = (MODULE / "CMakeLists.txt").read_text().replace("${MODULE_NAME}", "LabelRounds")
    files = [path.relative_to(MODULE).as_posix() for path in [*SCRIPTS, *MODULE.glob("Resources/*/*")]]
    assert sorted(re.findall(r"\S+\.(?:py|png|ui|ts|qm)\b", listed.split("slicerMacro")[0])) == sorted(files)
    assert labelrounds.__version__ == importlib.import_module("LabelRoundsLib").VERSION
    entry = json.loads((EXTENSION / "LabelRounds.json").read_text())
    assert f'set(EXTENSION_CATEGORY "{entry["category"]}")' in (EXTENSION / "CMakeLists.txt").read_text()
