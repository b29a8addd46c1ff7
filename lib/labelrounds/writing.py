"""Write a label map for 3D Slicer: small, quick, in the right place, and whole or not at all.

The last step of inference (the prediction that the client gets) and of a round.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from labelrounds.atomic import disk_errors, replacing
from labelrounds.errors import BadInput
from labelrounds.geometry import Affine, check_affine, ras_to_lps

LABEL_ENDINGS = (".seg.nrrd", ".nrrd", ".nii.gz", ".nii")
# Small enough for a label map, and forty times as fast as zlib's 6.
_COMPRESSION = 1
_NRRD_TYPES = {
    "u1": "unsigned char",
    "i1": "signed char",
    "u2": "unsigned short",
    "i2": "short",
    "u4": "unsigned int",
    "i4": "int",
    "f4": "float",
}
_GZIP = 31  # zlib's word for its format: gzip, with the widest window
_NIFTI_OFFSET = 352  # the header and four bytes that say that no extension follows
_MOST_OF_NIFTI = 2**15 - 1


def write_label(array: NDArray[np.uint8], affine: Affine, path: Path, names: Sequence[str] = ()) -> Path:
    """Write a label map, replacing ``path`` only when the new file is complete.

    Args:
        array: ``(X, Y, Z)`` uint8; value ``k`` is the label ``names[k - 1]``, 0 the background.
        affine: ``(4, 4)``, voxel index to RAS in mm; axes perpendicular, in any orientation.
        path: Ends in ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.seg.nrrd``; only the last holds the names.
        names: The labels in the order of their values, also those without a voxel.

    Raises:
        BadInput: another ending, shape or type, a geometry that cannot be, a value without a name.
        OutOfSpace: the disk is full; ``path`` is as it was.
    """
    path = Path(path)
    ending = _ending(path)
    if not ending:
        raise BadInput(f"{path.name}: the ending is not one of {', '.join(LABEL_ENDINGS)}")
    # In a file the first axis changes fastest.
    array = np.asfortranarray(_checked(array, path.name, len(names) if ending == ".seg.nrrd" else 255))
    check_affine(affine, f"{path.name}: affine")
    pairs = segment_fields(array, affine, names) if ending == ".seg.nrrd" else {}
    return _write(path, array, affine, ending, pairs)


def write_map(array: NDArray[np.float32], affine: Affine, path: Path) -> Path:
    """Write a map of values, as of what a class was found by, replacing ``path`` only when the new file is complete.

    Args:
        array: ``(X, Y, Z)`` float32.
        affine: ``(4, 4)``, voxel index to RAS in mm.
        path: Ends in ``.nii.gz``, ``.nii`` or ``.nrrd``.

    Raises:
        BadInput: another ending, a geometry that cannot be.
        OutOfSpace: the disk is full; ``path`` is as it was.
    """
    path = Path(path)
    ending = _ending(path)
    if ending in ("", ".seg.nrrd"):
        raise BadInput(f"{path.name}: the ending of a map is not one of .nii.gz, .nii, .nrrd")
    array = np.asfortranarray(array, dtype=np.float32)
    check_affine(affine, f"{path.name}: affine")
    return _write(path, array, affine, ending, {})


def write_volume(array: NDArray[Any], affine: Affine, path: Path) -> Path:
    """Write an image as NRRD, every voxel in its own type, so that reading it gives what was written.

    Args:
        array: ``(C, X, Y, Z)`` of a type that `labelrounds.reading.read_image` returns; C is 1, or the colours.
        affine: ``(4, 4)``, voxel index to RAS in mm.
        path: Ends in ``.nrrd``; it is written in place, and so should be a staged file (`labelrounds.atomic.staged`).

    Raises:
        BadInput: another shape or type, a geometry that cannot be.
        OutOfSpace: the disk is full.
    """
    kind = _NRRD_TYPES.get(array.dtype.str[1:])
    if array.ndim != 4 or kind is None:
        raise BadInput(f"{path.name}: an image is (C, X, Y, Z) of {', '.join(_NRRD_TYPES)}, not {array.dtype}")
    check_affine(affine, f"{path.name}: affine")
    # In a file the first axis changes fastest: a voxel's colours lie together.
    voxels = np.asfortranarray(array, dtype=array.dtype.newbyteorder("<")).ravel(order="F").data.cast("B")
    with disk_errors(path), path.open("wb") as file:
        file.writelines([_nrrd_header(array.shape[1:], affine, {}, kind, array.shape[0]), _gzipped(voxels)])
    return path


def segment_fields(array: NDArray[np.uint8], affine: Affine, names: Sequence[str]) -> dict[str, str]:
    """Return the ``key:=value`` pairs that 3D Slicer writes into a segmentation file, empty segments included.

    Args:
        array: ``(X, Y, Z)``; value ``k`` is segment ``names[k - 1]``.
        affine: ``(4, 4)``, voxel index to RAS in mm.
        names: One name a segment.
    """
    # The grid, without which Slicer saves the segmentation again only as large as its segments are.
    grid = [*np.asarray(affine, dtype=np.float64).ravel(), *(bound for size in array.shape for bound in (0, size - 1))]
    geometry = "".join(f"{value:.17g};" for value in grid)
    fields = {
        "Segmentation_ConversionParameters": f"Reference image geometry|{geometry}|&",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    extents = _extents(array, len(names))
    for index, name in enumerate(names):
        segment = {
            "ID": f"Segment_{index + 1}",
            "Name": " ".join(name.split()),
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part:.6g}" for part in segment_colour(index)),
            "ColorAutoGenerated": "1",
            "LabelValue": str(index + 1),
            "Layer": "0",
            "Extent": " ".join(str(bound) for bound in extents[index]),
            "Tags": "|",
        }
        fields.update({f"Segment{index}_{key}": value for key, value in segment.items()})
    return fields


def segment_colour(index: int) -> tuple[float, float, float]:
    """Return the colour of a segment, red, green and blue from 0 to 1; neighbours in the list differ well."""
    import colorsys

    # The golden ratio spreads any number of hues.
    return colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55 + 0.25 * (index % 2), 0.9)


def _ending(path: Path) -> str:
    return next((known for known in LABEL_ENDINGS if path.name.lower().endswith(known)), "")


def _write(path: Path, array: NDArray[Any], affine: Affine, ending: str, pairs: Mapping[str, str]) -> Path:
    """Write an array whose first axis changes fastest, replacing ``path`` only when the new file is complete."""
    voxels = array.T.data.cast("B")
    parts: list[bytes | memoryview]
    if ending.endswith(".nrrd"):
        parts = [_nrrd_header(array.shape, affine, pairs, _NRRD_TYPES[array.dtype.str[1:]]), _gzipped(voxels)]
    else:
        header = _nifti_header(array.shape, affine, path.name, array.dtype)
        parts = [header, voxels] if ending == ".nii" else [_gzipped(header, voxels)]
    with replacing(path) as target, target.open("wb") as file:
        file.writelines(parts)
    return path


def _extents(array: NDArray[np.uint8], count: int) -> list[tuple[int, ...]]:
    from scipy import ndimage

    whole = tuple(bound for size in array.shape for bound in (0, size - 1))
    # Transposed: voxels as they lie in memory are searched three times as fast.
    boxes = ndimage.find_objects(array.T, max_label=count) if count else []
    return [
        whole if box is None else tuple(bound for s in box[::-1] for bound in (s.start, s.stop - 1)) for box in boxes
    ]


def _checked(array: NDArray[Any], name: str, highest: int) -> NDArray[np.uint8]:
    if array.ndim != 3 or array.dtype != np.uint8 or array.size == 0:
        raise BadInput(f"{name}: a label is (X, Y, Z) uint8, this is {array.shape} {array.dtype}")
    if int(array.max()) > highest:
        raise BadInput(f"{name}: the value {int(array.max())} has no name; {highest} are given")
    return array


def _nifti_header(shape: tuple[int, ...], affine: Affine, name: str, kind: np.dtype[Any]) -> bytes:
    """Return a NIfTI-1 header; quaternion and matrix both hold the affine, as from the scanner."""
    if max(shape) > _MOST_OF_NIFTI:
        raise BadInput(f"{name}: {list(shape)} voxels; NIfTI holds at most {_MOST_OF_NIFTI} along an axis")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_qform(affine, "scanner")
    header.set_sform(affine, "scanner")
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = _NIFTI_OFFSET
    return header.binaryblock.ljust(_NIFTI_OFFSET, b"\0")


def _nrrd_header(
    shape: tuple[int, ...],
    affine: Affine,
    pairs: Mapping[str, str],
    kind: str,
    channels: int = 1,
) -> bytes:
    """Return an NRRD header in LPS, in which 3D Slicer writes too."""
    vectors = ["(" + ",".join(f"{value:.17g}" for value in column) + ")" for column in ras_to_lps(affine)[:3].T]
    colours = channels > 1
    lines = [
        "NRRD0004",
        f"type: {kind}",
        *(["endian: little"] if not kind.endswith("char") else []),
        f"dimension: {4 if colours else 3}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, (channels, *shape) if colours else shape))}",
        f"space directions: {' '.join([*(['none'] if colours else []), *vectors[:3]])}",
        f"kinds: {'vector ' if colours else ''}domain domain domain",
        "encoding: gzip",
        f"space origin: {vectors[3]}",
        *(f"{key}:={value}".replace("\\", "\\\\") for key, value in pairs.items()),
    ]
    return "\n".join([*lines, "", ""]).encode()


def _gzipped(*parts: bytes | memoryview) -> bytes:
    """Return several parts, one after another, as one gzip stream."""
    stream = isal_zlib.compressobj(_COMPRESSION, wbits=_GZIP)
    return b"".join([*(stream.compress(part) for part in parts), stream.flush()])
