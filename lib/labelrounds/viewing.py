"""What the command ``viewer`` does before the viewer itself: find it beside the package, and say what it lacks."""

import sys

from labelrounds import folders
from labelrounds.errors import BadInput
from labelrounds.listening import Listening


def view(server: str, listening: Listening) -> None:
    """Show the rounds of a server in a browser until Ctrl-C.

    Raises:
        BadInput: the extra or a library of the system is missing; what the viewer refuses.
    """
    sys.path += map(str, folders.viewer_folders())
    try:
        from labelrounds_viewer.command import run
    except ModuleNotFoundError as error:
        raise BadInput(
            f"the viewer needs 3D Slicer's core, which is not installed ({error.name}): pip install"
            " 'labelrounds[viewer]'"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"3D Slicer's core can't be loaded ({error}); on Debian and Ubuntu: apt-get install libgl1 libegl1"
        ) from error
    run(server, listening)
