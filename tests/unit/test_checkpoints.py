"""A version is published whole or not at all, and loading one runs nothing that is in it."""

import errno
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import labelrounds.atomic
import labelrounds.checkpoints
from labelrounds import folders
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Conflict, NotFound, OutOfSpace
from labelrounds.json_files import read_json, write_json
from labelrounds.networks import build_network


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def checkpoints(config) -> Checkpoints:
    return Checkpoints(config)


def network_of(config, seed: int = 0):
    torch.manual_seed(seed)
    return build_network(config)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def same_weights(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# Publishing


def test_nothing_is_served_before_the_first_publication(checkpoints):
    assert checkpoints.current() is None
    assert checkpoints.versions() == []


def test_a_published_version_is_served_and_loads_bit_for_bit(checkpoints, config):
    network = network_of(config)
    version = checkpoints.publish(network, {"note": "first", "cases": {"train": ["a"]}})
    assert (version.number, str(version)) == (1, "tiny version 1")
    assert checkpoints.current() == version
    loaded = network_of(config, seed=9)
    checkpoints.load(version, loaded)
    assert same_weights(network, loaded)


def test_a_record_says_what_the_version_is(checkpoints, config):
    record = checkpoints.publish(network_of(config), {"note": "first"}).record
    assert record["labels"] == ["near", "far"] and record["note"] == "first"
    assert record["configuration"]["network"] == {"name": "unet", "channels": [4, 6, 8]}
    assert {"labelrounds", "monai", "torch"} <= set(record["packages"])


def test_versions_are_numbered_on_and_can_be_rolled_back(checkpoints, config):
    for seed in (1, 2, 3):
        assert checkpoints.publish(network_of(config, seed), {}).number == seed
    checkpoints.serve(1)
    assert checkpoints.current().number == 1
    assert [version.number for version in checkpoints.versions()] == [1, 2, 3]
    assert checkpoints.publish(network_of(config, 4), {}).number == 4
    assert Checkpoints(config).current().number == 4


def test_a_version_that_is_not_there_is_not_served(checkpoints, config):
    checkpoints.publish(network_of(config), {})
    with pytest.raises(NotFound, match="model tiny has no version 7"):
        checkpoints.serve(7)
    with pytest.raises(NotFound, match="no version 0"):
        checkpoints.version(0)
    assert checkpoints.current().number == 1


def test_what_else_lies_beside_the_versions_is_left_alone(checkpoints, config):
    checkpoints.publish(network_of(config), {})
    versions = checkpoints.folder / "versions"
    for name in ("0001.bak", "2026-01-01 copy", "notes"):
        (versions / name).mkdir()
    (versions / "0007").mkdir()  # a version folder without a record
    assert [version.number for version in checkpoints.versions()] == [1]
    assert checkpoints.publish(network_of(config), {}).number == 8
    assert (versions / "0001.bak").is_dir()


def test_leftovers_of_a_killed_publication_are_removed_by_the_next(checkpoints, config):
    leftover = checkpoints.folder / "versions" / ".new-abc"
    leftover.mkdir(parents=True)
    (leftover / "weights.safetensors").write_bytes(b"half")
    checkpoints.publish(network_of(config), {})
    assert not leftover.exists()


def test_the_files_of_a_version_can_be_read_by_others(checkpoints, config):
    version = checkpoints.publish(network_of(config), {})
    assert version.weights.parent.stat().st_mode & 0o777 == 0o755


# What goes wrong while publishing


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def denied(*args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class Killed(BaseException):
    """Stands in for the signal that ends a process."""


def killed(*args, **kwargs):
    raise Killed


def only_for(part: str, action, original):
    """Let a method of ``Path`` fail for paths that hold ``part``."""

    def method(self, *args, **kwargs):
        return action() if part in str(self) else original(self, *args, **kwargs)

    return method


STEPS = {
    "making the folder": lambda patch, action: patch.setattr("labelrounds.checkpoints.tempfile.mkdtemp", action),
    "saving the weights": lambda patch, action: patch.setattr("labelrounds.checkpoints.save_file", action),
    "flushing the weights": lambda patch, action: patch.setattr("labelrounds.checkpoints.flush", action),
    "writing the record": lambda patch, action: patch.setattr(
        Path, "write_text", only_for("version.json", action, Path.write_text)
    ),
    "placing the record": lambda patch, action: patch.setattr(
        Path, "replace", only_for("version.json", action, Path.replace)
    ),
    "renaming the folder": lambda patch, action: patch.setattr(Path, "rename", action),
    "writing the pointer": lambda patch, action: patch.setattr(
        Path, "write_text", only_for("current.json", action, Path.write_text)
    ),
    "placing the pointer": lambda patch, action: patch.setattr(
        Path, "replace", only_for("current.json", action, Path.replace)
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", [full, denied], ids=["a full disk", "a folder that can't be written"])
def test_a_disk_that_takes_nothing_leaves_the_old_version_and_nothing_else(checkpoints, config, step, action):
    checkpoints.publish(network_of(config, 1), {})
    before = files_below(checkpoints.folder)
    with pytest.MonkeyPatch.context() as patch:
        STEPS[step](patch, action)
        with pytest.raises(OutOfSpace, match="version 2 of tiny could not be written"):
            checkpoints.publish(network_of(config, 2), {})
    assert files_below(checkpoints.folder) == before
    assert checkpoints.current().number == 1
    assert checkpoints.publish(network_of(config, 3), {}).number == 2


@pytest.mark.parametrize("step", STEPS)
def test_an_end_at_any_moment_leaves_the_old_version_served(checkpoints, config, step):
    checkpoints.publish(network_of(config, 1), {})
    with pytest.MonkeyPatch.context() as patch:
        STEPS[step](patch, killed)
        # What a killed process can't do: tidy up behind itself.
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(Killed):
            checkpoints.publish(network_of(config, 2), {})
    again = Checkpoints(config)
    assert again.current().number == 1
    again.load(again.current(), network_of(config))
    published = again.publish(network_of(config, 3), {})
    assert again.current() == published
    assert not list((checkpoints.folder / "versions").glob(".new-*"))
    for version in again.versions():
        again.load(version, network_of(config))


def test_a_pointer_that_was_placed_is_never_left_without_its_version(checkpoints, config, monkeypatch):
    checkpoints.publish(network_of(config, 1), {})
    monkeypatch.setattr(
        labelrounds.atomic,
        "flush",
        lambda path, original=labelrounds.atomic.flush: full() if path == checkpoints.folder else original(path),
    )
    with pytest.raises(OutOfSpace):
        checkpoints.publish(network_of(config, 2), {})
    checkpoints.load(checkpoints.current(), network_of(config))


def test_a_home_that_is_a_file_is_reported(config, home):
    home.write_text("not a folder")
    with pytest.raises(OutOfSpace, match="the versions of tiny can't be changed"):
        Checkpoints(config).publish(network_of(config), {})


def test_a_record_that_can_not_be_written_leaves_nothing(checkpoints, config):
    with pytest.raises(TypeError):
        checkpoints.publish(network_of(config), {"strange": object()})
    assert files_below(checkpoints.folder / "versions") == []


# Loading


def without_configuration(version):
    return replace(version, record={})


def test_weights_of_another_width_are_refused_and_named(checkpoints, config, make_config):
    version = without_configuration(checkpoints.publish(network_of(config), {}))
    wider = make_config(network={"name": "unet", "channels": [4, 6, 10]})
    with pytest.raises(BadInput, match=r"tiny version 1 do not fit.*has shape \(.*\), expected \("):
        Checkpoints(wider).load(version, network_of(wider))


def test_weights_of_another_release_are_refused_and_named(checkpoints, config):
    version = checkpoints.publish(network_of(config), {})
    save_file({f"old.{name}": value for name, value in load_file(version.weights).items()}, version.weights)
    with pytest.raises(BadInput, match=r"is missing.*trained by another release or for another network: train again"):
        checkpoints.load(version, network_of(config))


CHANGES = {
    "channels": {"channels": 2},
    "spacing_mm": {"spacing_mm": [1.0, 1.0, 3.0]},
    "intensity": {"intensity": {"kind": "window", "low": -1, "high": 2}},
    "intensity of another kind": {"intensity": {"kind": "zscore"}},
    "dimensions": {"patch_size": [16, 16, 1]},
    "network": {"network": {"name": "attention_unet", "channels": [4, 6, 8]}},
    "network options": {"network": {"name": "unet", "channels": [4, 6, 8], "kernels": [[3, 3, 1], [3] * 3, [3] * 3]}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_not_served_under_another_configuration(checkpoints, config, make_config, change):
    version = checkpoints.publish(network_of(config), {})
    other = make_config(**CHANGES[change])
    key = change.split()[0]
    with pytest.raises(Conflict, match=rf"tiny version 1 was trained for {key} .*, the configuration has .*: train ag"):
        Checkpoints(other).load(version, network_of(other))


def test_both_values_are_named_and_what_to_do(checkpoints, config, make_config):
    version = checkpoints.publish(network_of(config), {})
    other = make_config(spacing_mm=[1.0, 1.0, 3.0])
    told = (
        r"spacing_mm None, the configuration has \[1\.0, 1\.0, 3\.0\]: train again, or put the former spacing_mm back"
    )
    with pytest.raises(Conflict, match=told):
        Checkpoints(other).load(version, network_of(other))


def test_nothing_is_rolled_back_to_that_the_configuration_has_left(checkpoints, config, make_config):
    checkpoints.publish(network_of(config), {})
    other = Checkpoints(make_config(intensity={"kind": "zscore"}))
    other.publish(network_of(other.config), {})
    with pytest.raises(Conflict, match="tiny version 1 was trained for intensity"):
        other.rollback()
    assert other.current().number == 2


def test_what_weights_do_not_depend_on_may_change(checkpoints, config, make_config):
    published = network_of(config)
    version = checkpoints.publish(published, {})
    changes = {
        "patch_size": [32, 16, 16],
        "inference": {"blend": "owner", "overlap": 0.5},
        "mirror": ["left_right"],
        "training": {"epochs": 9},
    }
    spelt_out = {"name": "unet", "channels": [4, 6, 8], "strides": None}
    for change in (changes, {"network": spelt_out}):
        other = make_config(**change)
        network = network_of(other)
        Checkpoints(other).load(version, network)
        assert same_weights(network, published)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"configuration": {}},
        {"configuration": {"intensity": {"kind": "window"}, "network": {"name": "unet", "channels": [4, 6, 8]}}},
        {"configuration": {"network": {"name": "unet", "channels": [4, 6, 8], "an_old_option": 1}}},
    ],
    ids=["nothing", "an empty configuration", "fewer keys", "an option that is no more"],
)
def test_a_record_of_an_older_release_is_compared_in_what_it_holds(checkpoints, config, record):
    version = replace(checkpoints.publish(network_of(config), {}), record=record)
    loaded = network_of(config, 9)
    checkpoints.load(version, loaded)
    assert same_weights(loaded, network_of(config))


@pytest.mark.parametrize("labels", [["far", "near"], ["near"], ["near", "far", "farther"]], ids=str)
def test_a_version_for_other_labels_is_refused(checkpoints, config, make_config, labels):
    version = checkpoints.publish(network_of(config), {})
    other = make_config(labels=labels)
    with pytest.raises(Conflict, match=r"was trained for labels \['near', 'far'\]"):
        Checkpoints(other).load(version, network_of(other))


def test_a_refused_version_leaves_the_network_as_it_was(checkpoints, config):
    version = checkpoints.publish(network_of(config), {})
    tensors = load_file(version.weights)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, version.weights)
    network, before = network_of(config, 5), network_of(config, 5)
    with pytest.raises(BadInput, match="is missing"):
        checkpoints.load(version, network)
    assert same_weights(network, before)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_is_refused_and_not_executed(checkpoints, config, tmp_path):
    version, canary = checkpoints.publish(network_of(config), {}), tmp_path / "canary"
    version.weights.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(BadInput, match="cannot be read"):
        checkpoints.load(version, network_of(config))
    torch.save({"weight": Canary(canary)}, version.weights)
    with pytest.raises(BadInput, match="cannot be read"):
        checkpoints.load(version, network_of(config))
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary itself does not work"


@pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=lambda keep: f"{keep} bytes")
def test_a_cut_file_is_refused(checkpoints, config, keep):
    version = checkpoints.publish(network_of(config), {})
    version.weights.write_bytes(version.weights.read_bytes()[:keep])
    with pytest.raises(BadInput, match="tiny version 1 cannot be read"):
        checkpoints.load(version, network_of(config))


def test_a_missing_weights_file_is_refused(checkpoints, config):
    version = checkpoints.publish(network_of(config), {})
    version.weights.unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        checkpoints.load(version, network_of(config))


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"version": "one"}', '{"version": null}', "\x00"])
def test_a_damaged_pointer_is_named(checkpoints, config, content):
    checkpoints.publish(network_of(config), {})
    (checkpoints.folder / "current.json").write_text(content)
    with pytest.raises(BadInput, match=r"current\.json is damaged"):
        checkpoints.current()
    checkpoints.serve(1)
    assert checkpoints.current().number == 1


