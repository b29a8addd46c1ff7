"""The catalogues of the Slicer extension hold all of its texts, translated, with what is filled in."""

import string
from xml.etree import ElementTree

import pytest
from apps.slicer import translations as tool

CATALOGUES = sorted(tool.CATALOGUES.glob("*.ts"))


def fields(text):
    return sorted((name, form) for _, name, form, _ in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda file: file.stem)
def test_each_text_is_translated_and_takes_the_same_figures(catalogue):
    found = tool.translations(catalogue)
    assert sorted(found) == tool.texts()
    assert [text for text, translation in found.items() if not translation] == []
    assert [text for text, translation in found.items() if fields(text) != fields(translation)] == []


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda file: file.stem)
def test_what_slicer_loads_is_compiled_from_the_catalogue(catalogue):
    core = pytest.importorskip("PySide6.QtCore", reason="Qt is not installed (the test extra brings it)")
    translator = core.QTranslator()
    assert translator.load(str(catalogue.with_suffix(".qm")))
    compiled = {text: translator.translate(tool.CONTEXT, text) for text in tool.texts()}
    assert compiled == tool.translations(catalogue)


def test_updating_adds_new_texts_as_unfinished_and_drops_old_ones(tmp_path):
    catalogue = tmp_path / "LabelRounds_xx.ts"
    tool.update(catalogue, "xx")
    assert set(tool.translations(catalogue).values()) == {""}
    tree = ElementTree.parse(catalogue)
    for message in tree.iter("message"):
        source, translation = message.find("source"), message.find("translation")
        if source.text == "Train":
            translation.text = "T"
        if source.text == "Undo":
            source.text = "Gone"
    tree.write(catalogue)
    tool.update(catalogue, "xx")
    found = tool.translations(catalogue)
    assert found["Train"] == "T" and found["Undo"] == "" and "Gone" not in found
