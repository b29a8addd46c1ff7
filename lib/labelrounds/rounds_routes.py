"""The routes of the rounds: asking for a case, keeping it, putting it aside, reviewing it, seeing how things stand.

Plain functions, so that they run in a thread each. Every body is checked whole, an unknown key being a mistake.
"""

from typing import Annotated, Any, Literal

import labelrounds.host

# isort: split
from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.utils.app import app_instance
from pydantic import Field

from labelrounds.access import Annotator, Caller, RequestBody, Reviewer, client_of, parse_body
from labelrounds.errors import BadInput
from labelrounds.names import check_id
from labelrounds.tracing import note

__all__ = ["MESSAGE", "labelrounds", "rounds"]

MESSAGE = "X-LabelRounds-Message"
_MOST_SHOWN = 500
_LONGEST_H = 24 * 366.0
Name = Annotated[str, Field(max_length=200)]
Sent = Annotated[dict[str, Any] | None, Body()]
rounds = APIRouter(tags=["ActiveLearning"])


class Asked(RequestBody):
    """What a client may say when it asks for a case."""

    client_id: Name | None = None
    model: Name | None = None


class Kept(RequestBody):
    """A sign of life."""

    image: Name
    client_id: Name | None = None


class PutAside(RequestBody):
    """A case that is not to be handed out, and why."""

    image: Name
    kind: Literal["skip", "defer"]
    reason: Annotated[str, Field(max_length=500)] = ""
    hours: Annotated[float, Field(gt=0, le=_LONGEST_H, allow_inf_nan=False)] | None = None
    client_id: Name | None = None


class Reviewed(RequestBody):
    """A word on a label."""

    image: Name
    verdict: Literal["approved", "sent_back"]
    reason: Annotated[str, Field(max_length=500)] = ""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    client_id: Name | None = None


@rounds.post("/activelearning/{strategy}", summary="Hand out the next case to label")
def next_sample(http: Request, who: Caller, strategy: str, params: Sent = None) -> Response:
    """Choose by a strategy; ``{}`` where no case is left, with the reason in the header ``X-LabelRounds-Message``."""
    asked = parse_body(Asked, params or {})
    client = client_of(http, who, params or {})
    request = {"strategy": strategy, "model": asked.model, "client_id": client}
    chosen, why = app_instance().rounds.choose(request)
    if chosen.get("id") and http.client:
        http.app.state.login.hand_out(who, http.client.host, chosen["id"])
    note(image=chosen.get("id", ""))
    return JSONResponse(chosen, headers={MESSAGE: why} if why else None)


@rounds.get("/rounds/", summary="See how the labelling stands")
def see_rounds(
    _: Caller,
    strategy: str = "auto",
    model: str = "",
    count: Annotated[int, Query(ge=0, le=_MOST_SHOWN)] = 10,
    target: Annotated[float | None, Query(ge=0, le=1)] = None,
    thumbnails: bool = False,
) -> dict[str, Any]:
    """Return curve, advice, the queue with its reasons, who has what in hand, suspects, map, and more."""
    state: dict[str, Any] = app_instance().rounds.state(strategy, count, model or None, target, thumbnails)
    return state


@rounds.post("/rounds/lease", summary="Keep a case in hand")
def keep(http: Request, who: Annotator, body: Sent = None) -> dict[str, Any]:
    """Keep a case for its client for another while; 409 where it is not in that client's hands."""
    kept = parse_body(Kept, body or {})
    note(image=kept.image)
    seconds = app_instance().rounds.renew(check_id(kept.image), client_of(http, who, body or {}))
    return {"image": kept.image, "lease_s": seconds}


@rounds.post("/rounds/aside", summary="Put a case aside")
def put_aside(http: Request, who: Annotator, body: Sent = None) -> dict[str, Any]:
    """Skip a case for good, or defer it for some hours; for all clients."""
    aside = parse_body(PutAside, body or {})
    note(image=aside.image)
    if (aside.hours is None) is (aside.kind == "defer"):
        raise BadInput("hours: 'defer' needs them, above 0; 'skip' is for good and takes none")
    client = client_of(http, who, body or {})
    app_instance().rounds.put_aside(check_id(aside.image), client, aside.kind, aside.reason, aside.hours)
    return {"image": aside.image, "kind": aside.kind}


@rounds.post("/rounds/review", summary="Approve a label or send it back")
def review(http: Request, who: Reviewer, body: Sent = None) -> dict[str, Any]:
    """Note a word on a case's label; what is sent back is not learnt from, and handed out again before all others.

    With ``sha256``, of the label that was looked at, it is 409 where there is another by now.
    """
    said = parse_body(Reviewed, body or {})
    note(image=said.image)
    client = client_of(http, who, body or {})
    rounds_ = app_instance().rounds
    word = rounds_.review(check_id(said.image), said.verdict, said.reason, who.username, client, said.sha256)
    return {"image": said.image, "review": word}


@rounds.delete("/rounds/aside", summary="Put a case back")
def put_back(http: Request, who: Annotator, image: str) -> dict[str, Any]:
    """Hand a case out again that was skipped or deferred."""
    app_instance().rounds.put_back(check_id(image), client_of(http, who, {}))
    return {"image": image}
