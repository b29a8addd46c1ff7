"""Translate what users read; outside Slicer, as in its tests, there are no translations.

The catalogues lie in ``Resources/Translations``. Slicer loads those of its own folder alone, so the module installs
its own in Slicer's language. All texts are in one context, that of the .ui file's.
"""

from __future__ import annotations

from pathlib import Path

_CONTEXT = "LabelRounds"
_FOLDER = Path(__file__).parent.parent / "Resources" / "Translations"
_kept = []  # what Qt does not keep itself

try:
    from slicer.i18n import translate
except ImportError:

    def translate(context: str, text: str) -> str:
        """Return the English text."""
        return text


def _(text: str) -> str:
    """Return a text in Slicer's language, in English where nobody has translated it."""
    return translate(_CONTEXT, text)


def install() -> None:
    """Load the catalogue of Slicer's language, where there is one; once, before any text is shown."""
    import qt

    settings = qt.QSettings()
    enabled = str(settings.value("Internationalization/Enabled")).lower() == "true"
    language = str(settings.value("language") or "").partition("_")[0]
    catalogue = _FOLDER / f"{_CONTEXT}_{language}.qm"
    if enabled and not _kept and catalogue.exists():
        translator = qt.QTranslator()
        if translator.load(str(catalogue)):
            qt.QCoreApplication.installTranslator(translator)
            _kept.append(translator)


__all__ = ["_", "install"]
