"""What a viewer in the browser may read from the configured DICOMweb server, passed on with the server's own login.

On the way of OHIF (`labelrounds.ohif`), which asks ``/proxy/dicom/qido/...`` and ``/proxy/dicom/wado/...``. Only
reading, only paths of DICOMweb that consist of known words and UIDs, only known query parameters; of the request's
headers nothing but ``Accept`` goes on, of the answer's nothing but its type comes back, and the addresses in it become
ours.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from labelrounds.access import Caller
from labelrounds.errors import BadInput, Conflict, NotFound, TooLarge
from labelrounds.pacs import Pacs, told
from labelrounds.tracing import note

logger = logging.getLogger(__name__)

_UID = r"(?=[0-9.]{1,64}(?:/|$))[0-9]+(?:\.[0-9]+)*"
_INSTANCE = rf"studies/{_UID}/series/{_UID}/instances/{_UID}"
_PATH = re.compile(
    rf"studies|series|instances|studies/{_UID}/(?:series|instances|metadata)"
    rf"|studies/{_UID}/series/{_UID}/(?:instances|metadata|rendered|thumbnail)"
    rf"|{_INSTANCE}(?:/metadata|/rendered|/thumbnail|/bulk(?:data)?(?:/[0-9A-Fa-f]{{1,8}}){{1,9}})?"
    rf"|{_INSTANCE}/frames/[0-9]{{1,6}}(?:,[0-9]{{1,6}}){{0,99}}(?:/rendered|/thumbnail)?"
)
_NAMED = re.compile(rf"(studies|series|instances)/({_UID})")
_LEVELS = {"studies": "study", "series": "series", "instances": "instance"}  # as the audit log has them
_QUERY = re.compile(
    "limit|offset|fuzzymatching|includefield|[0-9A-Fa-f]{8}|(?:Study|Series|SOP)InstanceUID|Patient(?:ID|Name)|"
    "Study(?:Date|Time|ID|Description)|Modalit(?:y|iesInStudy)|Series(?:Number|Description)|AccessionNumber"
)
_ACCEPT = re.compile(r"[A-Za-z0-9 !#$&^_.+*/;=\",-]{1,500}")
_TYPES = re.compile(  # none that a browser would run
    "multipart/related|application/(?:dicom|octet-stream)|video/(?:mp4|mpeg2?|H26[45])|"
    r"image/(?:jpeg|png|gif|bmp|jp2|jpx|jls|jphc?|jxl|x-jls|(?:x-)?dicom-rle|dicom\+(?:jp2|jpx|jpeg|jls|rle))"
)
_JSON = re.compile(r"application/(?:dicom\+)?json")
_LONGEST_VALUE, _MOST_PARAMETERS = 300, 40
_CHUNK, _AT_ONCE, _MOST_JSON = 2**18, 2**23, 2**28
_LONGEST_ANSWER_S = 900.0
_OWN = "/proxy/dicom/wado/"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}

proxy = APIRouter()


@proxy.get("/proxy/dicom/{path:path}", include_in_schema=False)
def pass_on(http: Request, _: Caller, path: str) -> Response:
    """Pass a viewer's request on to the DICOMweb server."""
    from monailabel.interfaces.utils.app import app_instance

    pacs: Pacs | None = getattr(app_instance().datastore(), "pacs", None)
    if pacs is None:
        raise NotFound("the studies lie in a folder: there is no DICOMweb server here that a viewer could read from")
    asked, query = checked_path(path), checked_query(http.query_params.multi_items())
    note(**{_LEVELS[level]: uid for level, uid in _NAMED.findall(asked)})
    accept = http.headers.get("accept", "*/*")
    return _answer(pacs, asked, query, accept if _ACCEPT.fullmatch(accept) else "*/*")


def checked_path(path: str) -> str:
    """Return what is asked for below the DICOMweb server's address.

    Raises:
        BadInput: nothing that is passed on.
    """
    asked = re.sub("^(?:qido|wado)/", "", path)
    if not _PATH.fullmatch(asked):
        raise BadInput(
            f"{path[:200]!r} is not passed on; allowed are the lists, metadata, frames, renderings and bulk data of"
            " DICOMweb, as in studies/UID/series/UID/metadata"
        )
    return asked


