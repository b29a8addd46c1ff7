"""A network between a client and the server that can be made slow, be cut in mid-request, or answer by itself."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Relay:
    """Passes on what is said between its own address and a server's.

    Args:
        server: the server's address.
        port: of its own; a free one for 0.
    """

    def __init__(self, server: str, port: int = 0):
        self._server = urlsplit(server).hostname, urlsplit(server).port
        self._own_answer = b""
        self._open: list[socket.socket] = []
        self._passes = threading.Event()
        self._passes.set()
        self._asked = threading.Event()
        self._listen(port)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def answer_with(self, head: str, body: bytes) -> None:
        """Ask the server nothing from now on, but answer so."""
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self._own_answer = head.encode() + body

    @contextlib.contextmanager
    def down(self):
        """Let nobody answer at this address for a while."""
        port = self._listener.getsockname()[1]
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        try:
            yield
        finally:
            self._listen(port)

    def restore(self) -> None:
        """Pass on everything again."""
        self._own_answer = b""
        self.release()

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

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                if self._own_answer:
                    near.recv(1 << 16)
                    near.sendall(self._own_answer)
                    near.close()
                    continue
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
