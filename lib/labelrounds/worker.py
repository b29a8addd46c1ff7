"""The child process of a training: ``python -m labelrounds.worker REQUEST``, the request as JSON.

Builds the app as the server did (its settings come through the environment) and trains. SIGTERM asks the training
to end with the best it has reached. When the server is gone, the process ends at once; what a training had saved is
resumed by the next server.
"""

import json
import logging
import os
import signal
import sys
import threading
import time

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.errors import LabelRoundsError

_stop = threading.Event()


def main() -> int:
    """Run the training that the command line describes; return the exit status."""
    request = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda number, frame: _stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which then ends this process
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from monailabel.interfaces.utils.app import app_instance

    app = app_instance()
    try:
        result = app.train(request, _stop.is_set)
    except LabelRoundsError as error:
        print(error)
        return 1
    print(json.dumps(result, default=str))
    return 0


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