def test_a_pointer_to_a_version_that_was_deleted_is_named(checkpoints, config):
    checkpoints.publish(network_of(config), {})
    shutil.rmtree(checkpoints.folder / "versions" / "0001")
    with pytest.raises(NotFound, match="model tiny has no version 1"):
        checkpoints.current()


def test_a_damaged_record_is_left_out_and_hinders_no_rollback(checkpoints, config, caplog):
    for seed in (1, 2, 3):
        checkpoints.publish(network_of(config, seed), {})
    (checkpoints.folder / "versions" / "0003" / "version.json").write_text("{")
    assert [version.number for version in checkpoints.versions()] == [1, 2]
    assert "Version 3 of tiny is left out" in caplog.text and "version.json is damaged" in caplog.text
    assert checkpoints.rollback()[1].number == 2


# Rolling back


def served_of(checkpoints) -> list[int]:
    return [json.loads(line)["version"] for line in (checkpoints.folder / "served.jsonl").read_text().splitlines()]


def test_rollbacks_go_further_back_each_time_and_are_noted(checkpoints, config):
    for seed in (1, 2, 3):
        checkpoints.publish(network_of(config, seed), {})
    assert checkpoints.rollback() == (3, checkpoints.version(2))
    assert checkpoints.rollback() == (2, checkpoints.version(1))
    with pytest.raises(Conflict, match="version 1 of tiny is served, and there is no version before it"):
        checkpoints.rollback()
    assert checkpoints.current().number == 1
    assert served_of(checkpoints) == [1, 2, 3, 2, 1]
    last = json.loads((checkpoints.folder / "served.jsonl").read_text().splitlines()[-1])
    assert (last["instead_of"], last["reason"]) == (2, "rollback") and last["at"]


