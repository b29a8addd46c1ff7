"""Classification over HTTP: an image in; the classes and how sure the model is of each out, as clients can show them.

Of the same make as ``inferer.py``: devices with a fair queue before them, prepared images and answers kept in memory.

MONAI Label's extension for 3D Slicer lists no model of type classification, so this one's type is segmentation. It then
gets a label map without a voxel, whose empty segments are called "pneumonia 93 %"; or, by the option
``show``, a point of that name in the middle of the image. An answer without a file it can't read at all.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelrounds.asking import Answer, ModelInferer, Request, first_of
from labelrounds.atomic import disk_errors
from labelrounds.checkpoints import Version
from labelrounds.classification.cases import prepared
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.explaining import METHODS, explain
from labelrounds.classification.images import onto_image
from labelrounds.classification.served import ReadyClassifiers, classify, temperature_in
from labelrounds.computing import CPU, LacksMemory
from labelrounds.devices import choose_devices, is_out_of_memory, settle
from labelrounds.engine import Engine, Place
from labelrounds.errors import BadInput, TooLarge
from labelrounds.geometry import Affine
from labelrounds.logs import request_id
from labelrounds.memory_cache import Memory
from labelrounds.reading import Image, read_image
from labelrounds.runtimes import REFERENCE
from labelrounds.writing import write_label, write_map

logger = logging.getLogger(__name__)

SEGMENTS, MARKUPS = "segments", "markups"
_LEAST_SHOWN = 0.005  # what rounds to no per cent is not worth a segment
_MARKUPS_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


@dataclass(frozen=True)
class Classified(Answer):
    """How sure a version is of each class.

    Attributes:
        probabilities: of each class, in the order of the model's labels.
        affine: ``(4, 4)``, the image's own, and ``shape``: for what is shown in its middle.
    """

    probabilities: tuple[float, ...]
    affine: Affine
    shape: tuple[int, int, int]

    @property
    def size_bytes(self) -> int:
        """How much memory it takes."""
        return 8 * len(self.probabilities)


class ClassificationInferer(ModelInferer[Classified]):
    """One served classification model.

    Args:
        config: the model.
        engine: the devices, shared by all models of a process.
        memory: what is kept between requests, shared likewise.
    """

    _done = "classified"
    _networks: ReadyClassifiers

    def __init__(self, config: ClassifierConfig, engine: Engine, memory: Memory) -> None:
        # Of labels Slicer would make empty segments before anything is known.
        super().__init__(config, engine, memory, labels=[], options={"show": [SEGMENTS, MARKUPS]})
        self._model = config
        self._networks = ReadyClassifiers(config)
        self._configuration = config.model_dump_json()
        self._preparation = json.dumps(config.preparation, sort_keys=True)

    def _warm_up(self, device: torch.device, stopped: Callable[[], bool]) -> None:
        settle(device)
        image = torch.zeros(1, self._model.channels, *self._model.input_size, device=device)
        classify(self._networks.get(device), image, self._model)

    def info(self) -> dict[str, Any]:
        """Return what a client shows; beside what the host defines, ``task``, ``classes`` and the ``runtime``."""
        described: dict[str, Any] = super().info()
        classes = {"task": self._model.task, "classes": list(self._model.labels), "multilabel": self._model.multilabel}
        return {**described, **classes, "runtime": {"runtime": REFERENCE}}

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Classify ``request["image"]`` (a path).

        Args:
            request: as `SegmentationInferer` takes it, and ``show``, ``segments`` or ``markups``; ``explain``, a class
                or true for the likeliest, to get a map of what it was found by; ``explain_method``, of `METHODS`;
                from the server ``json``, where the client wants no file.

        Returns:
            a file or None: an empty label map, Markups, or the map; and what the client reads: ``prediction`` (``idx``,
            ``label`` and ``score`` of each class, the likeliest first), ``label_names`` (as Slicer shows them),
            ``version``, ``temperature``, ``device``, ``note``, ``cached``, ``latencies`` in seconds, ``request_id``.

        Raises:
            LabelRoundsError: an option or image that can't be used; no trained version; too little memory; too many
                requests; a client that has gone.
        """
        since = time.perf_counter()
        wanted = choose_devices(first_of(request.get("device")))
        asked = Request.of(request)
        show, label, method = self._options(request)
        answer, cached = self._answer(asked, wanted)
        file: str | None = None
        params = self._params(answer)
        if label is not None:
            explained = str(params["prediction"][0]["label"] if label is True else label)
            file = self._explained(asked, wanted, explained, method)
            params["explained"] = {"label": explained, "method": method}
        elif show == MARKUPS:
            file = _markups(answer, list(params["label_names"]))
        elif not request.get("json"):
            with asked.timed("write"):
                file = _empty_segments(answer, asked.extension, list(params["label_names"]))
        seconds = {**asked.seconds, "total": time.perf_counter() - since}
        params["latencies"] = {stage: round(value, 4) for stage, value in seconds.items()}
        params |= {"device": str(answer.device), "cached": cached, "request_id": request_id()}
        logger.info(
            "%s %s: %s version %d on %s; cached: %s; %s",
            "background" if asked.background else "request",
            params["request_id"],
            self._model.name,
            answer.version.number,
            answer.device,
            cached,
            ", ".join(f"{stage} {value:.3f} s" for stage, value in params["latencies"].items()),
        )
        return file, params

    def _options(self, request: dict[str, Any]) -> tuple[str, str | bool | None, str]:
        """Return what is to be shown, which class is to be explained, and by which method.

        Raises:
            BadInput: a value that is not allowed.
        """
        if request.get("uncertainty"):
            raise BadInput("uncertainty is of models that segment; 'explain' shows what a class was found by")
        show = first_of(request.get("show")) or SEGMENTS
        if show not in (SEGMENTS, MARKUPS):
            raise BadInput(f"show {show!r} is not one of {SEGMENTS}, {MARKUPS}")
        label = request.get("explain") or None
        if label is not None and label is not True and label not in self._model.labels:
            raise BadInput(f"explain {str(label)[:100]!r} is neither true nor one of {', '.join(self._model.labels)}")
        method = request.get("explain_method") or METHODS[0]
        if method not in METHODS:
            raise BadInput(f"explain_method {str(method)[:100]!r} is not one of {', '.join(METHODS)}")
        return str(show), label, str(method)

    def _params(self, answer: Classified) -> dict[str, Any]:
        ranked = sorted(zip(self._model.labels, answer.probabilities, strict=True), key=lambda one: -one[1])
        index = {label: number for number, label in enumerate(self._model.labels)}
        worth = [one for one in ranked if one[1] >= _LEAST_SHOWN] or ranked[:1]  # with multilabel all may be near 0
        shown = [f"{label} {score:.0%}".replace("%", " %") for label, score in worth]
        return {
            "prediction": [{"idx": index[label], "label": label, "score": round(score, 6)} for label, score in ranked],
            "label_names": {name: number for number, name in enumerate(shown, start=1)},
            "version": answer.version.number,
            "temperature": temperature_in(answer.version),
            **({"note": answer.note} if answer.note else {}),
        }

    def _make(self, asked: Request, place: Place) -> tuple[Classified, str]:
        image, voxels, cached = self._prepared(asked)
        with asked.timed("segment"):
            answer: Classified = place.compute(lambda stopped: self._computed(place.device, image, voxels))
        self._keep(self._answer_key(asked, place.device, answer.version), answer)
        return answer, cached

    def _computed(self, device: torch.device, image: Image, voxels: torch.Tensor) -> Classified:
        """Compute the answer in the device's thread."""
        settle(device)
        try:
            ready = self._networks.get(device)
            probabilities = classify(ready, voxels[None].to(device), self._model)[0]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise LacksMemory(device, image.shape, str(error)) from None
        return Classified(ready.version, device, "", tuple(map(float, probabilities)), image.affine, image.shape)

    def _prepared(self, asked: Request) -> tuple[Image, torch.Tensor, str]:
        """Return an image, as it is and as the model sees it, and what of it was kept in memory."""
        kept = self._memory.images(CPU)
        key: Hashable = (asked.content, self._preparation)
        known = kept.get(key)
        if known is not None:
            image, voxels = known
            return image, voxels, "image"
        with asked.timed("read"):
            image = read_image(asked.image, channels=self._model.channels)
        with asked.timed("prepare"):
            voxels = prepared(image, self._model)
        # Of the image itself its place is needed again, its voxels are not.
        bare = Image(np.broadcast_to(np.float32(0), image.array.shape), image.affine, image.source)
        kept.put(key, (bare, voxels), voxels.nbytes)
        return image, voxels, "nothing"

    def _explained(self, asked: Request, devices: list[torch.device], label: str, method: str) -> str:
        """Write the map of what a class was found by, on the grid of the image."""
        index = self._model.labels.index(label)
        with self._engine.place(
            {device: ("explain", asked.content, index, method) for device in devices},
            asked.content,
            client=asked.client,
            background=asked.background,
            gone=asked.gone,
        ) as turn:
            image, voxels, _ = self._prepared(asked)
            found = turn.compute(lambda stopped: self._explain_on(turn.device, voxels, index, method, stopped))
        with asked.timed("restore"):
            restored = onto_image(found, image, self._model.seen_size, self._model.spacing_mm, self._model.dimensions)
        with asked.timed("write"):
            with _temporary(asked.extension) as path:
                write_map(restored, image.affine, path)
            return str(path)

    def _explain_on(
        self, device: torch.device, voxels: torch.Tensor, index: int, method: str, stopped: Callable[[], bool]
    ) -> torch.Tensor:
        settle(device)
        network = self._networks.get(device).network
        try:
            return explain(network, voxels.to(device), index, method, self._model.multilabel, stopped).cpu()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise TooLarge(f"the map does not fit into the memory of {device}; choose device cpu: {error}") from error

    def _answer_key(self, asked: Request, device: torch.device, version: Version | None) -> Hashable:
        weights = str(version.weights) if version is not None else None
        return asked.content, self._configuration, weights, str(device)


