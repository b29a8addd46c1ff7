"""What a request has to pass before anything of its body is read: the outermost layer of the application but CORS.

In this order: its headers are not too long; it came to an address at which the server may answer (any with a login or
``--insecure``, else this machine's own, also where MONAI Label's own command has opened all); no page of another site
made it; somebody known makes it; not too often. Then what is read of its body is counted. A request that fails has cost
no disk and no thread.

Everything but what `is_public` needs somebody known, routes that others add included; roles are for ``access``.

A page of another site, in the browser of somebody who may come in, is told by what browsers say of a request and no
page can change: ``Origin``, ``Sec-Fetch-Site``, and, where the page's own name was made to point here (DNS rebinding),
``Host``. Slicer and scripts send none of the first two.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import quote

import anyio
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelrounds.access import User
from labelrounds.addresses import address_of, client_key, is_loopback, is_own_name, is_same_origin
from labelrounds.allowance import Allowance
from labelrounds.errors import Busy, Forbidden, LabelRoundsError, NotLoggedIn, TooLarge, TooLong
from labelrounds.login import Login
from labelrounds.settings import ServerSettings

logger = logging.getLogger(__name__)

PUBLIC = frozenset({"/", "/auth/", "/auth/token", "/health/live", "/health/ready", "/metrics"})
PUBLIC_BELOW = "/ohif"  # a viewer's files, which ask for a login themselves and hold nothing of patients
_TAKE_FILES = ("/infer/", "/datastore/", "/session/", "/model/")
_FILES = ("multipart/form-data", "application/octet-stream")
_KEPT_BY_BROWSERS = ("text/css", "text/javascript", "application/javascript", "application/wasm", "font/")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE_HEADERS = {
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": "frame-ancestors 'self'; base-uri 'self'; object-src 'none'; form-action 'self'",
}
_MB = 1_000_000


class Doors:
    """The layer.

    Args:
        app: the application within.
        login: who may come in.
        settings: limits, and the names that the server goes by.
        origins: of the pages of other sites that may call.
        answer: makes the answer to a request that is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        login: Login,
        settings: ServerSettings,
        origins: Collection[str],
        answer: Callable[[LabelRoundsError], Response],
    ) -> None:
        self._app, self._login, self._settings = app, login, settings
        self._origins, self._answer = frozenset(origins), answer
        self._rate = Allowance(settings.requests_per_second, 2 * settings.requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no route for a WebSocket, and none gets past
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        send = _with_headers(send)
        try:
            self._check_length(scope)
            self._check_place(scope, headers)
            self._check_site(scope, headers)
            await self._admit(scope, headers)
            limit = self._limit(scope, headers)
        except LabelRoundsError as error:
            logger.info("%s %s: %s", scope["method"], quote(scope["path"][:200]), error)
            response = self._answer(error)
            if isinstance(error, NotLoggedIn):
                response.headers["WWW-Authenticate"] = _challenge(headers)
            await response(scope, receive, send)
            return
        await self._app(scope, _counted(receive, limit, self._settings.upload_pause_s), send)

    def _check_length(self, scope: Scope) -> None:
        length = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        length += sum(len(name) + len(value) for name, value in scope["headers"])
        limit = self._settings.largest_headers_kb
        if length > limit * 1000:
            raise TooLong(f"address and headers have {length} bytes; allowed are {limit:g} KB")

    def _check_place(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._login.required or self._settings.insecure:
            if self._settings.hosts and not is_own_name(host, self._settings.hosts):
                raise Forbidden(f"called as {host[:200]!r}, which is none of LABELROUNDS_HOSTS")
            return
        address = (scope.get("server") or ("",))[0]
        if not is_loopback(address):
            raise Forbidden(
                "without a login this server answers to its own machine alone: its administrator may add a user with"
                " `labelrounds users add NAME --role admin`, or set LABELROUNDS_INSECURE=true to let everybody in"
            )
        if not is_own_name(host, self._settings.hosts):
            raise Forbidden(
                f"called as {host[:200]!r}: without a login this server answers to localhost alone; its administrator"
                " may add the name to LABELROUNDS_HOSTS, or a login"
            )

    def _check_site(self, scope: Scope, headers: Headers) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and origin in self._origins:
            return
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        follows_a_link = reads and headers.get("sec-fetch-mode") == "navigate"
        foreign = site not in ("none", "same-origin") and not follows_a_link
        if not reads and origin is not None and not is_same_origin(origin, headers.get("host", "")):
            foreign = True
        if foreign:
            raise Forbidden(
                "a page of another site made this request; to let it, name the site in MONAI_LABEL_CORS_ORIGINS"
            )

    async def _admit(self, scope: Scope, headers: Headers) -> None:
        address = address_of(scope)
        counted = client_key(address)
        if not is_public(_path(scope)):
            try:
                who = await self._caller(scope, headers, address)
            except NotLoggedIn:
                self._count(counted)
                raise
            scope.setdefault("state", {})["user"] = who
            counted = f"user {who.username}" if self._login.required else counted
        self._count(counted)

    def _count(self, counted: str) -> None:
        if (wait_s := self._rate.take(counted)) > 0:
            raise Busy(
                f"more than {self._settings.requests_per_second:g} requests a second; try in {math.ceil(wait_s)} s"
            )

    async def _caller(self, scope: Scope, headers: Headers, address: str) -> User:
        authorization = headers.get("authorization", "")
        if not authorization and scope["method"] == "GET" and _path(scope) == "/datastore/image":
            images = QueryParams(scope["query_string"]).getlist("image")  # a route reads the last of several
            if len(images) == 1 and (who := self._login.fetches(address, images[0])) is not None:
                return who
        return await self._login.identify(authorization, address)

    def _limit(self, scope: Scope, headers: Headers) -> int:
        files = _path(scope).startswith(_TAKE_FILES) and headers.get("content-type", "").lower().startswith(_FILES)
        limit = self._settings.largest_upload_mb if files else self._settings.largest_body_mb
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit * _MB:
            raise TooLarge(f"the request has {declared[:20]} bytes; allowed are {limit:g} MB")
        return int(limit * _MB)


def is_public(path: str) -> bool:
    """Tell whether an address is open to whom nobody knows."""
    return path in PUBLIC or path == PUBLIC_BELOW or path.startswith(f"{PUBLIC_BELOW}/")


def _path(scope: Scope) -> str:
    """Return a request's path below the prefix that a proxy serves this application under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _counted(receive: Receive, limit: int, pause_s: float) -> Receive:
    """Read a request's body up to a number of bytes, and not for ever.

    What it raises is FastAPI's own error, since anything else would become a 400 there.
    """
    read, ended = 0, False

    async def receive_some() -> Message:
        nonlocal read, ended
        if ended:  # from here on it waits for the client to hang up
            return await receive()
        try:
            with anyio.fail_after(pause_s):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"nothing more came for {pause_s:g} s before the request's end") from None
        read += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if read > limit:
            raise HTTPException(TooLarge.status, f"the request has more than the {limit / _MB:g} MB that are allowed")
        return message

    return receive_some


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    """Add what browsers should know to every answer, unless a route has said otherwise."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            kind = headers.get("content-type", "")
            added = _HEADERS | (_PAGE_HEADERS if kind.startswith("text/html") else {})
            if not kind.startswith(_KEPT_BY_BROWSERS):
                added["Cache-Control"] = "no-store"  # of patients
            for name, value in added.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with


def _challenge(headers: Headers) -> str:
    """Ask for a token; of a browser that opens a page, for a name and a key."""
    page = headers.get("sec-fetch-mode") == "navigate"
    return 'Basic realm="LabelRounds", charset="UTF-8"' if page else "Bearer"