def test_what_was_rolled_back_is_left_out_of_later_rollbacks(checkpoints, config):
    for seed in (1, 2):
        checkpoints.publish(network_of(config, seed), {})
    checkpoints.rollback()
    assert checkpoints.publish(network_of(config, 3), {}).record["served_before"] == 1
    assert checkpoints.rollback()[1].number == 1


def test_any_version_can_be_rolled_back_to_and_forth(checkpoints, config):
    for seed in (1, 2, 3):
        checkpoints.publish(network_of(config, seed), {})
    assert checkpoints.rollback(1)[1].number == 1
    assert checkpoints.rollback(3)[1].number == 3
    with pytest.raises(Conflict, match="version 3 of tiny is served already"):
        checkpoints.rollback(3)
    with pytest.raises(NotFound, match="no version 9"):
        checkpoints.rollback(9)


def test_nothing_can_be_rolled_back_before_something_is_served(checkpoints):
    with pytest.raises(Conflict, match="nothing of tiny is served"):
        checkpoints.rollback()


def test_what_can_not_be_loaded_is_not_rolled_back_to(checkpoints, config):
    for seed in (1, 2):
        checkpoints.publish(network_of(config, seed), {})
    checkpoints.version(1).weights.write_bytes(b"damaged")
    with pytest.raises(BadInput, match="the weights of tiny version 1 cannot be read"):
        checkpoints.rollback()
    assert checkpoints.current().number == 2


