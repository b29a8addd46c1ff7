"""Random choice: the baseline that every other strategy has to beat."""

import hashlib
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from labelrounds.strategies.base import candidates, strategies


@strategies.register("random")
class RandomStrategy(Strategy):
    """Hands out the unlabelled cases in a random order that is the same for the same pool of cases."""

    def __init__(self) -> None:
        super().__init__("Random: unlabelled cases in an order that follows from nothing but their names")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Return ``{"id", "reason"}`` of the next case, or None when every case has a label."""
        choice = candidates(datastore, request.get("client_id"))
        if not choice:
            return None
        chosen = min(choice, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
        return {"id": chosen, "reason": f"chosen at random from {len(choice)} cases without a label"}
