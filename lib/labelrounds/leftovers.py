"""Which cases are handed out, and what is said, before a strategy is asked and after it has none left.

What a reviewer has sent back comes first. When the cases to learn from are all labelled or in hand, there come, in
this order, the cases of patients by whom the model is measured, those that the client has in hand already, and those
that were put off. What another client has in hand is never handed out a second time.
"""

from dataclasses import replace

from labelrounds.leases import DEFER, Asking
from labelrounds.pool import Gathered
from labelrounds.strategies.base import CaseStrategy, Choice
from labelrounds.strategies.ordering import shuffled

_AGAIN = "you have it in hand already, and no other case is left"
_HELD_BACK = "of a patient by whom the model is measured; no case to learn from is left"


def order_of(strategy: CaseStrategy, gathered: Gathered, asking: Asking, count: int) -> tuple[list[Choice], Asking]:
    """Return the next few cases, and the request for them."""
    queue = queue_of(strategy, gathered, count, asking.second)
    if queue or asking.second:
        return queue, asking
    if gathered.held_back:
        held_back = shuffled(gathered.held_back, gathered.pool.seed)
        return [Choice(image, _HELD_BACK) for image in held_back[:count]], asking
    mine = [lease.image for lease in gathered.in_hand if lease.client == asking.client]
    if mine:
        return [Choice(image, _AGAIN) for image in mine], replace(asking, again=True)
    deferred = [one for one in gathered.put_aside if one.kind == DEFER]
    return [
        Choice(one.image, f"put off before ({one.reason or 'no reason given'}), and no other case is left")
        for one in sorted(deferred, key=lambda one: one.left_s or 0.0)
    ], asking


def queue_of(strategy: CaseStrategy, gathered: Gathered, count: int, second: bool = False) -> list[Choice]:
    """Return the next few cases, those first that were sent back; for second opinions those of the strategy alone."""
    if second:
        return strategy.order(gathered.pool, count)
    back = [Choice(image, why) for image, why in gathered.sent_back.items()]
    return [*back, *(strategy.order(gathered.pool, count) if gathered.pool.candidates else [])][:count]


def nothing_left(gathered: Gathered, asking: Asking) -> str:
    """Say why no case is handed out."""
    if asking.second:
        return "No case has a label of one other annotator alone, so there is none for a second opinion."
    if not gathered.images:
        return "There is no image in the datastore yet."
    if not gathered.unlabelled:
        return f"Every case has a label: {gathered.images} of {gathered.images}."
    held = [lease.left_s for lease in gathered.in_hand]
    parts = []
    if held:
        parts.append(f"{len(held)} in others' hands, the first free again in {min(held) / 60:.0f} min at the latest")
    if gathered.put_aside:
        parts.append(f"{len(gathered.put_aside)} put aside")
    if gathered.unreadable:
        parts.append(f"{len(gathered.unreadable)} that can't be read")
    return f"No case is left to hand out: of {len(gathered.unlabelled)} without a label {'; '.join(parts)}."
