"""Files that appear whole or not at all.

Everything that the server keeps (labels, images, the index of the datastore, predictions) is written to a hidden
folder beside its place and then renamed, so that a reader, a training in another process, or a start after ``kill -9``
finds the old file or the new one, never a part. What a killed process leaves lies in folders named
``.labelrounds-*``; `remove_leftovers` clears those.
"""

import errno
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from labelrounds.errors import OutOfSpace, Unwritable

PREFIX = ".labelrounds-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk says that can't be written to into an error for the user.

    Raises:
        OutOfSpace: the disk that holds ``path`` could not take what was written inside the block: no space left, over
            the quota, file too large.
        Unwritable: it is read-only, failing, or not this user's.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfSpace(f"{path.name}: not written, {os.strerror(error.errno)}; free some space first") from error
        if error.errno in _REFUSED:
            raise Unwritable(
                f"{path.name}: not written, {os.strerror(error.errno)}; its folder must be writable for the server"
            ) from error
        raise


class Staged:
    """A file written beside its place, with the same name, that `commit` puts there.

    Attributes:
        file: Where to write.
        path: The file that it will become; until `commit` this is as it was.
        committed: True from then on.
    """

    def __init__(self, path: Path, folder: Path, durable: bool) -> None:
        self.path = path
        self.committed = False
        self.file = folder / path.name
        self._durable = durable

    def flush(self) -> None:
        """Take the room on the disk now, so that nothing but two renames is left to `commit`."""
        if self._durable:
            flush(self.file)

    def commit(self) -> None:
        """Put the file in its place."""
        self.file.replace(self.path)
        self.committed = True
        if self._durable:
            flush(self.path.parent)


@contextmanager
def staged(path: Path, *, durable: bool = False) -> Iterator[Staged]:
    """Give a file to write and to commit; without `Staged.commit` nothing remains of it.

    Args:
        path: The file to make or to replace; its folder exists.
        durable: Flush file and folder to the disk, for what must outlive a power cut.

    Raises:
        OutOfSpace: the disk is full; ``path`` is as it was.
    """
    with disk_errors(path):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
        try:
            yield Staged(path, folder, durable)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a place to write to, with the same file name; at the end of the block it becomes ``path``.

    Raises:
        OutOfSpace: the disk is full; ``path`` is as it was.
    """
    with staged(path, durable=durable) as new:
        yield new.file
        new.flush()
        new.commit()


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write ``content`` to ``path``, whole or not at all.

    Raises:
        OutOfSpace: the disk is full; ``path`` is as it was.
    """
    with replacing(path, durable=durable) as target:
        target.write_bytes(content)


def zipped(files: Mapping[str, Path], texts: Mapping[str, str]) -> Path:
    """Write a new temporary ZIP archive of files, those of a folder included, and of texts, by their names in it.

    Raises:
        OutOfSpace: the disk is full; nothing is left of the archive.
    """
    with tempfile.NamedTemporaryFile(prefix="labelrounds-", suffix=".zip", delete=False) as target:
        path = Path(target.name)
    try:
        with disk_errors(path), zipfile.ZipFile(path, "w") as archive:
            for name, file in files.items():
                for part in sorted(file.rglob("*")) if file.is_dir() else [file]:
                    archive.write(part, str(Path(name) / part.relative_to(file)))
            for name, text in texts.items():
                archive.writestr(name, text)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file.

    Raises:
        OutOfSpace: the disk is full.
    """
    with disk_errors(target):
        shutil.copyfile(source, target)


def flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def set_aside(paths: Sequence[Path]) -> Iterator[None]:
    """Take files out of their places for a change that does without them; put them back if it fails, else remove them.

    After a kill in between they lie in hidden folders beside their places, which `remove_leftovers` clears.
    """
    folders: list[tuple[Path, Path]] = []
    try:
        for path in paths:
            if path.exists():
                with disk_errors(path):
                    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
                folders.append((folder, path))
                path.rename(folder / path.name)
        yield
    except BaseException:
        for folder, path in folders:
            if (folder / path.name).exists():
                (folder / path.name).rename(path)
        raise
    finally:
        for folder, _ in folders:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, *, older_than_s: float = 3600.0) -> int:
    """Remove what killed processes left in ``folder``; young folders may belong to a living writer and stay.

    Returns:
        How many were removed.
    """
    removed = 0
    for leftover in folder.glob(PREFIX + "*"):
        if leftover.is_dir() and not leftover.is_symlink() and time.time() - leftover.stat().st_mtime > older_than_s:
            shutil.rmtree(leftover, ignore_errors=True)
            removed += 1
    return removed
