"""A real Orthanc with its DICOMweb plugin, for the tests: on loopback, with a login, in a folder of its own.

Orthanc binds every address of the machine. So it runs in a network of its own (``unshare``, which Linux lets any user
do unless an administrator forbids it; then it at least refuses whoever is not on this machine), and two relays, joined
by a socket in its folder, lead to it from a port of 127.0.0.1. Run as a program, this module is the inner relay.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import requests
from dicomweb_client import DICOMwebClient

PORT = 8042  # in its own network
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@dataclass
class Orthanc:
    """A running server.

    Attributes:
        address: of its DICOMweb services.
        gate: what can be shut, so that it answers nobody.
    """

    address: str
    user: str
    password: str
    gate: "Gate"
    client: DICOMwebClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = DICOMwebClient(self.address, session=self.session())

    def session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env, session.auth = False, (self.user, self.password)
        return session

    def push(self, files: Sequence[Path]) -> None:
        """Store files by STOW-RS."""
        stored = self.client.store_instances([pydicom.dcmread(file) for file in files])
        assert len(stored.ReferencedSOPSequence) == len(files)

    def segmentations(self, image: str) -> list[pydicom.Dataset]:
        """Return the SEG instances about a series, the oldest first."""
        found = []
        for one in self.client.search_for_series(search_filters={"Modality": "SEG"}):
            found += self.client.retrieve_series(one["0020000D"]["Value"][0], one["0020000E"]["Value"][0])
        about = [one for one in found if one.ReferencedSeriesSequence[0].SeriesInstanceUID == image]
        return sorted(about, key=lambda one: (one.ContentDate, one.ContentTime))


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run an empty Orthanc for as long as the block lasts."""
    folder.mkdir(parents=True)
    user, password = "labelrounds", secrets.token_urlsafe(16)
    config = {
        "HttpPort": PORT,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {user: password},
        "DicomServerEnabled": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    own_network = subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    with (folder / "orthanc.log").open("w") as log:
        command = [*(["unshare", "-rn"] if own_network else []), sys.executable, __file__, str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    gate = Gate(folder / "socket")
    try:
        server = Orthanc(f"http://127.0.0.1:{gate.port}/dicom-web", user, password, gate)
        _wait_until_ready(server, process, folder)
        yield server
    finally:
        gate.close()
        process.terminate()
        process.wait(timeout=20)


def _wait_until_ready(server: Orthanc, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if server.session().get(f"{server.address}/studies", timeout=5).ok:
                return
        time.sleep(0.1)
    raise AssertionError(f"Orthanc did not start:\n{(folder / 'orthanc.log').read_text()[-2000:]}")


class Gate:
    """The outer relay, in a thread: from a free port of 127.0.0.1 to the socket; it can be shut."""

    def __init__(self, path: Path) -> None:
        self.path, self._shut = path, False
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Let nobody through, nor go on, for as long as the block lasts."""
        self._shut = True
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result(10)
        try:
            yield
        finally:
            self._shut = False

    async def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.create_task(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._shut:
            writer.close()
            return
        self._open.add(writer)
        await _relay(reader, writer, lambda: asyncio.open_unix_connection(self.path))
        self._open.discard(writer)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    with contextlib.suppress(OSError):
        other_reader, other_writer = await connect()
        await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))
    writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(2**18):
            writer.write(content)
            await writer.drain()
    writer.close()


async def _run_inside(folder: Path) -> None:
    """Be the inner relay: start Orthanc, and lead from the socket to it, until told to end."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: also when the tests are killed
    with socket.socket() as probe:  # a new network has its loopback down
        flags = struct.pack("16sH14x", b"lo", 0x1 | 0x40)
        with contextlib.suppress(OSError):
            fcntl.ioctl(probe, 0x8914, flags)  # SIOCSIFFLAGS
    orthanc = await asyncio.create_subprocess_exec("Orthanc", str(folder / "orthanc.json"))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    server = await asyncio.start_unix_server(
        lambda reader, writer: _relay(reader, writer, lambda: asyncio.open_connection("127.0.0.1", PORT)),
        folder / "socket",
    )
    async with server:
        await asyncio.wait(
            [asyncio.ensure_future(ended.wait()), asyncio.ensure_future(orthanc.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
    if orthanc.returncode is None:
        orthanc.terminate()
        await orthanc.wait()


if __name__ == "__main__":
    asyncio.run(_run_inside(Path(sys.argv[1])))