def _empty_segments(answer: Classified, extension: str, names: list[str]) -> str:
    """Write a label map of the image's grid without a voxel."""
    with _temporary(extension) as path:
        write_label(np.zeros(answer.shape, np.uint8), answer.affine, path, names)
    return str(path)


def _markups(answer: Classified, names: list[str]) -> str:
    """Write a Markups file with a point in the middle of the image, named as the classes are."""
    middle = answer.affine @ [*((side - 1) / 2 for side in answer.shape), 1.0]
    point = {
        "id": "1",
        "label": names[0],
        "description": ", ".join(names),
        "position": [round(float(value), 4) for value in middle[:3]],
        "selected": True,
        "visibility": True,
        "positionStatus": "defined",
    }
    content = {
        "@schema": _MARKUPS_SCHEMA,
        "markups": [{"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": [point]}],
    }
    with _temporary(".mrk.json") as path:
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@contextmanager
def _temporary(extension: str) -> Iterator[Path]:
    """Give a new file to write, which whoever sends it removes; it is removed here where the block fails.

    Raises:
        OutOfSpace: the disk is full.
    """
    with tempfile.NamedTemporaryFile(prefix="labelrounds-", suffix=extension, delete=False) as file:
        path = Path(file.name)
    try:
        with disk_errors(path):
            yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
