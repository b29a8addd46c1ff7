"""A model's YAML file is taken as it stands or refused with a sentence that says where it is wrong."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import yaml

from labelrounds import folders
from labelrounds.config import load_config, load_configs
from labelrounds.errors import BadInput
from labelrounds.sections import CommonConfig

NAMES_FILE_AND_KEY = re.compile(r"[a-z0-9_]+\.yaml: [a-z_]+(\.\w+)*: \S")
SHIPPED = sorted(folders.shipped_configs().glob("*.yaml"))


def write(folder: Path, content, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def changed(**changes) -> dict:
    """The content of a sound file with some keys replaced; ``training__epochs`` is the key of a section."""
    content = {
        "description": "mine",
        "labels": ["liver", "spleen"],
        "intensity": {"kind": "window", "low": -160, "high": 240},
        "network": {"name": "unet", "channels": [4, 8, 16]},
        "patch_size": [16, 16, 16],
        "spacing_mm": [1.0, 1.0, 2.0],
        "training": {"epochs": 3},
        "cleaning": {"liver": {"largest_component": True}},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        target = content
        for section in sections:
            target = target[section]
        if value is KeyError:
            del target[last]
        else:
            target[last] = value
    return content


def refusal(folder: Path, content, name: str = "mine.yaml") -> str:
    text = content if isinstance(content, str | bytes) else yaml.safe_dump(content, sort_keys=False)
    with pytest.raises(BadInput) as caught:
        load_config(write(folder, text, name))
    return str(caught.value)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_file_is_a_model_of_its_own_name(file: Path):
    assert load_config(file).name == file.stem


def test_a_model_is_frozen_and_its_values_are_gap_free(tmp_path: Path):
    config = load_config(write(tmp_path, yaml.safe_dump(changed())))
    assert config.label_values == {"liver": 1, "spleen": 2}
    assert config.dimensions == 3
    with pytest.raises(ValueError, match="frozen"):
        config.channels = 2  # type: ignore[misc]


def test_a_patch_of_one_slice_makes_a_model_of_two_dimensions(tmp_path: Path):
    assert load_config(write(tmp_path, yaml.safe_dump(changed(patch_size=[16, 16, 1])))).dimensions == 2


FAULTS = {
    "an unknown key": (changed(colour="red"), ["colour: unknown key", "patch_size"]),
    "an unknown key of the training": (changed(training__epoch=3), ["training.epoch: unknown key", "epochs"]),
    "an unknown key of the intensity": (changed(intensity__hgh=3), ["intensity.hgh: unknown key", "high"]),
    "an unknown key of a cleaning": (changed(cleaning__liver__hole=True), ["cleaning.liver.hole", "fill_holes"]),
    "an unknown option of the network": (changed(network__width=3), ["network: width", "channels, strides, kernels"]),
    "an unknown network": (
        changed(network__name="unt"),
        ["network: name 'unt'", "attention_unet, residual_unet, segresnet, unet, vnet"],
    ),
    "a network without a name": (changed(network__name=KeyError), ["network.name: is missing"]),
    "a network that is a word": (changed(network="unet"), ["network: ", "'unet'"]),
    "an option of the wrong type": (changed(network__channels=["a", 8, 16]), ["network.channels.0", "'a'"]),
    "an option below its least": (changed(network__channels=[4, -8, 16]), ["network.channels.1", "-8"]),
    "too few channels": (changed(network__channels=[4, 8]), ["network.channels", "at least 3", "[4, 8]"]),
    "a stride of 3": (changed(network__strides=[[3, 2, 2], [2, 2, 2]]), ["network.strides.0.0", "1 or 2", "got 3"]),
    "more strides than steps": (
        changed(network__strides=[[2, 2, 2], [2, 2, 1], [1, 2, 2]]),
        ["strides has 3 entries, expected 2"],
    ),
    "a step that goes nowhere": (changed(network__strides=[[1, 1, 1], [2, 2, 2]]), ["[1, 1, 1], which keeps"]),
    "fewer kernels than levels": (changed(network__kernels=[[3, 3, 3]]), ["kernels has 1 entries, expected 3"]),
    "depths that do not go with the channels": (
        changed(network={"name": "vnet", "channels": [4, 8, 16], "depths": [1, 2]}),
        ["network: depths has 2 entries", "3 channels"],
    ),
    "an even kernel": (
        changed(
            network={
                "name": "vnet",
                "channels": [4, 8, 16],
                "depths": [1, 1, 1],
                "kernels": [[4, 3, 3], [3, 3, 3], [3, 3, 1]],
            }
        ),
        ["network.kernels.0.0", "1, 3, 5 or 7", "got 4"],
    ),
    "a text for a number": (changed(training__epochs="3"), ["training.epochs", "'3'", "integer"]),
    "a truth value for a number": (changed(training__epochs=True), ["training.epochs", "True"]),
    "a fraction for a count": (changed(training__epochs=2.5), ["training.epochs", "2.5"]),
    "no epoch": (changed(training__epochs=0), ["training.epochs", "got 0"]),
    "more epochs than a request may ask for": (changed(training__epochs=10**6), ["training.epochs", "100000"]),
    "a seed that torch can't take": (changed(training__seed=10**30), ["training.seed", "less than"]),
    "a negative seed": (changed(training__seed=-1), ["training.seed", "-1"]),
    "an endless weight decay": (changed(training__weight_decay=float("inf")), ["training.weight_decay", "inf"]),
    "scales the wrong way round": (changed(training__scale_range=[1.2, 0.8]), ["training.scale_range", "[1.2, 0.8]"]),
    "a number for a text": (changed(description=7), ["description", "got 7"]),
    "a number for a truth value": (
        changed(cleaning__liver__largest_component=1),
        ["cleaning.liver.largest_component", "got 1"],
    ),
    "a missing description": (changed(description=KeyError), ["description: is missing"]),
    "a missing window limit": (changed(intensity__low=KeyError), ["intensity.low: is missing"]),
    "a missing kind": (changed(intensity__kind=KeyError), ["intensity.kind: is missing"]),
    "an unknown kind": (changed(intensity__kind="log"), ["intensity", "'log'", "'zscore'"]),
    "a spacing that is not a number": (changed(spacing_mm=[float("nan"), 1, 1]), ["spacing_mm.0", "nan"]),
    "an endless spacing": (changed(spacing_mm=[1, float("inf"), 1]), ["spacing_mm.1", "inf"]),
    "no spacing": (changed(spacing_mm=[1, 1, 0]), ["spacing_mm.2", "got 0"]),
    "two spacings": (changed(spacing_mm=[1, 1]), ["spacing_mm"]),
    "a window without width": (changed(intensity__low=240), ["intensity", "low (240) must be below high (240)"]),
    "a window the wrong way round": (changed(intensity__low=300), ["low (300) must be below high (240)"]),
    "a percentile beyond the middle": (
        changed(intensity={"kind": "zscore", "low_percentile": 60}),
        ["intensity.low_percentile", "60"],
    ),
    "a patch that the network can't halve": (changed(patch_size=[16, 18, 16]), ["[16, 18, 16]", "[4, 4, 4]"]),
    "a patch of one voxel at the lowest level": (changed(patch_size=[4, 4, 4]), ["[4, 4, 4]", "larger"]),
    "an overlap of one": (changed(inference={"overlap": 1.0}), ["inference.overlap", "1.0"]),
    "the whole image for a runtime of windows": (
        changed(inference={"blend": "whole", "runtime": "openvino"}),
        ["inference: runtime 'openvino' takes windows of one size"],
    ),
    "an unknown blend": (
        changed(inference={"blend": "mean"}),
        ["inference.blend", "'mean'", "'gaussian', 'owner' or 'whole'"],
    ),
    "the whole image for a network that normalises over it": (
        changed(inference={"blend": "whole"}),
        ["inference: blend 'whole' needs", "unet normalises over all it sees"],
    ),
    "an unknown key of the inference": (
        changed(inference={"step": 0.5}),
        ["inference.step: unknown key", "blend, overlap, restore, runtime"],
    ),
    "an unknown runtime": (
        changed(inference={"runtime": "tensorrt"}),
        ["inference.runtime", "'tensorrt'", "auto, bfloat16, bfloat16_weights, compiled, eager, openvino"],
    ),
    "a runtime that is no name": (changed(inference={"runtime": 1}), ["inference.runtime", "got 1"]),
    "an unknown mirror": (changed(mirror=["up_down"]), ["mirror.0", "up_down", "left_right"]),
    "the background as a label": (changed(labels=["background", "liver"]), ["labels", "'background'"]),
    "a label twice": (changed(labels=["liver", "liver"]), ["labels", "once"]),
    "a label with a space behind": (changed(labels=["liver "]), ["labels", "space"]),
    "no label": (changed(labels=[]), ["labels", "at least 1"]),
    "labels in one word": (changed(labels="liver"), ["labels", "'liver'"]),
    "a cleaning of no label": (changed(cleaning={"lver": {}}), ["cleaning", "lver", "liver, spleen"]),
    "a name of its own": (changed(name="mine"), ["name: unknown key", "'mine'"]),
}


@pytest.mark.parametrize(("content", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_file_key_and_value(tmp_path: Path, content: dict, expected: list[str]):
    message = refusal(tmp_path, content)
    assert all(line.startswith("mine.yaml: ") for line in message.splitlines())
    assert [text for text in expected if text not in message] == [], message
    assert len(message) < 1000


UNREADABLE = {
    "a list": "- description: mine",
    "nothing": "",
    "a comment": "# soon",
    "a word": "unet",
    "not UTF-8": b"description: \xff\xfe",
    "a zero byte": b"description: a\x00b",
    "deep brackets": "description: " + "[" * 5000,
    "deep enough for YAML alone": "description: " + "[" * 250 + "]" * 250,
    "a Python object": "x: !!python/object/apply:os.system ['touch {canary}']",
    "a Python name": "x: !!python/name:os.system",
    "an impossible date": "description: 2024-13-45",
    "a truth value that is none": "x: !!bool maybe",
    "an empty number": "x: !!int ''",
    "a date that is none": "x: !!timestamp soon",
    "a number of five thousand digits": "x: " + "1" * 5000,
    "half a character": 'description: "\\ud800"',
    "bytes": "description: !!binary aGVsbG8=",
    "a set": "labels: !!set {a, b}",
    "a list as a key": "? [a]\n: 1",
    "a date as a key": "? 2024-01-01\n: 1",
    "an endless list": "labels: &all [*all]",
    "laughter": "a: &a [x, x]\nb: &b [*a, *a]",
    "an open bracket": "labels: [liver",
    "a tab": "labels:\n\t- liver",
    "the same key twice": "description: a\ndescription: b",
    "the same key twice in a section": "training: {epochs: 1, epochs: 2}",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_mapping_of_plain_values_is_refused(tmp_path: Path, content):
    canary = tmp_path / "canary"
    text = content.replace("{canary}", str(canary)) if isinstance(content, str) else content
    message = refusal(tmp_path, text)
    assert message.startswith("mine.yaml: ")
    assert len(message) < 2000
    assert not canary.exists()


def test_a_key_twice_is_named(tmp_path: Path):
    assert "'epochs' stands twice" in refusal(tmp_path, "training: {epochs: 1, epochs: 2}")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    (tmp_path / "folder.yaml").mkdir()
    for name in ("absent.yaml", "folder.yaml"):
        with pytest.raises(BadInput, match=name):
            load_config(tmp_path / name)


def test_a_date_without_quotes_is_a_text(tmp_path: Path):
    assert load_config(write(tmp_path, yaml.safe_dump(changed()) + "modality: 2024-12-25")).modality == "2024-12-25"


@pytest.mark.parametrize("stem", ["My-Model", "2d_unet", "a.b", "ä", "a" * 65, "a b"])
def test_a_file_name_that_is_no_model_name_is_refused(tmp_path: Path, stem: str):
    message = refusal(tmp_path, changed(), f"{stem}.yaml")
    assert f"{stem}.yaml: name: " in message and repr(stem) in message


def places(content, path=()):
    """Every key of a nested mapping, as the keys that lead there."""
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


MISUSES = {
    "deleted": KeyError,
    "misspelt": None,
    "a text": "word",
    "a number": -1,
    "a fraction": 1.5,
    "a truth value": True,
    "nothing": None,
    "an empty list": [],
    "a list of texts": ["a", "b", "c"],
    "not numbers": [float("nan")] * 3,
    "an empty mapping": {},
    "a mapping": {"a": {"b": [1]}},
    "a huge number": 10**25,
}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("misuse", MISUSES)
def test_a_mutated_file_is_a_model_or_a_refusal_with_file_and_key(tmp_path: Path, file: Path, misuse: str):
    """Reliability 28. Each key of each shipped file, of both tasks; 13 misuses of each, 1,846 files in all."""
    original = yaml.safe_load(file.read_text())
    refused = 0
    for place in places(original):
        content = copy.deepcopy(original)
        target = content
        for key in place[:-1]:
            target = target[key]
        value = target.pop(place[-1])
        if misuse == "misspelt":
            target[f"{place[-1]}s_"] = value
        elif misuse != "deleted":
            target[place[-1]] = MISUSES[misuse]
        try:
            assert isinstance(load_config(write(tmp_path, yaml.safe_dump(content), file.name)), CommonConfig)
        except BadInput as error:
            refused += 1
            assert [line for line in str(error).splitlines() if not NAMES_FILE_AND_KEY.match(line)] == []
            assert str(error).startswith(f"{file.name}: ")
            assert re.search(rf"\b{place[-1]}({'s_' if misuse == 'misspelt' else ''})?\b", str(error)), str(error)
    assert refused >= 3


def test_a_file_that_does_not_say_its_task_is_told_whose_keys_it_has(tmp_path: Path):
    content = {"description": "mine", "labels": ["a", "b"], "input_size": [32, 32, 1]}
    assert "mine.yaml: task: is missing, which means segmentation; input_size is a key of" in refusal(tmp_path, content)
    assert "task: is missing" not in refusal(tmp_path, {**content, "task": "segmentation"})


def test_keys_that_do_not_go_together_are_named_without_a_word_of_the_whole_file(tmp_path: Path):
    message = refusal(tmp_path, changed(cleaning={"lver": {}}))
    assert message == "mine.yaml: cleaning: names lver, not among labels liver, spleen"


def test_the_users_folder_replaces_a_shipped_model_and_keeps_the_others(tmp_path: Path):
    write(tmp_path, yaml.safe_dump(changed(description="my own")), SHIPPED[0].name)
    models = load_configs([folders.shipped_configs(), tmp_path])
    assert models[SHIPPED[0].stem].description == "my own"
    assert set(models) == {file.stem for file in SHIPPED}
    assert models[SHIPPED[1].stem] == load_config(SHIPPED[1])


def test_a_faulty_file_that_nobody_asks_for_does_no_harm(tmp_path: Path):
    shutil.copy(SHIPPED[0], tmp_path)
    write(tmp_path, "- broken", "broken.yaml")
    assert list(load_configs([tmp_path], [SHIPPED[0].stem])) == [SHIPPED[0].stem]
    with pytest.raises(BadInput, match=r"broken\.yaml"):
        load_configs([tmp_path])


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(BadInput, match=r"model 'unet_spleen' is not one of .*unet_phantom"):
        load_configs([folders.shipped_configs()], ["unet_spleen"])


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="absent"):
        load_configs([tmp_path / "absent"])


def test_a_number_that_yaml_takes_for_a_text_is_explained(tmp_path):
    file = tmp_path / "unet_test.yaml"
    text = (folders.shipped_configs() / "unet_phantom.yaml").read_text()
    file.write_text(text.replace("learning_rate: 2.0e-3", "learning_rate: 2e-3"))
    with pytest.raises(BadInput, match=r"training\.learning_rate.*got '2e-3'.*1\.0e-3"):
        load_config(file)
