"""How often something may happen, for each of many clients: token buckets, the least recently used forgotten.

Used from the event loop and from threads; a lock keeps each count whole.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_CLIENTS = 10_000


class Allowance:
    """So many in a row, and so many a second after that.

    Args:
        per_second: how fast a client's allowance comes back.
        burst: how many at once, at least 1.
        now: a clock in seconds.
    """

    def __init__(self, per_second: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._now = per_second, max(burst, 1.0), now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, client: str) -> float:
        """Return how long until the client may again, 0 for now; counts nothing."""
        with self._lock:
            return max(0.0, (1 - self._refilled(client)) / self._per_second)

    def take(self, client: str) -> float:
        """Count one, and return 0; or return how long the client has to wait for it."""
        with self._lock:
            left = self._refilled(client)
            if left < 1:
                return (1 - left) / self._per_second
            self._left[client] = left - 1, self._now()
            self._left.move_to_end(client)
            if len(self._left) > _MOST_CLIENTS:
                self._left.popitem(last=False)
            return 0.0

    def _refilled(self, client: str) -> float:
        left, since = self._left.get(client, (self._burst, self._now()))
        return min(self._burst, left + (self._now() - since) * self._per_second)
