"""An attack on a server as the README starts it, at each door that stands open in stock MONAI Label 0.8.5.

Each attempt is refused with a 4xx status, changes no file, neither the server's own nor another, and runs nothing.
"""

import io
import json
import pickle
import re
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labelrounds.phantoms import LABELS, write_truth
from tests.faults.trusted import MODEL, SECRET, TrustedServer

EVIL = b"import pathlib; pathlib.Path('CANARY').touch()"
JSON = {"Content-Type": "application/json"}


@dataclass
class Attempt:
    """A request that an attacker sends; ``OUTSIDE``, ``APP`` and ``CANARY`` stand for paths, in bodies as in routes."""

    method: str
    target: str
    params: dict | None = None
    body: dict | None = None
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def send(self, server: TrustedServer, canary: Path) -> tuple[int, bytes]:
        """Send it, and return the answer's status and body."""
        places = {"OUTSIDE": server.outside, "APP": server.app, "CANARY": canary, "MODEL": MODEL}

        def filled(text: str) -> str:
            return re.sub("|".join(places), lambda found: str(places[found[0]]), text)

        if self.body is not None:
            return server.raw(self.method, filled(self.target), filled(json.dumps(self.body)).encode(), JSON)
        options = filled(json.dumps(self.params or {}))
        files = {key: (filled(name), carried(content, server, canary)) for key, (name, content) in self.files.items()}
        form = server.form({"params": options, "info": options}, files) if self.params is not None else ()
        return server.raw(self.method, filled(self.target), *form)


def carried(content: bytes, server: TrustedServer, canary: Path) -> bytes:
    """Return what a word stands for: a good image, its label, a pickle that leaves a canary."""
    if content == b"IMAGE":
        return (server.studies / "phantom_000.nii.gz").read_bytes()
    if content == b"LABEL":
        with tempfile.TemporaryDirectory() as folder:
            return write_truth(Path(folder), 1)[0].read_bytes()
    return pickle.dumps(Canary(str(canary))) if content == b"PICKLE" else content.replace(b"CANARY", bytes(canary))


def tar_of(name: str, content: bytes, link: str = "") -> bytes:
    """Return an archive with one member of any name, or a link."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        if link:
            member.type, member.linkname, member.size = tarfile.SYMTYPE, link, 0
        archive.addfile(member, io.BytesIO(content))
    return memory.getvalue()


class Canary:
    """What runs when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


# What would be taken under a good name.
IMAGE = {"file": ("x.nii.gz", b"IMAGE")}
LABEL = {"label": ("x.nii.gz", b"LABEL")}
PLANTED = json.dumps({"name": "planted", "path": "/", "image": "OUTSIDE/secret.nii.gz", "expiry": 9999, "create_ts": 1})
UP = "..%2F..%2F..%2F..%2F.."

