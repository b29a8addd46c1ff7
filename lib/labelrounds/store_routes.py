"""The routes that list the datastore and tell and turn back the history of its labels.

Plain functions, so that they run in a thread each: a list of 10,000 images holds up nobody.
"""

from enum import Enum
from typing import Annotated, Any

import labelrounds.host

# isort: split
from fastapi import APIRouter, Query
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance

from labelrounds.access import Annotator, Caller, Reviewer

__all__ = ["labelrounds", "stored"]

stored = APIRouter(prefix="/datastore", tags=["Datastore"])


class Listing(str, Enum):
    """What is listed: how many images and labels there are, the whole index, or the paths to train on."""

    stats = "stats"
    all = "all"
    train = "train"


@stored.get("/", summary="List images and labels")
def list_datastore(_: Caller, output: Listing | None = None) -> Any:
    """Return counts; with ``output=all`` what is known of every image and label."""
    store = app_instance().datastore()
    if output is Listing.all:
        return Response(store.text(), media_type="application/json")
    return store.datalist() if output is Listing.train else store.status()


@stored.get("/label/history", summary="See every version of an image's labels")
def label_history(_: Annotator, image: str, tag: str = "") -> list[dict[str, Any]]:
    """Return what was saved, restored and removed, when and by whom, the oldest first; ``tag`` limits it to one."""
    versions: list[dict[str, Any]] = app_instance().datastore().label_history(image, tag)
    return versions


@stored.post("/label/restore", summary="Make an earlier version of a label the current one")
def restore_label(
    who: Reviewer, image: str, tag: str, sha256: Annotated[str, Query(pattern="^[0-9a-f]{16,64}$")]
) -> dict[str, Any]:
    """Take the version with a SHA-256, or with one that begins so; the others stay in the history."""
    info: dict[str, Any] = app_instance().datastore().restore_label(image, tag, sha256, who.username)
    return {"image": image, "label": image, "tag": tag, "sha256": info["sha256"]}
