"""What 3D Slicer's segmentation files (``.seg.nrrd``) say of their segments, and overlapping ones as one label map.

Segments that overlap lie on several layers, the fourth axis of the file: a segment is where its layer has its value.
Whoever wants one label a voxel, as a training does, gets each segment's place in the file's list as its value, from 1,
and where segments overlap the later one of the list, which is also what Slicer's own export keeps there. What is
drawn for a tool alone (`NOT_LABELS`) is background, and covers nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelrounds.errors import BadInput
from labelrounds.headers import Header

# Segments that MONAI Label's extension keeps for itself.
NOT_LABELS = ("background", "foreground_scribbles", "background_scribbles")
_GREATEST = 255  # of a label map's values
_NAME_LENGTH = 255


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

    @property
    def is_label(self) -> bool:
        """Whether it is something that can be learnt."""
        return self.name not in NOT_LABELS


def segments_of(header: Header, name: str) -> list[Segment]:
    """Return the segments that the header of a file lists, in their order; none of a plain label map.

    Args:
        header: of the file.
        name: the file's name, for messages.

    Raises:
        BadInput: a name that `checked_name` refuses, a layer that the file doesn't have, a value that can't be, two
            segments of one name, or in one place of a file with layers.
    """
    segments: list[Segment] = []
    while f"Segment{len(segments)}_ID" in header.pairs or f"Segment{len(segments)}_Name" in header.pairs:
        prefix = f"Segment{len(segments)}_"
        title = header.pairs.get(prefix + "Name", header.pairs.get(prefix + "ID", ""))
        title = checked_name(title, f"{name}: segment {len(segments)}, {title[:100]!r},")
        layer = _number(header.pairs.get(prefix + "Layer", "0"), 0, header.channels - 1, f"{name}: {title!r}: layer")
        value = _number(header.pairs.get(prefix + "LabelValue", "1"), 1, _GREATEST, f"{name}: {title!r}: value")
        segments.append(Segment(title, layer, value))
    _check_once((repr(segment.name) for segment in segments), f"{name}: two segments are named")
    if header.channels > 1:
        _check_layered(segments, name)
    return segments


def checked_name(name: object, told: str) -> str:
    """Return the name of a segment without the blanks around it.

    Args:
        name: the name, from a file or a client.
        told: whose name it is, with which the message begins.

    Raises:
        BadInput: it is no text, has nothing but blanks, too many characters, or some that can't be printed.
    """
    stripped = name.strip() if isinstance(name, str) else ""
    if not (stripped and len(stripped) <= _NAME_LENGTH and stripped.isprintable()):
        raise BadInput(f"{told} has no 'name' of 1 to {_NAME_LENGTH} printable characters")
    return stripped


def values_of(segments: Sequence[Segment], is_layered: bool) -> dict[str, int] | None:
    """Return name to value in the label map that a file is read as; None of a plain one, which names nothing."""
    if not segments:
        return None
    named = enumerate(segments, 1)
    return {one.name: place if is_layered else one.value for place, one in named if one.is_label}


def flattened(layers: NDArray[np.uint8], segments: Sequence[Segment], name: str) -> NDArray[np.uint8]:
    """Return the label map ``(1, X, Y, Z)`` of a file's layers ``(L, X, Y, Z)``; `values_of` says what it means.

    Raises:
        BadInput: a voxel has a value that no segment of its layer has.
    """
    labels = np.zeros_like(layers[0])
    for number, layer in enumerate(layers):
        places = {one.value: place for place, one in enumerate(segments, 1) if one.layer == number}
        allowed, meaning = np.zeros(256, bool), np.zeros(256, np.uint8)
        allowed[[0, *places]] = True
        if not allowed[layer].all():
            strange = np.setdiff1d(layer, [0, *places]).tolist()[:20]
            raise BadInput(
                f"{name}: layer {number} has the values {strange}; allowed are {[0, *places]}, those of its segments"
            )
        for value, place in places.items():
            meaning[value] = place if segments[place - 1].is_label else 0
        np.maximum(labels, meaning[layer], out=labels)  # the later one of the list has the greater value
    return labels[np.newaxis]


def without_tools(labels: NDArray[np.uint8], segments: Sequence[Segment]) -> NDArray[np.uint8]:
    """Return a label map of one layer with 0 where it has the value of a segment that is no label."""
    of_labels = {segment.value for segment in segments if segment.is_label}
    of_tools = {segment.value for segment in segments} - of_labels
    if not of_tools:
        return labels
    meaning = np.arange(256, dtype=np.uint8)
    meaning[list(of_tools)] = 0
    return meaning[labels]


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
