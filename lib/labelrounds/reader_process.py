"""The processes that read files for a server: ``python -m labelrounds.reader_process DESCRIPTOR MEMORY_BYTES``.

The first loads the parsers, which takes seconds, and never opens a file; it makes a copy of itself whenever
`labelrounds.sandbox` asks for a reader, which takes milliseconds and shares its memory. A reader has its limits before
the first file: a folder of its own for what it unpacks, and nothing else that it could write to.

On the first process's socket stand ``{"reader": null}`` with the new reader's end of a socket, answered by its process
id, and ``{"end": id}``, answered by how it ended. On a reader's socket stands ``{"what": ..., "path": ..., "options":
..., "seconds": ...}``, answered by a descriptor of shared memory (`labelrounds.shared_images`). Where the other end is
closed, the server has gone, and so does whoever notices.
"""

import gc
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from labelrounds import confinement, parsing, shared_images
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge
from labelrounds.itk_loading import load_itk

LONGEST_MESSAGE = 2**16
READS = ("read_image", "read_label", "read_geometry", "patient_of")
_MOST_WAITED_S = 2.0  # for the end of a reader that was killed

logger = logging.getLogger("labelrounds.reader_process")


def main() -> NoReturn:
    """Make readers until the server has gone."""
    control, memory_bytes = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    import itk.support.helpers

    itk.support.helpers._HAVE_TORCH = False  # it would load it whole, for a conversion that nobody asks for
    load_itk()
    import pydicom.encaps  # noqa: F401 - before the first reader, not in each

    gc.freeze()
    readers: dict[int, Path] = {}
    with tempfile.TemporaryDirectory(prefix="labelrounds-readers-") as folder:
        with suppress(BrokenPipeError):  # the server has ended meanwhile
            control.send(b"{}")
        while True:
            message, descriptors, *_ = socket.recv_fds(control, LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
            if not message:
                break
            wanted = json.loads(message)
            if "end" in wanted:
                control.send(json.dumps({"ended": _end(wanted["end"], readers)}).encode())
                continue
            place = Path(tempfile.mkdtemp(dir=folder))
            process = os.fork()
            if process == 0:
                control.close()
                _serve(socket.socket(fileno=descriptors[0]), place, memory_bytes)
            os.close(descriptors[0])
            readers[process] = place
            control.send(json.dumps({"process": process}).encode())
        for process in list(readers):
            _end(process, readers)
    sys.exit(0)


def _end(process: int, readers: dict[int, Path]) -> str:
    """Kill a reader, remove its folder, and say how it ended: maybe before, and by itself."""
    folder = readers.pop(process, None)
    if folder is None:
        return "unknown"
    how = "killed"
    os.kill(process, signal.SIGKILL)  # its number is taken until it is waited for
    limit = time.monotonic() + _MOST_WAITED_S
    while time.monotonic() < limit:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            break
        time.sleep(0.005)
    shutil.rmtree(folder, ignore_errors=True)
    return how


def _serve(requests: socket.socket, folder: Path, memory_bytes: int) -> NoReturn:
    """Read what is asked for, one file after the other; never returns into the first process's code."""
    try:
        tempfile.tempdir = str(folder)
        _silence_libraries()
        confinement.limit_resources(memory_bytes)
        confinement.confine_to(folder)
        while message := requests.recv(LONGEST_MESSAGE):
            asked = json.loads(message)
            confinement.limit_processor_time(asked["seconds"])
            memory = _packed(asked)
            socket.send_fds(requests, [b"{}"], [memory])
            os.close(memory)
    except BaseException:
        logger.exception("A reader ends")
        os._exit(1)
    os._exit(0)


def _silence_libraries() -> None:
    """Keep off the server's log what parsers written in C print, and what a file makes them print."""
    kept = os.fdopen(os.dup(2), "w", buffering=1)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=kept, force=True)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes what it does not understand
    warnings.simplefilter("ignore")
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)


def _packed(asked: dict[str, Any]) -> int:
    """Return a descriptor of the result, or of the error."""
    path = Path(asked["path"])
    try:
        return shared_images.pack(_read(asked["what"], path, asked["options"]))
    except LabelRoundsError as error:
        return shared_images.pack(error)
    except (MemoryError, OSError):
        return shared_images.pack(TooLarge(f"{path.name}: reading it takes more memory than a reader may have"))
    except Exception as error:  # a kind that no parser was known to raise; its words may hold what is in the file
        logger.error("%s can't be read: %s in %s", path.name, type(error).__name__, _place_of(error))
        return shared_images.pack(BadInput(f"{path.name}: can't be read: {type(error).__name__}"))


def _place_of(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _read(what: str, path: Path, options: dict[str, Any]) -> Any:
    if what not in READS:
        raise BadInput(f"{what!r} is not one of {', '.join(READS)}")
    return getattr(parsing, what)(path, **options)


if __name__ == "__main__":
    main()
