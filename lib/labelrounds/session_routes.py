"""The routes of images that a client sends once and then asks about by session id (`labelrounds.sessions`)."""

from pathlib import Path
from typing import Annotated, Any

import labelrounds.host  # noqa: F401 - first, so that the host can be imported

# isort: split
from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance

from labelrounds.access import Caller
from labelrounds.errors import BadInput, NotFound
from labelrounds.privacy.identity import check_upload
from labelrounds.sent_files import check_ending, safe_name
from labelrounds.sessions import Session, SessionStore
from labelrounds.tracing import note

sessions = APIRouter(prefix="/session", tags=["Session"])


@sessions.put("/", summary="Keep an image for a session")
def create_session(
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
    kept = _store().add({name: file.file for file, name in zip(files, names, strict=True)}, expiry)
    note(session_id=kept.id)
    app_instance().segment_ahead(kept.image)
    return {"session_id": kept.id, "session_info": kept.plain()}


@sessions.get("/{session_id}", summary="Get a session, or its image")
def get_session(_: Caller, session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """Describe a session, or with ``image`` return what it keeps; ``update_ts`` begins its time anew."""
    found = _session(session_id, update_ts)
    if not image:
        return found.plain()
    if found.image.is_dir():
        raise BadInput(f"session {session_id!r} keeps the files of a series, not one image")
    return FileResponse(found.image, media_type="application/octet-stream", filename=found.image.name)


@sessions.delete("/{session_id}", summary="Remove a session")
def remove_session(_: Caller, session_id: str) -> Any:
    """Remove a session and the image that it keeps."""
    found = _session(session_id)
    _store().remove(session_id)
    return found.plain()


def session_image(session_id: str) -> Path:
    """Return the image that a session keeps.

    Raises:
        NotFound: no such session, or it has expired.
    """
    return _session(session_id).image


def _session(session_id: str, use: bool = True) -> Session:
    found = _store().get(session_id, use)
    if found is None:
        raise NotFound(f"session {session_id[:100]!r} does not exist or has expired")
    return found


def _store() -> SessionStore:
    store: SessionStore | None = app_instance().sessions()
    if store is None:
        raise NotFound("this server keeps no sessions (MONAI_LABEL_SESSIONS)")
    return store
