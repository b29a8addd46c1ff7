"""Give each test a Slicer of its own: a child process, because slicer-core keeps state for a process's whole life.

Each is forked from a process that has imported all of Slicer, which takes seconds, and has started nothing of it.

A test holds a `SlicerProcess` and calls on it the methods of `slicer_user.SlicerUser`, which run over there.
"""

import functools
import importlib
import multiprocessing
import os
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

EXTENSION = Path(sys.prefix, "monailabel", "plugins", "slicer", "MONAILabel")
OWN_EXTENSION = Path(__file__).parents[2] / "apps" / "slicer" / "LabelRounds"
VIEWER = Path(__file__).parents[2] / "apps" / "viewer"  # which needs of Slicer's core some of what the stand-ins do
STAND_INS = Path(__file__).with_name("slicer_host")


ANSWER_TIMEOUT_S = 450  # longer than a training is watched


class SlicerProcess:
    """Start Slicer with the extension's panel open; the keywords are settings of the extension.

    Args:
        folder: Slicer's own folder, for temporary files and settings.
        server: What the annotator enters as server address.
    """

    user = "slicer_user.SlicerUser"

    def __init__(self, folder: Path, server: str, **settings):
        context = _with_slicer_imported()
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, self.user, folder, server, settings), daemon=True)
        self._process.start()
        far_end.close()
        self._receive("start")

    def __getattr__(self, method):
        if method.startswith("_"):
            raise AttributeError(method)
        return functools.partial(self._call, method)

    def close(self) -> None:
        """End Slicer.

        Raises:
            AssertionError: If one of the extension's slots or observers failed, or if the process did not end well.
        """
        if self._process.is_alive():
            uncaught = self._call("take_uncaught_errors")
            self._pipe.send(None)
            self._process.join(30)
            assert not uncaught, "in Slicer:\n" + "\n".join(uncaught)
        assert self._process.exitcode == 0, f"Slicer ended with exit code {self._process.exitcode}"

    def _call(self, method, *arguments, **keywords):
        self._pipe.send((method, arguments, keywords))
        return self._receive(method)

    def _receive(self, method):
        if not self._pipe.poll(ANSWER_TIMEOUT_S):
            self._process.kill()
            raise TimeoutError(f"Slicer did not answer {method} within {ANSWER_TIMEOUT_S} s")
        try:
            done, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"Slicer ended during {method} with exit code {self._process.exitcode}") from None
        if not done:
            raise AssertionError(f"in Slicer, {method}:\n{answer}")
        return answer


def _serve(pipe, user, folder, server, settings):
    """Open Slicer in this process, then call on its user what the pipe asks for, until it asks for None."""
    user = _open_slicer(user, folder, server, settings)
    pipe.send((True, None))
    while (request := pipe.recv()) is not None:
        method, arguments, keywords = request
        try:
            answer = True, getattr(user, method)(*arguments, **keywords)
        except Exception:
            answer = False, traceback.format_exc()
        pipe.send(answer)


def _with_slicer_imported():
    """Return what starts processes that are forked from one which has imported Slicer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slicer_user"])
    found = os.pathsep.join(map(str, (STAND_INS, EXTENSION, VIEWER, Path(__file__).parent)))
    with patch.dict(os.environ, {"QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": found}):
        forkserver.ensure_running()
    return context


def _open_slicer(user, folder, server, settings):
    sys.path[:0] = [str(STAND_INS), str(EXTENSION), str(VIEWER), str(OWN_EXTENSION)]
    module, name = user.split(".")
    return getattr(importlib.import_module(module), name)(folder, server, settings)


class OwnExtensionProcess(SlicerProcess):
    """Start Slicer with LabelRounds' own extension; its user is `extension_user.ExtensionUser`."""

    user = "extension_user.ExtensionUser"
