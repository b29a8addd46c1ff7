"""What a worker of a fleet does: loads a model once, then takes one case after the other.

The same on this process's threads and in a process of Ray's on another machine. An `Order` is plain data, weights
included, so that such a machine needs the package, and the images under the same path, but no ``LABELROUNDS_HOME``.
"""

import hashlib
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.atomic import disk_errors
from labelrounds.checkpoints import Version
from labelrounds.config import AnyConfig, ModelConfig
from labelrounds.devices import choose_device, is_out_of_memory, settle
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError, NotFound, OutOfSpace, UnsupportedMedia
from labelrounds.inference import segment
from labelrounds.itk_loading import load_itk
from labelrounds.reading import read_image
from labelrounds.scoring import Scorer
from labelrounds.served import ServedNetworks
from labelrounds.writing import write_label

Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Case:
    """An image to work on.

    Attributes:
        key: what it is known by; unique in a run.
        image: where it is, on every machine.
        output: where the result goes, if it is a file.
    """

    key: str
    image: Path
    output: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        found: the result, where there is one.
        reason: why there is none.
        unusable: whether that is the image's fault: as long as it is the same, another try would find the same.
        halts: whether no further case can be kept: a full disk.
        cancelled: whether the run was stopped in the middle of it.
        seconds: how long it took.
    """

    case: Case
    found: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    unusable: bool = False
    halts: bool = False
    cancelled: bool = False
    seconds: float = 0.0


class Work(ABC):
    """What is done to a case, with a model that is in memory; called by several threads at once."""

    @abstractmethod
    def do(self, case: Case, stopped: Stopped) -> Mapping[str, Any]:
        """Return a case's result.

        Raises:
            LabelRoundsError, OSError: why there is none.
            Cancelled: ``stopped`` said so.
        """


def attempt(work: Work, case: Case, stopped: Stopped) -> Outcome:
    """Do a case; whatever happens is its outcome, so that the next one is done."""
    started = time.perf_counter()
    try:
        outcome = Outcome(case, work.do(case, stopped))
    except Cancelled:
        outcome = Outcome(case, cancelled=True)
    except OutOfSpace as error:
        outcome = Outcome(case, reason=str(error), halts=True)
    except (LabelRoundsError, OSError) as error:
        outcome = Outcome(case, reason=str(error), unusable=isinstance(error, BadInput | UnsupportedMedia))
    except Exception as error:
        what = "does not fit into the memory: " if is_out_of_memory(error) else f"{type(error).__name__}: "
        outcome = Outcome(case, reason=what + str(error))
    return replace(outcome, seconds=round(time.perf_counter() - started, 3))


@dataclass(frozen=True)
class Order:
    """What a worker is to do.

    Attributes:
        kind: of the work.
        config: the model.
        version: its weights; every worker of a run has the same, whatever is served in the meantime.
        weights: the content of ``version.weights``.
        device: cpu or cuda; the best there is where it is "".
        threads: of the CPU, for a worker; as many as there are cores where it is 0.
        folders: that the worker's machine must have.
        costly: names of scores beyond the one pass, for ``score``.
    """

    kind: Literal["segment", "score"]
    config: AnyConfig
    version: Version
    weights: bytes
    device: str = ""
    threads: int = 0
    folders: tuple[Path, ...] = ()
    costly: tuple[str, ...] = ()

    @cached_property
    def weights_hash(self) -> str:
        """The SHA-256 of the weights."""
        return hashlib.sha256(self.weights).hexdigest()

    def begin(self) -> Work:
        """Load the model.

        Raises:
            LabelRoundsError: it can't be loaded, the machine lacks a folder or the device.
        """
        missing = [str(folder) for folder in self.folders if not folder.is_dir()]
        if missing:
            raise NotFound(
                f"{socket.gethostname()} has no folder {missing[0]}: every machine must see the images, and the output,"
                " under the same paths"
            )
        if self.threads:
            torch.set_num_threads(self.threads)
        load_itk()  # changes the working folder for a moment, which threads that read must not see
        device = choose_device(self.device)
        return _WORKS[self.kind](replace(self, version=self._local_version()), device)

    def _local_version(self) -> Version:
        """Return the version with a weights file of this machine: its own, or one that is written for this process."""
        try:
            if hashlib.sha256(self.version.weights.read_bytes()).hexdigest() == self.weights_hash:
                return self.version
        except OSError:
            pass
        folder = tempfile.TemporaryDirectory(prefix="labelrounds-")
        _kept.append(folder)
        path = Path(folder.name) / self.version.weights.name
        path.write_bytes(self.weights)
        return replace(self.version, weights=path)


class Segmenting(Work):
    """Segments an image into a file."""

    def __init__(self, order: Order, device: torch.device) -> None:
        if not isinstance(order.config, ModelConfig):
            raise Conflict(f"model {order.config.name} classifies whole images, it segments none")
        self._config, self._device = order.config, device
        self._network = ServedNetworks(order.config).load(order.version, device)
        self._computing = threading.Lock()

    def do(self, case: Case, stopped: Stopped) -> Mapping[str, Any]:
        """Return the volume of each label in ml; the label map is in its place then."""
        if case.output is None:
            raise BadInput(f"{case.key}: no output is named")
        image = read_image(case.image, channels=self._config.channels)
        with self._computing:
            settle(self._device)
            label = segment(self._network, image, self._config, self._device, stopped)
        with disk_errors(case.output):
            case.output.parent.mkdir(parents=True, exist_ok=True)
        write_label(label, image.affine, case.output, self._config.labels)
        x, y, z = image.spacing_mm
        counts = {name: int((label == value).sum()) for name, value in self._config.label_values.items()}
        volumes = {name: round(count * x * y * z / 1000, 3) for name, count in counts.items()}
        return {"volumes_ml": volumes, "voxels": label.size, "bytes": case.output.stat().st_size}


class Scoring(Work):
    """Scores an image by one pass of the model."""

    def __init__(self, order: Order, device: torch.device) -> None:
        self._scorer, self._device = Scorer(order.config, order.version), device
        self._costly = order.costly
        self._computing = threading.Lock()
        lacking = set(order.costly) - set(self._scorer.able(order.costly))
        if lacking:
            raise Conflict(f"{socket.gethostname()} can't compute {', '.join(lacking)}: it lacks the version before")

    def do(self, case: Case, stopped: Stopped) -> Mapping[str, Any]:
        """Return ``{"scores": CaseScores}``."""
        prepared = self._scorer.read(case.image)
        with self._computing:
            return {"scores": self._scorer.score_prepared(prepared, self._device, self._costly, stopped)}


class RayWorker:
    """A worker in a process of its own, which Ray starts."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def load(self, order: Order) -> str:
        """Load the model; return why that is not possible, else ""."""
        try:
            self._work = order.begin()
        except LabelRoundsError as error:
            return str(error)
        return ""

    def do(self, case: Case) -> Outcome:
        """Do a case."""
        assert self._work is not None, "load comes first"
        return attempt(self._work, case, lambda: False)


_WORKS: dict[str, Callable[[Order, torch.device], Work]] = {"segment": Segmenting, "score": Scoring}
_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends
