"""Which DICOM images lie in a studies folder and in the folders in it, in whatever order a scanner or a PACS left them.

On the way of a study into the datastore: `labelrounds.stored_series` takes up what is found here. Nothing but headers
is read, each once: of a folder is kept, in memory and in a file, what its files were found to be.

Concurrency
    One process looks at a time (`labelrounds.stored_series` sees to it).

Crash
    The file is written whole; without it, or with a torn one, the headers are read again.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from labelrounds.archive_files import folders_in
from labelrounds.atomic import write_bytes
from labelrounds.dicom_headers import Member, member_of
from labelrounds.errors import BadInput
from labelrounds.formats import ending_of, is_dicom
from labelrounds.names import is_safe_id

_DICOM = (".dcm", "")
_FORMAT = 1


@dataclass(frozen=True)
class FoundSeries:
    """A DICOM image: the slices of a series, or a single file that has no place in space, as a radiograph.

    Attributes:
        name: what it is known by: the series' UID, that of a single file, or the name of a file at the top.
        files: its files, sorted.
        identity: what changes with its files, by their names, sizes and times.
        in_place: whether it is a single file at the top of the studies folder, which needs no copy.
    """

    name: str
    files: tuple[Path, ...]
    identity: str
    in_place: bool = False


@dataclass
class _Folder:
    """What was found in a folder: its DICOM images by file name, and by what a change is noticed."""

    changed: int = 0
    stats: dict[str, tuple[int, int]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    newest: float = 0.0

    @cached_property
    def signature(self) -> str:
        return _digest(self.stats)


@dataclass(frozen=True)
class Look:
    """What a look into the folder has found.

    Attributes:
        series: that are at rest.
        names: of all, also of those that are still being copied.
        complete: whether every folder could be looked into.
        faults: why files were passed over, by their reason.
    """

    series: tuple[FoundSeries, ...]
    names: frozenset[str]
    complete: bool
    faults: Mapping[str, int]


class SeriesFinder:
    """Finds the DICOM images of a folder, again and again.

    Args:
        root: the studies folder.
        memory: the file in which is kept what was found.
    """

    def __init__(self, root: Path, memory: Path) -> None:
        self._root, self._memory = root, memory
        self._folders: dict[Path, _Folder] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        self._kept: dict[str, Any] = {}
        self._loaded = False

    def look(self, rest_s: float, known_files: frozenset[str] = frozenset()) -> Look:
        """Return the DICOM images that are there.

        Args:
            rest_s: for how many seconds nothing of a series must have changed for it to be whole.
            known_files: names of files at the top that are images in their own right already.
        """
        self._load()
        faults: dict[str, int] = defaultdict(int)
        before, self._folders = self._folders, {}
        complete = True
        for folder, _, reason in folders_in(self._root):
            if reason:
                complete = False
                continue
            self._folders[folder] = self._looked(folder, before.get(folder), rest_s, faults)
        self._keep()
        found = list(self._grouped(known_files))
        resting = tuple(one for one, newest in found if self._rests(one, newest, rest_s))
        return Look(resting, frozenset(one.name for one, _ in found), complete, dict(faults))

    def _looked(self, folder: Path, old: _Folder | None, rest_s: float, faults: dict[str, int]) -> _Folder:
        try:
            changed = folder.stat().st_mtime_ns
            # A file that grows does not change its folder's time, so what is young is looked at again.
            if old is not None and old.changed == changed and time.time() - old.newest > max(rest_s, 60.0):
                return old
            found = _Folder(changed)
            for file in sorted(folder.iterdir()):
                if _may_be_dicom(file):
                    stat = file.stat()
                    found.stats[file.name] = stat.st_size, stat.st_mtime_ns
                    # The time of a copy's content may be the original's; that of its entry is its own.
                    found.newest = max(found.newest, stat.st_ctime)
        except OSError as error:
            faults[error.strerror or "it can't be looked into"] += 1
            return old or _Folder()
        kept = self._kept.get(self._key(folder))
        if kept is not None and kept[0] == found.signature:
            found.members = {name: Member(*one) for name, one in kept[1].items()}
        else:
            found.members = self._read(folder, found, old, faults)
        return found

    @staticmethod
    def _read(folder: Path, found: _Folder, old: _Folder | None, faults: dict[str, int]) -> dict[str, Member]:
        members: dict[str, Member] = {}
        for name, stat in found.stats.items():
            if old is not None and old.stats.get(name) == stat:
                if name in old.members:
                    members[name] = old.members[name]
                continue
            try:
                member = member_of(folder / name) if is_dicom(folder / name) else None
            except OSError as error:
                faults[error.strerror or "it can't be read"] += 1
                continue
            except BadInput:
                faults["its DICOM header is damaged"] += 1
                continue
            if member is not None:
                members[name] = member
        return members

    def _grouped(self, known_files: frozenset[str]) -> Iterator[tuple[FoundSeries, float]]:
        """Yield each image, and when it was last changed."""
        groups: dict[str, dict[str, Path]] = defaultdict(dict)
        for folder, found in self._folders.items():
            for name, member in found.members.items():
                if folder == self._root and name in known_files:
                    continue
                # A copy of a slice in another folder is the same slice.
                groups[_group(member)].setdefault(member.instance or str(folder / name), folder / name)
        for group, slices in groups.items():
            files = tuple(sorted(slices.values()))
            stats = [(file.name, *self._folders[file.parent].stats[file.name]) for file in files]
            newest = max(self._folders[file.parent].newest for file in files)
            at_top = files[0].parent == self._root and files[0].name.lower().endswith(".dcm")
            in_place = len(files) == 1 and at_top and is_safe_id(files[0].name[:-4])
            name = files[0].name[:-4] if in_place else _safe_name(group)
            yield FoundSeries(name, files, _digest(stats), in_place), newest

    def _rests(self, found: FoundSeries, newest: float, rest_s: float) -> bool:
        """Tell whether nothing has changed for a while, by the file system's clock, or if that is ahead by ours."""
        now = time.monotonic()
        identity, since = self._seen.get(found.name, ("", now))
        if identity != found.identity:
            since = now
        self._seen[found.name] = found.identity, since
        return time.time() - newest >= rest_s or now - since >= rest_s

    def _key(self, folder: Path) -> str:
        """Return what a folder is known by in the file, where its name, often a patient's, must not stand."""
        return hashlib.sha256(str(folder.relative_to(self._root)).encode("utf-8", "surrogateescape")).hexdigest()[:24]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            content = json.loads(self._memory.read_bytes())
            if content["format"] == _FORMAT:
                self._kept = dict(content["folders"])
        except (OSError, ValueError, KeyError, TypeError):
            self._kept = {}

    def _keep(self) -> None:
        kept = {
            self._key(folder): [found.signature, {name: list(one.fields) for name, one in found.members.items()}]
            for folder, found in self._folders.items()
            if found.members
        }
        if kept != self._kept:
            self._kept = kept
            write_bytes(self._memory, json.dumps({"format": _FORMAT, "folders": kept}).encode(), durable=False)


def _safe_name(uid: str) -> str:
    """Return a UID if it may be an image's id, else a name made of it."""
    return uid if is_safe_id(uid) else f"series_{hashlib.sha256(uid.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _group(member: Member) -> str:
    return member.series if member.placed and member.series else member.instance or member.series


def _may_be_dicom(file: Path) -> bool:
    if file.name.startswith(".") or file.name.upper() == "DICOMDIR":
        return False
    return ending_of(file.name) in _DICOM and not file.name.endswith((".json", ".jsonl")) and file.is_file()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "replace")).hexdigest()[:32]
