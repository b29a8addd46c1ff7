"""What 3D Slicer's segmentation files (``.seg.nrrd``) say of their segments, and overlapping ones as one label map.

Segments that overlap lie on several layers, the fourth axis of the file: a segment is where its layer has its value.
Whoever wants one label a voxel, as a training does, gets each segment's place in the file's list as its value, from 1,
and where segments overlap the later one of the list, which is also what Slicer's own export keeps there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelrounds.errors import BadInput
from labelrounds.headers import Header

_GREATEST = 255  # of a label map's values


@dataclass(frozen=True)
class Segment:
    """One segment of a file.

    Attributes:
        name: its name.
        layer: the layer that it lies on, from 0.
        value: the voxel value that it has there.
    """

    name: str
    layer: int
    value: int


def segments_of(header: Header, name: str) -> list[Segment]:
    """Return the segments that the header of a file lists, in their order; none of a plain label map.

    Args:
        header: of the file.
        name: the file's name, for messages.

    Raises:
        BadInput: a layer that the file doesn't have, a value that can't be, two segments of one name, or in one place
            of a file with layers.
    """
    segments: list[Segment] = []
    while f"Segment{len(segments)}_ID" in header.pairs or f"Segment{len(segments)}_Name" in header.pairs:
        prefix = f"Segment{len(segments)}_"
        title = header.pairs.get(prefix + "Name", header.pairs.get(prefix + "ID", ""))
        layer = _number(header.pairs.get(prefix + "Layer", "0"), 0, header.channels - 1, f"{name}: {title!r}: layer")
        value = _number(header.pairs.get(prefix + "LabelValue", "1"), 1, _GREATEST, f"{name}: {title!r}: value")
        segments.append(Segment(title, layer, value))
    _check_once((repr(segment.name) for segment in segments), f"{name}: two segments are named")
    if header.channels > 1:
        _check_layered(segments, name)
    return segments


def values_of(segments: Sequence[Segment], layers: int) -> dict[str, int] | None:
    """Return name to value in the label map that a file is read as; None of a plain one, which names nothing."""
    if layers > 1:
        return {segment.name: value for value, segment in enumerate(segments, 1)}
    return {segment.name: segment.value for segment in segments} or None


def flattened(layers: NDArray[np.uint8], segments: Sequence[Segment], name: str) -> NDArray[np.uint8]:
    """Return the label map ``(1, X, Y, Z)`` of a file's layers ``(L, X, Y, Z)``; `values_of` says what it means.

    Raises:
        BadInput: a voxel has a value that no segment of its layer has.
    """
    labels = np.zeros_like(layers[0])
    named = 0
    for value, segment in enumerate(segments, 1):
        inside = layers[segment.layer] == segment.value
        named += int(np.count_nonzero(inside))
        labels[inside] = value
    if named != np.count_nonzero(layers):
        raise BadInput(f"{name}: {_unnamed(layers, segments)}")
    return labels[np.newaxis]


def _unnamed(layers: NDArray[np.uint8], segments: Sequence[Segment]) -> str:
    for number, layer in enumerate(layers):
        allowed = [0, *(segment.value for segment in segments if segment.layer == number)]
        strange = np.setdiff1d(np.unique(layer), allowed)
        if strange.size:
            return (
                f"layer {number} has the values {strange.tolist()[:20]}; allowed are {allowed}, those of its segments"
            )
    return "its layers and segments don't fit"


def _check_layered(segments: Sequence[Segment], name: str) -> None:
    if len(segments) > _GREATEST:
        raise BadInput(f"{name}: {len(segments)} segments; at most {_GREATEST} fit into a label map")
    places = (f"value {segment.value} on layer {segment.layer}" for segment in segments)
    _check_once(places, f"{name}: two segments have the")


def _check_once(texts: Iterable[str], told: str) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise BadInput(f"{told} {text}")
        seen.add(text)


def _number(text: str, least: int, greatest: int, what: str) -> int:
    if not (text.strip().isdecimal() and len(text) < 10 and least <= int(text) <= greatest):
        allowed = f"{least}" if least == greatest else f"{least} to {greatest}"
        raise BadInput(f"{what} {text[:100]!r}; allowed: {allowed}")
    return int(text)
