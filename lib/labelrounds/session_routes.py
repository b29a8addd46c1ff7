"""Images that a client sends once and then asks about by session id: keep one, describe, fetch and remove it.

On the way of a request to ``/infer`` by ``session_id``. The host keeps each session in a folder of its own and believes
what the file ``meta.info`` in it says, also which file the image is; here only a file of that very folder is one.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import labelrounds.host  # noqa: F401 - first, so that the host can be imported

# isort: split
from fastapi import APIRouter, BackgroundTasks, File, UploadFile
from monailabel.endpoints import session
from monailabel.interfaces.utils.app import app_instance

from labelrounds.access import Caller
from labelrounds.errors import BadInput, NotFound
from labelrounds.privacy.identity import check_upload
from labelrounds.sent_files import check_ending, safe_name
from labelrounds.tracing import note

_SESSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
sessions = APIRouter(prefix="/session", tags=["Session"])


@sessions.put("/", summary="Keep an image for a session")
def create_session(
    background: BackgroundTasks,
    _: Caller,
    files: Annotated[list[UploadFile], File()],
    expiry: int = 0,
    uncompress: bool = False,
) -> Any:
    """Keep an image, or the files of a DICOM series, for requests to ``/infer`` by session id."""
    if uncompress:
        raise BadInput("uncompress=true is not supported; send the image itself, or the files of its DICOM series")
    names = [safe_name(file) for file in files]
    if len({*names, ""}) <= len(names):  # each is kept under its own name: none must take another's place
        names = [f"{number:06d}_{name}" for number, name in enumerate(names)]
    if len(files) == 1:
        check_ending(names[0])
    for file, name in zip(files, names, strict=True):
        check_upload(file.file, name)
        file.filename = name
    kept = session.create_session(background, False, expiry, files)
    note(session_id=kept["session_id"])
    app_instance().segment_ahead(session_image(kept["session_id"]))
    return kept


@sessions.get("/{session_id}", summary="Get a session, or its image")
def get_session(_: Caller, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """Describe a session, or with ``image`` return what it keeps; ``update_ts`` begins its time anew."""
    path = session_image(session_id)
    if image and path.is_dir():
        raise BadInput(f"session {session_id!r} keeps the files of a series, not one image")
    return session.get_session(session_id, update_ts, image)


@sessions.delete("/{session_id}", summary="Remove a session")
def remove_session(_: Caller, session_id: str) -> Any:
    """Remove a session and the image that it keeps."""
    session_image(session_id)
    return session.remove_session(session_id)


def session_image(session_id: str) -> Path:
    """Return the image that a session keeps.

    Raises:
        NotFound: no such session, or it has expired; it names another file than one of its own.
    """
    kept = app_instance().sessions()
    known = kept.get_session(session_id) if kept is not None and _SESSION.fullmatch(session_id) else None
    if known is None or Path(known.image).resolve().parent != (Path(kept.store_path) / session_id).resolve():
        raise NotFound(f"session {session_id[:100]!r} does not exist or has expired")
    return Path(known.image)
