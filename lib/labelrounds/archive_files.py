"""The images of a folder and of those in it, found one by one, for whatever works off an archive.

A folder that is reached twice, through symbolic links, is looked into once, under its own name where it has one in
the archive; so links that lead round in a circle end too.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelrounds.dicom_headers import member_of
from labelrounds.errors import BadInput, NotFound
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
    for folder, names, reason in folders_in(source, leave_out):
        if reason:
            yield Found(folder, reason)
            continue
        files = [folder / name for name in names]
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


def folders_in(root: Path, leave_out: Path | None = None) -> Iterator[tuple[Path, list[str], str]]:
    """Yield a folder and those in it, each once and sorted, with the names of its files, sorted too.

    Hidden folders and files are left out, and what a studies folder holds beside images. A folder that can't be looked
    into comes with the reason, else that is "".

    Args:
        root: the folder.
        leave_out: a folder that is not looked into.
    """
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
            with os.scandir(folder) as entries:
                inner = sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
                folders = {one.name: one.is_symlink() for one in inner if _is_folder(one)}
                # A link to nothing is listed as the file that it should be; reading it says what is wrong.
                files = [one.name for one in inner if one.name not in folders and (one.is_symlink() or one.is_file())]
        except OSError as error:
            yield folder, [], error.strerror or str(error)
            continue
        left_out = _NOT_IMAGES if _INDEX in files else ()
        linked += [folder / name for name, is_link in folders.items() if is_link and name not in left_out]
        waiting += [folder / name for name in reversed(folders) if not folders[name] and name not in left_out]
        yield folder, files, ""


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()  # by itself it fails at a link to itself


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
    try:
        members = [member_of(path) for path in slices]
    except (BadInput, OSError):  # whatever is wrong with a file, reading it alone says so
        return False
    return len({one and one.series for one in members}) == 1 and all(one and one.placed for one in members)
