"""Read an untrusted file into a checked image.

On the ways of inference (the image of a request), of training and of a round (the label that an annotator submits).
Ending, first bytes, header, size and geometry are checked before ITK allocates anything; what comes out has a finite,
perpendicular affine and finite voxels. A file that fails raises an error of `labelrounds.errors`, whatever is in it.

Non-finite voxels: an image of which more than half is NaN or infinite is refused; otherwise NaN and minus infinity
become the least finite value, plus infinity the greatest.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds import dicom
from labelrounds.dicom_copies import clean_copies
from labelrounds.errors import BadInput, LabelRoundsError, TooLarge
from labelrounds.formats import PICTURES, format_of, header_of, unpacked
from labelrounds.geometry import Affine, affine_of, affine_of_header, check_affine
from labelrounds.headers import Header
from labelrounds.itk_loading import load_itk
from labelrounds.pictures import check_plausible

MAX_VOXELS = 2**30
_READERS = {
    "nifti": "NiftiImageIO",
    "nrrd": "NrrdImageIO",
    "dicom": "GDCMImageIO",
    "png": "PNGImageIO",
    "jpeg": "JPEGImageIO",
    "tiff": "TIFFImageIO",
}
# ITK's name of a value type in a file -> the type to read it into, of those in ITK's Python package; float for others.
_VECTORS = {"unsigned_char": "UC", "unsigned_short": "US", "short": "SS"}
_SCALARS = {**_VECTORS, "char": "SS", "signed_char": "SS", "unsigned_int": "UI", "int": "SI"}


@dataclass(frozen=True)
class Image:
    """A checked image.

    Attributes:
        array: ``(C, X, Y, Z)`` in the file's own type; float64 and 64-bit integers become float32.
        affine: ``(4, 4)`` float64, voxel index to RAS in mm.
        source: The format it came from: dicom, jpeg, nifti, nrrd, png or tiff.
        segments: Name to voxel value, for a segmentation file (``.seg.nrrd``); otherwise None.
    """

    array: NDArray[Any]
    affine: Affine
    source: str
    segments: Mapping[str, int] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along ``(X, Y, Z)``."""
        x, y, z = self.array.shape[1:]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along ``(X, Y, Z)`` in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def is_flat(self) -> bool:
        """True for a picture (PNG, JPEG, TIFF), whose geometry means nothing."""
        return self.source in PICTURES


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image lie.

    Attributes:
        shape: Voxels along ``(X, Y, Z)``.
        affine: ``(4, 4)`` float64, voxel index to RAS in mm.
        is_flat: True for a picture (PNG, JPEG, TIFF), whose affine means nothing.
    """

    shape: tuple[int, int, int]
    affine: Affine
    is_flat: bool


def read_image(path: Path, *, max_voxels: int = MAX_VOXELS, channels: int | None = None) -> Image:
    """Read NIfTI, NRRD, a DICOM folder or file, or a two-dimensional PNG, JPEG or TIFF.

    Geometry is what ITK, and so 3D Slicer, makes of the file. A picture has voxels of 1 mm and a Z of 1. DICOM has the
    values that its modality measured; a window stored beside them (WindowCenter, WindowWidth) says how to show them
    and is ignored. MONOCHROME1, where the lowest value is shown white, is inverted.

    Args:
        path: A file, or a folder that holds one DICOM series.
        max_voxels: The most values, all channels counted; checked before anything is allocated.
        channels: How many channels the caller wants. None takes one channel or colours. With 1, colours become
            luminance. With 3, a picture's grey values are given three times, and its transparency is left out. A
            fourth axis is taken only if it is as long as this.

    Raises:
        NotFound: no such file.
        UnsupportedMedia: a format that is not read, or content that does not match the ending.
        TooLarge: over ``max_voxels``, or a gzip that unpacks to more than its header claims.
        BadInput: a cut or damaged file, a geometry that cannot be, a wrong number of channels.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        if kind == "dicom":
            array, affine = _read_dicom(path, max_voxels, channels)
        elif kind in PICTURES:
            array, affine = _read_picture(path, kind, max_voxels, channels)
        else:
            header = header_of(path, kind, max_voxels)
            array, affine = _read_volume(path, kind, header, channels)
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise BadInput(f"{path.name}: ITK cannot read it: {_reason(error)}") from error
    check_affine(affine, f"{path.name}: geometry")
    return Image(_finite(array, path.name), affine, kind)


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> Image:
    """Read a label map: one channel of whole numbers from 0 to 255, as uint8.

    Raises:
        BadInput: other values, several channels, overlapping segments; besides what `read_image` raises.
    """
    path = Path(path)
    kind = format_of(path)
    if kind not in ("nifti", "nrrd"):
        raise BadInput(f"{path.name}: a label is NIfTI or NRRD, not {kind}")
    header = header_of(path, kind, max_voxels)
    segments = _segments(header, path.name)
    image = read_image(path, max_voxels=max_voxels)
    if image.array.shape[0] != 1:
        raise BadInput(f"{path.name}: a label has one channel, this has {image.array.shape[0]}")
    return Image(_whole(image.array, path.name), image.affine, image.source, segments)


