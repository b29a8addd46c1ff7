"""A reviewer's word on a label: approved, or sent back to be corrected.

On the way of a round, after ``PUT /datastore/label``. It stands with what is known of the label in the index, and so
ends with that label: whatever is submitted next is to be looked at anew. What was sent back is not learnt from, and its
case is handed out before all others.
"""

from collections.abc import Mapping
from typing import Any

SENT_BACK = "sent_back"
REVIEW = "review"


def review_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the word on a label by what is known of it: ``verdict``, ``by``, ``reason``, ``time``; empty for none."""
    found = info.get(REVIEW)
    return dict(found) if isinstance(found, dict) else {}


def is_sent_back(info: Mapping[str, Any]) -> bool:
    """Tell whether a label is to be corrected."""
    return review_of(info).get("verdict") == SENT_BACK


def sent_back(entries: Mapping[str, Any], tag: str) -> dict[str, str]:
    """Return, by id in their order, why the images are handed out again whose label was sent back.

    Args:
        entries: what the datastore knows of its images.
        tag: of the labels.
    """
    labels = {image: entries[image].labels[tag].info for image in sorted(entries) if tag in entries[image].labels}
    return {image: _said(review_of(info)) for image, info in labels.items() if is_sent_back(info)}


def _said(review: Mapping[str, Any]) -> str:
    return f"sent back by {review.get('by') or 'a reviewer'}: {review.get('reason') or 'no reason given'}"
