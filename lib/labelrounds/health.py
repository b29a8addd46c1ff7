"""Whether the server lives, and whether it is fit to be asked: ``/health/live``, ``/health/ready``.

For load balancers, containers and monitoring. Both need no login and tell nothing confidential: no path, no name of an
image, no error's own words; those stand in ``/health/details`` for who is logged in.

Concurrency: ``live`` is answered by the event loop itself, also while every thread is busy. ``ready`` looks at disks in
threads that no other route takes, and answers 503 where a disk does not answer within seconds.

What makes readiness 503: the server is ending; the studies can't be listed; a disk does not answer; the audit log can't
be written although it has to be; models are trained and none of them can be served. Everything else that
somebody should look at (one damaged model, little space, a rebuilt index) is ``"status": "degraded"`` with 200: the
rest is served as ever.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import labelrounds.host

# isort: split
import torch
from anyio import CapacityLimiter, move_on_after, to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from safetensors import SafetensorError, safe_open

from labelrounds import folders
from labelrounds.access import Caller
from labelrounds.audit import audit_log
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import AnyConfig
from labelrounds.engine import MOST_WAITING
from labelrounds.errors import BadInput, Conflict, LabelRoundsError, NotFound
from labelrounds.problem import RETRY_AFTER_S
from labelrounds.settings import server_settings
from labelrounds.stopping import stopping

__all__ = ["health", "labelrounds", "model_state", "readiness"]
logger = logging.getLogger(__name__)

health = APIRouter(prefix="/health", tags=["Operation"])
_PATIENCE_S = 5.0
# What a store may say of itself to anybody.
_PUBLIC = re.compile(r"the index was torn; it is kept as [\w.-]{1,100} and was rebuilt from the files")


@dataclass
class Readiness:
    """How a server stands.

    Attributes:
        shown: to anybody.
        details: for who is logged in: by part, sentences that may have names in them.
        unfit: the parts because of which it should not be asked.
        worrying: the parts that somebody should look at.
    """

    shown: dict[str, Any] = field(default_factory=dict)
    details: dict[str, list[str]] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)
    worrying: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """``ready``, ``degraded`` or ``not ready``."""
        return "not ready" if self.unfit else "degraded" if self.worrying else "ready"

    def answer(self) -> Response:
        """Return what anybody is told."""
        told = {"status": self.status, "unfit": self.unfit, "degraded": self.worrying, **self.shown}
        later = {"Retry-After": str(RETRY_AFTER_S)} if self.unfit else None
        return JSONResponse(told, 503 if self.unfit else 200, later)


@health.get("/live", summary="Whether the process answers")
async def live() -> dict[str, str]:
    """Answer at once, from the event loop."""
    return {"status": "live"}


@health.get("/ready", summary="Whether the server is fit to be asked")
async def ready() -> Response:
    """Answer 200 or 503, with what each part says of itself."""
    return (await _looked()).answer()


@health.get("/ready/{model}", summary="Whether a model can be served")
async def model_ready(model: str) -> Response:
    """Answer 200 or 503 for one model; 404 where there is none of that name."""
    config = app_instance().configs.get(model)
    if config is None:
        raise NotFound(f"model {model[:64]!r} is not one of {', '.join(app_instance().configs)}")
    shown, _ = await to_thread.run_sync(model_state, config, limiter=_limiter())
    fit = shown["ready"] and not stopping.begun
    return JSONResponse({"model": model, **shown, "ready": fit}, 200 if fit else 503)


@health.get("/details", summary="What is behind the readiness, with names")
async def details(_: Caller) -> dict[str, Any]:
    """Answer with the reasons in words, which may name images and files."""
    found = await _looked()
    return {"status": found.status, "unfit": found.unfit, "degraded": found.worrying, "reasons": found.details}


async def _looked() -> Readiness:
    with move_on_after(_PATIENCE_S):
        return await to_thread.run_sync(readiness, abandon_on_cancel=True, limiter=_limiter())
    return Readiness({"reason": f"a disk has not answered within {_PATIENCE_S:g} s"}, unfit=["disk"])


_made: list[CapacityLimiter] = []


def _limiter() -> CapacityLimiter:
    """Return the places of the threads that are of this module alone; they are made on the event loop."""
    if not _made:
        _made.append(CapacityLimiter(4))
    return _made[0]


def readiness() -> Readiness:
    """Look at every part."""
    found = Readiness()
    if stopping.begun:
        found.unfit.append("stopping")
    found.shown["stopping"] = stopping.begun
    for look in (_look_at_models, _look_at_store, _look_at_disks, _look_at_audit, _look_at_devices):
        look(found)
    return found


def model_state(config: AnyConfig) -> tuple[dict[str, Any], str]:
    """Return what anybody is told of a model, and why it can't be served; the weights' header is read, no more."""
    checkpoints = Checkpoints(config)
    try:
        version = checkpoints.current()
        if version is None:
            return {"ready": False, "reason": "not trained yet"}, ""
        checkpoints.check_configuration(version)
        try:
            with safe_open(version.weights, "pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise BadInput(f"the weights of {version} cannot be read: {error}") from error
        return {"ready": True, "version": version.number}, ""
    except Conflict as error:
        return {"ready": False, "reason": "trained for another configuration"}, str(error)
    except LabelRoundsError as error:
        return {"ready": False, "reason": "damaged"}, str(error)


def _look_at_models(found: Readiness) -> None:
    states = {name: model_state(config) for name, config in app_instance().configs.items()}
    found.shown["models"] = {name: shown for name, (shown, _) in states.items()}
    reasons = [f"{name}: {reason}" for name, (_, reason) in states.items() if reason]
    if reasons:
        none_left = not any(shown["ready"] for shown, _ in states.values())
        (found.unfit if none_left else found.worrying).append("models")
        found.details["models"] = reasons


def _look_at_store(found: Readiness) -> None:
    store = app_instance().datastore()
    try:
        images = _images_in(store)
    except Exception as error:  # whatever it is, it is the store's, and readiness is there to tell
        logger.warning("The studies can't be listed: %s", error)
        found.unfit.append("store")
        found.shown["store"] = {"ready": False}
        found.details["store"] = [str(error)]
        return
    warnings = list(getattr(store, "warnings", ()))
    public = [text for text in warnings if _PUBLIC.fullmatch(text)]
    found.shown["store"] = {"ready": True, "images": images, "warnings": public, "more": len(warnings) - len(public)}
    if warnings:
        found.worrying.append("store")
        found.details["store"] = warnings


def _images_in(store: Any) -> int:
    """Return how many images a store has; that of a DICOMweb server keeps its list for a while."""
    if "://" not in settings.MONAI_LABEL_STUDIES:
        with os.scandir(settings.MONAI_LABEL_STUDIES) as entries:  # the store goes by its index
            next(entries, None)
    return len(store.list_images())


def _look_at_disks(found: Readiness) -> None:
    places = {"home": folders.home()}
    if "://" not in settings.MONAI_LABEL_STUDIES:
        places["studies"] = Path(settings.MONAI_LABEL_STUDIES)
    free: dict[str, int] = {}
    for name, place in places.items():
        try:
            free[name] = shutil.disk_usage(place).free // 1_000_000
        except OSError as error:
            found.unfit.append("disk")
            found.details["disk"] = [f"{name}: {error.strerror}"]
    found.shown["disk_free_mb"] = free
    least = server_settings().least_free_mb
    low = [f"{name}: {left} MB are free, less than {least}" for name, left in free.items() if left < least]
    if low:
        found.worrying.append("disk")
        found.details.setdefault("disk", []).extend(low)


def _look_at_audit(found: Readiness) -> None:
    failing = audit_log().failing
    found.shown["audit"] = {"ready": not failing}
    if failing:
        (found.unfit if server_settings().audit_required else found.worrying).append("audit")
        found.details["audit"] = [failing]


def _look_at_devices(found: Readiness) -> None:
    found.shown["gpus"] = torch.cuda.device_count()
    waiting = app_instance().engine.waiting()
    found.shown["queue"] = {"waiting": waiting, "most": MOST_WAITING}
