"""How much the caches may take, on the disk and in memory: one setting each, in the environment."""

import os

from labelrounds.errors import BadInput


def budget_bytes(setting: str, default_gb: float) -> int:
    """Return the bytes that an environment variable allows, or the default where it is not set; 0 keeps nothing.

    Raises:
        BadInput: its value is not a size.
    """
    given = os.environ.get(setting)
    try:
        gigabytes = default_gb if not given else float(given)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise BadInput(f"{setting} {given!r} is not a number of gigabytes, 0 or more")
    return int(gigabytes * 1e9)
