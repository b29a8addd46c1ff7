"""Images that clients have sent for a session: the host's folders of them, under ids that nobody can guess.

Concurrency: routes add and ask, the host's clock asks every five minutes for those that have expired to be removed.

Crash: a killed server may leave a folder without a description, or with half of one. It is no session, and its image
goes as that of an expired one does.
"""

import time
import uuid
from pathlib import Path
from typing import Any

import labelrounds.host  # noqa: F401 - first, so that the host can be imported

# isort: split
from monailabel.utils.sessions import SessionInfo, Sessions


class SessionStore(Sessions):
    """The host's sessions, repaired.

    The host's ids tell the machine's address and the time, so that one gives away others; and one torn description
    ends its clearing up for good, before images of patients that are no longer needed.
    """

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> tuple[str, SessionInfo]:
        """Move an image, or a folder of a series, into a new session; return its id and description."""
        added: tuple[str, SessionInfo] = super().add_session(
            data_file, expiry, uncompress, session_id or str(uuid.uuid4())
        )
        return added

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """Return a session's description; None where there is none that can be read."""
        try:
            return super().get_session(session_id, update_ts, fetch_cache)
        except ValueError:  # torn
            return None

    def remove_expired(self) -> int:
        """Remove the sessions whose time is up, and as old ones that are none; return how many."""
        folders = [path for path in Path(self.store_path).glob("*") if path.is_dir()]
        over = [folder.name for folder in folders if self._is_over(folder)]
        for session_id in over:
            self.remove_session(session_id)
        return len(over)

    def _is_over(self, folder: Path) -> bool:
        known: Any = self.get_session(folder.name, update_ts=False, fetch_cache=False)
        if known is not None:
            return 0 < known.expiry < time.time() - known.last_access_ts
        try:  # perhaps one that is just being added
            return self.expiry < time.time() - folder.stat().st_mtime
        except FileNotFoundError:  # that the host has found to be without an image
            return False
