"""Errors as clients read them: problem details (RFC 9457), whose ``detail`` is a plain sentence.

The last step of every route that fails. Slicer shows the whole body, so the sentence comes first in it; ``instance`` is
the request's id, by which the log tells more. What is not meant for users (a traceback, a path, an exception's own
words) stays in the log.
"""

import json
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import labelrounds.host

# isort: split
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException

from labelrounds.errors import BadInput, Busy, Cancelled, LabelRoundsError, NotFound, Overloaded
from labelrounds.logs import request_id
from labelrounds.notes import in_utf8

__all__ = ["DOCUMENTED", "MEDIA_TYPE", "answer", "install", "labelrounds", "problem", "unexpected"]
logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
_SCHEMA = {
    "type": "object",
    "required": ["detail", "type", "title", "status", "instance"],
    "properties": {
        "detail": {"type": "string", "description": "What was wrong, in a sentence."},
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "instance": {"type": "string", "description": "The request's id, as in X-Request-ID and in the log."},
    },
}
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request can't be served as it is", **_PROBLEM},
    "5XX": {"description": "503: try again in a moment; 507: the disk is full", **_PROBLEM},
}


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as problem details; where a moment later may be better, with ``Retry-After``."""
    content = {
        "detail": in_utf8(detail),
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "instance": request_id(),
    }
    sent = dict(headers or {})
    if status in (Busy.status, Overloaded.status):
        sent.setdefault("Retry-After", str(RETRY_AFTER_S))
    return Response(json.dumps(content, ensure_ascii=False), status, sent, MEDIA_TYPE)


def answer(error: LabelRoundsError) -> Response:
    """Return an error of ours; its message is meant for the user."""
    return unexpected() if error.status == LabelRoundsError.status else problem(error.status, str(error))


def unexpected() -> Response:
    """Return what is said of an error that nobody has foreseen: where to find it in the log."""
    told = f"the server failed at this request; its log has the reason under the request id {request_id()}"
    return problem(500, told)


def install(application: FastAPI) -> None:
    """Answer with problem details whatever goes wrong in an application's routes, the host's among them."""
    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        LabelRoundsError: answer,
        RequestValidationError: lambda error: problem(422, _words(error)),
        HTTPException: _of_http,
        ImageNotFoundException: lambda error: answer(NotFound(error.msg)),
        LabelNotFoundException: lambda error: answer(NotFound(error.msg)),
        MONAILabelException: lambda error: answer(BadInput(error.msg)),
    }
    for kind, handle in handlers.items():
        application.add_exception_handler(kind, _logged(handle))


def _title(status: int) -> str:
    if status == Cancelled.status:
        return "Client Closed Request"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _of_http(error: HTTPException) -> Response:
    """Return a refusal by a route of the host or by the framework; the host's 500 may tell of its insides."""
    if error.status_code == 500:
        return unexpected()
    return problem(error.status_code, _words(error), error.headers)


def _logged(handle: Callable[[Any], Response]) -> Callable[[Request, Exception], Response]:
    def handler(request: Request, error: Exception) -> Response:
        response = handle(error)
        if response.status_code == 500:
            logger.error("%s failed", request.method, exc_info=error)
        else:
            told = in_utf8(_words(error))
            logger.info("%s refused with %d: %s", request.method, response.status_code, told)
        return response

    return handler


def _words(error: Exception) -> str:
    """Return an error in words; what is wrong with a request's fields, not their values, which a client has sent."""
    if isinstance(error, RequestValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    if not isinstance(error, HTTPException):
        return str(error)
    if error.detail == HTTPStatus(405).phrase:
        return f"this method is not allowed here; allowed: {(error.headers or {}).get('Allow', 'none')}"
    if error.detail == HTTPStatus(404).phrase:
        return "there is nothing at this address"
    return error.detail if isinstance(error.detail, str) else json.dumps(error.detail, default=str)
