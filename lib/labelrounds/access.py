"""Who may call a route, who has called it, and what was sent, checked: shared by all routes of the server."""

import json
from typing import Annotated, Any, TypeVar

import labelrounds.host

# isort: split
from fastapi import Depends, Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from pydantic import BaseModel, ValidationError

from labelrounds.errors import BadInput
from labelrounds.notes import check_plain

__all__ = ["Admin", "Annotator", "Caller", "Reviewer", "User", "client_of", "labelrounds", "parse_body", "parse_object"]

Admin = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
Reviewer = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_REVIEWER))]
Annotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Caller = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Body = TypeVar("Body", bound=BaseModel)
_LONGEST_CLIENT = 200


def client_of(http: Request, who: User, options: dict[str, Any]) -> str:
    """Return whom a request counts for: clients often share a name (Slicer's is ``user-xyz``), or an address."""
    address = http.client.host if http.client else ""
    return f"{address} {who.username} {str(options.get('client_id') or '')[:_LONGEST_CLIENT]}"


def parse_object(field: str, text: str) -> dict[str, Any]:
    """Return the object of a form field that holds JSON.

    Raises:
        BadInput: not JSON, or not an object; a number that is not finite.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{field} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{field} must be a JSON object, got {type(value).__name__}")
    check_plain(value, field)
    return value


def parse_body(kind: type[Body], content: dict[str, Any]) -> Body:
    """Return a request's body, checked.

    Raises:
        BadInput: an unknown key, a missing one or a value that is not allowed; in one sentence.
    """
    check_plain(content, "the body")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the body"
        allowed = ", ".join(sorted(kind.model_fields))
        if first["type"] == "extra_forbidden":
            raise BadInput(f"{key[:100]!r} is not one of {allowed}") from error
        value = "" if first["type"] == "missing" else f", got {str(first['input'])[:100]!r}"
        raise BadInput(f"{key}: {first['msg'].lower()}{value}") from error
