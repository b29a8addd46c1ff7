"""Read untrusted files in processes of their own, with limits: what they do to a reader they don't do to the server.

`labelrounds.reading` reads through this wherever a server runs. A file at which a reader dies, or that takes too long,
is the fault of its sender: the reader is replaced, which takes milliseconds, and nobody else's request fails.

Concurrency: any thread may read. As many files are read at a time as there are readers; others wait. A reader serves
one request at a time, and whatever goes wrong in between ends it, so that no answer ever reaches another request.

Crash: a reader ends when the server has gone, and what it unpacked is removed with it. A server whose first reader
process was killed starts another one with the next file.
"""

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from labelrounds import reading, shared_images
from labelrounds.errors import BadInput, LabelRoundsError, Overloaded, TooLarge
from labelrounds.reader_process import LONGEST_MESSAGE
from labelrounds.settings import ServerSettings

logger = logging.getLogger(__name__)

_STARTING_S = 120.0
_BYTES_A_SECOND = 5e6  # of the slowest disk or network that a file is waited for
# What Python and the parsers need of the server's environment; the rest may hold secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "PYTHONDONTWRITEBYTECODE")
# One thread is enough to read, and each more costs memory in every reader.
_SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")


class Sandbox:
    """The readers of a server.

    Args:
        settings: how many readers, and what each may take.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._turn = threading.BoundedSemaphore(settings.readers)
        self._lock = threading.Lock()
        self._nursery: _Nursery | None = None
        self._idle: list[_Reader] = []
        self._closed = False

    def start(self) -> None:
        """Begin to load the parsers; returns at once."""
        with self._lock:
            self._nursery = self._nursery or _Nursery(self._settings.reader_memory_gb)

    def read(self, what: str, path: Path, **options: Any) -> Any:
        """Do what the function ``what`` of `labelrounds.parsing` does, elsewhere.

        Raises:
            LabelRoundsError: the one that it raises.
            BadInput: the reader died, or took too long.
            TooLarge: the kernel ended the reader for its memory.
            Overloaded: no reader can be started.
        """
        path = path.absolute()
        seconds = self._settings.reader_seconds + _size(path) / _BYTES_A_SECOND
        asked = json.dumps({"what": what, "path": str(path), "options": options, "seconds": seconds}).encode()
        if len(asked) > LONGEST_MESSAGE:
            raise BadInput(f"{path.name[:100]}: its path is too long")
        with self._turn:
            reader = self._take()
            try:
                memory = reader.ask(asked, seconds)
                try:
                    answer = shared_images.unpack(memory)
                finally:
                    os.close(memory)
            except LabelRoundsError:
                self._idle.append(reader)
                raise
            except TimeoutError as error:
                self._end(reader, f"at {path.name}")
                raise BadInput(
                    f"{path.name}: reading it took over {seconds:.0f} s and was stopped; the file is damaged, its disk"
                    " too slow, or LABELROUNDS_READER_SECONDS too short"
                ) from error
            except (OSError, ValueError) as error:
                raise self._lost(reader, path, error) from error
            except BaseException:
                self._end(reader, f"at {path.name}")
                raise
            self._idle.append(reader)
            return answer

    def make_ready(self) -> None:
        """Have a reader that has loaded the parsers.

        Raises:
            Overloaded: no reader can be started.
        """
        with self._turn:
            self._idle.append(self._take())

    def close(self) -> None:
        """End the readers, also those that read or are to be made; who waits for one is told to come again."""
        self._closed = True
        nursery = self._nursery
        if nursery is not None:  # before the lock, which is held while the parsers are loaded
            nursery.hang_up()
        with self._lock:
            nursery, self._nursery = self._nursery, None
        if nursery is not None:
            nursery.close()

    def _take(self) -> "_Reader":
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                reader = self._idle.pop()
                if reader.is_quiet():
                    return reader
                self._end(reader, "between two files")
        with self._lock:
            for _ in range(2):  # the first process may have been killed
                if self._closed:
                    raise Overloaded("the server is about to end")
                self._nursery = self._nursery or _Nursery(self._settings.reader_memory_gb)
                try:
                    return self._nursery.reader()
                except OSError as error:
                    logger.warning("The process that starts readers is started anew: %s", error)
                    self._nursery.close()
                    self._nursery = None
                    self._idle.clear()
        raise Overloaded("no process to read files with could be started; see the server's log")

    def _lost(self, reader: "_Reader", path: Path, error: Exception) -> LabelRoundsError:
        how = self._end(reader, f"at {path.name}")
        if self._closed:
            return Overloaded("the server is about to end")
        if isinstance(error, ValueError):
            return BadInput(f"{path.name}: the process that read it gave no image ({error}); the file is damaged")
        if how == "SIGKILL":  # by nobody but the kernel
            return TooLarge(f"{path.name}: the process that read it was killed, most likely for want of memory")
        if how == "SIGXCPU":
            return BadInput(f"{path.name}: reading it took too long and was stopped; the file is damaged")
        return BadInput(f"{path.name}: the process that read it died ({how}: {error}); the file is damaged")

    def _end(self, reader: "_Reader", when: str) -> str:
        reader.socket.close()
        with self._lock:
            try:
                how = self._nursery.end(reader.process) if self._nursery is not None else "unknown"
            except OSError:
                how = "unknown"
        logger.warning("The reader %d has ended, %s: %s", reader.process, when, how)
        return how


def sandbox_of(settings: ServerSettings) -> Sandbox | None:
    """Let this process read in a sandbox from now on, and begin to start it; None where the settings want none."""
    if not settings.readers:
        logger.warning("Files are read in the server's own process, as LABELROUNDS_READERS is 0")
        return None
    sandbox = Sandbox(settings)
    sandbox.start()
    reading.read_by(sandbox)
    return sandbox


class _Reader:
    """A process that reads one file at a time."""

    def __init__(self, process: int, end: socket.socket) -> None:
        self.process, self.socket = process, end

    def is_quiet(self) -> bool:
        """Tell whether it lives, and says nothing that it was not asked."""
        told = select.poll()  # select() itself takes no descriptor over 1023, which many clients make
        told.register(self.socket, select.POLLIN)
        return not told.poll(0)

    def ask(self, asked: bytes, seconds: float) -> int:
        """Return a descriptor of the shared memory that holds the answer.

        Raises:
            TimeoutError: no answer in time.
            OSError: the process has died.
        """
        self.socket.settimeout(seconds)
        self.socket.send(asked)
        _, descriptors, *_ = socket.recv_fds(self.socket, LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:
            raise ConnectionError("no answer")
        return descriptors[0]


class _Nursery:
    """The process that makes readers; whoever calls it holds the sandbox's lock."""

    def __init__(self, memory_gb: float) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready = False
        command = [sys.executable, "-s", "-m", "labelrounds.reader_process", str(other.fileno())]
        package = Path(__file__).resolve().parents[1]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {**_SINGLE, "PYTHONPATH": str(package)}
        with other:
            self._process = subprocess.Popen(
                [*command, str(int(memory_gb * 1e9))],
                cwd="/",
                env=environment,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the server's, which then ends it
            )

    def reader(self) -> _Reader:
        """Make a reader.

        Raises:
            OSError: the process has died, or hangs.
        """
        if not self._ready:
            self._receive()
            self._ready = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._socket, [b'{"reader": null}'], [theirs.fileno()])
        return _Reader(self._receive()["process"], ours)

    def end(self, process: int) -> str:
        """Kill a reader that has not died yet, and say how it ended."""
        self._socket.send(json.dumps({"end": process}).encode())
        return str(self._receive()["ended"])

    def hang_up(self) -> None:
        """Have whoever waits for an answer wait no more; the process ends by it. Any thread may call this."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process, and with it its readers."""
        self._socket.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _receive(self) -> dict[str, Any]:
        self._socket.settimeout(_STARTING_S)
        message = self._socket.recv(LONGEST_MESSAGE)
        if not message:
            raise ConnectionError(f"it has ended with the status {self._process.poll()}")
        answer: dict[str, Any] = json.loads(message)
        return answer


def _size(path: Path) -> int:
    """Return a file's length, or the files' of a folder; 0 where it can't be told, which reading then says."""
    try:
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return path.stat().st_size
    except OSError:
        return 0