def checked_query(query: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return query parameters as they are passed on.

    Raises:
        BadInput: an unknown one, a value that is too long or not printable, or too many.
    """
    for name, value in query:
        if not _QUERY.fullmatch(name):
            raise BadInput(f"the query parameter {name[:100]!r} is not passed on; DICOM attributes and limits are")
        if len(value) > _LONGEST_VALUE or not value.isprintable():
            raise BadInput(f"{name}: {value[:100]!r} is not at most {_LONGEST_VALUE} printable characters")
    if len(query) > _MOST_PARAMETERS:
        raise BadInput(f"{len(query)} query parameters; at most {_MOST_PARAMETERS} are passed on")
    return list(query)


def _answer(pacs: Pacs, path: str, query: Sequence[tuple[str, str]], accept: str) -> Response:
    answer = pacs.ask(path, query, accept)
    kind = answer.headers.get("Content-Type", "application/octet-stream")
    name = kind.partition(";")[0].strip().lower()
    if answer.status_code == 204:
        answer.close()
        return Response(status_code=204, headers=_HEADERS)
    if not (_TYPES.fullmatch(name) or _JSON.fullmatch(name)) or not _ACCEPT.fullmatch(kind):
        answer.close()
        raise Conflict(f"the DICOMweb server answered with {name[:100]!r}, which is not passed on")
    chunks = _bounded(answer, pacs.most_bytes)
    if _JSON.fullmatch(name):
        return Response(_with_own_addresses(b"".join(_until(chunks, _MOST_JSON))), headers=_HEADERS, media_type=name)
    first = []
    for chunk in chunks:
        first.append(chunk)
        if len(first) * _CHUNK >= _AT_ONCE:  # large: what fails from here on can only break the answer off
            return StreamingResponse(_chained(first, chunks), headers={**_HEADERS, "Content-Type": kind})
    return Response(b"".join(first), headers={**_HEADERS, "Content-Type": kind})


def _bounded(answer: Any, most_bytes: int) -> Iterator[bytes]:
    """Yield an answer's content; raises `TooLarge`, and what `labelrounds.pacs.told` makes of a broken connection."""
    left, deadline = most_bytes, time.monotonic() + _LONGEST_ANSWER_S
    with answer, told("the viewer's request"):
        for chunk in answer.iter_content(_CHUNK):
            left -= len(chunk)
            if left < 0 or time.monotonic() > deadline:
                raise TooLarge(
                    f"the DICOMweb server's answer is over {most_bytes / 1e9:g} GB (LABELROUNDS_PACS_MAX_GB) or"
                    f" {_LONGEST_ANSWER_S:g} s"
                )
            yield chunk


def _until(chunks: Iterator[bytes], most_bytes: int) -> Iterator[bytes]:
    left = most_bytes
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TooLarge(f"the DICOMweb server's list or metadata are over {most_bytes} bytes; ask for less")
        yield chunk


def _chained(first: list[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest


def _with_own_addresses(content: bytes) -> bytes:
    """Return DICOM JSON of which the addresses (BulkDataURI, RetrieveURL) are ours; those of elsewhere are left out."""
    with told("the viewer's request"):
        return json.dumps(_own(json.loads(content)), separators=(",", ":"), allow_nan=False).encode()


def _own(value: Any) -> Any:
    if isinstance(value, list):
        return [_own(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("vr") == "UR":
        return {**value, "Value": [_own_address(str(one)) for one in value.get("Value", [])]}
    return {key: _own_address(str(one)) if key == "BulkDataURI" else _own(one) for key, one in value.items()}


def _own_address(address: str) -> str:
    found = re.search(r"(?:^|/)(studies/.*)$", address)
    return _OWN + found[1] if found and (_PATH.fullmatch(found[1]) or _is_whole(found[1])) else ""


def _is_whole(path: str) -> bool:
    return re.fullmatch(rf"studies/{_UID}(?:/series/{_UID})?", path) is not None
