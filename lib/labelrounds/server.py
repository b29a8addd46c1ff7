"""The ASGI application: the host's routes that are fit to be served, and our own where they are not.

``labelrounds start`` and ``monailabel start_server --uvicorn_app labelrounds.server:app`` both serve it.

Our own are the routes that compute or store (``/infer``, uploads, labels, sessions, models): plain functions, so that
they run in a thread and a long one never holds up the others. So are OHIF and what it may read of the PACS. Not served
at all: removing a model, the whole-slide routes, archive uploads, the logs, batch inference (which fails without a GPU)
and scoring (there is none), and reloading the app, which deadlocks.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import labelrounds.host

# isort: split
from anyio import from_thread, to_thread
from fastapi import APIRouter, BackgroundTasks, FastAPI, File, Form, Request, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints import datastore, infer, info, session, train
from monailabel.interfaces.utils.app import app_instance

import labelrounds
from labelrounds import folders, heap, jobs, problem
from labelrounds.access import Annotator, Caller, client_of, own_checks, parse_object
from labelrounds.audit import record_command
from labelrounds.devices import available_devices
from labelrounds.dicom_proxy import proxy
from labelrounds.doors import Doors
from labelrounds.engine import MOST_WAITING
from labelrounds.errors import BadInput, NotFound
from labelrounds.formats import ending_of
from labelrounds.health import health
from labelrounds.history import checksum
from labelrounds.login import Login
from labelrounds.login_routes import auth
from labelrounds.model_routes import models
from labelrounds.ohif import viewer
from labelrounds.privacy.identity import check_notes
from labelrounds.redaction import hide_secrets
from labelrounds.reviews import REVIEW
from labelrounds.rounds_routes import rounds
from labelrounds.sandbox import sandbox_of
from labelrounds.sent_files import received
from labelrounds.session_routes import session_image, sessions
from labelrounds.settings import server_settings
from labelrounds.store import CLASSES, FINAL
from labelrounds.store_routes import stored
from labelrounds.telemetry import telemetry
from labelrounds.tracing import TracingMiddleware, note

_INFER_PARAMS = {"device", "result_extension", "result_dtype", "result_compress", "client_id"}
_INFER_PARAMS |= {"restore_label_idx"}  # of OHIF: false, and so it is
_INFER_PARAMS |= {"uncertainty"}  # of segmentation models
_INFER_PARAMS |= {"show", "explain", "explain_method"}  # of classification models
_NOT_SERVED = {("PUT", "/datastore/updatelabelinfo")}
# What the server itself notes of an image or a label, and goes by.
_OWN_NOTES = {"id", "path", "name", "ts", "sha256", "strategy", "labels", "label_info", "unknown_labels", "classes"}
_OWN_NOTES |= {"restored_by", "series", REVIEW}
_HOST_SECRETS = ("DATASTORE_PASSWORD", "DATASTORE_API_KEY", "DICOMWEB_PASSWORD")
_CHECKSUM = re.compile(r"(?:SHA256:)?([0-9a-fA-F]{64})")


class Output(str, Enum):
    """What ``/infer`` answers with: the label file, its description, or both in one multipart answer."""

    image = "image"
    json = "json"
    all = "all"


own = APIRouter()


@own.get("/", include_in_schema=False)
def root() -> dict[str, str]:
    """Say what this is; the routes are described in ``openapi.json``."""
    return {"name": "LabelRounds", "version": labelrounds.__version__, "routes": "openapi.json"}


@own.post("/infer/{model}", tags=["Infer"], summary="Segment or classify an image")
def segment(
    http: Request,
    background: BackgroundTasks,
    who: Caller,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    output: Output | None = None,
) -> Any:
    """Segment or classify an image of the datastore (``image``), of a session (``session_id``), or a ``file``."""
    options = parse_object("params", params)
    unknown = sorted(set(options) - _INFER_PARAMS)
    if unknown:
        raise BadInput(f"params {unknown[0]!r} is not one of {', '.join(sorted(_INFER_PARAMS))}")
    app = app_instance()
    app.inferer(model)
    request = {**options, "model": model, "client_id": client_of(http, who, options), "gone": partial(has_gone, http)}
    request["json"] = output is Output.json
    if file is not None:
        with received(file) as path:
            result = app.infer({**request, "image": path, "uploaded": True})
    elif session_id:
        result = app.infer({**request, "image": session_image(session_id)})
    elif image:
        result = app.infer({**request, "image": image})
    else:
        raise BadInput("neither image, file nor session_id was sent; one of them is needed")
    return infer.send_response(app.datastore(), result, output, background)


@own.put("/datastore/", include_in_schema=False)
@own.put("/datastore/image", tags=["Datastore"], summary="Upload an image")
def add_image(
    who: Annotator,
    file: Annotated[UploadFile, File()],
    image: str = "",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """Add an image to the datastore under the name ``image``, or under its file name."""
    details = {**parse_notes("params", params), "user": who.username}
    with received(file) as path:
        name = Path(file.filename or "").name
        image_id = image or name[: len(name) - len(ending_of(name))]
        added = app_instance().datastore().add_image(image_id, str(path), details)
    note(image=added)
    return {"image": added}


@own.put("/datastore/image/info", tags=["Datastore"], summary="Note something about an image")
def note_image(_: Annotator, image: str, info: Annotated[str, Form()] = "{}") -> dict[str, Any]:
    """Add to what is noted about an image."""
    app_instance().datastore().update_image_info(image, parse_notes("info", info))
    return {}


@own.put("/datastore/label/info", tags=["Datastore"], summary="Note something about a label")
def note_label(_: Annotator, label: str, tag: str, info: Annotated[str, Form()] = "{}") -> dict[str, Any]:
    """Add to what is noted about a label."""
    app_instance().datastore().update_label_info(label, tag, parse_notes("info", info))
    return {}


@own.head("/datastore/image", tags=["Datastore"], summary="Check that an image is there")
def check_image(_: Caller, image: str, check_sum: str = "") -> dict[str, Any]:
    """Answer 200 if the image is there and, where a SHA-256 is given, is the same file; else 404."""
    path = app_instance().image_path(image)
    wanted = _CHECKSUM.fullmatch(check_sum)
    if check_sum and wanted is None:
        raise BadInput(f"check_sum {check_sum[:100]!r} is not a SHA-256 of 64 hexadecimal digits")
    if wanted and checksum(path) != wanted[1].lower():
        raise NotFound(f"image {image!r} is another file than the one with that checksum")
    return {}


@own.put("/datastore/label", tags=["Datastore"], summary="Submit a label")
def submit_label(
    http: Request,
    who: Annotator,
    image: str,
    label: Annotated[UploadFile, File()],
    tag: str = "",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Save an annotator's label map or classes of an image, whole or not at all; see ``store.StudyStore``."""
    details = parse_object("params", params)
    check_notes(details, "params")
    # Whose label it is says the login, never the client.
    details["user"] = who.username
    for key in ("restored_by", REVIEW):
        details.pop(key, None)
    app = app_instance()
    store, kind = app.datastore(), tag or FINAL
    with received(label, also=(".json",)) as path:
        classes = store.classes_in(image, str(path), kind, details)
        if classes is not None:
            store.save_classes({image: classes}, details)
            app.rounds.submitted(image, CLASSES, client_of(http, who, details))
            return {"image": image, "label": image, "classes": list(classes.classes)}
        label_id = store.save_label(image, str(path), kind, details)
    told = app.on_save_label(image, label_id) or {}
    app.rounds.submitted(image, kind, client_of(http, who, details))
    ignored = store.get_label_info(label_id, kind).get("unknown_labels")
    return {**told, "image": image, "label": label_id, **({"unknown_labels": ignored} if ignored else {})}


