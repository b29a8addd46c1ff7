"""How a server ends: what is being answered is answered, what comes then is told to come again, and the process ends
with status 0.

At SIGTERM or Ctrl-C uvicorn by itself closes its port at once, so that a client that comes now sees a server that is
not there, and lets the signal kill the process at the end. `GracefulServer` keeps the port open while requests are
being answered: others get 503 with ``Retry-After``, and ``/health/ready`` says 503, so that a load balancer
takes the server out. When the last one is answered, or the time is over, the port is closed and uvicorn ends.

Concurrency: all of it happens on the event loop, but for the signal's handler, which sets one field. A second signal
ends the waiting. What still computes or is read when the time is over is stopped and answered with 503. A training is
killed and goes on at the next start (``jobs.py``).
"""

import logging
import signal
import time
from types import FrameType

import uvicorn
from anyio import to_thread

from labelrounds import reading

logger = logging.getLogger(__name__)

_LAST_ANSWERS_S = 5


class Stopping:
    """Whether a server is ending, and how many requests it is answering.

    Attributes:
        since: when it was told to end, by the monotonic clock; None while it serves.
        in_flight: requests that are being answered, health checks apart.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.in_flight = 0

    @property
    def begun(self) -> bool:
        """Whether the server is ending."""
        return self.since is not None

    def begin(self) -> None:
        """Take no further request; may be called from a signal's handler."""
        if self.since is None:
            self.since = time.monotonic()

    def is_over(self, patience_s: float) -> bool:
        """Tell whether those in flight have had their time."""
        return self.since is not None and time.monotonic() - self.since > patience_s


stopping = Stopping()


class GracefulServer(uvicorn.Server):
    """A server that answers what it has taken before it ends.

    Args:
        config: uvicorn's.
        patience_s: how long those in flight have.
    """

    def __init__(self, config: uvicorn.Config, patience_s: float) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = _LAST_ANSWERS_S
        self._patience_s = patience_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal, end the waiting at the second, and force it by a further Ctrl-C."""
        if self.started and not stopping.begun:
            stopping.begin()
            return
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether those in flight are answered, or have had their time."""
        if stopping.begun and not self.should_exit:
            if stopping.in_flight and stopping.is_over(self._patience_s):
                logger.warning("%d requests are not answered after %g s", stopping.in_flight, self._patience_s)
                await to_thread.run_sync(_give_up)
                self.should_exit = True
            elif not stopping.in_flight:
                self.should_exit = True
        return await super().on_tick(counter)


def _give_up() -> None:
    """Stop what computes and what is read; who waits for it is told to come again."""
    from monailabel.interfaces.utils.app import app_instance

    app_instance().engine.close()
    reading.give_up()
