"""Start the viewer: one process, one page, one user."""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import Any

from trame.app import get_server
from trame_slicer import module as trame_slicer_module
from trame_slicer.core import SlicerApp
from trame_slicer.rca_view import register_rca_factories
from vtkmodules.vtkCommonCore import vtkLogger, vtkOutputWindow

from labelrounds.addresses import listens_on_loopback
from labelrounds.errors import BadInput
from labelrounds.listening import Listening

from . import host
from .access import Access


def run(address: str, listening: Listening) -> None:
    """Show the rounds of a server until Ctrl-C.

    Args:
        address: the LabelRounds server's.
        listening: where the page is to be had.

    Raises:
        BadInput: a network's address without TLS, a certificate that can't be used.
    """
    listening.check(login=True)
    if not listens_on_loopback(listening.host) and listening.certificate is None:
        raise BadInput(
            f"host {listening.host!r} is reached from the network, and the page shows patients' images: give"
            " --tls-certificate and --tls-key, or leave out --host and come by an SSH tunnel"
        )
    sys.argv[1:] = []  # trame would read the options of this command as its own
    access = Access()
    server = get_server("labelrounds")
    server.enable_module(trame_slicer_module)
    vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)  # without a display, VTK warns of each view
    core = SlicerApp()
    vtkOutputWindow.GetInstance().SetDisplayModeToNever()  # it would say the same once more
    host.install(core)
    register_rca_factories(core.view_manager, server)

    from .page import Page  # the library below it looks for what was just installed
    from .rounds import Rounds

    rounds = Rounds(server, core, address)
    Page(server, core, rounds)
    started: list[asyncio.Task[Any]] = []

    def bind(webserver: Any) -> None:
        webserver.app.middlewares.append(access.check)
        if listening.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(listening.certificate, listening.key)
            webserver.config["ssl"] = context

    def ready(**_state: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        started.append(loop.create_task(rounds.watch()))
        with server.state:
            rounds.connect()
        shown = Listening(listening.host, server.port, certificate=listening.certificate).address
        print(f"The rounds of {rounds.data.address}. Open this in a browser:\n\n    {shown}/?key={access.key}\n")
        print("Whoever has this address can see and label: pass it on to nobody. Ctrl-C ends it.", flush=True)

    server.controller.on_server_bind.add(bind)
    server.controller.on_server_ready.add(ready)
    server.controller.on_server_exited.add(rounds.close)
    server.start(host=listening.host, port=listening.port, timeout=0, open_browser=False, show_connection_info=False)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Print what went wrong in the loop, but for a picture that was on its way to a window as it was closed."""
    if not isinstance(context.get("exception"), ConnectionResetError):
        loop.default_exception_handler(context)
