"""What every strategy chooses from: the cases without a label that nobody else has in hand."""

import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from labelrounds.registry import Registry

LEASE_S = 3600
strategies: Registry[type[Strategy]] = Registry("strategy", "labelrounds.strategies")


def candidates(datastore: Datastore, client: str | None) -> list[str]:
    """Return the ids to choose from, sorted.

    These are the cases without a label that were never handed out; when there are none left, the one that was
    handed out longest ago. A case that another client was handed within the last hour comes last of all.
    """
    handed = {
        image_id: _turn(datastore.get_image_info(image_id), client) for image_id in datastore.get_unlabeled_images()
    }
    first = min(handed.values(), default=None)
    return sorted(image_id for image_id, turn in handed.items() if turn == first)


def _turn(info: dict[str, Any], client: str | None) -> tuple[bool, float]:
    """Return whether another client holds the case, and when it was last handed out (0: never)."""
    of_strategies = info.get("strategy")
    notes = list(of_strategies.values()) if isinstance(of_strategies, dict) else []
    dated = [note for note in notes if isinstance(note, dict) and isinstance(note.get("ts"), int | float)]
    if not dated:
        return False, 0.0
    latest = max(dated, key=lambda note: float(note["ts"]))
    at = float(latest["ts"])
    return latest.get("client_id") != client and time.time() - at < LEASE_S, at
