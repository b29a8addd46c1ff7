"""A real server among files that are none of its business, and what has to be true of both after any fault."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests
import yaml

import labelrounds
from labelrounds import folders
from labelrounds.client import Client, running_server
from labelrounds.phantoms import write_studies

MODEL = "unet_phantom"
SECRET = "the-secret-that-nobody-may-read"
_CODE = (Path(labelrounds.__file__).parent, folders.app_folder(), folders.shipped_configs())
_HALF_WRITTEN = ("**/.labelrounds-*", "**/.new-*", "**/*.tmp")


class TrustedServer(Client):
    """A server in a process of its own, as ``labelrounds start`` runs it, on two phantoms.

    Attributes:
        studies: its images and labels; or, where its studies lie on another server, images to send.
        home: its model versions and logs.
        configs: models of its own.
        model: the one that it serves.
        outside: a folder beside them with somebody else's files, the user's home among them; nothing may change there.
        temporary: its folder of temporary files, empty when nothing is asked of it.
    """

    def __init__(
        self, address: str, folder: Path, model: str = MODEL, token: str = "", elsewhere: bool = False
    ) -> None:
        super().__init__(address)
        self.configs, self.model = folder / "configs", model
        self.studies, self.home, self.outside, self.temporary = places(folder)
        self.app = folders.app_folder()
        if token:
            self._http.headers["Authorization"] = f"Bearer {token}"
        self._elsewhere = elsewhere  # the studies are
        self.routes = set(self.call("GET", "/openapi.json").json()["paths"])
        self._answer = self._good_answer()
        self._outside = self.others_files()
        self._log_read = 0

    def ask(self, method: str, route: str, **options) -> requests.Response:
        """Make a request and return the answer, whatever it is."""
        return self._http.request(method, self.address + route, timeout=120, **options)

    def send(self, call: Callable[..., requests.Response]) -> requests.Response:
        """Make a request of schemathesis' and return the answer."""
        return call(session=self._http, timeout=120)

    def raw(self, method: str, target: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, bytes]:
        """Make a request whose target is sent as it stands, ``..`` included, and return status and body."""
        connection = HTTPConnection(urlsplit(self.address).netloc, timeout=120)
        try:
            login = {name: value for name, value in self._http.headers.items() if name == "Authorization"}
            connection.request(method, target, body, {**login, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def form(self, data: dict[str, str], files: dict[str, tuple[str, bytes]]) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of a form."""
        prepared = requests.Request("POST", self.address, data=data, files=files or None).prepare()
        body = prepared.body or b""
        kind = prepared.headers.get("Content-Type")
        return body.encode() if isinstance(body, str) else body, {"Content-Type": kind} if kind else {}

    def process(self) -> psutil.Process:
        """Return the server's process."""
        port = ["--port", str(urlsplit(self.address).port)]
        return next(p for p in psutil.process_iter(["cmdline"]) if port == (p.info["cmdline"] or [])[6:8])

    def listening(self) -> list:
        """Return the addresses that the server listens on."""
        return [one.laddr for one in self.process().net_connections() if one.status == psutil.CONN_LISTEN]

    def others_files(self) -> dict[str, str]:
        """Return the hash of every file that the server must not touch: those outside, and its own code."""
        code = {path: digest for folder in _CODE for path, digest in hashes(folder, "*.py", "*.yaml").items()}
        return {**hashes(self.outside, "*"), **code}

    def own_files(self) -> dict[str, str]:
        """Return the hash of every image, label and version: of what a refused request must not change."""
        return {**hashes(self.studies, "*.nii.gz", "*.json"), **hashes(self.home / "models", "*")}

    def check(self) -> None:
        """Check what has to be true after each fault: see ``tests/README.md``."""
        assert self._good_answer() == self._answer, "the answer to a good request is another one than before the fault"
        if "/health/ready" in self.routes:
            ready = self.ask("GET", "/health/ready")
            assert ready.status_code == 200, ready.text
        assert self.others_files() == self._outside, "a file changed that is outside the studies and the model versions"
        assert eventually(lambda: not self.left_over()), f"temporary files are left: {self.left_over()}"
        log = self.take_log()
        assert "Traceback" not in log, log[-5000:]

    def left_over(self) -> list[str]:
        """Return the temporary files and the half-written ones."""
        half = [path for folder in (self.studies, self.home) for glob in _HALF_WRITTEN for path in folder.glob(glob)]
        readers = {*self.temporary.glob("labelrounds-readers-*"), *self.temporary.glob("labelrounds-readers-*/tmp*")}
        kept = [path for path in self.temporary.rglob("*") if path not in readers]  # their folders, empty between files
        return sorted(map(str, [*half, *kept]))

    def take_log(self) -> str:
        """Return what the server has logged since the last call."""
        log = (self.home / "server.log").read_bytes()
        new, self._log_read = log[self._log_read :], len(log)
        return new.decode(errors="replace")

    def _good_answer(self) -> str:
        route, options = f"/infer/{self.model}?output=image", {"data": {"params": "{}"}}
        if self._elsewhere:
            image = self.studies / "phantom_000.nii.gz"
            answer = self.call("POST", route, files={"file": (image.name, image.read_bytes())}, **options)
        else:
            answer = self.call("POST", f"{route}&image=phantom_000", **options)
        return hashlib.sha256(answer.content).hexdigest()


def places(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Return the folders of a server's studies, of its home, of others' files and of temporary files."""
    return folder / "studies", folder / "home", folder / "outside", folder / "temporary"


@contextmanager
def trusted(
    folder: Path,
    settings: dict[str, str] | None = None,
    token: str = "",
    model: str = MODEL,
    configs: Path | None = None,
    studies: str = "",
) -> Iterator[TrustedServer]:
    """Start a server in ``folder``.

    Args:
        folder: where its studies, home and the files round them lie; made if need be.
        settings: environment variables.
        token: of the login, for all its requests.
        model: the one to serve.
        configs: the folder of its file; without it, it is `steady_model`.
        studies: the address of a DICOMweb server instead of a folder.
    """
    images, home, outside, temporary = places(folder)
    if not images.exists():
        write_studies(images, 2)
    for one in (home, outside / "user", temporary):
        one.mkdir(parents=True, exist_ok=True)
    (outside / "secret.nii.gz").write_text(SECRET)
    (outside / "main.py").write_text("# somebody else's program\n")
    configs = configs or steady_model(folder / "configs")
    login = {"key": token} if token else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(outside / "user"))
        patch.setenv("TMPDIR", str(temporary))
        for name, value in (settings or {}).items():
            patch.setenv(name, value)
        with running_server(studies or images, home, 0, [model], configs, **login) as client:
            yield TrustedServer(client.address, folder, model, token, bool(studies))


def steady_model(folder: Path) -> Path:
    """Write the phantoms' model with a runtime that is not exchanged for a quicker one while the server runs."""
    content = yaml.safe_load((folders.shipped_configs() / f"{MODEL}.yaml").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    content["inference"]["runtime"] = "eager"
    (folder / f"{MODEL}.yaml").write_text(yaml.safe_dump(content))
    return folder


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the hash of each file in a folder and below, by path; of a link, where it leads."""
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    return {str(path): _hash(path) for path in found if path.is_symlink() or path.is_file()}


def _hash(path: Path) -> str:
    return f"-> {path.readlink()}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()


def eventually(condition, timeout_s: float = 20) -> bool:
    """Wait until a condition holds; tell whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
