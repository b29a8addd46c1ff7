"""A network between Slicer and the server that can be made slow, or be cut in the middle of a request."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Relay:
    """Passes on what is said between its own address and a server's."""

    def __init__(self, server: str):
        self._server = urlsplit(server).hostname, urlsplit(server).port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._passes = threading.Event()
        self._passes.set()
        self._asked = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Keep back all answers from now on."""
        self._passes.clear()
        self._asked.clear()

    def release(self) -> None:
        self._passes.set()

    def cut(self) -> None:
        """End all connections once something was asked, as a server that dies does."""
        if not self._asked.wait(30):
            raise AssertionError("nothing was asked")
        self.close_all()

    def close_all(self) -> None:
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.release()
        self._listener.close()
        self.close_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._server)
                self._open += [near, far]
                threading.Thread(target=self._pass, args=(near, far, None), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, self._passes), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, when: threading.Event | None) -> None:
        with contextlib.suppress(OSError):
            while said := source.recv(1 << 16):
                if when is None:
                    self._asked.set()
                else:
                    when.wait()
                target.sendall(said)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
