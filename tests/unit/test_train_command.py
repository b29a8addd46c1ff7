"""`labelrounds train` tells a script by its exit status how the training has ended."""

import json

import pytest
from typer.testing import CliRunner

from labelrounds import starting
from labelrounds.cli import app


@pytest.mark.parametrize(
    ("status", "published", "expected"),
    [("done", 3, 0), ("done", None, 0), ("stopped", 3, 0), ("stopped", None, 130)],
)
def test_the_exit_status_is_that_of_the_training_and_the_result_is_told_in_any_case(
    monkeypatch, status, published, expected
):
    result = {"status": status, "published": published, "message": "so it went"}
    monkeypatch.setattr(starting, "train_here", lambda *arguments: result)
    ended = CliRunner().invoke(app, ["train", "--model", "any", "--studies", "anywhere"])
    assert ended.exit_code == expected, ended.output
    assert json.loads(ended.stdout) == result