def read_geometry(path: Path, *, max_voxels: int = MAX_VOXELS) -> Geometry:
    """Read where an image's voxels lie, without the voxels.

    Raises:
        LabelRoundsError: what `read_image` raises for the header; the voxels are not looked at.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        if kind == "dicom":
            return _dicom_geometry(path, max_voxels)
        if kind not in PICTURES:
            header_of(path, kind, max_voxels)
        return _geometry_of(_open(kind, path), kind, path.name)
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        raise BadInput(f"{path.name}: ITK cannot read it: {_reason(error)}") from error


def patient_of(path: Path) -> str | None:
    """Return the PatientID of a DICOM file or folder, None for other formats or where it is missing."""
    return dicom.patient_id(Path(path)) if format_of(Path(path)) == "dicom" else None


def _read_volume(path: Path, kind: str, header: Header, channels: int | None) -> tuple[NDArray[Any], Affine]:
    _check_channels(header.channels, header.colour, channels, path.name)
    with unpacked(path, header) as file:
        io = _open(kind, file)
        claimed = [io.GetDimensions(axis) for axis in range(io.GetNumberOfDimensions())]
        components = io.GetNumberOfComponents()
        if int(np.prod([*claimed, components], dtype=object)) != header.voxels:
            raise BadInput(f"{path.name}: ITK finds {claimed} x {components}, the header says {header.sizes}")
        four = len(claimed) == 4 and claimed[3] > 1
        image = _load(io, [file], components, dimensions=4 if four else 3, luminance=channels == 1)
        array = _channels_first(image)
        if header.floats:
            array = _not_finite_restored(array, file, header)
    return array, affine_of(image)


def _not_finite_restored(array: NDArray[Any], file: Path, header: Header) -> NDArray[Any]:
    """Put NaN and infinity back where ITK's NIfTI library silently made them 0, which is tissue in a CT."""
    shape = (*header.sizes, header.channels)
    stored = np.moveaxis(np.memmap(file, header.floats, "r", header.offset, shape, order="F"), 3, 0)
    lost = ~np.isfinite(stored)
    if lost.any():
        array = array.astype(np.float32)
        array[lost] = stored[lost]
    return array


def _read_picture(path: Path, kind: str, max_voxels: int, channels: int | None) -> tuple[NDArray[Any], Affine]:
    io = _open(kind, path)
    sizes = [io.GetDimensions(axis) for axis in range(io.GetNumberOfDimensions())]
    components = io.GetNumberOfComponents()
    if int(np.prod([*sizes, components], dtype=object)) > max_voxels:
        raise TooLarge(f"{path.name}: the header claims {sizes} x {components}, over {max_voxels} values")
    check_plausible(path, int(io.GetImageSizeInBytes()))
    if len(sizes) > 2 and sizes[2] > 1:
        raise BadInput(f"{path.name}: {sizes[2]} pages; a picture has one")
    grey = components <= 2  # the second is transparency
    if not (grey and channels in (None, 1, 3)) and not (components == 4 and channels == 3):
        _check_channels(components, not grey, channels, path.name)
    luminance = channels == 1 and not grey
    array = _channels_first(_load(io, [path], components, dimensions=3, luminance=luminance))
    if grey and channels != 2:
        array = array[:1]
    if channels == 3:
        array = np.repeat(array, 3, axis=0) if grey else array[:3]
    return array, np.diag([-1.0, -1.0, 1.0, 1.0])


def _read_dicom(path: Path, max_voxels: int, channels: int | None) -> tuple[NDArray[Any], Affine]:
    slices = dicom.dicom_slices(path, max_voxels)
    samples = slices[0].samples
    _check_channels(samples, samples in (3, 4), channels, path.name)
    with clean_copies([found.path for found in slices]) as files:
        io = _open("dicom", files[0])
        size = (io.GetDimensions(0), io.GetDimensions(1), io.GetNumberOfComponents())
        if size != (slices[0].columns, slices[0].rows, samples):
            raise BadInput(f"{path.name}: ITK finds {size}, the header says {slices[0].columns} x {slices[0].rows}")
        floating = dicom.varying_rescale(slices)
        image = _load(io, files, samples, dimensions=3, luminance=channels == 1, floating=floating)
    return dicom.with_air_dark(_channels_first(image), slices), affine_of(image)


