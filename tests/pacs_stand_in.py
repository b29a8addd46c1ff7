"""An HTTP server on loopback that answers as a test tells it to, and notes what it was asked."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DICOMWEB = "/pacs"
Answer = Callable[[BaseHTTPRequestHandler], None]


class StandIn:
    """A server.

    Attributes:
        address: of its DICOMweb services.
        asked: path and headers of each request.
        answer: what it does with the next requests.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Answer = reply(200, b"[]")
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append((self.path, dict(self.headers)))
                stand_in.answer(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}{DICOMWEB}"


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """Run one for as long as the block lasts."""
    found = StandIn()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


def reply(status: int, content: bytes = b"", kind: str = "application/dicom+json", **headers: str) -> Answer:
    """Answer with a content; ``Content_Length`` among the headers promises another length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer
