"""Who may call a route, who has called it, and what was sent, checked: shared by all routes of the server.

``doors.Doors`` finds out who calls before anything of a request is read, and notes it as ``request.state.user``; the
dependencies here compare that user's roles. The host's own check, which refuses every valid token, is replaced by them.
"""

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import labelrounds.host

# isort: split
from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, RBAC, User
from pydantic import BaseModel, ConfigDict, ValidationError

from labelrounds.addresses import address_of
from labelrounds.errors import BadInput, Forbidden, NotLoggedIn
from labelrounds.notes import check_plain
from labelrounds.users import ROLES

__all__ = [
    "EVERYBODY",
    "Admin",
    "Annotator",
    "Caller",
    "Needs",
    "RequestBody",
    "Reviewer",
    "User",
    "client_of",
    "labelrounds",
    "own_checks",
    "parse_body",
    "parse_object",
    "role_of",
    "user_with",
]

EVERYBODY = DEFAULT_USER  # who calls where there is no login
HOST_ROLES: dict[str, str] = {role: str(getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{role.upper()}")) for role in ROLES}


def user_with(name: str, role: str, email: str | None = None, full_name: str | None = None) -> User:
    """Return a user with a role and all those below it, by the names that the host's routes ask for."""
    roles = [HOST_ROLES[one] for one in ROLES[: ROLES.index(role) + 1]]
    return User(username=name, email=email, name=full_name, roles=roles)


def role_of(who: User) -> str:
    """Return the highest role that a user has; nothing for one without any."""
    return next((role for role in reversed(ROLES) if HOST_ROLES[role] in who.roles), "")


class Needs:
    """A dependency of a route: lets a user with this role through.

    Args:
        role: one of ``users.ROLES``; those above it include it.
    """

    def __init__(self, role: str) -> None:
        self.role = role

    async def __call__(self, http: Request) -> User:
        """Return who calls.

        Raises:
            NotLoggedIn: nobody known; only where the doors are missing.
            Forbidden: without the role.
        """
        who: User | None = getattr(http.state, "user", None)
        if who is None:
            raise NotLoggedIn("log in first")
        if HOST_ROLES[self.role] not in who.roles:
            raise Forbidden(f"{http.method} {http.url.path} needs the role {self.role}, which {who.username} has not")
        return who


Admin = Annotated[User, Depends(Needs("admin"))]
Reviewer = Annotated[User, Depends(Needs("reviewer"))]
Annotator = Annotated[User, Depends(Needs("annotator"))]
Caller = Annotated[User, Depends(Needs("user"))]


def own_checks(routers: Iterable[APIRouter]) -> dict[Callable[..., Any], Needs]:
    """Return our dependency for each of the host's in its routes; a role that isn't known here becomes an admin's.

    Trainings, which the host leaves to admins, are a reviewer's: they are a part of the rounds.
    """
    ours = {name: role for role, name in HOST_ROLES.items()}
    checks: dict[Callable[..., Any], Needs] = {}
    for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
        for dependency in route.dependant.dependencies:
            if isinstance(dependency.call, RBAC):
                role = ours.get(dependency.call.roles, "admin")
                trains = role == "admin" and route.path.startswith("/train")
                checks[dependency.call] = Needs("reviewer" if trains else role)
    return checks


_LONGEST_CLIENT = 200


def client_of(http: Request, who: User, options: dict[str, Any]) -> str:
    """Return whom a request counts for: clients often share a name (Slicer's is ``user-xyz``), or an address."""
    return f"{address_of(http.scope)} {who.username} {str(options.get('client_id') or '')[:_LONGEST_CLIENT]}"


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


class RequestBody(BaseModel):
    """What a request may say, an unknown key being a mistake."""

    model_config = ConfigDict(extra="forbid", strict=True)


Body = TypeVar("Body", bound=RequestBody)


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
