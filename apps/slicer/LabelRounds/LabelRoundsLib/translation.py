"""Translate what users read; Slicer has translations from 5.4 on, and outside Slicer there are none."""

try:
    from slicer.i18n import tr as _
except ImportError:

    def _(text: str) -> str:
        """Return the English text."""
        return text


__all__ = ["_"]
