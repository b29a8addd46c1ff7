"""The parsers of image files, in the process that calls them; `labelrounds.reading` says which process that is.

Ending, first bytes, header, size and geometry are checked before ITK allocates anything. Needs neither torch nor the
host, so that a process that only reads files is small.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelrounds import dicom
from labelrounds.dicom_copies import clean_copies
from labelrounds.errors import BadInput, LabelRoundsError, NotFound, TooLarge
from labelrounds.formats import PICTURES, format_of, header_of, unpacked
from labelrounds.geometry import Affine, affine_of, affine_of_header, check_affine
from labelrounds.headers import Header
from labelrounds.images import MAX_VOXELS, Geometry, Image
from labelrounds.itk_loading import load_itk
from labelrounds.pictures import check_plausible, continued_jpeg, may_be_cut, with_white_bright
from labelrounds.segmentations import flattened, segments_of, values_of, without_tools

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
_LUMINANCE = (2125.0, 7154.0, 721.0)  # ITK's weights of red, green and blue


def read_image(path: Path, *, max_voxels: int = MAX_VOXELS, channels: int | None = None) -> Image:
    """Do what `labelrounds.reading.read_image` describes, here."""
    path = Path(path)
    with _explained(path.name):
        kind = format_of(path)
        if kind == "dicom":
            array, affine = _read_dicom(path, max_voxels, channels)
        elif kind in PICTURES:
            array, affine = _read_picture(path, kind, max_voxels, channels)
        else:
            header = header_of(path, kind, max_voxels)
            array, affine = _read_volume(path, kind, header, channels)
        check_affine(affine, f"{path.name}: geometry")
        return Image(_finite(array, path.name), affine, kind)


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS) -> Image:
    """Do what `labelrounds.reading.read_label` describes, here."""
    path = Path(path)
    with _explained(path.name):
        kind = format_of(path)
        if kind not in ("nifti", "nrrd"):
            raise BadInput(f"{path.name}: a label is NIfTI or NRRD, not {kind}")
        header = header_of(path, kind, max_voxels)
        segments = segments_of(header, path.name)
        layered = bool(segments) and header.channels > 1
        image = read_image(path, max_voxels=max_voxels, channels=header.channels if layered else None)
        layers = image.array.shape[0]
        if layers > 1 and not layered:
            raise BadInput(f"{path.name}: a label has one channel, this has {layers}")
        labels = _whole(image.array, path.name)
        labels = flattened(labels, segments, path.name) if layered else without_tools(labels, segments)
        return Image(labels, image.affine, image.source, values_of(segments, layered), layered)


def read_geometry(path: Path, *, max_voxels: int = MAX_VOXELS) -> Geometry:
    """Do what `labelrounds.reading.read_geometry` describes, here."""
    path = Path(path)
    with _explained(path.name):
        kind = format_of(path)
        if kind == "dicom":
            return _dicom_geometry(path, max_voxels)
        if kind not in PICTURES:
            header_of(path, kind, max_voxels)
        return _geometry_of(_open(kind, path), kind, path.name)


def patient_of(path: Path) -> str | None:
    """Do what `labelrounds.reading.patient_of` describes, here."""
    path = Path(path)
    with _explained(path.name):
        return dicom.patient_id(path) if format_of(path) == "dicom" else None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever a parser or the file system raises into an error for the user."""
    try:
        yield
    except LabelRoundsError:
        raise
    except MemoryError as error:
        raise TooLarge(f"{name}: reading it takes more memory than there is for it") from error
    except FileNotFoundError as error:
        raise NotFound(f"{name}: no such file") from error
    except OSError as error:
        raise BadInput(f"{name}: can't be opened: {error.strerror or error}") from error
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        if "Failed to allocate memory" in str(error):
            raise TooLarge(f"{name}: reading it takes more memory than there is for it") from error
        raise BadInput(f"{name}: ITK cannot read it: {_reason(error)}") from error


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
        array = _channels_first(image, grey=channels == 1)
        # An axis that this takes for the channels may be a domain to ITK: "time", say.
        if array.shape != (1 if channels == 1 else header.channels, *header.sizes):
            found = f"{array.shape[0]} channels of {list(array.shape[1:])}"
            raise BadInput(f"{path.name}: ITK finds {found}, the header says {header.channels} of {list(header.sizes)}")
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
    array = _picture_array(path, kind, components, channels)
    if kind == "tiff" and grey:
        array = np.concatenate([with_white_bright(array[:1], path), array[1:]])
    if kind == "jpeg" and may_be_cut(path, array):
        with continued_jpeg(path) as longer:
            if not np.array_equal(_picture_array(longer, kind, components, channels), array):
                raise BadInput(f"{path.name}: the file is cut; its pixels end before their end mark")
    if grey and channels != 2:
        array = array[:1]
    if channels == 3:
        array = np.repeat(array, 3, axis=0) if grey else array[:3]
    return array, np.diag([-1.0, -1.0, 1.0, 1.0])


def _picture_array(path: Path, kind: str, components: int, channels: int | None) -> NDArray[Any]:
    luminance = channels == 1 and components > 2
    image = _load(_open(kind, path), [path], components, dimensions=3, luminance=luminance)
    return _channels_first(image, grey=luminance)


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
    return dicom.with_air_dark(_channels_first(image, grey=channels == 1), slices), affine_of(image)


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
    if components == 1 or (luminance and components != 4):
        image_type = itk.Image[getattr(itk, _SCALARS.get(value, "F")), dimensions]
    else:
        image_type = itk.VectorImage[getattr(itk, _VECTORS.get(value, "F")), dimensions]
    if len(files) > 1:
        reader = itk.ImageSeriesReader[image_type].New(FileNames=[str(file) for file in files], ImageIO=io)
    else:
        reader = itk.ImageFileReader[image_type].New(FileName=str(files[0]), ImageIO=io)
    reader.Update()
    return reader.GetOutput()


def _channels_first(image: Any, *, grey: bool) -> NDArray[Any]:
    """Return ``(C, X, Y, Z)`` of an ITK image, as a copy: a view of ITK's memory does not keep it alive.

    Args:
        image: of colours with transparency too: ITK would darken them by it.
        grey: make those luminance, as ITK makes colours without.
    """
    itk = load_itk()

    array = itk.array_from_image(image).T
    if grey and image.GetNumberOfComponentsPerPixel() == 4:
        return (np.tensordot(_LUMINANCE, array[:3], 1) / sum(_LUMINANCE)).astype(array.dtype)[np.newaxis]
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


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^(ITK ERROR: )?\w+\(0x[0-9a-f]+\): ", "", lines[-1])[:300] if lines else type(error).__name__
