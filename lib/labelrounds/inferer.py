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
import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from labelrounds.atomic import disk_errors
from labelrounds.checkpoints import Version
from labelrounds.config import ModelConfig
from labelrounds.devices import available_devices, choose_device, is_out_of_memory
from labelrounds.engine import Engine, Place
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge
from labelrounds.geometry import Affine
from labelrounds.history import checksum
from labelrounds.inference import predict
from labelrounds.memory_cache import Memory, identity_of
from labelrounds.reading import Image, read_image
from labelrounds.served import ServedNetwork, ServedNetworks
from labelrounds.transforms import Grid, clean, prepare, restore
from labelrounds.tuning import Tuning
from labelrounds.writing import write_label

logger = logging.getLogger(__name__)

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".seg.nrrd")
STAGES = ("wait", "read", "load", "prepare", "segment", "restore", "write")
_PREPARATION = {"channels", "spacing_mm", "intensity"}  # with the dimensions


@dataclass(frozen=True)
class PreparedImage:
    """An image as a model sees it, and what it takes to bring the answer back.

    Attributes:
        voxels: ``(C, X, Y, Z)`` float32 on the network's grid, on the device.
        grid: from the image's own grid to the network's, and back.
        affine: ``(4, 4)``, the image's own.
        shape: the image's own.
    """

    voxels: torch.Tensor
    grid: Grid
    affine: Affine
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Answer:
    """A written label map, the number of the version that it is by, and the runtime that ran it."""

    content: bytes
    version: int
    runtime: str


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
            config={"device": available_devices()},
        )
        self._model = config
        self._networks = ServedNetworks(config)
        self._engine = engine
        self._memory = memory
        self._tuning = tuning
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
            request: ``image``; optional ``device`` and ``result_extension``; from the server ``client_id``, who asks,
                ``gone``, which tells whether the client has gone, ``uploaded``, where the path is of this request
                alone, and ``background``, where nobody waits for the answer.

        Returns:
            the written file, and what the client reads: ``label_names`` (name to voxel value), ``version``,
            ``runtime`` and ``device`` that it was computed by and on, ``note`` where that is not the device asked for,
            ``cached`` (what was there already: ``nothing``, the prepared ``image`` or the whole ``result``),
            ``latencies`` in seconds, and the ``request_id`` that the log has.

        Raises:
            LabelRoundsError: a device, extension or image that can't be used; no trained version; too little memory;
                too many requests; a client that has gone.
        """
        since = time.perf_counter()
        wanted = choose_device(_first(request.get("device")))
        asked = Request.of(request)
        device, answer, cached = self._answer_anywhere(asked, wanted)
        with asked.timed("write"):
            file = _written(answer.content, asked.extension)
        seconds = {**asked.seconds, "total": time.perf_counter() - since}
        latencies = {stage: round(value, 4) for stage, value in seconds.items()}
        request_id = uuid.uuid4().hex[:12]
        logger.info(
            "%s %s: %s version %d by %s on %s, %s; cached: %s; %s",
            "background" if asked.background else "request",
            request_id,
            self._model.name,
            answer.version,
            answer.runtime,
            device,
            asked.extension,
            cached,
            ", ".join(f"{stage} {value:.3f} s" for stage, value in latencies.items()),
        )
        return file, {
            "label_names": self._model.label_values,
            "version": answer.version,
            "runtime": answer.runtime,
            "device": str(device),
            **({"note": _moved(wanted)} if device != wanted else {}),
            "cached": cached,
            "latencies": latencies,
            "request_id": request_id,
        }

    def _answer_anywhere(self, asked: Request, device: torch.device) -> tuple[torch.device, Answer, str]:
        """Answer from a device, or from the CPU where a GPU has not the memory; return the one that did.

        Raises:
            TooLarge: the machine has not the memory either.
        """
        try:
            return device, *self._answer(asked, device)
        except _LacksMemory as error:
            if device.type == "cpu":
                raise TooLarge(
                    f"an image of {error} voxels can't be segmented in the memory of the machine: {error.__cause__}"
                ) from error.__cause__
        # Only now, when the error holds no tensor of the failed attempt any more.
        logger.warning("%s: %s", self._model.name, _moved(device))
        torch.cuda.empty_cache()
        return self._answer_anywhere(asked, torch.device("cpu"))

    def _answer(self, asked: Request, device: torch.device) -> tuple[Answer, str]:
        """Return the answer, and what of it was there already: nothing, the prepared image or the result."""
        current = self._networks.checkpoints.current
        key = self._answer_key(asked, device, current())
        answer: Answer | None = self._memory.answers.get(key)
        if answer is not None:
            return answer, "result"
        with self._engine.worker(device).place(
            asked.content, key, client=asked.client, background=asked.background, gone=asked.gone
        ) as place:
            # While it waited, another request may have been answered with the same, or another version published.
            answer = self._memory.answers.get(self._answer_key(asked, device, current()))
            made = (answer, "result") if answer is not None else self._make(asked, device, place)
            asked.seconds["wait"] += place.waited_s
            return made

    def _make(self, asked: Request, device: torch.device, place: Place) -> tuple[Answer, str]:
        """Make the answer, and keep it."""
        source: Image | PreparedImage | None = self._memory.images(device).get(self._image_key(asked))
        cached = "image" if source else "nothing"
        if source is None:
            with asked.timed("read"):
                source = read_image(asked.image, channels=self._model.channels)
        try:
            network, prepared, label = place.compute(partial(self._predict, asked, device, source))
            with asked.timed("restore"):
                restored = restore(torch.from_numpy(clean(label, self._model)), prepared.grid)
        except Exception as error:
            if isinstance(error, TooLarge) or is_out_of_memory(error):
                raise _LacksMemory(" x ".join(str(side) for side in source.shape)) from error
            raise
        with asked.timed("write"):
            content = _encoded(restored, prepared.affine, asked.extension, self._model.labels)
        answer = Answer(content, network.version.number, network.runtime)
        self._memory.answers.put(
            self._answer_key(asked, device, network.version, network.runtime), answer, len(content)
        )
        if self._tuning is not None:
            self._tuning.add(self._networks, network.version, device, prepared.voxels, torch.from_numpy(label))
        return answer, cached

    def _predict(
        self, asked: Request, device: torch.device, source: Image | PreparedImage, stopped: Callable[[], bool]
    ) -> tuple[ServedNetwork, PreparedImage, np.ndarray]:
        """Return the label map on the network's grid; computed in the device's thread."""
        with asked.timed("load"):
            network = self._networks.get(device)
        prepared = source if isinstance(source, PreparedImage) else self._prepare(asked, device, source)
        with asked.timed("segment"):
            try:
                return network, prepared, predict(network, prepared.voxels, self._model, stopped).cpu().numpy()
            except Exception as error:
                lacking = isinstance(error, TooLarge) or is_out_of_memory(error)
                if not lacking or not self._memory.images(device).clear(but=self._image_key(asked)):
                    raise
            # The other images gave up their place, and the error what it held.
            return network, prepared, predict(network, prepared.voxels, self._model, stopped).cpu().numpy()

    def _prepare(self, asked: Request, device: torch.device, image: Image) -> PreparedImage:
        """Prepare an image, and keep it on the device."""
        with asked.timed("prepare"):
            grid = Grid.of(image, self._model)
            voxels = prepare(image, self._model, grid, device)
        prepared = PreparedImage(voxels, grid, image.affine, image.shape)
        self._memory.images(device).put(self._image_key(asked), prepared, voxels.nbytes)
        return prepared

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


class _LacksMemory(Exception):
    """A device has not the memory for an image; the message is the image's shape, the cause what the device said."""


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


def _moved(wanted: torch.device) -> str:
    return f"segmented on the CPU: out of memory on {wanted}"


def _first(value: object) -> object:
    """Return a choice's value; a client that sends the whole list of choices means its first."""
    return value[0] if isinstance(value, list) and value else value


def _extension(wanted: object) -> str:
    if wanted in (None, ""):
        return ".nrrd"
    if wanted not in RESULT_EXTENSIONS:
        raise BadInput(f"result_extension {wanted!r} is not one of {', '.join(RESULT_EXTENSIONS)}")
    return str(wanted)
