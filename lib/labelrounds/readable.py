"""Whether an image can be read: asked before it is handed out, and remembered for as long as its file is the same."""

import logging
from pathlib import Path

from labelrounds.errors import LabelRoundsError
from labelrounds.memory_cache import identity_of
from labelrounds.reading import read_geometry, read_image

logger = logging.getLogger(__name__)

_LARGEST_READ_BYTES = 64_000_000  # of a larger one the header alone is looked at: somebody waits
_MOST_KNOWN = 100_000


class Readable:
    """Checks files; any thread may use it."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def check(self, path: Path) -> tuple[str, str]:
        """Return what a file is known by, and why it can't be read: nothing where it can."""
        identity = ""
        try:
            identity = identity_of(path)
            if identity not in self._known:
                read = read_image if _size(path) <= _LARGEST_READ_BYTES else read_geometry
                read(path)
                if len(self._known) > _MOST_KNOWN:
                    self._known.clear()
                self._known.add(identity)
        except LabelRoundsError as error:
            logger.warning("%s is not handed out: %s", path.name, error)
            return identity, str(error)
        except OSError as error:  # another user's file, or a failing disk
            logger.warning("%s is not handed out: %s", path.name, error)
            return identity, f"{path.name}: {error.strerror or type(error).__name__}"
        return identity, ""


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