@own.get("/datastore/dataset", tags=["Datastore"], summary="Download images and submitted labels")
def download_dataset(background: BackgroundTasks, _: Annotator, limit_cases: int | None = None) -> FileResponse:
    """Return a ZIP archive of the labelled images, their label maps and classes, and the index."""
    archive = Path(app_instance().datastore().get_dataset_archive(limit_cases))
    background.add_task(archive.unlink)
    return FileResponse(archive, media_type="application/zip", filename="dataset.zip")


def has_gone(http: Request) -> bool:
    """Tell whether a request's client has hung up; called in the request's thread."""
    return from_thread.run(http.is_disconnected)


def parse_notes(field: str, text: str) -> dict[str, Any]:
    """Return the object of a form field that is noted with an image or a label.

    Raises:
        BadInput: not a JSON object, or a key that the server keeps for itself.
    """
    notes = parse_object(field, text)
    notes.pop("user", None)  # that is whoever is logged in
    taken = sorted(_OWN_NOTES & set(notes))
    if taken:
        raise BadInput(
            f"{field}: {taken[0]!r} is the server's own; any key but {', '.join(sorted(_OWN_NOTES))} is free"
        )
    check_notes(notes, field)
    return notes


def served(router: APIRouter, *replaced: APIRouter) -> APIRouter:
    """Return the routes of a router of the host that are neither replaced by ours nor kept off the network."""
    taken = _NOT_SERVED | {pair for ours in replaced for route in ours.routes for pair in _pairs(route)}
    kept = APIRouter()
    kept.routes.extend(route for route in router.routes if not _pairs(route) & taken)
    return kept