DOORS: dict[str, list[Attempt]] = {
    "an image is written above the studies": [
        Attempt("PUT", "/datastore/image?image=../evil", {}, files=IMAGE),
        Attempt("PUT", "/datastore/image?image=..%2foutside%2fmain", {}, files={"file": ("main.py", EVIL)}),
        Attempt("PUT", "/datastore/?image=%2e%2e%2f%2e%2e%2fevil", {}, files=IMAGE),
        Attempt("PUT", "/datastore/image?image=..%5c..%5cevil", {}, files=IMAGE),
        Attempt("PUT", "/datastore/image?image=evil%00", {}, files=IMAGE),
    ],
    "an image is written to an absolute path": [
        Attempt("PUT", "/datastore/image?image=OUTSIDE/evil", {}, files=IMAGE),
        Attempt("PUT", "/datastore/image?image=APP/main", {}, files={"file": ("main.py", EVIL)}),
        Attempt("PUT", "/datastore/image", {}, files={"file": ("OUTSIDE/main.py", EVIL)}),
        Attempt("PUT", "/datastore/image?image=/proc/self/mem", {}, files=IMAGE),
    ],
    "a label is written by its tag": [
        Attempt("PUT", "/datastore/label?image=phantom_000&tag=../../outside", {}, files=LABEL),
        Attempt("PUT", "/datastore/label?image=phantom_000&tag=OUTSIDE", {}, files=LABEL),
        Attempt("PUT", "/datastore/label?image=phantom_000&tag=..", {}, files={"label": ("main.py", EVIL)}),
        Attempt("PUT", "/datastore/label?image=../../outside/main&tag=final", {}, files=LABEL),
        Attempt("PUT", "/datastore/label/info?label=phantom_000&tag=../../outside", {"a": 1}),
        Attempt("PUT", "/datastore/updatelabelinfo?label=phantom_000&tag=../../outside", {"a": 1}),
    ],
    "a prediction is written by label_tag or its ending": [
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"label_tag": "../../outside"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"save_label": True, "label_tag": "OUTSIDE"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"result_extension": "/../../outside/x.nii.gz"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"result_extension": "OUTSIDE/main.py"}),
    ],
    "params name another image": [
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"image": "/etc/hostname"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"image": "OUTSIDE/secret.nii.gz"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"image_path": "/etc/hostname"}),
        Attempt("POST", "/infer/MODEL?image=phantom_000", {"session_id": "x", "model": "../x", "uploaded": True}),
        Attempt("POST", "/infer/MODEL?image=/etc/hostname", {}),
        Attempt("POST", "/infer/MODEL?image=OUTSIDE/secret", {}),
        Attempt("POST", "/infer/MODEL?image=..%2Foutside%2Fsecret", {}),
        Attempt("POST", f"/infer/{UP}%2Fetc%2Fhostname?image=phantom_000", {}),
    ],
    "a training is pointed at other files": [
        Attempt("POST", "/train/MODEL", body={"train_ds": [{"image": "/etc/hostname", "label": "/etc/hostname"}]}),
        Attempt("POST", "/train/MODEL", body={"val_ds": [{"image": "OUTSIDE/secret.nii.gz"}]}),
        Attempt("POST", "/train/MODEL", body={"name": "../../outside/evil"}),
        Attempt("POST", "/train/MODEL", body={"model": "../../outside/evil"}),
        Attempt("POST", "/train/MODEL", body={"pretrained": True, "load_path": "OUTSIDE/main.py"}),
        Attempt("POST", "/train/MODEL", body={"gpus": "0; touch CANARY", "multi_gpu": True}),
        Attempt("POST", "/train/MODEL", body={"device": "cpu; touch CANARY"}),
        Attempt("POST", "/train/..%2F..%2Foutside", body={}),
    ],
    "an archive is unpacked above its session": [
        Attempt(
            "PUT", "/session/?uncompress=true", {}, files={"files": ("a.tar.gz", tar_of("../../../outside/evil", EVIL))}
        ),
        Attempt("PUT", "/session/?uncompress=true", {}, files={"files": ("a.tar.gz", tar_of("/OUTSIDE/evil", EVIL))}),
        Attempt("PUT", "/session/?uncompress=true", {}, files={"files": ("a.tar.gz", tar_of("x", b"", "/etc"))}),
        Attempt("PUT", "/session/", {}, files={"files": ("a.tar.gz", tar_of("../evil", EVIL))}),
        Attempt("PUT", "/session/", {}, files={"files": ("../../meta.info", PLANTED.encode())}),
    ],
    "a planted session reads any file": [
        Attempt("GET", "/session/planted?image=true"),
        Attempt("GET", "/session/planted"),
        Attempt("GET", "/session/00000000-0000-0000-0000-000000000000?image=true"),
        Attempt("GET", "/session/00000000-0000-0000-0000-000000000000"),
        Attempt("GET", "/session/torn?image=true"),
        Attempt("GET", "/session/11111111-1111-1111-1111-111111111111"),
        Attempt("GET", "/session/..?image=true"),
        Attempt("GET", "/session/%2e%2e?image=true"),
        Attempt("GET", "/session/.?image=true"),
        Attempt("GET", "/session/%00"),
        Attempt("DELETE", "/session/00000000-0000-0000-0000-000000000000"),
        Attempt("DELETE", "/session/.."),
        Attempt("DELETE", "/session/%2e%2e"),
        Attempt("DELETE", "/session/."),
        Attempt("POST", "/infer/MODEL?session_id=00000000-0000-0000-0000-000000000000", {}),
        Attempt("POST", "/infer/MODEL?session_id=..", {}),
    ],
    "weights are replaced by a pickle": [
        Attempt("PUT", "/model/MODEL", {}, files={"file": ("x.pt", b"PICKLE")}),
        Attempt("PUT", "/model/MODEL", {}, files={"file": ("model.safetensors", b"PICKLE")}),
        Attempt("PUT", "/model/..%2F..%2Foutside", {}, files={"file": ("x.pt", b"PICKLE")}),
        Attempt("DELETE", "/model/..%2F..%2Foutside"),
        Attempt("GET", "/model/..%2F..%2Foutside"),
    ],
    "a file is read or removed through the datastore": [
        Attempt("GET", "/datastore/image?image=../outside/secret"),
        Attempt("GET", "/datastore/image?image=OUTSIDE/secret"),
        Attempt("GET", "/datastore/image/info?image=../outside/secret"),
        Attempt("GET", "/datastore/label?label=secret&tag=../../../outside"),
        Attempt("GET", "/datastore/label/info?label=../../outside/secret&tag=final"),
        Attempt("HEAD", "/datastore/image?image=../outside/secret"),
        Attempt("DELETE", "/datastore/image?id=../outside/secret"),
        Attempt("DELETE", "/datastore/image?id=OUTSIDE/secret"),
        Attempt("DELETE", "/datastore/label?id=secret&tag=../../../outside"),
        Attempt("GET", f"/ohif/{UP}/etc/hostname"),
        Attempt("GET", f"/{UP}/etc/hostname"),
    ],
    "the proxy reaches another path of the PACS": [
        Attempt("GET", "/proxy/dicom/../../admin"),
        Attempt("GET", "/proxy/dicom/wado/..%2F..%2Fadmin"),
        Attempt("GET", "/proxy/dicom/qido/%2e%2e/%2e%2e/admin"),
        Attempt("POST", "/proxy/dicom/stow/../../admin"),
    ],
    "the logs are read": [
        Attempt("GET", "/logs/"),
        Attempt("GET", "/logs"),
        Attempt("GET", "/logs/?lines=10&html=true"),
        Attempt("GET", "/logs/gpu"),
        Attempt("GET", "/logs/labelrounds.log"),
    ],
    "the app is loaded anew or jobs are started": [
        Attempt("POST", "/reload"),
        Attempt("GET", "/reload/"),
        Attempt("POST", "/batch/infer/MODEL", body={"image_selector": "all", "label_tag": "../../outside"}),
        Attempt("POST", "/scoring/x", body={}),
        Attempt("POST", "/infer/wsi_v2/MODEL", body={"wsi": "/etc/hostname"}),
    ],
}


