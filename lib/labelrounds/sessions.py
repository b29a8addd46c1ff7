"""Images that clients have sent for a session: a folder each, under an id that nobody can guess.

In place of the host's `Sessions`, whose ids tell the machine's address and the time, whose clearing up ends at the
first damaged folder, and after a restart does not begin before somebody asks for a session.

Layout below the folder of sessions::

    <id>/<name>       the image; of several files a folder of them
    <id>/meta.info    JSON: the image's name, when it came, after how many seconds without use it may go

Concurrency: any thread may call. The time of the last use is the description's own time, which is set, not written.

Crash: a session is received beside its place and appears whole or not at all. What a killed server was receiving, and
folders without a description that can be read, go as old as expired sessions do.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from labelrounds.atomic import PREFIX, disk_errors, remove_leftovers
from labelrounds.errors import LabelRoundsError

logger = logging.getLogger(__name__)

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ABOUT, _SERIES = "meta.info", "series"
_LEAST_S = 60


@dataclass(frozen=True)
class Session:
    """What is known of a session.

    Attributes:
        id: by which clients ask.
        image: the file, or the folder of a series.
        created: when it came, in seconds since 1970.
        used: when it was last asked for.
        expiry_s: after how many seconds without use it may go.
    """

    id: str
    image: Path
    created: int
    used: float
    expiry_s: int

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.time() - self.used > self.expiry_s

    def plain(self) -> dict[str, Any]:
        """Return it as clients of the host know it."""
        return {
            "name": self.id,
            "path": str(self.image.parent),
            "image": str(self.image),
            "meta": {},
            "create_ts": self.created,
            "last_access_ts": int(self.used),
            "expiry": self.expiry_s,
        }


class SessionStore:
    """The sessions of a server.

    Args:
        folder: of them all.
        expiry_s: after how many seconds without use a session may go, at most.
    """

    def __init__(self, folder: Path, expiry_s: int) -> None:
        self.folder, self._expiry_s = folder, max(expiry_s, _LEAST_S)

    def add(self, files: Mapping[str, BinaryIO], expiry_s: int = 0) -> Session:
        """Keep an image, or the files of a series, by name.

        Raises:
            OutOfSpace: the disk could not take them; nothing is left of them.
        """
        session_id = str(uuid.uuid4())
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PREFIX, dir=self.folder) as receiving:
                made = Path(receiving) / session_id
                images = made / _SERIES if len(files) > 1 else made
                images.mkdir(parents=True)
                for name, source in files.items():
                    with (images / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                about = {
                    "image": _SERIES if len(files) > 1 else next(iter(files)),
                    "create_ts": int(time.time()),
                    "expiry": min(expiry_s, self._expiry_s) if expiry_s > 0 else self._expiry_s,
                }
                (made / _ABOUT).write_text(json.dumps(about))
                made.rename(self.folder / session_id)
        return self._read(self.folder / session_id)

    def get(self, session_id: str, use: bool = True) -> Session | None:
        """Return a session; None where there is none, or its time is up.

        Args:
            session_id: its id.
            use: whether its time begins anew.
        """
        if not _ID.fullmatch(session_id):
            return None
        folder = self.folder / session_id
        try:
            found = self._read(folder)
            if found.is_over:
                return None
            if use:
                os.utime(folder / _ABOUT)
        except (OSError, ValueError, TypeError, KeyError):  # none, or one that somebody has meddled with
            return None
        return found

    def remove(self, session_id: str) -> None:
        """Remove a session and its image; that it is gone already is as well.

        Raises:
            Unwritable: it can't be.
        """
        going = self.folder / f"{PREFIX}{session_id}"
        with disk_errors(self.folder):
            try:
                (self.folder / session_id).rename(going)
            except FileNotFoundError:
                return
            shutil.rmtree(going)

    def remove_expired(self) -> int:
        """Remove the sessions whose time is up, and as old ones that are none; return how many.

        The host's clock asks every five minutes.
        """
        remove_leftovers(self.folder, older_than_s=self._expiry_s)
        removed = 0
        for folder in self.folder.glob("*"):
            try:
                if folder.is_dir() and not folder.name.startswith(PREFIX) and self._is_over(folder):
                    self.remove(folder.name)
                    removed += 1
            except (OSError, LabelRoundsError) as error:
                logger.warning("The session in %s is not cleared away: %s", folder, error)
        return removed

    def _is_over(self, folder: Path) -> bool:
        try:
            return self._read(folder).is_over
        except (OSError, ValueError, TypeError, KeyError):
            return time.time() - folder.stat().st_mtime > self._expiry_s

    @staticmethod
    def _read(folder: Path) -> Session:
        """Return what a folder's description says; raises whatever is wrong with it."""
        file = folder / _ABOUT
        about = json.loads(file.read_text())
        image = folder / Path(about["image"]).name  # a file of this very folder, whatever it says
        if not image.name or image.name == _ABOUT or not image.exists():
            raise KeyError("image")
        return Session(folder.name, image, int(about["create_ts"]), file.stat().st_mtime, int(about["expiry"]))