@pytest.mark.parametrize("damage", ["version", "pointer"])
def test_a_damaged_served_version_can_be_rolled_back(checkpoints, config, damage):
    for seed in (1, 2, 3):
        checkpoints.publish(network_of(config, seed), {})
    if damage == "version":
        shutil.rmtree(checkpoints.folder / "versions" / "0003")
        assert checkpoints.rollback()[1].number == 2
    else:
        (checkpoints.folder / "current.json").write_text("{")
        assert checkpoints.rollback(2)[1].number == 2
    assert checkpoints.current().number == 2


def test_a_version_may_be_kept_without_being_served(checkpoints, config):
    checkpoints.publish(network_of(config, 1), {})
    assert checkpoints.publish(network_of(config, 2), {}, serve=lambda: False).number == 2
    assert checkpoints.current().number == 1
    assert checkpoints.rollback(2)[1].number == 2


def test_a_change_that_can_not_be_noted_is_made_all_the_same(checkpoints, config):
    (checkpoints.folder / "served.jsonl").mkdir(parents=True)
    checkpoints.publish(network_of(config), {})
    assert checkpoints.current().number == 1


# The version that ships with the package


@pytest.fixture
def shipped(config, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    weights = Checkpoints(config).publish(network_of(config, 8), {}).weights
    shutil.move(weights, folder / "tiny.safetensors")
    shutil.rmtree(Checkpoints(config).folder)
    (folder / "tiny.json").write_text(json.dumps({"labels": ["near", "far"]}))
    monkeypatch.setattr(folders, "shipped_weights", lambda: folder)
    return folder


def test_the_shipped_version_is_served_until_another_is(checkpoints, config, shipped):
    assert (checkpoints.current().number, str(checkpoints.current())) == (0, "tiny version 0 (shipped)")
    loaded = network_of(config)
    checkpoints.load(checkpoints.current(), loaded)
    assert same_weights(loaded, network_of(config, 8))
    checkpoints.publish(network_of(config), {})
    assert checkpoints.current().number == 1
    assert [version.number for version in checkpoints.versions()] == [0, 1]
    assert checkpoints.rollback() == (1, checkpoints.version(0))
    assert checkpoints.current().number == 0


def test_a_users_model_of_the_same_name_for_other_labels_has_no_shipped_version(make_config, shipped):
    assert Checkpoints(make_config(labels=["a"])).current() is None


# The JSON files


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "note.json"
    write_json(file, {"a": 1})
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutOfSpace):
        write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}
    assert files_below(tmp_path / "folder") == ["note.json"]


def test_json_that_is_missing_is_none(tmp_path):
    assert read_json(tmp_path / "absent.json") is None
    assert read_json(Path(__file__) / "below a file.json") is None
