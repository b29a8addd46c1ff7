"""The login as Slicer's extension asks for it: whether there is one, a token for name and password, is it still valid.

404 at the first means that there is none.
"""

from typing import Annotated, Any, Literal

import labelrounds.host

# isort: split
from fastapi import APIRouter, Form, Request
from pydantic import SecretStr

from labelrounds.access import Caller, role_of
from labelrounds.addresses import address_of
from labelrounds.errors import NotFound
from labelrounds.login import Login

__all__ = ["auth", "labelrounds"]

auth = APIRouter(prefix="/auth", tags=["Auth"])
Text = Annotated[str, Form(max_length=300)]


def login_of(http: Request) -> Login:
    """Return the server's login.

    Raises:
        NotFound: it has none.
    """
    login: Login = http.app.state.login
    if not login.required:
        raise NotFound("this server has no login")
    return login


@auth.get("/", summary="Tell whether there is a login")
async def has_login(http: Request) -> dict[str, bool]:
    """Answer 404 where there is no login."""
    return {"enabled": login_of(http).required}


@auth.post("/token", summary="Log in")
async def log_in(
    http: Request,
    username: Text,
    password: Annotated[SecretStr, Form(max_length=4000)],
    grant_type: Annotated[Literal["password"], Form()] = "password",
) -> dict[str, Any]:
    """Return a token for a user's name, and a key or the password that the hospital's login knows."""
    return await login_of(http).token(username, password.get_secret_value(), address_of(http.scope))


@auth.get("/token/valid", summary="Tell whose token this is")
async def whose_token(who: Caller) -> dict[str, Any]:
    """Return who has logged in, and the highest ``role``, which includes those below it."""
    told: dict[str, Any] = who.model_dump()
    return {**told, "role": role_of(who)}
