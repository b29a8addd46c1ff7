"""One training of a model at a time, whichever process runs it, and how other processes can tell that one runs.

The lock is the operating system's, so that a killed process holds none.
"""

import fcntl
import os
from pathlib import Path

from filelock import FileLock

_FILE = "training.lock"
_PATIENCE_S = 0.5  # longer than `is_trained` holds it


def training_lock(folder: Path) -> FileLock:
    """Return the lock of a model's folder; taking it raises `filelock.Timeout` where another process trains."""
    return FileLock(folder / _FILE, timeout=_PATIENCE_S)


def is_trained(folder: Path) -> bool:
    """Tell whether any process trains the model of a folder at the moment."""
    try:
        handle = os.open(folder / _FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of by closing
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
