"""The catalogues of the Slicer extension hold all of its texts, translated, with what is filled in."""

import importlib.util
import string
from pathlib import Path
from xml.etree import ElementTree

import pytest

EXTENSION = Path(__file__).parents[2] / "apps" / "slicer"
CATALOGUES = sorted((EXTENSION / "LabelRounds" / "Resources" / "Translations").glob("*.ts"))


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("translations", EXTENSION / "translations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields(text):
    return sorted((name, form) for _, name, form, _ in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda file: file.stem)
def test_each_text_is_translated_and_takes_the_same_figures(tool, catalogue):
    found = tool.translations(catalogue)
    assert sorted(found) == tool.texts()
    assert [text for text, translation in found.items() if not translation] == []
    assert [text for text, translation in found.items() if fields(text) != fields(translation)] == []


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda file: file.stem)
def test_what_slicer_loads_is_compiled_from_the_catalogue(tool, catalogue):
    core = pytest.importorskip("PySide6.QtCore", reason="Qt is not installed (the test extra brings it)")
    translator = core.QTranslator()
    assert translator.load(str(catalogue.with_suffix(".qm")))
    compiled = {text: translator.translate(tool.CONTEXT, text) for text in tool.texts()}
    assert compiled == tool.translations(catalogue)


def test_updating_adds_new_texts_as_unfinished_and_drops_old_ones(tool, tmp_path):
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