@pytest.fixture
def planted(trusted_server) -> None:
    """Leave what a successful attack on an older server would have: sessions whose image is another file."""
    sessions = trusted_server.home / "sessions"
    content = PLANTED.replace("OUTSIDE", str(trusted_server.outside))
    names = ("planted", "00000000-0000-0000-0000-000000000000")
    for name, text in {**dict.fromkeys(names, content), "11111111-1111-1111-1111-111111111111": "{torn"}.items():
        (sessions / name).mkdir(parents=True, exist_ok=True)
        (sessions / name / "meta.info").write_text(text)
    for place in (sessions, trusted_server.home):  # where "." and ".." lead
        (place / "meta.info").write_text(content)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_closed(trusted_server, planted, tmp_path, door):
    canary = tmp_path / "canary"
    before = trusted_server.own_files()
    for attempt in DOORS[door]:
        status, answer = attempt.send(trusted_server, canary)
        assert 400 <= status < 500, (attempt.method, attempt.target, status, answer[:500])
        assert SECRET.encode() not in answer
        assert not canary.exists()
    assert trusted_server.own_files() == before


def test_a_file_name_with_folders_in_it_stays_among_the_images(trusted_server):
    """The folder is dropped, as browsers send it or not; the image is whole and where images are."""
    image = (trusted_server.studies / "phantom_001.nii.gz").read_bytes()
    form = trusted_server.form({"params": "{}"}, {"file": ("../../outside/named.nii.gz", image)})
    status, answer = trusted_server.raw("PUT", "/datastore/image", *form)
    assert (status, json.loads(answer)) == (200, {"image": "named"})
    assert (trusted_server.studies / "named.nii.gz").is_file()
    assert trusted_server.ask("DELETE", "/datastore/image?id=named").ok


def test_it_listens_on_loopback_alone(trusted_server):
    assert {place.ip for place in trusted_server.listening()} == {"127.0.0.1"}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_of_another_origin_may_read_nothing(trusted_server, origin):
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "PUT", "Cookie": "a=b"}
        answer = trusted_server.ask(method, "/info/", headers=headers)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-allow")]


def test_what_the_attempts_carry_would_do_its_work(trusted_server, tmp_path):
    """Under good names image and label are taken; the secret is there, and the canary runs when it is unpickled."""
    for attempt in (
        Attempt("PUT", "/datastore/image?image=good", {}, files=IMAGE),
        Attempt("PUT", "/datastore/label?image=good", {"label_info": [{"name": name} for name in LABELS]}, files=LABEL),
        Attempt("DELETE", "/datastore/label?id=good&tag=final"),
        Attempt("DELETE", "/datastore/image?id=good"),
    ):
        status, answer = attempt.send(trusted_server, tmp_path)
        assert status == 200, (attempt.method, attempt.target, answer)
    assert SECRET in (trusted_server.outside / "secret.nii.gz").read_text()
    assert len(trusted_server.own_files()) >= 2
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(str(canary)))).close()
    assert canary.exists()
