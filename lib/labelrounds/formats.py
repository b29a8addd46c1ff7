"""Which format a file is in, by its ending and its first bytes, before any image library opens it.

What the two disagree on is refused, and so is every format whose ITK reader is not safe on untrusted files
(``.mha``, ``.mhd``).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from isal import igzip, isal_zlib

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput, NotFound, TooLarge, UnsupportedMedia
from labelrounds.headers import NIFTI_HEADER_BYTES, Header, nifti_header, nrrd_header
from labelrounds.pictures import check_picture

ENDINGS = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".dcm": "dicom",
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
}
PICTURES = ("png", "jpeg", "tiff")
_GZIP = b"\x1f\x8b"
_HEADER_LIMIT = 2**20
_CHUNK = 2**20


def ending_of(name: str) -> str:
    """Return the ending of a file name that a reader exists for (``.seg.nrrd`` counts as ``.nrrd``), "" for none."""
    lower = name.lower()
    return next((ending for ending in ENDINGS if lower.endswith(ending) and len(lower) > len(ending)), "")


def format_of(path: Path) -> str:
    """Return ``dicom``, ``jpeg``, ``nifti``, ``nrrd``, ``png`` or ``tiff``; a folder is DICOM.

    Raises:
        NotFound: no such file.
        UnsupportedMedia: an ending that is not read, or content that does not match it.
    """
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        raise NotFound(f"{path.name}: no such file")
    ending = ending_of(path.name)
    if not ending and is_dicom(path):  # scanners write files without an ending, or with one of their own
        return "dicom"
    if not ending:
        raise UnsupportedMedia(f"{path.name}: the ending is not one of {', '.join(ENDINGS)}, nor is it a DICOM folder")
    kind = ENDINGS[ending]
    if kind == "dicom":
        if not is_dicom(path):
            raise UnsupportedMedia(f"{path.name}: the content is not DICOM (no 'DICM' at byte 128)")
    elif kind in PICTURES:
        check_picture(path, kind)
    return kind


def is_dicom(path: Path) -> bool:
    """Tell whether a file has the DICOM preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def header_of(path: Path, kind: str, max_voxels: int) -> Header:
    """Read and check the header of a NIfTI or NRRD file.

    Raises:
        UnsupportedMedia: content that does not match the ending, or a variant that is not read.
        BadInput: a field that cannot be, or a file too short for its header.
        TooLarge: more voxels than ``max_voxels``.
    """
    name = path.name
    with path.open("rb") as file:
        if kind == "nrrd":
            header = nrrd_header(file.read(_HEADER_LIMIT), name)
        elif name.lower().endswith(".gz"):
            if file.read(2) != _GZIP:
                raise UnsupportedMedia(f"{name}: the content is not gzip")
            file.seek(0)
            header = nifti_header(_inflated_head(file, name), name, gzipped=True)
        else:
            header = nifti_header(file.read(NIFTI_HEADER_BYTES), name, gzipped=False)
    if header.voxels > max_voxels:
        raise TooLarge(f"{name}: the header claims {header.sizes} x {header.channels}, over {max_voxels} values")
    return header


def _inflated_head(file: IO[bytes], name: str) -> bytes:
    try:
        with igzip.GzipFile(fileobj=file) as stream:
            head = stream.read(NIFTI_HEADER_BYTES)
    except (OSError, EOFError, isal_zlib.error) as error:
        raise BadInput(f"{name}: the file is cut or damaged: {error}") from error
    if len(head) < NIFTI_HEADER_BYTES:
        raise BadInput(f"{name}: the file is cut inside its header")
    return head


@contextmanager
def unpacked(path: Path, header: Header) -> Iterator[Path]:
    """Give a file with the same content and nothing compressed, complete to its last voxel.

    Unpacking here, not in the image library, checks the gzip's own checksum, so that of a cut file no part is ever
    taken for an image, and stops at the size that the header claims. ITK then reads raw voxels, which costs little.

    Raises:
        BadInput: fewer voxels than the header claims, or a damaged gzip.
        TooLarge: the file unpacks to more than its header claims (a gzip bomb).
        OutOfSpace: no room in the folder for temporary files.
    """
    if header.gzip_at is None:
        size = path.stat().st_size
        if size < header.bytes:
            raise BadInput(f"{path.name}: the file is cut; {size} bytes, its header claims {header.bytes}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="labelrounds-") as folder:
        target = Path(folder) / ("volume.nrrd" if header.text else "volume.nii")
        with disk_errors(path), target.open("wb") as out, path.open("rb") as file:
            file.seek(header.gzip_at)
            out.write(_raw_nrrd_text(header.text))
            _inflate(file, out, header.bytes - len(header.text), path.name)
        yield target


def _raw_nrrd_text(text: bytes) -> bytes:
    lines = text.split(b"\n")
    return b"\n".join(b"encoding: raw" if line.lower().startswith(b"encoding:") else line for line in lines)


def _inflate(file: IO[bytes], out: IO[bytes], expected: int, name: str) -> None:
    count = 0
    with igzip.GzipFile(fileobj=file) as stream:
        while True:
            try:
                chunk = stream.read(_CHUNK)
            except (igzip.BadGzipFile, EOFError, isal_zlib.error) as error:
                raise BadInput(f"{name}: the file is cut or damaged: {error}") from error
            if not chunk:
                break
            count += len(chunk)
            # Some writers append a comment or padding; a little of that is no bomb.
            if count > expected + _CHUNK:
                raise TooLarge(f"{name}: unpacks to over {count} bytes, its header claims {expected}")
            out.write(chunk)
    if count < expected:
        raise BadInput(f"{name}: the file is cut; it unpacks to {count} bytes, its header claims {expected}")
