"""A server that answers by a table, for what a panel shows: as quick as a test needs it, and in any state."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

MODEL = "unet"
INFO = {
    "name": "LabelRounds",
    "version": "0.1.0",
    "models": {MODEL: {"task": "segmentation", "labels": ["liver", "spleen"]}, "other": {"labels": ["lung"]}},
    "trainers": {MODEL: {"task": "segmentation"}, "new": {"task": "classification", "labels": ["slim", "stout"]}},
    "strategies": {"auto": {}},
}


class ScriptedServer:
    """Serve a table of answers.

    Attributes:
        answers: by method and path, as ``GET /info/``: what is sent as JSON, a pair of a status and that, or bytes; or
            a function of the request's headers that returns one of these.
        asked: method and path, query and body of each request, the oldest first.
    """

    def __init__(self):
        self.answers = {
            "GET /info/": INFO,
            "GET /auth/token/valid": {"username": "ann", "role": "admin"},
            "GET /datastore/": {"objects": {}},
            "GET /rounds/": {},
            **{
                f"GET /model/{model}/versions": {"model": model, "served": None, "versions": []}
                for model in INFO["models"]
            },
        }
        self.asked = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"script": self}))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def bodies(self, route):
        """Return the bodies of the requests to a route."""
        return [body for asked, _, body in self.asked if asked == route]


class _Handler(BaseHTTPRequestHandler):
    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        route = f"{self.command} {parts.path}"
        is_json = self.headers.get("Content-Type") == "application/json"
        self.script.asked.append((route, parse_qs(parts.query), json.loads(body) if is_json else body))
        found = self.script.answers.get(route, (404, {"detail": f"no {route}"}))
        found = found(self.headers) if callable(found) else found
        status, content = found if isinstance(found, tuple) else (200, found)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_):
        pass
