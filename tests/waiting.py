"""Wait in a test for what another thread or process brings about."""

import time


def wait_until(condition, timeout_s: float, pause_s: float = 0.2):
    """Return what a condition answers once that is true; fail where it is not within the time."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause_s)
    return found
