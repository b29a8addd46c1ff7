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
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from labelrounds.atomic import disk_errors
from labelrounds.checkpoints import Version
from labelrounds.computing import CPU, Computing, LacksMemory, PreparedImage
from labelrounds.config import ModelConfig
from labelrounds.devices import choose_device, choose_devices, is_out_of_memory, offered_devices
from labelrounds.engine import Engine, Place
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge
from labelrounds.geometry import Affine
from labelrounds.history import checksum
from labelrounds.logs import request_id
from labelrounds.memory_cache import Memory, identity_of
from labelrounds.reading import Image, read_image
from labelrounds.served import ServedNetworks
from labelrounds.tuning import Tuning
from labelrounds.writing import write_label

logger = logging.getLogger(__name__)

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".seg.nrrd")
STAGES = ("wait", "read", "load", "prepare", "segment", "restore", "write")
_PREPARATION = {"channels", "spacing_mm", "intensity"}  # with the dimensions


@dataclass(frozen=True)
class Answer:
    """A written label map.

    Attributes:
        content: of the file.
        version: that it is by.
        runtime: that ran it.
        device: that computed it.
        note: what is to be said of how, or nothing.
    """

    content: bytes
    version: Version
    runtime: str
    device: torch.device
    note: str


@dataclass(frozen=True)
class Request:
    """What is asked for, checked.

    Attributes:
        image: the file, or the folder of a DICOM series.
        content: what the image is known by.
        extension: of the answer.
        client: who asks.
        background: nobody waits for the answer.
        gone: tells whether the client has gone.
        seconds: how long each of `STAGES` has taken.
    """

    image: Path
    content: str
    extension: str
    client: str
    background: bool
    gone: Callable[[], bool]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @classmethod
    def of(cls, request: dict[str, Any]) -> "Request":
        """Check what the host hands over; see `SegmentationInferer.__call__`.

        Raises:
            BadInput: an extension that is not written.
            NotFound: no such file.
        """
        extension = _extension(request.get("result_extension"))
        image = Path(request["image"])
        return cls(
            image=image,
            content=checksum(image) if request.get("uploaded") else identity_of(image),
            extension=extension,
            client=str(request.get("client_id", ""))[:200],
            background=bool(request.get("background")),
            gone=request.get("gone", lambda: False),
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage's."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - since


class SegmentationInferer(InferTask):
    """One served segmentation model.

    Args:
        config: the model.
        engine: the devices, shared by all models of a process.
        memory: what is kept between requests, shared likewise.
        tuning: chooses the versions' runtimes, shared likewise; without it they run as they are loaded.
    """

    def __init__(self, config: ModelConfig, engine: Engine, memory: Memory, tuning: Tuning | None = None) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=list(config.labels),
            dimension=3,  # what a client is handed is a volume, even where the network sees slices
            description=config.description,
            config={"device": offered_devices()},
        )
        self._model = config
        self._networks = ServedNetworks(config)
        self._computing = Computing(config, self._networks, memory, tuning)
        self._engine = engine
        self._memory = memory
        # As texts, since some parts of a configuration are no keys.
        self._preparation = (config.model_dump_json(include=_PREPARATION), config.dimensions)
        self._configuration = config.model_dump_json()

    def is_valid(self) -> bool:
        """Tell whether there is something trained to serve; what is not is no model in a client's list.

        A damaged version is served, in that a request for it is told what is wrong.
        """
        try:
            return self._networks.checkpoints.current() is not None
        except LabelRoundsError as error:
            logger.warning("Model %s: %s", self._model.name, error)
            return True

    def weights_bytes(self) -> int:
        """Return the size of the weights that are served, 0 where there are none or they can't be read."""
        try:
            version = self._networks.checkpoints.current()
            return version.weights.stat().st_size if version is not None else 0
        except (LabelRoundsError, OSError) as error:
            logger.warning("Model %s: %s", self._model.name, error)
            return 0

    def warm_up(self, device: torch.device) -> None:
        """Make ready on a device what the first request would wait for, in the background of users' requests.

        Raises:
            Cancelled: a user's request was in the way.
            LabelRoundsError: what that first request will be told.
        """
        of = ("warm-up", self._model.name)
        with self._engine.worker(device).place(of, of, background=True) as place:
            place.compute(partial(self._computing.warm_up, device))

    def info(self) -> dict[str, Any]:
        """Return what a client shows; beside what the host defines, the ``runtime`` on the best device."""
        described: dict[str, Any] = super().info()
        try:
            return {**described, "runtime": self._networks.summary(choose_device())}
        except LabelRoundsError as error:  # told to who asks for a segmentation
            logger.warning("Model %s: %s", self._model.name, error)
            return described

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]`` (a path) and write the result beside nothing else, in a temporary file.

        Args:
            request: ``image``; optional ``device`` (``cuda``: any GPU; else the best there is, of several alike the one
                that is free first) and ``result_extension``; from the server ``client_id``, who asks,
                ``gone``, which tells whether the client has gone, ``uploaded``, where the path is of this request
                alone, and ``background``, where nobody waits for the answer.

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
            "label_names": self._model.label_values,
            "version": answer.version.number,
            "runtime": answer.runtime,
            "device": str(answer.device),
            **({"note": answer.note} if answer.note else {}),
            "cached": cached,
            "latencies": latencies,
            "request_id": known_as,
        }

    def is_ready(self, request: dict[str, Any]) -> bool:
        """Tell whether what a request asks for is in memory; as `__call__`, but nothing is computed."""
        try:
            asked, devices = Request.of(request), choose_devices(first_of(request.get("device")))
            current = self._networks.checkpoints.current()
            return any(self._answer_key(asked, device, current) in self._memory.answers for device in devices)
        except LabelRoundsError:
            return False

    def _answer(self, asked: Request, devices: list[torch.device]) -> tuple[Answer, str]:
        """Answer from one of some devices, or from the CPU where a GPU has not the memory.

        Returns:
            the answer, and what of it was there already: nothing, the prepared image or the result.

        Raises:
            TooLarge: the machine has not the memory either.
        """
        try:
            return self._answer_from(asked, devices)
        except LacksMemory as error:
            if error.device == CPU:
                raise TooLarge(str(error)) from None
            lacking = error.device
        # Only now, when the error holds nothing of the failed attempt any more.
        torch.cuda.empty_cache()  # for other processes: this one may never again need as much there
        answer, cached = self._answer_from(asked, [CPU])
        moved = replace(answer, note=_said(f"out of memory on {lacking}: segmented on the CPU", answer.note))
        logger.warning("Model %s: %s", self._model.name, moved.note)
        # Under what is looked for, so that it is not tried in vain again.
        self._keep(self._answer_key(asked, lacking, moved.version), moved)
        return moved, cached

    def _answer_from(self, asked: Request, devices: list[torch.device]) -> tuple[Answer, str]:
        """Answer from one of some devices; of those that are free as soon, one that has the image."""
        keys = {device: self._answer_key(asked, device, self._networks.checkpoints.current()) for device in devices}
        for key in keys.values():
            answer: Answer | None = self._memory.answers.get(key)
            if answer is not None:
                return answer, "result"
        image = self._image_key(asked)
        preferred = sorted(keys, key=lambda device: image not in self._memory.images(device))
        with self._engine.place(
            {device: keys[device] for device in preferred},
            asked.content,
            client=asked.client,
            background=asked.background,
            gone=asked.gone,
        ) as place:
            # While it waited, another request may have been answered with the same, or another version published.
            current = self._networks.checkpoints.current()
            answer = self._memory.answers.get(self._answer_key(asked, place.device, current))
            made = (answer, "result") if answer is not None else self._make(asked, place)
            asked.seconds["wait"] += place.waited_s
            return made

    def _make(self, asked: Request, place: Place) -> tuple[Answer, str]:
        """Make the answer, and keep it."""
        key = self._image_key(asked)
        source: Image | PreparedImage | None = self._memory.images(place.device).get(key)
        cached = "image" if source else "nothing"
        if source is None:
            with asked.timed("read"):
                source = read_image(asked.image, channels=self._model.channels)
        computed = place.compute(partial(self._computing.compute, place.device, source, key, asked.timed))
        try:
            with asked.timed("restore"):
                label = self._computing.finish(computed)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise LacksMemory(CPU, source.shape, str(error)) from None
        with asked.timed("write"):
            content = _encoded(label, computed.affine, asked.extension, self._model.labels)
        answer = Answer(content, computed.version, computed.runtime, place.device, computed.note)
        self._keep(self._answer_key(asked, place.device, answer.version, answer.runtime), answer)
        return answer, cached

    def _keep(self, key: Hashable, answer: Answer) -> None:
        self._memory.answers.put(key, answer, len(answer.content))

    def _image_key(self, asked: Request) -> Hashable:
        return asked.content, self._preparation

    def _answer_key(
        self, asked: Request, device: torch.device, version: Version | None, runtime: str | None = None
    ) -> Hashable:
        """Return what an answer is known by; the runtime is what serves the version now where none is named."""
        weights = None
        if version is not None and version.weights.is_file():  # where there are none, loading them says so
            runtime, weights = runtime or self._networks.runtime(version, device), identity_of(version.weights)
        return asked.content, self._configuration, weights, runtime, str(device), asked.extension


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


def _said(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def first_of(value: object) -> object:
    """Return a choice's value; a client that sends the whole list of choices means its first."""
    return value[0] if isinstance(value, list) and value else value


def _extension(wanted: object) -> str:
    if wanted in (None, ""):
        return ".nrrd"
    if wanted not in RESULT_EXTENSIONS:
        raise BadInput(f"result_extension {wanted!r} is not one of {', '.join(RESULT_EXTENSIONS)}")
    return str(wanted)
