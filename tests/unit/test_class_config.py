"""A classification model's YAML file: what it may say, and that a fault is named with what is allowed."""

from pathlib import Path

import pytest
import yaml

from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.config import ClassifierConfig
from labelrounds.config import ModelConfig, load_config
from labelrounds.errors import BadInput, Conflict
from labelrounds.networks import build_network

PLAIN = {
    "task": "classification",
    "description": "two kinds",
    "labels": ["one", "other"],
    "input_size": [32, 32, 1],
    "intensity": {"kind": "range"},
    "network": {"name": "densenet", "growth_rate": 4, "init_features": 8, "block_config": [2, 2]},
}


def load(folder: Path, **changes):
    (folder / "kinds.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
    return load_config(folder / "kinds.yaml")


def test_a_file_says_by_its_task_which_kind_of_model_it_is(tmp_path):
    assert isinstance(load(tmp_path), ClassifierConfig)
    shipped = Path(__file__).parents[2] / "configs"
    assert isinstance(load_config(shipped / "unet_phantom.yaml"), ModelConfig)


def test_a_last_number_of_one_makes_the_model_2d_also_on_volumes(tmp_path):
    assert load(tmp_path).dimensions == 2 and load(tmp_path).seen_size == (32, 32, 1)
    assert load(tmp_path, slices_of_volume=9).seen_size == (32, 32, 9)
    assert load(tmp_path, input_size=[32, 32, 32]).dimensions == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "detection"}, "task: must be one of segmentation, classification, got 'detection'"),
        ({"patch_size": [8, 8, 8]}, "patch_size: unknown key; allowed beside it:"),
        ({"cleaning": {}}, "cleaning: unknown key"),
        ({"labels": ["one"]}, "one class alone says nothing"),
        ({"labels": ["one", "one"]}, "each label must be named once"),
        ({"input_size": [32, 32]}, "input_size"),
        ({"input_size": [4, 32, 1]}, r"input_size: \[4, 32, 1\] must be at least"),
        ({"input_size": [32, 32, 32], "slices_of_volume": 4}, "slices_of_volume: is for a 2-D model"),
        ({"mirror": ["inferior_superior"]}, "a 2-D model has no inferior_superior"),
        ({"network": {"name": "unet"}}, "name 'unet' is not one of densenet, inception, resnet"),
        ({"network": {"name": "densenet", "depth": 18}}, "depth: unknown key; densenet allows"),
        ({"training": {"batch_size": 1}}, "training.batch_size"),
        ({"training": {"balance": "loss"}}, "training.balance: Input should be 'sampling', 'weights' or 'none'"),
        (
            {"training": {"classifier": "forest"}},
            "training.classifier: .* 'auto', 'network', 'logistic' or 'svm'.*'forest'",
        ),
        ({"training": {"foreground_fraction": 0.5}}, "training.foreground_fraction: unknown key; .*label_smoothing"),
        ({"training": {"init_from": "kinds"}}, "training.init_from: names the model itself"),
        ({"training": {"init_from": "../x"}}, "training.init_from"),
        ({"intensity": {"kind": "range", "low": 3}}, "intensity.low: unknown key; .*low_percentile"),
    ],
)
def test_a_fault_is_named_with_what_is_allowed(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        load(tmp_path, **changes)


def test_weights_of_another_kind_of_model_or_input_are_refused(tmp_path):
    config = load(tmp_path)
    version = Checkpoints(config).publish(build_network(config), {})
    for changes, key in (({"input_size": [64, 64, 1]}, "input_size"), ({"slices_of_volume": 3}, "slices_of_volume")):
        other = load(tmp_path, **changes)
        with pytest.raises(Conflict, match=f"was trained for {key}"):
            Checkpoints(other).load(version, build_network(other))
    segmentation = Path(__file__).parents[2] / "configs" / "unet_phantom.yaml"
    (tmp_path / "kinds.yaml").write_text(segmentation.read_text())
    other = load_config(tmp_path / "kinds.yaml")
    with pytest.raises(Conflict, match="was trained for task classification, the configuration has segmentation"):
        Checkpoints(other).load(version, build_network(other))
