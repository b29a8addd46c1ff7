"""What was read, on its way from the process that read it: in shared memory, a header in JSON and the voxels as bytes.

The memory has no name, so that none is left whoever is killed. It is sealed before it is believed: what is mapped here
can't change any more, and whoever maps it gets a copy of a page only where it writes. The sender may be in the hands of
a file that was made to harm; nothing that it says is taken without a check, and no object is made of it but numbers
and texts.
"""

import fcntl
import json
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds import errors
from labelrounds.errors import LabelRoundsError
from labelrounds.formats import ENDINGS
from labelrounds.geometry import check_affine
from labelrounds.images import Geometry, Image

_PAGE = mmap.ALLOCATIONGRANULARITY
_LENGTH, _LONGEST_HEADER = 8, 2**22
_TYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32")
_ERRORS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
# From here on neither its size nor its content changes.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def pack(result: Image | Geometry | str | LabelRoundsError | None) -> int:
    """Write a result, or the error that came instead, into shared memory; return its descriptor."""
    header, voxels = _described(result)
    text = json.dumps(header).encode()
    text = len(text).to_bytes(_LENGTH, "little") + text
    memory = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write(memory, memoryview(text.ljust(_padded(len(text)), b" ")))
        if voxels is not None:
            _write(memory, voxels.reshape(-1).data.cast("B"))
    except BaseException:
        os.close(memory)
        raise
    return memory


def unpack(memory: int) -> Any:
    """Return what was packed into shared memory; an image's voxels stay there, and may be written to.

    Raises:
        LabelRoundsError: the one that was packed.
        ValueError: not what `pack` writes, or still in the hands of another process.
    """
    try:
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        size = os.fstat(memory).st_size
        content = mmap.mmap(memory, size, access=mmap.ACCESS_COPY)
        end = _LENGTH + min(int.from_bytes(content[:_LENGTH], "little"), _LONGEST_HEADER)
        return _restored(json.loads(content[_LENGTH:end]), content, _padded(end))
    except (OSError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _described(result: Any) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Return a result's header and its voxels in the order of memory."""
    if isinstance(result, LabelRoundsError):
        return {"error": type(result).__name__, "message": str(result)[:2000]}, None
    if isinstance(result, Geometry):
        content = {"shape": result.shape, "affine": result.affine.tolist(), "is_flat": bool(result.is_flat)}
        return {"geometry": content}, None
    if not isinstance(result, Image):
        return {"text": result}, None
    order = sorted(range(4), key=lambda axis: -result.array.strides[axis])
    voxels = np.ascontiguousarray(result.array.transpose(order))
    content = {"shape": voxels.shape, "order": order, "type": voxels.dtype.name, "affine": result.affine.tolist()}
    named = {"segments": result.segments, "layered": result.layered}
    return {"image": {**content, "source": result.source, **named}}, voxels


def _restored(header: dict[str, Any], content: mmap.mmap, start: int) -> Any:
    if "error" in header:
        raise _ERRORS[header["error"]](str(header["message"]))
    if "text" in header:
        return None if header["text"] is None else str(header["text"])
    if "geometry" in header:
        told = header["geometry"]
        x, y, z = map(int, told["shape"])
        return Geometry((x, y, z), _affine(told["affine"]), bool(told["is_flat"]))
    told = header["image"]
    source, segments = str(told["source"]), told["segments"]
    if source not in ENDINGS.values() or not (segments is None or isinstance(segments, Mapping)):
        raise ValueError(f"no image: {source!r}, {type(segments).__name__}")
    named = None if segments is None else {str(name): int(value) for name, value in segments.items()}
    return Image(_voxels(told, content, start), _affine(told["affine"]), source, named, bool(told["layered"]))


def _voxels(told: dict[str, Any], content: mmap.mmap, start: int) -> NDArray[Any]:
    shape, order = [int(side) for side in told["shape"]], [int(axis) for axis in told["order"]]
    if len(shape) != 4 or min(shape) < 1 or sorted(order) != [0, 1, 2, 3] or told["type"] not in _TYPES:
        raise ValueError(f"no voxels: {shape}, {order}, {told['type']!r}")
    array = np.frombuffer(content, told["type"], math.prod(shape), start)
    return array.reshape(shape).transpose(np.argsort(order))


def _affine(rows: Any) -> NDArray[np.float64]:
    affine = np.array(rows, np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"no affine: {affine.shape}")
    check_affine(affine, "geometry")
    return affine


def _padded(length: int) -> int:
    return -(-length // _PAGE) * _PAGE


def _write(memory: int, content: memoryview) -> None:
    while content:
        content = content[os.write(memory, content) :]
