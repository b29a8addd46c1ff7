"""The images of a folder and of those in it, found one by one, for whatever works off an archive.

A folder that is reached twice, through symbolic links, is looked into once, under its own name where it has one in
the archive; so links that lead round in a circle end too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from labelrounds.errors import NotFound
from labelrounds.formats import ending_of, is_dicom

_INDEX, _NOT_IMAGES = "datastore_v2.json", ("labels", "history", "converted")


@dataclass(frozen=True)
class Found:
    """An image of an archive, or a folder that can't be looked into.

    Attributes:
        path: of a file, or of a folder with one DICOM series.
        reason: why the folder can't be looked into; "" for an image.
    """

    path: Path
    reason: str = ""


def images_in(source: Path) -> list[Path]:
    """Return the images of a folder and of those in it, sorted; a folder of one DICOM series counts as one.

    A folder that can't be looked into is among them: reading it says so.

    Raises:
        NotFound: there is none.
    """
    found = [image.path for image in find_images(source)]
    if not found:
        raise NotFound(f"{source}: no image in it")
    return found


def find_images(source: Path, leave_out: Path | None = None) -> Iterator[Found]:
    """Yield the images of a folder and of those in it; a file is its only one.

    Hidden folders are left out, and so are the labels and the history of a studies folder, which hold label maps.

    Args:
        source: a folder or a file.
        leave_out: a folder that is not looked into.
    """
    if source.is_file():
        yield Found(source)
        return
    for folder, files, reason in _folders(source, leave_out):
        if reason:
            yield Found(folder, reason)
            continue
        slices = [path for path in files if _is_dicom(path)]
        if _are_one_series(slices):
            yield Found(folder)
        else:
            yield from map(Found, slices)
        others = set(files) - set(slices)
        yield from (Found(path) for path in files if path in others and ending_of(path.name))


def identity(path: Path) -> str:
    """Return what changes with an image's content, by its files' sizes and times alone.

    Raises:
        OSError: it is gone or can't be looked at.
    """
    files = [path] if path.is_file() else [file for file in path.iterdir() if not file.name.startswith(".")]
    stats = [file.stat() for file in files]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return f"{len(stats)}-{sum(stat.st_size for stat in stats)}-{newest}"


def _folders(root: Path, leave_out: Path | None) -> Iterator[tuple[Path, list[Path], str]]:
    """Yield each folder once, sorted, with its files, or with why it can't be looked into; hidden ones are left out."""
    seen: set[tuple[int, int]] = set()
    if leave_out is not None and leave_out.is_dir():
        seen.add(_place(leave_out))
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            place = _place(folder)
            if place in seen:
                continue
            seen.add(place)
            inner = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            yield folder, [], error.strerror or str(error)
            continue
        not_images = _NOT_IMAGES if (folder / _INDEX).is_file() else ()
        folders = [path for path in inner if path.is_dir() and path.name not in not_images]
        linked += [path for path in folders if path.is_symlink()]
        waiting += [path for path in reversed(folders) if not path.is_symlink()]
        # A link to nothing is listed as the file that it should be; reading it says what is wrong.
        yield folder, [path for path in inner if path.is_file() or (path.is_symlink() and not path.is_dir())], ""


def _place(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _is_dicom(path: Path) -> bool:
    try:
        return path.name.upper() != "DICOMDIR" and is_dicom(path)  # that lists images, and is none
    except OSError:  # reading it says so, in its row
        return False


def _are_one_series(slices: Sequence[Path]) -> bool:
    """Tell whether DICOM files are slices of one volume, which is read by its folder.

    Files of a series without a place in space, as two views of a chest, are an image each.
    """
    if len(slices) < 2:
        return False
    tags = ["SeriesInstanceUID", "ImagePositionPatient"]
    try:
        headers = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags)) for path in slices]
        series = {str(header.get(tags[0])) for header in headers}
        return len(series) == 1 and all(header.get(tags[1]) for header in headers)
    except Exception:  # whatever is wrong with a file, reading it alone says so
        return False
