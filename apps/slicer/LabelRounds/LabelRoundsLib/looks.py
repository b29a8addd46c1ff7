"""How labels look and what they mean: colours, and terms of a terminology, from the model's card where it has them."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Mapping
from typing import Any

import slicer

# As Slicer's GenericAnatomyColors has them.
_COLOURS = {
    "liver": (221, 130, 101),
    "spleen": (157, 108, 162),
    "stomach": (216, 132, 105),
    "kidney": (185, 102, 83),
    "spine": (226, 202, 134),
    "pancreas": (249, 180, 111),
    "lung": (197, 165, 145),
    "heart": (206, 110, 84),
    "tumor": (144, 238, 144),
    "tumour": (144, 238, 144),
}
_CATEGORIES = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS = "Anatomic codes - DICOM master list"


def of(models: Mapping[str, Mapping[str, Any]], first: str = "") -> dict[str, dict[str, Any]]:
    """Return, by label, its ``code`` and ``colour`` as the models' cards have them.

    Args:
        models: the cards by name.
        first: the model that counts where several know a label.
    """
    found: dict[str, dict[str, Any]] = {}
    for card in (*(card for name, card in models.items() if name != first), models.get(first, {})):
        for key, entries in (("code", card.get("codes")), ("colour", card.get("colours"))):
            for label, value in (entries or {}).items():
                found.setdefault(label, {})[key] = value
    return found


def dress(segment, name: str, look: Mapping[str, Any]) -> None:
    """Give a segment its name, its colour and its term."""
    segment.SetName(name)
    given = look.get("colour")
    segment.SetColor(*([value / 255 for value in given] if given else colour(name)))
    if look.get("code"):
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), term(look["code"]))


def term(code: Mapping[str, Any]) -> str:
    """Return a term as Slicer keeps it: lists, category, type, its modifier, and no region."""
    parts = [_triple(code.get("category")), _triple(code), _triple(code.get("modifier"))]
    return "~".join([_CATEGORIES, *parts, _REGIONS, "^^", "^^"])


def colour(name: str) -> tuple[float, float, float]:
    """Return a label's colour, the same one every time."""
    for part, rgb in _COLOURS.items():
        if part in name.lower():
            return tuple(value / 255 for value in rgb)
    return colorsys.hsv_to_rgb(zlib.crc32(name.encode()) * 0.618034 % 1, 0.6, 0.9)


def _triple(code: Mapping[str, Any] | None) -> str:
    return "^".join(str((code or {}).get(key, "")) for key in ("scheme", "value", "meaning"))
