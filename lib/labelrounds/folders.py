"""Where things lie: what ships with the package, and what the server writes beside the studies.

``LABELROUNDS_HOME`` (default ``~/.labelrounds``) holds everything that the server writes but labels: model
versions, training progress, sessions and logs. Labels and the datastore's index stay with the studies.
"""

import functools
import os
import tempfile
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from labelrounds.errors import BadInput, Conflict

_claim: FileLock | None = None


def home() -> Path:
    """Return the folder of model versions, progress, sessions and logs."""
    return Path(os.environ.get("LABELROUNDS_HOME") or Path.home() / ".labelrounds").expanduser().resolve()


def make_home() -> Path:
    """Make the folder if need be, and return it.

    Raises:
        BadInput: it can't be made or written to.
    """
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise BadInput(f"LABELROUNDS_HOME {str(folder)!r} can't be written to: {error.strerror}") from error
    return folder


def check_writable(folder: Path) -> None:
    """Write a file into a folder and remove it.

    Raises:
        OSError: why that is not possible; permissions alone would not tell of a read-only or full disk.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0")


def claim_home() -> None:
    """Keep the folder for this process alone, as long as it lives: two servers would undo each other's trainings.

    Raises:
        Conflict: another server has it.
    """
    global _claim
    if _claim is not None:
        return
    lock = FileLock(make_home() / "server.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Conflict(
            f"another server works with LABELROUNDS_HOME {str(home())!r}; give this one a folder of its own"
        ) from error
    _claim = lock


def shipped_configs() -> Path:
    """Return the folder of the models that come with the package."""
    return _shipped("configs", "unet_phantom.yaml")


def shipped_weights() -> Path:
    """Return the folder of the trained weights that come with the package."""
    return shipped_configs() / "weights"


def app_folder() -> Path:
    """Return the folder that MONAI Label is pointed at, which holds ``main.py``."""
    return _shipped("apps/radiology", "main.py")


def viewer_folders() -> list[Path]:
    """Return the folders of the packages that the viewer is made of: its own, and the Slicer extension's."""
    own = _shipped("apps/viewer/labelrounds_viewer", "command.py")
    return [own.parent, _shipped("apps/slicer/LabelRounds/LabelRoundsLib", "client.py").parent]


@functools.cache  # every request for the models asks, and the answer takes milliseconds
def _shipped(folder: str, member: str) -> Path:
    """Find a folder of the checkout, or of the installed distribution where there is no checkout.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    shared = f"share/labelrounds/{folder}"
    # A plain installation lists the files; one with pip's --target puts them beside the package.
    listed = [file for file in metadata.files("labelrounds") or [] if file.as_posix().endswith(f"{shared}/{member}")]
    places = [Path(__file__).parents[2] / folder, *(Path(str(file.locate())).parent for file in listed)]
    places.append(Path(__file__).parents[1] / shared)
    for place in places:
        if (place / member).is_file():
            return place.resolve()
    raise FileNotFoundError(f"{shared}/{member} is missing from the installation")
