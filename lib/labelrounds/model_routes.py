"""The routes of the models' versions: seeing and fetching them, and, for administrators, adding, removing, choosing.

Plain functions, so that they run in a thread each. A change takes effect with the next request for the model, in every
process: what is served is looked up in the model's folder (`labelrounds.checkpoints`). Removing a model as a whole,
which the host offers, is not: there would be nothing left to answer with.
"""

import logging
from typing import Annotated, Any

import labelrounds.host

# isort: split
from fastapi import APIRouter, Body, File, UploadFile
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance
from pydantic import Field

from labelrounds.access import Admin, Caller, RequestBody, parse_body
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.errors import NotFound
from labelrounds.history import checksum
from labelrounds.uploads import publish_upload

__all__ = ["labelrounds", "models"]

logger = logging.getLogger(__name__)
models = APIRouter(prefix="/model", tags=["Model"])

_SHOWN = ("created", "policy", "epochs", "best_metric", "judged_by", "judged_on", "parent", "uploaded_by")


class Chosen(RequestBody):
    """Which version to serve."""

    to: Annotated[int | None, Field(ge=0)] = None


@models.get("/info/{model}", summary="See the checksum of the weights that are served")
def see_weights(_: Admin, model: str) -> dict[str, Any]:
    """Return what the host's clients read of a model's file."""
    return _described(_served(model))


@models.get("/{model}", summary="Download the weights that are served")
def download(_: Admin, model: str) -> FileResponse:
    """Return the served version as safetensors."""
    version = _served(model)
    return FileResponse(
        version.weights,
        media_type="application/octet-stream",
        filename=f"{version.model}-{version.number:04d}.safetensors",
    )


@models.get("/{model}/versions", summary="See a model's versions")
def see_versions(_: Caller, model: str) -> dict[str, Any]:
    """Return the versions with their scores, and the number of the one that is served; nothing of single cases."""
    from labelrounds.tasks import task_of  # not before the app is loaded, as it brings all of training along

    checkpoints = _checkpoints(model)
    task = task_of(checkpoints.config)
    listed = [
        {
            "version": version.number,
            **{key: version.record[key] for key in _SHOWN if key in version.record},
            "by_label": version.record.get(task.key) or {},
        }
        for version in checkpoints.versions()
    ]
    served = checkpoints.served_number()
    return {"model": model, "served": served, "measure": task.measure, "versions": listed}


@models.put("/{model}", summary="Upload weights as a new version")
def upload(who: Admin, model: str, file: Annotated[UploadFile, File()], serve: bool = True) -> dict[str, Any]:
    """Check safetensors against the model's configuration, publish them as its next version, and serve that."""
    checkpoints = _checkpoints(model)
    version, digest = publish_upload(checkpoints, file.file, "the uploaded file", who.username, serve)
    logger.info("%s was uploaded by %s, SHA-256 %s", version, who.username, digest)
    return {**_described(version), "served": checkpoints.served_number() == version.number}


@models.delete("/{model}/versions/{number}", summary="Remove a version that is not served")
def remove(who: Admin, model: str, number: int) -> dict[str, Any]:
    """Delete a version's weights and record for good; its number is never given again."""
    _checkpoints(model).remove(number, who.username, patience_s=20)
    logger.info("%s version %d was removed by %s", model, number, who.username)
    return {"model": model, "removed": number}


@models.post("/{model}/rollback", summary="Serve an older version")
def roll_back(who: Admin, model: str, body: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
    """Serve the version before the served one, or the one that ``to`` names; none is removed."""
    before, version = _checkpoints(model).rollback(parse_body(Chosen, body or {}).to)
    logger.info("%s is served from now on, as %s asked for", version, who.username)
    return {"model": model, "served": version.number, "instead_of": before}


def _checkpoints(model: str) -> Checkpoints:
    configs = app_instance().configs
    if model not in configs:
        raise NotFound(f"model {model[:100]!r} is not one of {', '.join(configs)}")
    return Checkpoints(configs[model])


def _served(model: str) -> Version:
    version = _checkpoints(model).current()
    if version is None:
        raise NotFound(f"model {model} has no trained version yet")
    return version


def _described(version: Version) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.number,
        "checksum": f"SHA256:{checksum(version.weights)}",
        "modified_time": int(version.weights.stat().st_mtime),
    }
