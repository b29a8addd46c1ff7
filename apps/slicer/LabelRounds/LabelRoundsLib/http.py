"""One HTTP request that shows how far it is and can be cancelled from another thread.

``http.client`` and not ``urllib.request``, because only the former lets go of its socket: shutting that down is what
ends a request which waits for a slow answer. A proxy of the environment is not used, as the images are for this server
alone.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlencode, urlsplit

from . import failures

_CHUNK = 1 << 18
_CONNECT_S = 10


class Call:
    """A running request, as seen by who waits for it: how far it is, and the means to cancel it.

    Args:
        progress: told the part that is done, 0 to 1, or None while the server computes; called in the request's thread.
    """

    def __init__(self, progress: Callable[[float | None], None] = lambda part: None) -> None:
        self.progress = progress
        self._lock, self._socket, self.cancelled = threading.Lock(), None, False

    def cancel(self) -> None:
        """End the request, whatever it waits for."""
        with self._lock:
            self.cancelled = True
            if self._socket is not None:
                with suppress(OSError):  # it has ended just now
                    self._socket.shutdown(socket.SHUT_RDWR)

    def holds(self, connection: socket.socket | None) -> None:
        """Note the socket that is to be shut down.

        Raises:
            Failed: it was cancelled before there was one.
        """
        with self._lock:
            self._socket = connection
            if self.cancelled:
                raise failures.cancelled()


class Answer:
    """What the server has answered."""

    def __init__(self, headers: Mapping[str, str], body: bytes) -> None:
        self.headers, self.body = headers, body

    def json(self) -> Any:
        """Return the JSON in it."""
        return json.loads(self.body)

    def parts(self) -> dict[str, bytes]:
        """Return the parts of a multipart answer by name."""
        boundary = self.headers.get("Content-Type", "").partition("boundary=")[2].strip('"').encode()
        found = {}
        for part in self.body.split(b"--" + boundary)[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            found[head.partition(b'name="')[2].partition(b'"')[0].decode()] = content[:-2]
        return found


class Form:
    """A multipart body, whose files are read as they are sent.

    Args:
        fields: texts by name.
        files: by field, the path and the file name that the server is told.
    """

    def __init__(self, fields: Mapping[str, str], files: Mapping[str, tuple[Path, str]]) -> None:
        self._boundary = uuid.uuid4().hex
        self._parts: list[bytes | Path] = []
        for name, text in fields.items():
            self._parts += [self._head(f'name="{name}"'), text.encode(), b"\r\n"]
        for name, (path, shown) in files.items():
            self._parts += [self._head(f'name="{name}"; filename="{shown}"'), path, b"\r\n"]
        self._parts.append(f"--{self._boundary}--\r\n".encode())
        self.content_type = f"multipart/form-data; boundary={self._boundary}"
        self.size = sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in self._parts)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body piece by piece."""
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
            else:
                with part.open("rb") as file:
                    yield from iter(lambda file=file: file.read(_CHUNK), b"")

    def _head(self, disposition: str) -> bytes:
        return f"--{self._boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def request(
    address: str,
    method: str,
    route: str,
    query: Mapping[str, Any] | None = None,
    body: Form | dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    call: Call | None = None,
) -> Answer:
    """Make a request.

    Args:
        address: the server's, as ``https://labels.example.org:8000``.
        method: the HTTP method.
        route: the path, already quoted.
        query: what stands after the question mark.
        body: a form, or an object that is sent as JSON.
        headers: further ones.
        timeout_s: the silence after which the request is given up.
        call: shows how far it is, and cancels it.

    Raises:
        Failed: no server, no answer, an error as answer, or cancelled.
    """
    call = call or Call()
    connection = _connect(address, timeout_s)
    try:
        call.holds(connection.sock)
        path = urlsplit(address).path.rstrip("/") + route + (f"?{urlencode(query)}" if query else "")
        _send(connection, method, path, body, dict(headers or {}), call)
        call.progress(None)
        response = connection.getresponse()
        content = _read(response, call)
    except (OSError, http.client.HTTPException) as error:
        raise failures.cancelled() if call.cancelled else failures.lost(address, error) from error
    finally:
        call._socket = None
        connection.close()
    if call.cancelled:
        raise failures.cancelled()
    if response.status >= 300:
        raise failures.refused(address, response.status, response.headers, content)
    return Answer(response.headers, content)


def _connect(address: str, timeout_s: float) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(address)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or not parts.hostname:
            raise ValueError("an address looks like http://localhost:8000")
        more = {"context": ssl.create_default_context()} if parts.scheme == "https" else {}
        connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=_CONNECT_S, **more)
        connection.connect()
        connection.sock.settimeout(timeout_s)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise failures.unreachable(address, error) from error
    return connection


def _send(connection, method, path, body, headers, call) -> None:
    if isinstance(body, Form):
        headers |= {"Content-Type": body.content_type, "Content-Length": str(body.size)}
    elif body is not None:
        content = json.dumps(body).encode()
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
    elif method in ("POST", "PUT"):
        headers["Content-Length"] = "0"
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    if not isinstance(body, Form):
        if body is not None:
            connection.send(content)
        return
    sent = 0
    try:
        for chunk in body.chunks():
            connection.send(chunk)
            sent += len(chunk)
            call.progress(sent / body.size)
    except (BrokenPipeError, ConnectionResetError):
        pass  # a server that refuses an upload answers before it has read all of it, then hangs up


def _read(response: http.client.HTTPResponse, call: Call) -> bytes:
    size, read = int(response.headers.get("Content-Length") or 0), []
    done = 0
    while chunk := response.read(_CHUNK):
        read.append(chunk)
        done += len(chunk)
        if size:
            call.progress(done / size)
    if size and done < size:
        raise http.client.IncompleteRead(b"".join(read), size - done)
    return b"".join(read)
