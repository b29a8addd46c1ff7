"""The README names what there is: every command, every key of a model's file, every path."""

import re
from pathlib import Path

import pytest
import typer

from labelrounds import config
from labelrounds.classification.config import ClassifierConfig, ClassifierTraining
from labelrounds.cli import app
from labelrounds.networks import networks
from labelrounds.runtimes import runtimes
from labelrounds.sections import LabelCode
from labelrounds.settings import ServerSettings
from labelrounds.strategies import strategies

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
SECTIONS = [
    config.ModelConfig,
    config.TrainingConfig,
    config.InferenceConfig,
    config.WindowIntensity,
    config.ZScoreIntensity,
    config.LabelCleaning,
    LabelCode,
    ClassifierConfig,
    ClassifierTraining,
]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_models_file_is_in_the_readme(section):
    assert [key for key in section.model_fields if not re.search(rf"\b{key}\b", TEXT)] == []


def test_every_command_is_in_the_readme():
    commands = typer.main.get_command(app).commands
    assert [name for name in commands if f"labelrounds {name}" not in TEXT and f"make {name}" not in TEXT] == []


def test_every_network_is_in_the_readme_and_every_strategy_explains_itself():
    assert [name for name in networks.names() if f"`{name}`" not in TEXT] == []
    assert [name for name in strategies.names() if f"`{name}`" not in TEXT] == []
    assert all(strategies.get(name)().description for name in strategies.names())


def test_every_runtime_is_in_the_readme():
    assert [name for name in runtimes.names() if f"| `{name}` |" not in TEXT] == []


def test_every_path_that_the_readme_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    named = re.findall(r"`((?:lib|apps|configs|tests)/[\w./]*)`", TEXT)
    assert [path for path in links + named if not (ROOT / path).exists()] == []


def test_every_setting_of_the_server_is_in_the_readme_and_describes_itself():
    fields = ServerSettings.model_fields
    shortened = TEXT.replace("`_", "`LABELROUNDS_OIDC_")
    assert [name for name in fields if name.upper() not in shortened] == []
    assert [name for name, field in fields.items() if not field.description] == []
