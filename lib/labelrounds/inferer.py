"""Segmentation as the host asks for it: what is kept already, else read, prepare, predict, clean, restore, write.

The inferer is built once a process and shared by all requests, each of which calls it in a thread of its own. Reading
and writing happen there; preparing and predicting in the device's thread, when it is the request's turn (`engine.py`).
What comes of it is kept (`memory_cache.py`): the prepared image, on the device, for other models and versions, and
the written answer for whoever asks for the same again. A version that is published or rolled back to is served from
the next request on.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelrounds.asking import Answer, ModelInferer, Request, first_of
from labelrounds.atomic import disk_errors
from labelrounds.checkpoints import Version
from labelrounds.computing import CPU, Computing, LacksMemory, PreparedImage
from labelrounds.config import ModelConfig
from labelrounds.devices import choose_device, choose_devices, is_out_of_memory
from labelrounds.engine import Engine, Place
from labelrounds.errors import LabelRoundsError
from labelrounds.geometry import Affine
from labelrounds.logs import request_id
from labelrounds.memory_cache import Memory, identity_of
from labelrounds.reading import Image, read_image
from labelrounds.served import ServedNetworks
from labelrounds.tuning import Tuning
from labelrounds.writing import write_label

logger = logging.getLogger(__name__)

_PREPARATION = {"channels", "spacing_mm", "intensity"}  # with the dimensions


@dataclass(frozen=True)
class WrittenLabel(Answer):
    """A written label map.

    Attributes:
        content: of the file.
        runtime: that ran the version.
    """

    content: bytes
    runtime: str

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        return len(self.content)


class SegmentationInferer(ModelInferer[WrittenLabel]):
    """One served segmentation model.

    Args:
        config: the model.
        engine: the devices, shared by all models of a process.
        memory: what is kept between requests, shared likewise.
        tuning: chooses the versions' runtimes, shared likewise; without it they run as they are loaded.
    """

    _done = "segmented"
    _networks: ServedNetworks

    def __init__(self, config: ModelConfig, engine: Engine, memory: Memory, tuning: Tuning | None = None) -> None:
        super().__init__(config, engine, memory, labels=list(config.labels))
        self._model = config
        self._networks = ServedNetworks(config)
        self._computing = Computing(config, self._networks, memory, tuning)
        # As texts, since some parts of a configuration are no keys.
        self._preparation = (config.model_dump_json(include=_PREPARATION), config.dimensions)
        self._configuration = config.model_dump_json()

    def _warm_up(self, device: torch.device, stopped: Callable[[], bool]) -> None:
        self._computing.warm_up(device, stopped)

    def info(self) -> dict[str, Any]:
        """Return what a client shows; beside what the host defines, the ``runtime`` on the best device.

        Of the labels, ``codes`` says what some of them are (SNOMED CT), ``colours`` how red, green and blue they are.
        """
        card = self._model.model_dump(mode="json", include={"codes", "colours"})
        described: dict[str, Any] = {**super().info(), **card}
        try:
            return {**described, "runtime": self._networks.summary(choose_device())}
        except LabelRoundsError as error:  # told to who asks for a segmentation
            logger.warning("Model %s: %s", self._model.name, error)
            return described

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]`` (a path) and write the result beside nothing else, in a temporary file.

        Args:
            request: ``image``; optional ``device`` (``cuda``: any GPU; else the best there is, of several alike the one
                that is free first), ``result_extension``, and ``uncertainty``, true for a map of how unsure the model
                is, in percent (`labelrounds.uncertainty`), in place of the label map; from the server ``client_id``,
                who asks, ``gone``, which tells whether the client has gone, ``uploaded``, where the path is of this
                request alone, and ``background``, where nobody waits for the answer.

        Returns:
            the written file, and what the client reads: ``label_names`` (name to voxel value), ``version``,
            ``runtime`` and ``device`` that it was computed by and on, ``note`` where the memory of the one asked for
            did not suffice for the usual way, ``cached`` (what was there already: ``nothing``, the prepared ``image``
            or the whole ``result``), ``latencies`` in seconds, and the ``request_id`` that the log has.

        Raises:
            LabelRoundsError: a device, extension or image that can't be used; no trained version; too little memory;
                too many requests; a client that has gone.
        """
        since = time.perf_counter()
        wanted = choose_devices(first_of(request.get("device")))
        asked = Request.of(request)
        answer, cached = self._answer(asked, wanted)
        with asked.timed("write"):
            file = _written(answer.content, asked.extension)
        seconds = {**asked.seconds, "total": time.perf_counter() - since}
        latencies = {stage: round(value, 4) for stage, value in seconds.items()}
        known_as = request_id()
        logger.info(
            "%s %s: %s version %d by %s on %s, %s; cached: %s; %s",
            "background" if asked.background else "request",
            known_as,
            self._model.name,
            answer.version.number,
            answer.runtime,
            answer.device,
            asked.extension,
            cached,
            ", ".join(f"{stage} {value:.3f} s" for stage, value in latencies.items()),
        )
        return file, {
            "label_names": {} if asked.unsure else self._model.label_values,
            "version": answer.version.number,
            "runtime": answer.runtime,
            "device": str(answer.device),
            **({"note": answer.note} if answer.note else {}),
            "cached": cached,
            "latencies": latencies,
            "request_id": known_as,
        }

    def _preferred(self, asked: Request, devices: Iterable[torch.device]) -> list[torch.device]:
        image = self._image_key(asked)
        return sorted(devices, key=lambda device: image not in self._memory.images(device))

    def _make(self, asked: Request, place: Place) -> tuple[WrittenLabel, str]:
        key = self._image_key(asked)
        source: Image | PreparedImage | None = self._memory.images(place.device).get(key)
        cached = "image" if source else "nothing"
        if source is None:
            with asked.timed("read"):
                source = read_image(asked.image, channels=self._model.channels)
        compute = partial(self._computing.compute, place.device, source, key, asked.timed, unsure=asked.unsure)
        computed = place.compute(compute)
        try:
            with asked.timed("restore"):
                label = self._computing.finish(computed)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise LacksMemory(CPU, source.shape, str(error)) from None
        with asked.timed("write"):
            content = _encoded(label, computed.affine, asked.extension, self._model.labels)
        answer = WrittenLabel(computed.version, place.device, computed.note, content, computed.runtime)
        self._keep(self._answer_key(asked, place.device, answer.version, answer.runtime), answer)
        return answer, cached

    def _image_key(self, asked: Request) -> Hashable:
        return asked.content, self._preparation

    def _answer_key(
        self, asked: Request, device: torch.device, version: Version | None, runtime: str | None = None
    ) -> Hashable:
        """Return what an answer is known by; the runtime is what serves the version now where none is named."""
        weights = None
        if version is not None and version.weights.is_file():  # where there are none, loading them says so
            runtime, weights = runtime or self._networks.runtime(version, device), identity_of(version.weights)
        return asked.content, self._configuration, weights, runtime, str(device), asked.extension, asked.unsure


def _encoded(label: np.ndarray, affine: Affine, extension: str, labels: Sequence[str]) -> bytes:
    """Return a label map as the file that a client gets."""
    with tempfile.TemporaryDirectory(prefix="labelrounds-") as folder:
        return write_label(label, affine, Path(folder) / f"label{extension}", labels).read_bytes()


def _written(content: bytes, extension: str) -> str:
    """Write an answer into a file of its own, which whoever sends it removes.

    Raises:
        OutOfSpace: the disk is full; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix="labelrounds-", suffix=extension)
    try:
        with disk_errors(Path(name)), os.fdopen(handle, "wb") as file:
            file.write(content)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return name
