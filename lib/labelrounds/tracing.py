"""What surrounds every request: its id, its time, its lines in the log and in the audit log, and the last resort.

The outermost step of the server, so that it also sees what is refused at the doors. A route needs no call of its own;
one that comes to know an id which neither path nor query names (of the case that it hands out, of an upload) adds it to
``current.get().ids`` (see `note`).

Concurrency: runs on the event loop; the audit log is written in a thread of its own, one line after the other, before
the answer's first byte goes out. Where that fails the answer goes out all the same and readiness warns, or, with
``LABELROUNDS_AUDIT_REQUIRED``, it is 507: nothing is shown or done that is not in the log. An exception that nobody has
foreseen is logged with its traceback and answered with 500 and the request's id.
"""

import logging
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelrounds.addresses import address_of
from labelrounds.audit import audit_log, event_of
from labelrounds.errors import LabelRoundsError, OutOfSpace
from labelrounds.logs import Context, accepted_id, current
from labelrounds.problem import answer, problem, unexpected
from labelrounds.settings import server_settings
from labelrounds.stopping import stopping
from labelrounds.telemetry import request_done

logger = logging.getLogger(__name__)

_WATCHED = ("/health/", "/metrics")  # by machines, also of a server that is ending
_UNMATCHED = "(none)"
# Polls, pages and descriptions, which show nothing of a patient.
_NOT_AUDITED = {("GET", path) for path in ("/", "/info/", "/train/", "/auth/", "/openapi.json", "/metrics", _UNMATCHED)}
_NOT_AUDITED_BELOW = ("/health/", "/ohif")
_REFUSED = (401, 403)
_IDS = {"image", "id", "label", "tag", "session_id", "model", "strategy", "version", "username", "name"}
_IDS |= {"study", "series", "instance", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}


def note(**ids: str) -> None:
    """Add ids to what the audit log will say of the request that is worked for."""
    context = current.get()
    if context is not None:
        context.ids.update(ids)


class TracingMiddleware:
    """Surrounds an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._auditing = CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send, self._auditing)
        token = current.set(request.context)
        stopping.in_flight += not request.is_watched
        try:
            await self._answer(request, receive)
        finally:
            stopping.in_flight -= not request.is_watched
            request.done()
            current.reset(token)

    async def _answer(self, request: "_Request", receive: Receive) -> None:
        if stopping.begun and not request.is_watched:
            refusal = problem(503, "the server is ending; try again when it has started anew", {"Connection": "close"})
            await refusal(request.scope, receive, request.send)
            return
        try:
            await request.check_audit()
            await self._app(request.scope, receive, request.send)
        except ClientDisconnect:
            logger.info("The client has gone while it sent its request")
        except Exception as error:
            if request.status:  # the answer has begun: the connection is cut, so that it is not taken for whole
                logger.exception("An answer broke off")
                raise
            if isinstance(error, LabelRoundsError):  # by what lies between here and the routes
                logger.info("%s refused with %d: %s", request.scope["method"], error.status, error)
                await answer(error)(request.scope, receive, request.send)
            else:
                logger.exception("A request failed in a way that nobody has foreseen")
                await unexpected()(request.scope, receive, request.send)


class _Request:
    """One request, and what is kept of it.

    Attributes:
        scope: ASGI's.
        context: what the log knows of it.
        status: of its answer; 0 until that begins.
    """

    def __init__(self, scope: Scope, send: Send, auditing: CapacityLimiter) -> None:
        self.scope, self._send, self._auditing = scope, send, auditing
        sent = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        self.context = Context(accepted_id(sent), scope.setdefault("state", {}))
        self.status = 0
        self._began = time.perf_counter()
        self._is_replaced = False
        self.is_watched = scope["path"].startswith(_WATCHED)

    @property
    def route(self) -> str:
        """The template of its route, as far as one has been found."""
        return str(getattr(self.scope.get("route"), "path", "") or _UNMATCHED)

    async def check_audit(self) -> None:
        """Refuse what could not be written down afterwards, where that is required.

        Raises:
            OutOfSpace: the audit log takes no line.
        """
        if server_settings().audit_required and not self.is_watched:
            await to_thread.run_sync(audit_log().check, limiter=self._auditing)

    async def send(self, message: Message) -> None:
        """Send a part of the answer; the audit log comes before the first."""
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.context.id.encode())]
            if not await self._is_written_down():
                self._is_replaced = True
                self.status = OutOfSpace.status
                refusal = problem(self.status, "not answered, as the audit log can't be written; free some space first")
                refusal.headers["x-request-id"] = self.context.id
                await refusal(self.scope, _nothing, self._send)
                return
        await self._send(message)

    async def _is_written_down(self) -> bool:
        """Write the line of the audit log; return whether the answer may go out."""
        if not _is_audited(self.scope["method"], self.route, self.status):
            return True
        event = event_of(
            self.context.id,
            self.context.user,
            address_of(self.scope),
            self.scope["method"],
            self.route if self.route != _UNMATCHED else self.scope["path"],
            {**_ids(self.scope), **self.context.ids},
            self.status,
        )
        try:
            with CancelScope(shield=True):
                await to_thread.run_sync(audit_log().append, event, limiter=self._auditing)
        except OutOfSpace:
            return not server_settings().audit_required
        return True

    def done(self) -> None:
        """Count the request and write its line in the log."""
        seconds = time.perf_counter() - self._began
        method, status = self.scope["method"], self.status or 499
        request_done(method, self.route, status, seconds)
        about = {"method": method, "route": self.route, "status": status, "duration_s": round(seconds, 4)}
        level = logging.DEBUG if self.is_watched and status < 400 else logging.INFO
        logger.log(
            level,
            "%s %s %d in %.3f s",
            method,
            self.route,
            status,
            seconds,
            extra={**about, "address": address_of(self.scope)},
        )


def _is_audited(method: str, route: str, status: int) -> bool:
    if status in _REFUSED:
        return True
    return (method, route) not in _NOT_AUDITED and not route.startswith(_NOT_AUDITED_BELOW) and route != _UNMATCHED


def _ids(scope: Scope) -> Mapping[str, str]:
    """Return the ids that a request's path and query name; nothing else that they hold."""
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    return {name: str(value) for name, value in (*query, *scope.get("path_params", {}).items()) if name in _IDS}


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
