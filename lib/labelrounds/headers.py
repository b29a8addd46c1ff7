"""What the header of a NIfTI or NRRD file claims, checked before any image library sees it.

Sizes are computed here, in integers without limit, so that a file of 400 bytes that claims 32767 voxels a side costs
nothing.
"""

import re
import struct
from dataclasses import dataclass, field

import numpy as np

from labelrounds.errors import BadInput, UnsupportedMedia
from labelrounds.geometry import check_affine

NIFTI_HEADER_BYTES = 348
_NIFTI_ITEM_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 128: 1, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 2304: 1}
_LEAST_SLOPE = 1e-15
_NIFTI_COLOURS = {128: 3, 2304: 4}
_NRRD_ITEM_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_NRRD_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
_LONGEST_NRRD_FIELD = 500  # four vectors of three numbers with all of their digits take less
_NRRD_COLOURS = ("rgb-color", "rgba-color")


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        sizes: Voxels along ``(X, Y, Z)``.
        channels: Values a voxel: colours, components, or the length of a fourth axis.
        colour: True where the channels are red, green, blue (and opacity).
        item_bytes: Bytes of one value.
        offset: Where the voxels begin, in bytes, counted in the unpacked file.
        gzip_at: Where the compressed part begins in the file, None where nothing is compressed.
        text: The header of an NRRD file as it stands, otherwise empty.
        pairs: The ``key:=value`` pairs of an NRRD file.
        floats: The type of the values in numpy's words where a NIfTI file holds floats, otherwise empty.
    """

    sizes: tuple[int, int, int]
    channels: int
    colour: bool
    item_bytes: int
    offset: int
    gzip_at: int | None
    text: bytes = b""
    pairs: dict[str, str] = field(default_factory=dict)
    floats: str = ""

    @property
    def voxels(self) -> int:
        """Values in the file, all channels counted."""
        return int(np.prod([*self.sizes, self.channels], dtype=object))

    @property
    def bytes(self) -> int:
        """Length of the unpacked file up to its last voxel."""
        return self.offset + self.voxels * self.item_bytes


def nifti_header(head: bytes, name: str, *, gzipped: bool) -> Header:
    """Check the first 348 bytes of a single-file NIfTI-1, unpacked.

    Raises:
        UnsupportedMedia: not NIfTI-1 in one file.
        BadInput: a field that cannot be; the message names it with its value.
    """
    order = _nifti_byte_order(head, name)
    dim = struct.unpack_from(order + "8h", head, 40)
    datatype, _ = struct.unpack_from(order + "2h", head, 70)
    vox_offset = struct.unpack_from(order + "f", head, 108)[0]
    if datatype not in _NIFTI_ITEM_BYTES:
        raise BadInput(f"{name}: datatype {datatype} is not one of {sorted(_NIFTI_ITEM_BYTES)}")
    slope, inter = struct.unpack_from(order + "2f", head, 112)
    # ITK takes a lesser slope for none; 0 and NaN are none.
    if 0 < abs(slope) < _LEAST_SLOPE or np.isinf(slope) or (np.isfinite(slope) and slope and not np.isfinite(inter)):
        raise BadInput(f"{name}: scl_slope {slope} or scl_inter {inter} is not a scale; 0 and 1 are allowed for none")
    if not NIFTI_HEADER_BYTES <= vox_offset <= 2**24:
        raise BadInput(f"{name}: vox_offset {vox_offset} is not between {NIFTI_HEADER_BYTES} and {2**24}")
    sizes, channels = _nifti_sizes(dim, name)
    _check_nifti_geometry(head, order, dim[0], name)
    colours = _NIFTI_COLOURS.get(datatype, 1)
    return Header(
        sizes=sizes,
        channels=channels * colours,
        colour=colours > 1 and channels == 1,
        item_bytes=_NIFTI_ITEM_BYTES[datatype],
        offset=int(vox_offset),
        gzip_at=0 if gzipped else None,
        floats={16: order + "f4", 64: order + "f8"}.get(datatype, ""),
    )


def _nifti_byte_order(head: bytes, name: str) -> str:
    if len(head) >= 4 and 540 in (struct.unpack("<i", head[:4])[0], struct.unpack(">i", head[:4])[0]):
        raise UnsupportedMedia(f"{name}: NIfTI-2 is not read; save it as NIfTI-1")
    magic = head[344:348]
    if magic == b"ni1\0":
        raise UnsupportedMedia(f"{name}: the header of a NIfTI in two files (.hdr, .img); save it as one .nii")
    for order in "<>":
        if magic == b"n+1\0" and struct.unpack(order + "i", head[:4])[0] == NIFTI_HEADER_BYTES:
            return order
    raise UnsupportedMedia(f"{name}: the content is not NIfTI (no 'n+1' at byte 344, or a wrong header size)")


def _nifti_sizes(dim: tuple[int, ...], name: str) -> tuple[tuple[int, int, int], int]:
    count = dim[0]
    if not 2 <= count <= 7:
        raise BadInput(f"{name}: dim[0] {count} is not between 2 and 7")
    for axis in range(1, count + 1):
        if dim[axis] < 1:
            raise BadInput(f"{name}: dim[{axis}] {dim[axis]} is not 1 or more")
    lengths = [dim[axis] if axis <= count else 1 for axis in range(1, 8)]
    if sum(length > 1 for length in lengths[3:]) > 1:
        raise BadInput(f"{name}: dim {list(dim)} has more than four axes; a volume has three, or four with channels")
    return (lengths[0], lengths[1], lengths[2]), max(lengths[3:])


def _check_nifti_geometry(head: bytes, order: str, count: int, name: str) -> None:
    pixdim = struct.unpack_from(order + "8f", head, 76)
    for axis in range(1, min(count, 3) + 1):
        if not (np.isfinite(pixdim[axis]) and pixdim[axis] > 0):
            raise BadInput(f"{name}: pixdim[{axis}] {pixdim[axis]} is not a spacing above 0")
    qform_code, sform_code = struct.unpack_from(order + "2h", head, 252)
    if sform_code > 0:
        rows = np.array(struct.unpack_from(order + "12f", head, 280), dtype=np.float64).reshape(3, 4)
        check_affine(rows, f"{name}: sform (srow_x, srow_y, srow_z)")
    if qform_code > 0:
        quaternion = np.array(struct.unpack_from(order + "6f", head, 256))
        if not np.isfinite(quaternion).all():
            raise BadInput(f"{name}: qform (quatern_b to qoffset_z) {quaternion.tolist()} is not finite")


def nrrd_header(head: bytes, name: str) -> Header:
    """Check the header of an attached NRRD file.

    Args:
        head: The file's beginning, with at least the whole header.
        name: The file's name, for messages.

    Raises:
        UnsupportedMedia: not NRRD, or its voxels lie in another file or in an encoding that is not read.
        BadInput: a field that cannot be; the message names it with its value.
    """
    text, fields, pairs = _nrrd_fields(head, name)
    if "data file" in fields or "datafile" in fields:
        raise UnsupportedMedia(f"{name}: the voxels lie in another file ('data file'); save it as one .nrrd")
    encoding = _nrrd_one_of(fields, "encoding", ("raw", "gzip", "gz"), name)
    for skip in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(skip, "0") != "0":
            raise UnsupportedMedia(f"{name}: {skip} {fields[skip]!r} is not read; only 0 is")
    if not text:
        raise BadInput(f"{name}: the header has no end (an empty line)")
    if "space" in fields:
        _nrrd_one_of(fields, "space", _NRRD_SPACES, name)
    item_bytes = _NRRD_ITEM_BYTES[_nrrd_one_of(fields, "type", tuple(_NRRD_ITEM_BYTES), name)]
    sizes, channels, colour = _nrrd_sizes(fields, name)
    return Header(
        sizes, channels, colour, item_bytes, len(text), None if encoding == "raw" else len(text), bytes(text), pairs
    )


def nrrd_lines(text: bytes) -> list[str]:
    """Return the lines of an NRRD header, which a line feed ends and nothing else that is one in Unicode."""
    return [line.removesuffix("\r") for line in text.decode("utf-8", "replace").split("\n")]


def _unescaped(text: str) -> str:
    """Return a part of a pair, in which a backslash and an ``n`` stand for a line feed, two backslashes for one."""
    return re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", text)


def _nrrd_fields(head: bytes, name: str) -> tuple[bytes, dict[str, str], dict[str, str]]:
    if not re.match(rb"NRRD000[1-5]\r?\n", head):
        raise UnsupportedMedia(f"{name}: the content is not NRRD (no 'NRRD0001' to 'NRRD0005' at its start)")
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.end()] if end else b""
    if re.search(rb"\r(?!\n)", text):
        raise BadInput(f"{name}: the header has a carriage return without a line feed, at which not all end a line")
    _check_nrrd_lines(text or head, name)
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in nrrd_lines(text or head)[1:]:
        match = re.match(r"([^:#][^:]*):(=?)(.*)", line)
        if not match:
            continue
        key, is_pair, value = match.group(1), match.group(2), match.group(3)
        if is_pair:
            pairs[_unescaped(key)] = _unescaped(value)
            continue
        if key.lower() in fields:
            raise BadInput(f"{name}: the field {key!r} stands twice")
        fields[key.lower()] = value.strip()
    return text, fields, pairs


def _check_nrrd_lines(text: bytes, name: str) -> None:
    """Refuse a line too long to be a field: ITK's NRRD library writes beyond its memory as it complains of one.

    Comments, ``key:=value`` pairs and the field ``content`` may be long, of which it complains of nothing.
    """
    for line in text.split(b"\n"):
        is_pair = b":=" in line.partition(b": ")[0]
        if len(line) > _LONGEST_NRRD_FIELD and not (is_pair or line.startswith((b"#", b"content: "))):
            start = line[:40].decode("utf-8", "replace")
            raise BadInput(f"{name}: the line {start!r}... has {len(line)} bytes; at most {_LONGEST_NRRD_FIELD} may be")


def _nrrd_one_of(fields: dict[str, str], key: str, allowed: tuple[str, ...], name: str) -> str:
    if key not in fields:
        raise BadInput(f"{name}: the field {key!r} is missing")
    value = fields[key].lower()
    if value not in allowed:
        raise UnsupportedMedia(f"{name}: {key} {fields[key]!r} is not one of {', '.join(allowed)}")
    return value


def _nrrd_sizes(fields: dict[str, str], name: str) -> tuple[tuple[int, int, int], int, bool]:
    text = fields.get("sizes", "")
    if not re.fullmatch(r"\d{1,12}( +\d{1,12}){1,3}", text) or "0" in text.split():
        raise BadInput(f"{name}: sizes {text!r} is not two to four whole numbers above 0")
    sizes = [int(part) for part in text.split()]
    if fields.get("dimension") != str(len(sizes)):
        raise BadInput(f"{name}: dimension {fields.get('dimension')!r} does not fit sizes {text!r}")
    kinds = fields.get("kinds", "").lower().split()
    channel_axis = _nrrd_channel_axis(fields, sizes, kinds, name)
    channels = sizes.pop(channel_axis) if channel_axis is not None else 1
    colour = channel_axis is not None and len(kinds) > channel_axis and kinds[channel_axis] in _NRRD_COLOURS
    if len(sizes) > 3:
        raise BadInput(f"{name}: sizes {text!r} has four axes and none of them is marked as channels")
    x, y, z = sizes if len(sizes) == 3 else (*sizes, 1)
    return (x, y, z), channels, colour


def _nrrd_channel_axis(fields: dict[str, str], sizes: list[int], kinds: list[str], name: str) -> int | None:
    """Return which axis holds the values of one voxel, None for a plain volume; check the others' geometry."""
    if "space directions" not in fields:
        plain = ("domain", "space", "???", "none")
        marked = [axis for axis, kind in enumerate(kinds[: len(sizes)]) if kind not in plain]
        return marked[0] if marked else None
    vectors = re.findall(r"none|\([^()]*\)", fields["space directions"].lower())
    if len(vectors) != len(sizes) or vectors.count("none") > 1:
        raise BadInput(f"{name}: space directions {fields['space directions']!r} does not fit {len(sizes)} axes")
    spatial = [vector for vector in vectors if vector != "none"]
    if len(spatial) > 1:
        affine = np.eye(3, 4)
        for axis, vector in enumerate(spatial[:3]):
            affine[: len(spatial), axis] = _nrrd_vector(vector, len(spatial), "space directions", name)
        if "space origin" in fields:
            affine[: len(spatial), 3] = _nrrd_vector(fields["space origin"], len(spatial), "space origin", name)
        check_affine(affine, f"{name}: space directions and space origin")
    return vectors.index("none") if "none" in vectors else None


def _nrrd_vector(text: str, count: int, key: str, name: str) -> list[float]:
    try:
        values = [float(part) for part in text.strip("()").split(",")]
    except ValueError:
        values = []
    if len(values) != count or count > 3:
        raise BadInput(f"{name}: {key} {text!r} is not {min(count, 3)} numbers")
    return values
