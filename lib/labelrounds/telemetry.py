"""Figures of a running server for Prometheus: ``GET /metrics``.

Beside the ways: `request_done` is told of each request by ``tracing.py``, `inference_done` of each inference by
``app.py``, `training_done` by ``jobs.py``; the rest is looked up when it is asked for. Labels have few values:
routes as templates, models by their configured names, never what a client sends. Who may read them:
who has ``LABELROUNDS_METRICS_TOKEN``, or where none is set, this machine alone.
"""

import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import labelrounds.host

# isort: split
import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from labelrounds.addresses import address_of, is_loopback
from labelrounds.checkpoints import Checkpoints
from labelrounds.problem import problem
from labelrounds.settings import server_settings
from labelrounds.stopping import stopping

__all__ = ["inference_done", "labelrounds", "request_done", "telemetry", "training_done"]
logger = logging.getLogger(__name__)

disable_created_metrics()  # which double the number of series and tell nothing
telemetry = APIRouter(tags=["Operation"])
registry = CollectorRegistry(auto_describe=False)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
_REFUSALS = {401, 403, 413, 415, 429, 503, 507}
_OUTCOMES = {"DONE": "done", "STOPPED": "stopped", "ERROR": "failed"}

_requests = Histogram(
    "labelrounds_request_seconds", "Time to answer a request.", ("method", "route"), buckets=_SECONDS, registry=registry
)
_answers = Counter("labelrounds_requests", "Requests by answer.", ("method", "route", "status"), registry=registry)
_refused = Counter("labelrounds_refused_requests", "Requests that were refused.", ("status",), registry=registry)
_stages = Histogram(
    "labelrounds_inference_stage_seconds",
    "Time of a stage of an inference that a user waited for.",
    ("model", "stage"),
    buckets=_SECONDS,
    registry=registry,
)
_inferences = Counter(
    "labelrounds_inferences",
    "Inferences by what of them was there already, and whether the device's memory did not suffice the usual way.",
    ("model", "device", "cached", "out_of_memory"),
    registry=registry,
)
_labels = Counter("labelrounds_labels_submitted", "Labels that were submitted.", registry=registry)
_trainings = Counter("labelrounds_trainings", "Trainings by their outcome.", ("model", "outcome"), registry=registry)


def request_done(method: str, route: str, status: int, seconds: float) -> None:
    """Count a request; ``route`` is a template."""
    method = method if method in _METHODS else "other"
    _requests.labels(method, route).observe(seconds)
    _answers.labels(method, route, str(status)).inc()
    if status in _REFUSALS:
        _refused.labels(str(status)).inc()
    if (method, route, status) == ("PUT", "/datastore/label", 200):
        _labels.inc()


def inference_done(model: str, told: Mapping[str, Any]) -> None:
    """Count an inference by what its answer tells: ``latencies``, ``device``, ``cached``, ``note``."""
    for stage, seconds in told.get("latencies", {}).items():
        _stages.labels(model, stage).observe(seconds)
    lacked = "yes" if "out of memory" in str(told.get("note", "")) else "no"
    _inferences.labels(model, str(told.get("device", "")), str(told.get("cached", "")), lacked).inc()


def training_done(model: str, status: str) -> None:
    """Count a training by how its process has ended."""
    _trainings.labels(model, _OUTCOMES.get(status, "failed")).inc()


@telemetry.get("/metrics", summary="Figures for Prometheus", response_class=Response)
def metrics(http: Request) -> Response:
    """Answer in Prometheus' text format."""
    token = server_settings().metrics_token
    if token is not None:
        sent = http.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {token.get_secret_value()}".encode()):
            return problem(401, "figures are for who has the token of metrics", {"WWW-Authenticate": "Bearer"})
    elif not is_loopback(address_of(http.scope)):
        return problem(403, "figures are only for this machine; LABELROUNDS_METRICS_TOKEN lets others read them")
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Looked(Collector):
    """What is looked up when it is asked for."""

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges; what can't be looked up is left out."""
        for look in (_stopping, _queue, _graphics_memory, _versions, _scoring):
            try:
                yield from look()
            except Exception as error:  # one figure that fails must not take the others with it
                logger.warning("No figures by %s: %s", look.__name__, error)


def _gauge(name: str, about: str, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"labelrounds_{name}", about, labels=labels)


def _stopping() -> Iterator[Metric]:
    in_flight = _gauge("requests_in_flight", "Requests that are being answered.")
    in_flight.add_metric((), stopping.in_flight)
    ending = _gauge("stopping", "1 while the server is ending.")
    ending.add_metric((), int(stopping.begun))
    yield from (in_flight, ending)


def _queue() -> Iterator[Metric]:
    waiting = _gauge("queue_length", "Requests that wait for a device.", ("device",))
    for device, count in app_instance().engine.waiting().items():
        waiting.add_metric((device,), count)
    ahead = _gauge("ahead_length", "Cases that are to be segmented before their user asks.")
    ahead.add_metric((), app_instance().ahead.unfinished())
    yield from (waiting, ahead)


def _graphics_memory() -> Iterator[Metric]:
    """Look at the GPUs that this process uses; to ask another one would take memory there."""
    free = _gauge("gpu_free_bytes", "Free memory of a GPU.", ("device",))
    total = _gauge("gpu_total_bytes", "Memory of a GPU.", ("device",))
    reserved = _gauge("gpu_reserved_bytes", "Memory of a GPU that this process has reserved.", ("device",))
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if torch.cuda.memory_reserved(index):
            device = (f"cuda:{index}",)
            for gauge, value in zip((free, total), torch.cuda.mem_get_info(index), strict=True):
                gauge.add_metric(device, value)
            reserved.add_metric(device, torch.cuda.memory_reserved(index))
    yield from (free, total, reserved)


def _versions() -> Iterator[Metric]:
    published = _gauge("model_versions", "Versions of a model that there are, the shipped one among them.", ("model",))
    served = _gauge("model_served_version", "The version that is served, 0 for the shipped one.", ("model",))
    for name, config in app_instance().configs.items():
        checkpoints = Checkpoints(config)
        published.add_metric((name,), len(checkpoints.versions()))
        number = checkpoints.served_number()
        if number is not None:
            served.add_metric((name,), number)
    yield from (published, served)


def _scoring() -> Iterator[Metric]:
    images = _gauge("scoring_images", "Images of the pool by how far scoring has come.", ("model", "state"))
    for model, progress in app_instance().rounds.progress().items():
        images.add_metric((model, "scored"), progress["scored"])
        images.add_metric((model, "failed"), progress["failed"])
        images.add_metric((model, "left"), progress["of"] - progress["scored"] - progress["failed"])
    yield images


ProcessCollector(registry=registry)
registry.register(_Looked())
