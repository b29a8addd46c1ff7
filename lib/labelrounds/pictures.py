"""What a PNG, JPEG or TIFF must look like before ITK opens it."""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput, UnsupportedMedia

_SIGNATURES = {"png": (b"\x89PNG\r\n\x1a\n",), "jpeg": (b"\xff\xd8\xff",), "tiff": (b"II*\0", b"MM\0*")}
# How a whole file ends; the decoders fill in grey for what is missing.
_LAST_BYTES = {"png": b"IEND\xaeB`\x82", "jpeg": b"\xff\xd9"}
_TIFF_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# Width, height, bits and meaning of the values.
_MEANING, _WHITE_AT_ZERO = 262, 0
_TIFF_NEEDED = {256, 257, 258, _MEANING}
_TIFF_MEANINGS = (0, 1, 2, 3, 6)  # grey from white or from black, colours, a palette, JPEG's colours
_MISSING = 128
_ANY_DATA = bytes(1 + 37 * number % 253 for number in range(64))  # without the byte that begins a mark
# A flat picture shrinks by 1000 at most in these formats; what claims more would only cost memory.
_HIGHEST_RATIO = 2000


def check_picture(path: Path, kind: str) -> None:
    """Check the first and last bytes of a ``png``, ``jpeg`` or ``tiff``, and the lengths in a TIFF's directory.

    Raises:
        UnsupportedMedia: the content is not of that kind.
        BadInput: the file is cut, or a TIFF has several pages or lengths beyond its end.
    """
    with path.open("rb") as file:
        if not file.read(8).startswith(_SIGNATURES[kind]):
            raise UnsupportedMedia(f"{path.name}: the content is not {kind.upper()}")
        if kind in _LAST_BYTES:
            file.seek(max(0, path.stat().st_size - 4096))
            if not file.read().rstrip(b"\0").endswith(_LAST_BYTES[kind]):
                raise BadInput(f"{path.name}: the file is cut; its end is missing")
    if kind == "tiff":
        _check_tiff(path)


def check_plausible(path: Path, claimed_bytes: int) -> None:
    """Refuse a compressed picture that is far too short for the pixels that it claims.

    Raises:
        BadInput: over 2000 times the file's length.
    """
    size = path.stat().st_size
    if claimed_bytes > size * _HIGHEST_RATIO:
        raise BadInput(f"{path.name}: {size} bytes cannot hold the {claimed_bytes} bytes of pixels that it claims")


def may_be_cut(path: Path, array: NDArray[Any]) -> bool:
    """Tell whether a JPEG, decoded to ``(C, X, Y, 1)``, ends in the grey that stands for missing pixels.

    A progressive one always may: what it lacks is lost all over.
    """
    grey = bool((np.abs(array[:, -1, -1, 0].astype(int) - _MISSING) <= 1).all())
    return grey or b"\xff\xc2" in path.read_bytes()


@contextmanager
def continued_jpeg(path: Path) -> Iterator[Path]:
    """Give a copy of a JPEG with more data before its end mark.

    A decoder that has all its pixels passes over what follows; one that has not takes it for pixels, where it would
    otherwise have made them up, without a word. So the two differ exactly where the file was cut.

    Raises:
        OutOfSpace: no room in the folder for temporary files.
    """
    content = path.read_bytes().rstrip(b"\0")
    with disk_errors(path), tempfile.TemporaryDirectory(prefix="labelrounds-") as folder:
        longer = Path(folder) / "longer.jpg"
        longer.write_bytes(content[:-2] + _ANY_DATA + content[-2:])
        yield longer


def with_white_bright(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Invert the grey of a TIFF in which 0 is white, as other programs show it; ITK gives it as it is stored.

    Args:
        array: ``(1, X, Y, 1)`` as ITK reads it; colours have gone through libtiff, which inverts itself.
        path: the TIFF, which was checked.

    Raises:
        BadInput: what is white is 0, and the values may be negative or fractions.
    """
    order, entries, _ = _directory(path)
    meaning = next(_first_value(order, kind, value) for tag, kind, _, value in entries if tag == _MEANING)
    if meaning != _WHITE_AT_ZERO:
        return array
    if array.dtype.kind != "u":
        raise BadInput(f"{path.name}: a TIFF in which 0 is white has whole numbers from 0, not {array.dtype}")
    return np.iinfo(array.dtype).max - array


def _directory(path: Path) -> tuple[str, list[tuple[int, int, int, int]], int]:
    """Return a TIFF's byte order, its first directory's entries, and where the next page's directory is."""
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
        try:
            start = struct.unpack(order + "2xI", file.read(6))[0]
            file.seek(start)
            count = struct.unpack(order + "H", file.read(2))[0]
            entries = [struct.unpack(order + "HHII", file.read(12)) for _ in range(count)]
            following = struct.unpack(order + "I", file.read(4))[0]
        except struct.error as error:
            raise BadInput(f"{path.name}: the file is cut inside its directory") from error
    return order, entries, following


def _check_tiff(path: Path) -> None:
    """Check the first directory: libtiff takes as much memory as an entry claims, and goes through every page."""
    size = path.stat().st_size
    order, entries, following = _directory(path)
    sides = {256: 0, 257: 0}
    for tag, kind, length, value in entries:
        needed = _TIFF_ITEM_BYTES.get(kind, 1) * length
        if needed > size or (needed > 4 and value + needed > size):
            raise BadInput(f"{path.name}: the TIFF tag {tag} has {length} values, more than the file can hold")
        if tag in sides:
            sides[tag] = _first_value(order, kind, value)
    for tag, kind, _, value in entries:
        if tag == _MEANING and (kind != 3 or _first_value(order, kind, value) not in _TIFF_MEANINGS):
            raise BadInput(f"{path.name}: the TIFF tag 262 (what values mean) is not one of {_TIFF_MEANINGS}")
    # Without them libtiff guesses, and ITK makes four channels of grey.
    missing = sorted(_TIFF_NEEDED - {tag for tag, *_ in entries})
    if missing:
        raise BadInput(f"{path.name}: the TIFF tag {missing[0]} is missing; {sorted(_TIFF_NEEDED)} are needed")
    check_plausible(path, sides[256] * sides[257])
    if following:
        raise BadInput(f"{path.name}: several pages; a picture has one")


def _first_value(order: str, kind: int, value: int) -> int:
    """Return what an entry holds, of which a short takes the first half."""
    return int(struct.unpack(order + ("H2x" if kind == 3 else "I"), struct.pack(order + "I", value))[0])
