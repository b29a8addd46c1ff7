"""What is remembered between two starts of Slicer: server, model, user name, options, and where images may be sent.

No key and no token is ever kept.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import qt

from . import dialogs
from .translation import _


class Settings:
    """The module's part of Slicer's settings."""

    def __init__(self) -> None:
        self._kept = qt.QSettings()

    def get(self, key: str, default: str = "") -> str:
        """Return what was kept."""
        return str(self._kept.value(f"LabelRounds/{key}") or default)

    def set(self, key: str, value: str) -> None:
        """Keep something."""
        self._kept.setValue(f"LabelRounds/{key}", value)

    def client_id(self) -> str:
        """Return by what servers know whose case it is; made up at the first start, and the same one ever after."""
        known = self.get("client") or f"slicer-{uuid.uuid4().hex[:8]}"
        self.set("client", known)
        return known


def name_to_send(settings: Settings, volume: Any, address: str) -> str:
    """Return the name under which an image may be sent to a server; empty if the user doesn't want it.

    It is asked once for each server, before the first image of the user's own leaves this machine.
    """
    allowed = dict(entry.rsplit(" ", 1) for entry in settings.get("consent").split("\n") if entry)
    if address not in allowed:
        text = _("{image} will be sent to {address}, and so will each image of your own that you segment or submit.")
        text = text.format(image=volume.GetName(), address=address)
        strip = _("Strip the name: call images by a random number there")
        answer = dialogs.choose(_("Send the image?"), text, [_("Send")], strip)
        if answer is None:
            return ""
        allowed[address] = "stripped" if answer[1] else "named"
        settings.set("consent", "\n".join(f"{key} {value}" for key, value in allowed.items()))
    return upload_name("" if allowed[address] == "stripped" else volume.GetName())


def upload_name(own: str) -> str:
    """Return an image's name in letters that a server takes, or one that says nothing."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", own).strip("_-")[:60]
    return plain or f"case_{uuid.uuid4().hex[:12]}"
