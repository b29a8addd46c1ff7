"""The child process of a training: ``python -m labelrounds.worker REQUEST [SERVER]``, the request as JSON.

Builds the app as the server did (its settings come through the environment) and trains. SIGTERM asks the training
to end with the best it has reached. When the server (its process id) is gone, the process ends at once; what a training
had saved is resumed by the next server.

A training of several processes, one for each GPU, it launches as ``torchrun`` does: each is this module again. One
that dies is started anew with the others, once, and the training goes on from its last epoch.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import distributed, heap
from labelrounds.errors import LabelRoundsError

_stop = threading.Event()
# How the training has ended, from process 0 to the process that launched it: an exit status would start it again.
_VERDICT = "LABELROUNDS_VERDICT"
_STOPPED = "LABELROUNDS_STOPPED"


def main() -> int:
    """Run the training that the command line describes; return the exit status."""
    request = json.loads(sys.argv[1])
    heap.keep_freed()
    signal.signal(signal.SIGTERM, lambda number, frame: _stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which then ends this process
    if _STOPPED in os.environ:
        _stop.set()
    if not distributed.launched():
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # to tell a server that is gone is no failure of the training
    # The server may have gone before this process had come so far as to ask who its parent is.
    server = int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()
    threading.Thread(target=_follow_parent, args=(server,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from monailabel.interfaces.utils.app import app_instance

    app = app_instance()
    try:
        count = app.training_processes(request)
        if count > 1 and not distributed.launched():
            return _launch(count)
        result = app.train(request, _stop.is_set)
    except LabelRoundsError as error:
        print(error)
        return _ended(1)
    if result:  # of several processes the first has one
        print(json.dumps(result, default=str))
    return _ended(0)


def _ended(status: int) -> int:
    """Return a status, or end as one of several and leave the status to the process that launched them."""
    if not distributed.launched():
        return status
    if os.environ["RANK"] == "0":
        Path(os.environ[_VERDICT]).write_text(str(status))
    distributed.end()
    return 0


def _launch(count: int) -> int:
    """Train in several processes and return the exit status."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    signal.signal(signal.SIGTERM, lambda number, frame: _stop_all())
    if _stop.is_set():
        _stop_all()
    # A store for each start: in a shared one those that are started anew look for the addresses of the dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    options = ["--standalone", "--nproc-per-node", str(count), "--max-restarts", "1"]
    # A stop is no signal to end: it must not reach torchrun, which would start to kill.
    options += ["--signals-to-handle", "SIGQUIT"]
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict"
        os.environ[_VERDICT] = str(verdict)
        try:
            torchrun.run(torchrun.parse_args([*options, "-m", "labelrounds.worker", sys.argv[1]]))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print(f"process {rank} of the training ended twice, at last with exit status {failure.exitcode}")
            return 1
        return int(verdict.read_text())


def _stop_all() -> None:
    """Pass the wish to stop on, also to processes that are only being started."""
    os.environ[_STOPPED] = "1"
    for process in psutil.Process().children():
        process.terminate()


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
