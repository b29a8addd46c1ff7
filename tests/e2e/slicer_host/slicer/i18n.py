"""Stand in for Slicer's translations: English, unless a translator is installed for the context."""

from PySide6.QtCore import QCoreApplication


def tr(text, context=""):
    return text


def translate(context, text):
    return QCoreApplication.translate(context, text)