def _pairs(route: Any) -> set[tuple[str, str]]:
    return {(method, route.path) for method in route.methods}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Build the app before the first request; end the child processes with the server."""
    heap.keep_freed()  # also where MONAI Label's own command serves
    folders.claim_home()
    record_command("start")
    sandbox = sandbox_of(server_settings())
    instance = app_instance()
    jobs.install(instance.check_training, instance.training_figures)
    instance.server_mode(True)
    instance.on_init_complete()
    # Each request that waits for a device holds a thread; the others must not run out of them.
    to_thread.current_default_thread_limiter().total_tokens += (MOST_WAITING + 1) * len(available_devices())
    try:
        yield
    finally:  # also where a second Ctrl-C cancels it: a thread that still computes would crash the process at its end
        instance.close()
        jobs.abandon_all()
        if sandbox is not None:
            sandbox.close()


def build() -> FastAPI:
    """Assemble the application."""
    # FastAPI's documentation pages load their scripts from the internet, which no hospital's browser should.
    application = FastAPI(
        title="LabelRounds",
        version=labelrounds.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=problem.DOCUMENTED,
    )
    ours = (own, sessions, rounds, auth, health, telemetry, models, stored, proxy, viewer)
    hosts = [served(endpoint.router, *ours) for endpoint in (datastore, info, session, train)]
    for router in (*ours, *hosts):
        application.include_router(router)
    application.dependency_overrides.update(own_checks(hosts))
    problem.install(application)
    close_doors(application)
    application.add_middleware(TracingMiddleware)  # the last, and so the outermost
    return application


def close_doors(application: FastAPI) -> None:
    """Put the doors round the application, and CORS round them where other sites' pages may call."""
    hide_secrets(str(getattr(settings, f"MONAI_LABEL_{name}") or "") for name in _HOST_SECRETS)
    origins = [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]
    own_settings = server_settings()
    secrets = (own_settings.oidc_client_secret, own_settings.metrics_token)
    hide_secrets(secret.get_secret_value() for secret in secrets if secret is not None)
    application.state.login = Login(own_settings)
    application.add_middleware(
        Doors, login=application.state.login, settings=own_settings, origins=origins, answer=problem.answer
    )
    if origins:
        application.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


app = build()
