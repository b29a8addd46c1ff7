"""A server of nothing but a classification model that has learnt nothing, on two invented patients."""

from pathlib import Path

import pytest
import torch
from label_server import LabelServer

from labelrounds import phantoms
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import load_config
from labelrounds.networks import build_network

CLASSIFIER = "patients"
_CONFIG = """
task: classification
description: two kinds of patients, told apart by a network that has learnt nothing
labels: [slim, stout]
intensity: {kind: window, low: -160, high: 240}
network: {name: densenet, growth_rate: 4, init_features: 8, block_config: [2, 2]}
"""


def start_classifier(folder: Path, seen: str) -> LabelServer:
    """Start it in an empty folder, and wait until it answers.

    Args:
        folder: for all that it has.
        seen: the keys of the model's file that say how much of an image it sees.
    """
    configs, home = folder / "configs", folder / "home"
    configs.mkdir()
    file = configs / f"{CLASSIFIER}.yaml"
    file.write_text(_CONFIG + seen)
    phantoms.write_studies(folder / "studies", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(home))
        torch.manual_seed(0)
        config = load_config(file)
        Checkpoints(config).publish(build_network(config), {})
    server = LabelServer(folder / "studies", home, configs, CLASSIFIER)
    server.wait()
    return server
