"""Who may reach the page: whoever has the key that was printed at the start, by a page of this address alone.

The first request brings the key in its address; the answer moves it into a cookie that no script can read, and takes it
out of the address. Everything is asked for it, the WebSocket too, which carries all images and clicks. Pages of other
sites don't get the browser to send it, nor does one whose name was made to point here (DNS rebinding); a page of
another port of this machine would, and is refused by its ``Origin``.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from labelrounds.addresses import is_same_origin

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REFUSED = "Open the address that the viewer has printed where it was started: the key is in it.\n"
# Vue compiles the page's template in the browser, which needs 'unsafe-eval'; Vuetify writes styles.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' {socket}; object-src 'none';"
    " frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)


class Access:
    """Lets in who has the key."""

    def __init__(self) -> None:
        self.key = secrets.token_urlsafe(24)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, or refuse it; every answer says what the page may load."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        try:
            answer = await self._answer(request, handler, host, origin)
        except web.HTTPException as refusal:  # as for a file that isn't there
            refusal.headers.update(self._headers(host, request.secure))
            raise
        if not answer.prepared:
            answer.headers.update(self._headers(host, request.secure))
        return answer

    async def _answer(
        self, request: web.Request, handler: Handler, host: str, origin: str | None
    ) -> web.StreamResponse:
        if origin is not None and not is_same_origin(origin, host):
            return web.Response(status=403, text=f"{origin!r} is another page, which may not ask for anything here.\n")
        try:
            cookie = f"labelrounds_viewer_{urlsplit(f'//{host}').port or 0}"  # cookies know no ports
        except ValueError as error:
            return web.Response(status=400, text=f"Host {host!r} is no address of this page: {error}.\n")
        if self._is_key(request.query.get("key", "")):
            answer = web.Response(status=303, headers={"Location": "/index.html"})
            answer.set_cookie(cookie, self.key, path="/", httponly=True, samesite="Strict", secure=request.secure)
            return answer
        if self._is_key(request.cookies.get(cookie, "")):
            return await handler(request)
        return web.Response(status=401, text=_REFUSED)

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.key.encode())  # of any bytes that are sent

    @staticmethod
    def _headers(host: str, secure: bool) -> dict[str, str]:
        return {
            "Content-Security-Policy": _POLICY.format(socket=f"{'wss' if secure else 'ws'}://{host}"),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
