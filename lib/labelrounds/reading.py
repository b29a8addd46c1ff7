"""Read an untrusted file into a checked image.

On the ways of inference (the image of a request), of training and of a round (the label that an annotator submits).
What comes out has a finite, perpendicular affine and finite voxels. A file that fails raises an error of
`labelrounds.errors`, whatever is in it.

A server reads in processes of their own with limits (`labelrounds.sandbox`), as its files come from anybody; it says so
with `read_by`. A training and the command line read where they are: their files were read by a server before, or
are their user's own.

Non-finite voxels: an image of which more than half is NaN or infinite is refused; otherwise NaN and minus infinity
become the least finite value, plus infinity the greatest.
"""

from pathlib import Path
from typing import Any, Protocol, cast

from labelrounds import parsing
from labelrounds.formats import ENDINGS, ending_of
from labelrounds.images import MAX_VOXELS, Geometry, Image
from labelrounds.itk_loading import load_itk

__all__ = [
    "MAX_VOXELS",
    "Geometry",
    "Image",
    "give_up",
    "make_ready",
    "patient_of",
    "read_by",
    "read_geometry",
    "read_image",
    "read_label",
]


class Reads(Protocol):
    """Another process that reads."""

    def read(self, what: str, path: Path, **options: Any) -> Any:
        """Do what the function ``what`` of `labelrounds.parsing` does."""

    def make_ready(self) -> None:
        """Load the parsers."""

    def close(self) -> None:
        """Read nothing more; `Overloaded` for who waits."""


_reader: Reads | None = None


def read_by(reader: Reads | None) -> None:
    """Let another process read whatever this one reads from now on; with None, this process does."""
    global _reader
    _reader = reader


def give_up() -> None:
    """Break off what another process reads, as the server ends; who waits for it is told to come again."""
    if _reader is not None:
        _reader.close()


def make_ready() -> None:
    """Load what the first image would wait for."""
    if _reader is None:
        load_itk()
    else:
        _reader.make_ready()


def read_image(path: Path, *, max_voxels: int = MAX_VOXELS, channels: int | None = None) -> Image:
    """Read NIfTI, NRRD, a DICOM folder or file, or a two-dimensional PNG, JPEG or TIFF.

    Geometry is what ITK, and so 3D Slicer, makes of the file. A picture has voxels of 1 mm and a Z of 1. DICOM has the
    values that its modality measured; a window stored beside them (WindowCenter, WindowWidth) says how to show them
    and is ignored. MONOCHROME1, where the lowest value is shown white, is inverted.

    Args:
        path: A file, or a folder that holds one DICOM series.
        max_voxels: The most values, all channels counted; checked before anything is allocated.
        channels: How many channels the caller wants. None takes one channel or colours. With 1, colours become
            luminance. With 3, a picture's grey values are given three times. Either way its colours count as they are
            stored, whatever its transparency. A fourth axis is taken only if it is as long as this.

    Raises:
        NotFound: no such file.
        UnsupportedMedia: a format that is not read, or content that does not match the ending.
        TooLarge: over ``max_voxels``, a gzip that unpacks to more than its header claims, or more memory than is
            allowed.
        BadInput: a cut or damaged file, one that may not be opened, a geometry that cannot be, a wrong number of
            channels; one at which the process that reads it dies or takes too long.
        OutOfSpace: no room for what has to be unpacked.
        Overloaded: no process to read with can be started.
    """
    return cast(Image, _read("read_image", path, max_voxels=max_voxels, channels=channels))


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> Image:
    """Read a label map: one channel of whole numbers from 0 to 255, as uint8.

    A segmentation file of several layers becomes one; `labelrounds.segmentations` says how.

    Raises:
        BadInput: other values, several channels that are no layers of a segmentation file, segments that it doesn't
            describe well; besides what `read_image` raises.
    """
    return cast(Image, _read("read_label", path, max_voxels=max_voxels))


def read_geometry(path: Path, *, max_voxels: int = MAX_VOXELS) -> Geometry:
    """Read where an image's voxels lie, without the voxels.

    Raises:
        LabelRoundsError: what `read_image` raises for the header; the voxels are not looked at.
    """
    return cast(Geometry, _read("read_geometry", path, max_voxels=max_voxels))


def patient_of(path: Path) -> str | None:
    """Return the PatientID of a DICOM file or folder, None for other formats or where it is missing.

    Raises:
        LabelRoundsError: what `read_image` raises for the header of the first file.
    """
    path = Path(path)
    if path.is_file() and ENDINGS.get(ending_of(path.name), "dicom") != "dicom":
        return None  # without asking another process: lists of thousands are made of this
    return cast("str | None", _read("patient_of", path))


def _read(what: str, path: Path, **options: Any) -> Any:
    reader = _reader
    if reader is None:
        return getattr(parsing, what)(Path(path), **options)
    return reader.read(what, Path(path), **options)