def _dicom_geometry(path: Path, max_voxels: int) -> Geometry:
    slices = dicom.dicom_slices(path, max_voxels)
    if len(slices) > 1:
        shape = (slices[0].columns, slices[0].rows, len(slices))
        return Geometry(shape, dicom.slices_affine(slices), False)
    with clean_copies([slices[0].path]) as files:
        return _geometry_of(_open("dicom", files[0]), "dicom", path.name)


def _geometry_of(io: Any, kind: str, name: str) -> Geometry:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if kind in PICTURES else affine_of_header(io)
    check_affine(affine, f"{name}: geometry")
    x, y, z = (io.GetDimensions(axis) if axis < io.GetNumberOfDimensions() else 1 for axis in range(3))
    return Geometry((x, y, z), affine, kind in PICTURES)


def _check_channels(found: int, colour: bool, wanted: int | None, name: str) -> None:
    if found == (wanted or 1) or (colour and wanted in (None, 1)):
        return
    allowed = "1, or colours" if wanted is None else str(wanted)
    raise BadInput(f"{name}: {found} channels (or a fourth axis of that length); allowed: {allowed}")


def _open(kind: str, path: Path) -> Any:
    """Return ITK's reader of a format with the file's header read."""
    itk = load_itk()

    io = getattr(itk, _READERS[kind]).New()
    io.SetFileName(str(path))
    io.ReadImageInformation()
    return io


def _load(
    io: Any, files: Sequence[Path], components: int, *, dimensions: int, luminance: bool, floating: bool = False
) -> Any:
    """Return the ITK image that ``io`` reads, in the nearest type that ITK's Python package has."""
    itk = load_itk()

    value = "float" if floating else io.GetComponentTypeAsString(io.GetComponentType())
    if components == 1 or luminance:
        image_type = itk.Image[getattr(itk, _SCALARS.get(value, "F")), dimensions]
    else:
        image_type = itk.VectorImage[getattr(itk, _VECTORS.get(value, "F")), dimensions]
    if len(files) > 1:
        reader = itk.ImageSeriesReader[image_type].New(FileNames=[str(file) for file in files], ImageIO=io)
    else:
        reader = itk.ImageFileReader[image_type].New(FileName=str(files[0]), ImageIO=io)
    reader.Update()
    return reader.GetOutput()


def _channels_first(image: Any) -> NDArray[Any]:
    """Return ``(C, X, Y, Z)`` of an ITK image, as a copy: a view of ITK's memory does not keep it alive."""
    itk = load_itk()

    array = itk.array_from_image(image).T
    if image.GetNumberOfComponentsPerPixel() > 1:
        return array
    if image.GetImageDimension() == 4:
        return np.moveaxis(array, 3, 0)
    return array[np.newaxis]


def _finite(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    finite = np.isfinite(array)
    count = int(finite.sum())
    if count == array.size:
        return array
    if count * 2 < array.size:
        raise BadInput(f"{name}: {array.size - count} of {array.size} voxels are NaN or infinite; at most half may be")
    low, high = array[finite].min(), array[finite].max()
    return np.nan_to_num(array, copy=True, nan=low, posinf=high, neginf=low)


def _whole(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise BadInput(f"{name}: label values {low} to {high}; allowed are whole numbers from 0 to 255")
    whole = array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.array_equal(whole, array):
        raise BadInput(f"{name}: label values such as {array[whole != array].flat[0]} are not whole numbers")
    return whole


def _segments(header: Header, name: str) -> dict[str, int] | None:
    """Return name to value of the segments that 3D Slicer lists in a ``.seg.nrrd``, None for a plain label map."""
    segments: dict[str, int] = {}
    index = 0
    while f"Segment{index}_ID" in header.pairs or f"Segment{index}_Name" in header.pairs:
        prefix = f"Segment{index}_"
        title = header.pairs.get(prefix + "Name", header.pairs.get(prefix + "ID", ""))
        layer, value = header.pairs.get(prefix + "Layer", "0"), header.pairs.get(prefix + "LabelValue", "1")
        if layer.strip() != "0" or header.channels > 1:
            raise BadInput(f"{name}: segment {title!r} is on layer {layer}; overlapping segments are not supported")
        if not value.strip().isdigit() or not 1 <= int(value) <= 255:
            raise BadInput(f"{name}: segment {title!r} has the value {value!r}; allowed are 1 to 255")
        if title in segments:
            raise BadInput(f"{name}: two segments are named {title!r}")
        segments[title] = int(value)
        index += 1
    return segments or None


def _reason(error: BaseException) -> str:
    if isinstance(error, LabelRoundsError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^(ITK ERROR: )?\w+\(0x[0-9a-f]+\): ", "", lines[-1])[:300] if lines else type(error).__name__
