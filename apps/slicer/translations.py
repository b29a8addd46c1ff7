"""Bring the catalogues of the translations up to date with the texts of the module, and compile them.

``python apps/slicer/translations.py [LANGUAGE ...]``, as ``de``; by default those that there are. A new text is added
as unfinished, and shown in English until somebody translates it in ``Resources/Translations/LabelRounds_<language>.ts``
(by Qt Linguist or any editor); a text that is gone is dropped. Compiling needs ``pyside6-lrelease`` of PySide6.
"""

import ast
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

MODULE = Path(__file__).parent / "LabelRounds"
CATALOGUES = MODULE / "Resources" / "Translations"
CONTEXT = "LabelRounds"  # of all texts: Qt's for those of the .ui file is the name of its class
_SIGNS = ("\u25cf",)


def texts() -> list[str]:
    """Return the texts that users read, sorted: those in ``_()``, and those of the .ui file."""
    found = set()
    for script in MODULE.rglob("*.py"):
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
                found.add(ast.literal_eval(node.args[0]))
    for file in (MODULE / "Resources" / "UI").glob("*.ui"):
        found |= {element.text or "" for element in ET.parse(file).iter("string")}
    return sorted(found - {"", *_SIGNS})


def translations(catalogue: Path) -> dict[str, str]:
    """Return the translations in a catalogue by text; an unfinished one is empty."""
    if not catalogue.exists():
        return {}
    messages = ET.parse(catalogue).iter("message")
    return {message.findtext("source", ""): message.findtext("translation", "") for message in messages}


def update(catalogue: Path, language: str) -> None:
    """Write a catalogue with all texts, and with the translations that there are."""
    known, root = translations(catalogue), ET.Element("TS", version="2.1", language=language)
    context = ET.SubElement(root, "context")
    ET.SubElement(context, "name").text = CONTEXT
    for text in texts():
        message = ET.SubElement(context, "message")
        ET.SubElement(message, "source").text = text
        translation = ET.SubElement(message, "translation")
        translation.text = known.get(text) or None
        if not known.get(text):
            translation.set("type", "unfinished")
    ET.indent(root)
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE TS>\n'
    catalogue.write_text(head + ET.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def main(languages: list[str]) -> None:
    """Update and compile the catalogues of some languages."""
    there = [file.stem.partition("_")[2] for file in CATALOGUES.glob("*.ts")]
    for language in languages or there:
        catalogue = CATALOGUES / f"{CONTEXT}_{language}.ts"
        update(catalogue, language)
        subprocess.run(["pyside6-lrelease", "-silent", catalogue, "-qm", catalogue.with_suffix(".qm")], check=True)
        missing = [text for text, translation in translations(catalogue).items() if not translation]
        print(f"{catalogue.name}: {len(missing)} of {len(texts())} texts to translate", *missing, sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1:])
