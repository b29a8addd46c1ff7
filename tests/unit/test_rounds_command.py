"""`labelrounds rounds` shows how things stand, hands out nothing, and says in a line what is wrong."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labelrounds.cli import app
from labelrounds.errors import BadInput, NotFound
from labelrounds.phantoms import write_studies, write_truth

MODEL = "unet_phantom"


@pytest.fixture
def studies(tmp_path) -> Path:
    write_studies(tmp_path / "studies", 3)
    return tmp_path / "studies"


def shown(*options: object):
    result = CliRunner().invoke(app, ["rounds", "--model", MODEL, *map(str, options)], env={"COLUMNS": "160"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result


def test_it_shows_the_next_cases_and_writes_a_page(studies, tmp_path):
    result = shown("--studies", studies, "--output", tmp_path / "out")
    assert "phantom_00" in result.stdout
    assert "0 of 3 cases have a label" in result.stdout
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["curve.png", "map.png", "rounds.html"]
    page = (tmp_path / "out" / "rounds.html").read_text()
    assert page.count('<img alt="Middle slice of phantom_00') == 3


def test_as_json_it_is_the_state_and_nothing_else(studies):
    state = json.loads(shown("--studies", studies, "--json", "--count", 2, "--strategy", "random").stdout)
    assert (state["model"], state["strategy"], len(state["queue"])) == (MODEL, "random", 2)
    assert state["leases"] == state["ledger"] == []


def test_labels_that_were_there_before_are_counted(studies, tmp_path):
    (label,) = write_truth(tmp_path / "truth", 1)
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    (final / label.name).write_bytes(label.read_bytes())

    state = json.loads(shown("--studies", studies, "--json").stdout)
    assert (state["cases"]["labelled"], state["cases"]["unlabelled"]) == (1, 2)


def test_an_empty_folder_is_a_state_too(tmp_path):
    (tmp_path / "none").mkdir()
    result = shown("--studies", tmp_path / "none", "--output", tmp_path / "out")
    assert "0 of 0 cases" in result.stdout
    assert "No case is left" in (tmp_path / "out" / "rounds.html").read_text()


def test_wrong_options_are_said(studies, tmp_path):
    with pytest.raises(NotFound, match="strategy 'best'"):
        shown("--studies", studies, "--strategy", "best")
    with pytest.raises(BadInput, match="neither a folder"):
        shown("--studies", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        shown("--studies", studies, "--output", tmp_path / "file")
