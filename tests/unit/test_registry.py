"""A new network is one file, a new model one YAML file, and nothing else is touched."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import labelrounds.networks
from labelrounds.config import load_configs
from labelrounds.errors import BadInput
from labelrounds.learning import Learner, Schedule
from labelrounds.networks import build_network, networks
from labelrounds.registry import Registry

NETWORK = '''
"""One convolution, for a test."""

from torch import nn

from labelrounds.networks.base import SegmentationNetwork, networks


@networks.register("plain")
class Plain(SegmentationNetwork):
    """One hidden layer."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int, *, width: int = 4) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.hidden = nn.Conv3d(in_channels, width, 3, padding=1)
        self.head = nn.Conv3d(width, out_channels, 1)

    @property
    def bottleneck(self):
        return self.hidden

    def segment(self, images):
        return self.head(self.hidden(images).relu())

    @classmethod
    def divisor(cls, dimensions, **options):
        return 1, 1, 1
'''

MODEL = """
description: a model of a network of one's own
labels: [near, far]
intensity: {kind: zscore}
network: {name: plain, width: 3}
patch_size: [8, 8, 8]
training: {epochs: 1, iterations_per_epoch: 2}
"""


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of networks with one more file; the registry is as before afterwards."""
    networks.names()  # what is imported for the first time below would be forgotten again
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "plain.py").write_text(NETWORK)
    monkeypatch.setattr(labelrounds.networks, "__path__", [*labelrounds.networks.__path__, str(folder)])
    monkeypatch.setattr(networks, "_members", dict(networks._members))
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("labelrounds.networks.plain", None)
    vars(labelrounds.networks).pop("plain", None)


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MODEL)
    return folder


def test_a_network_file_and_a_yaml_file_make_a_model_that_trains(own_network, own_model, make_case):
    config = load_configs([own_model])["mine"]
    network = build_network(config)
    assert network.hidden.out_channels == 3
    assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
    before = network.hidden.weight.clone()
    learner = Learner(config, network, [make_case(1, config)], [], torch.device("cpu"), Schedule(1, 1, 1e-2))
    outcome = learner.run(lambda epoch: None, lambda: False)
    assert outcome.epochs == 1
    assert not torch.equal(before, outcome.network.hidden.weight)


def test_the_registry_is_as_before_without_the_file(own_model):
    with pytest.raises(
        BadInput,
        match=r"mine\.yaml: network: name 'plain' is not one of attention_unet, residual_unet, segresnet, unet, vnet",
    ):
        load_configs([own_model])


def test_a_name_is_taken_once():
    registry = Registry("dish", "labelrounds.networks")
    first, second = type("First", (), {"__module__": "one"}), type("Second", (), {"__module__": "two"})
    registry.register("soup")(first)
    with pytest.raises(ValueError, match="dish 'soup' is registered by one already"):
        registry.register("soup")(second)
    assert registry.get("soup") is first


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        BadInput, match="network 'unt' is not one of attention_unet, residual_unet, segresnet, unet, vnet"
    ):
        networks.get("unt")


def test_options_are_the_keyword_only_parameters_with_type_and_default():
    registry = Registry("dish", "labelrounds.networks")

    @registry.register("soup")
    def soup(guests: int, *, salt: float, herbs: list[str] = ["dill"]) -> None:  # noqa: B006
        """Cook."""

    options = registry.options("soup")
    assert dict(options(salt=1.0)) == {"salt": 1.0, "herbs": ["dill"]}
    for wrong in ({}, {"salt": "much"}, {"salt": 1.0, "guests": 2}):
        with pytest.raises(ValueError, match="dish_soup"):
            options(**wrong)
