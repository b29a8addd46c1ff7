"""A stand-in for a PACS that has nothing to give, keeps what it is asked, and asks for a password."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DICOMWEB = "/dicom-web"
ELSEWHERE = b"what only the PACS's own administrator may see"


class Pacs(ThreadingHTTPServer):
    """The stand-in.

    Attributes:
        asked: the paths, in their order, as they came.
        logins: the ``Authorization`` of each.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.logins: list[str] = []

    @property
    def address(self) -> str:
        """Where its DICOMweb is."""
        return f"http://127.0.0.1:{self.server_address[1]}{DICOMWEB}"


class _Handler(BaseHTTPRequestHandler):
    server: Pacs

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.logins.append(self.headers.get("Authorization", ""))
        found = b"[]" if self.path.startswith(f"{DICOMWEB}/") and ".." not in self.path else ELSEWHERE
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running_pacs() -> Iterator[Pacs]:
    """Run it on loopback for as long as the block lasts."""
    with Pacs() as pacs:
        thread = threading.Thread(target=pacs.serve_forever)
        thread.start()
        try:
            yield pacs
        finally:
            pacs.shutdown()
            thread.join()
