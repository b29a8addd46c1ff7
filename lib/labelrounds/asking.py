"""A request to a model as the host hands it over, and what the models of all tasks do alike when they are asked.

On the way of inference, before ``inferer.py`` and ``classification/inferer.py``: what is asked for is checked here,
answered from memory where it can be, and else given its turn at a device, or at the CPU where a GPU has not the memory.
Those two make the answers.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from labelrounds.checkpoints import Version
from labelrounds.computing import CPU, LacksMemory
from labelrounds.devices import choose_devices, offered_devices
from labelrounds.engine import Engine, Place
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge
from labelrounds.history import checksum
from labelrounds.loaded import LoadedNetworks
from labelrounds.memory_cache import Memory, identity_of
from labelrounds.sections import CommonConfig

logger = logging.getLogger(__name__)

RESULT_EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".seg.nrrd")
STAGES = ("wait", "read", "load", "prepare", "segment", "restore", "write")


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
        unsure: whether the map of the model's uncertainty is wanted, of a model that segments.
        seconds: how long each of `STAGES` has taken.
    """

    image: Path
    content: str
    extension: str
    client: str
    background: bool
    gone: Callable[[], bool]
    unsure: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @classmethod
    def of(cls, request: dict[str, Any]) -> "Request":
        """Check what the host hands over; see `labelrounds.inferer.SegmentationInferer.__call__`.

        Raises:
            BadInput: an extension that is not written.
            NotFound: no such file.
        """
        extension, unsure = _extension(request.get("result_extension")), request.get("uncertainty") or False
        if not isinstance(unsure, bool):
            raise BadInput(f"uncertainty {str(unsure)[:100]!r} is neither true nor false")
        if unsure and extension == ".seg.nrrd":
            raise BadInput("uncertainty: a map has no segments; ask for .nrrd, .nii.gz or .nii")
        image = Path(request["image"])
        return cls(
            image=image,
            content=checksum(image) if request.get("uploaded") else identity_of(image),
            extension=extension,
            client=str(request.get("client_id", ""))[:200],
            background=bool(request.get("background")),
            gone=request.get("gone", lambda: False),
            unsure=unsure,
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage's."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - since


@dataclass(frozen=True)
class Answer(ABC):
    """What a version says of an image.

    Attributes:
        version: that has answered.
        device: that computed it.
        note: what is to be said of how, or nothing.
    """

    version: Version
    device: torch.device
    note: str

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """How much memory it takes."""


Answered = TypeVar("Answered", bound=Answer)


class ModelInferer(InferTask, Generic[Answered]):
    """One served model, whatever it answers.

    Args:
        config: the model.
        engine: the devices, shared by all models of a process.
        memory: what is kept between requests, shared likewise.
        labels: that a client makes segments of.
        options: what a client may choose, beside the device.
    """

    _done: ClassVar[str]  # what is done with an image, in a note to the user
    _networks: LoadedNetworks[Any]

    def __init__(
        self,
        config: CommonConfig,
        engine: Engine,
        memory: Memory,
        labels: Sequence[str],
        options: Mapping[str, list[str]] | None = None,
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=list(labels),
            dimension=3,  # what a client is handed is a volume, even where the network sees slices
            description=config.description,
            config={"device": offered_devices(), **(options or {})},
        )
        self._name, self._engine, self._memory = config.name, engine, memory

    @abstractmethod
    def _warm_up(self, device: torch.device, stopped: Callable[[], bool]) -> None:
        """Make ready, in a device's thread, what the first request there would wait for."""

    @abstractmethod
    def _answer_key(self, asked: Request, device: torch.device, version: Version | None) -> Hashable:
        """Return what an answer is known by."""

    @abstractmethod
    def _make(self, asked: Request, place: Place) -> tuple[Answered, str]:
        """Make an answer at an admitted place, and keep it; see `_answer`."""

    def _preferred(self, asked: Request, devices: Iterable[torch.device]) -> Iterable[torch.device]:
        """Return some devices, first those that are preferred where several are free as soon."""
        return devices

    def is_valid(self) -> bool:
        """Tell whether there is something trained to serve; what is not is no model in a client's list.

        A damaged version is served, in that a request for it is told what is wrong.
        """
        try:
            return self._networks.checkpoints.current() is not None
        except LabelRoundsError as error:
            logger.warning("Model %s: %s", self._name, error)
            return True

    def weights_bytes(self) -> int:
        """Return the size of the weights that are served, 0 where there are none or they can't be read."""
        try:
            version = self._networks.checkpoints.current()
            return version.weights.stat().st_size if version is not None else 0
        except (LabelRoundsError, OSError) as error:
            logger.warning("Model %s: %s", self._name, error)
            return 0

    def warm_up(self, device: torch.device) -> None:
        """Make ready on a device what the first request would wait for, in the background of users' requests.

        Raises:
            Cancelled: a user's request was in the way.
            LabelRoundsError: what that first request will be told.
        """
        of = ("warm-up", self._name)
        with self._engine.worker(device).place(of, of, background=True) as place:
            place.compute(lambda stopped: self._warm_up(device, stopped))

    def is_ready(self, request: dict[str, Any]) -> bool:
        """Tell whether what a request asks for is in memory; nothing is computed."""
        try:
            asked, devices = Request.of(request), choose_devices(first_of(request.get("device")))
            current = self._networks.checkpoints.current()
            return any(self._answer_key(asked, device, current) in self._memory.answers for device in devices)
        except LabelRoundsError:
            return False

    def _answer(self, asked: Request, devices: list[torch.device]) -> tuple[Answered, str]:
        """Answer from one of some devices, or from the CPU where a GPU has not the memory.

        Returns:
            the answer, and what of it was there already: ``nothing``, the prepared ``image`` or the ``result``.

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
        notes = f"out of memory on {lacking}: {self._done} on the CPU", answer.note
        moved = replace(answer, note="; ".join(filter(None, notes)))
        logger.warning("Model %s: %s", self._name, moved.note)
        # Under what is looked for, so that it is not tried in vain again.
        self._keep(self._answer_key(asked, lacking, moved.version), moved)
        return moved, cached

    def _answer_from(self, asked: Request, devices: list[torch.device]) -> tuple[Answered, str]:
        """Answer from what is kept, or make the answer at the device that is free first."""
        current = self._networks.checkpoints.current()
        keys = {device: self._answer_key(asked, device, current) for device in devices}
        for key in keys.values():
            answer: Answered | None = self._memory.answers.get(key)
            if answer is not None:
                return answer, "result"
        with self._engine.place(
            {device: keys[device] for device in self._preferred(asked, devices)},
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

    def _keep(self, key: Hashable, answer: Answered) -> None:
        self._memory.answers.put(key, answer, answer.size_bytes)


def first_of(value: object) -> object:
    """Return a choice's value; a client that sends the whole list of choices means its first."""
    return value[0] if isinstance(value, list) and value else value


def _extension(wanted: object) -> str:
    if wanted in (None, ""):
        return ".nrrd"
    if wanted not in RESULT_EXTENSIONS:
        raise BadInput(f"result_extension {wanted!r} is not one of {', '.join(RESULT_EXTENSIONS)}")
    return str(wanted)
