"""A training publishes what is not worse, says what it rests on, and names what it left out."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import training
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Busy, Conflict, LabelRoundsError
from labelrounds.networks import build_network
from labelrounds.store import LabelledCase
from labelrounds.training import SegmentationTrainer, TrainingRequest, judge, train_model

NAMES = ["patient_0000", "patient_0001", "patient_0002", "patient_0003", "patient_0004", "patient_0005"]


def never() -> bool:
    return False


def wanted(epochs=1, start="current", device="cpu") -> TrainingRequest:
    return TrainingRequest(epochs, start, device)


@pytest.fixture
def config(make_config):
    return make_config(patch_size=[8, 8, 8], training={"epochs": 3, "iterations_per_epoch": 2, "learning_rate": 1e-2})


@pytest.fixture
def studies(tmp_path):
    """Six labelled cases: two boxes, of different brightness, at different places."""
    return [labelled(tmp_path, name, seed) for seed, name in enumerate(NAMES)]


def labelled(folder: Path, name: str, seed: int, **changes) -> LabelledCase:
    rng = np.random.default_rng(seed)
    label = np.zeros((14, 12, 12), np.uint8)
    for value in (1, 2):
        label[tuple(slice(at, at + 5) for at in rng.integers(0, 7, 3))] = value
    image = np.array([-0.6, 0.2, 0.8])[label] + rng.normal(0, 0.05, label.shape)
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (image.astype(np.float32), label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    values = {"near": 1, "far": 2}
    return LabelledCase(
        **{"image_id": name, "image": paths[0], "label": paths[1], "values": values, "patient": name} | changes
    )


def progress_of(config) -> dict:
    return json.loads((Checkpoints(config).folder / "progress.json").read_text())


# Requests


def test_a_request_without_options_takes_the_configurations(config):
    request = TrainingRequest.parse({"model": "tiny"}, config)
    assert (request.epochs, request.start) == (3, "current")
    assert request.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert TrainingRequest.parse({"epochs": 7, "start": "scratch", "device": "cpu"}, config) == wanted(7, "scratch")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"epoch": 3}, "'epoch' is not one of client_id, device, epochs"),
        ({"epochs": 0}, "epochs 0 is not a whole number from 1 to 100000"),
        ({"epochs": 10**6}, "epochs 1000000"),
        ({"epochs": "5"}, "epochs '5'"),
        ({"epochs": True}, "epochs True"),
        ({"epochs": 2.5}, r"epochs 2\.5"),
        ({"epochs": None}, "epochs None"),
        ({"start": "yesterday"}, "start 'yesterday' is not one of current, scratch"),
        ({"start": ["current"]}, r"start \['current'\]"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not on this machine; available: .*cpu"),
        ({"device": "tpu"}, "device 'tpu' is not one of .*cpu"),
        ({"device": ["cpu"]}, r"device \['cpu'\]"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_with_what_is_allowed(config, request_, expected):
    with pytest.raises(BadInput, match=expected):
        TrainingRequest.parse(request_, config)


def test_the_options_that_a_client_shows_are_those_that_are_taken(config):
    shown = SegmentationTrainer(config).config()
    first = {key: value[0] if isinstance(value, list) else value for key, value in shown.items()}
    assert TrainingRequest.parse(first, config).epochs == 3


# The judgement

ONE = {"a": 0.8, "b": 0.6}


@pytest.mark.parametrize(
    ("candidate", "incumbent", "reason"),
    [
        (ONE, None, None),
        ({"a": 0.0, "b": 0.0}, None, None),
        (ONE, ONE, None),
        ({"a": 0.9, "b": 0.7}, ONE, None),
        ({"a": 0.796, "b": 0.596}, ONE, None),
        ({"a": 0.79, "b": 0.59}, ONE, "mean Dice 0.690 is below the served version's 0.700"),
        ({"a": 0.95, "b": 0.57}, ONE, "Dice of b 0.570 is below the served version's 0.600"),
        ({"a": 0.815, "b": 0.585}, ONE, None),
        ({"a": 0.0, "b": 0.0}, ONE, "mean Dice 0.000 is below the served version's 0.700"),
    ],
    ids=str,
)
def test_judge_lets_nothing_worse_pass(candidate, incumbent, reason):
    assert judge(candidate, incumbent) == reason


# Runs


def test_a_first_training_publishes_a_version_that_tells_its_story(config, studies):
    result = train_model(config, studies, wanted(2), never)
    version = Checkpoints(config).current()
    assert result["published"] == version.number == 1
    assert result["status"] == "done" and result["message"].startswith("Published version 1. Judged on ")
    record = version.record
    assert record["started_from"] == "scratch" and record["epochs"] == 2 and record["seed"] == 0
    assert sorted(name for part in record["cases"].values() for name in part) == NAMES
    assert record["skipped"] == {} and set(record["dice"]) == {"near", "far"}
    assert record["judged_on"] in result["message"]


def test_a_second_training_goes_on_from_what_is_served(config, studies):
    train_model(config, studies, wanted(), never)
    train_model(config, studies, wanted(2), never)
    assert progress_of(config)["started_from"] == "version 1"
    train_model(config, studies, wanted(1, "scratch"), never)
    assert progress_of(config)["started_from"] == "scratch"


def test_progress_is_what_monai_labels_slicer_module_reads(config, studies, monkeypatch):
    seen = []
    write = training.write_json
    monkeypatch.setattr(
        training, "write_json", lambda file, content: (seen.append(dict(content)), write(file, content))
    )
    train_model(config, studies, wanted(3), never)
    assert [figures["epoch"] for figures in seen if figures["status"] == "training"] == [0, 1, 2, 3]
    for figures in seen:
        assert figures["total_epochs"] == 3
        assert isinstance(figures["best_metric"], float) and 0 <= figures["best_metric"] <= 1
        assert isinstance(figures["started"], float)
        assert ("total_time" in figures) == (figures["status"] == "done")
        json.dumps(figures, allow_nan=False)
    assert SegmentationTrainer(config).stats() == seen[-1] == progress_of(config)
    assert seen[-1]["epoch"] == 3


def test_progress_of_an_earlier_training_is_not_carried_over(config, studies):
    train_model(config, studies, wanted(2), never)
    with pytest.raises(Conflict):
        train_model(config, [], wanted(5), never)
    figures = progress_of(config)
    assert (figures["status"], figures["epoch"], figures["total_epochs"]) == ("failed", 0, 5)
    assert "history" not in figures and "dice" not in figures


def test_without_a_label_there_is_nothing_to_train_on(config):
    with pytest.raises(Conflict, match=r"0 labels submitted, 0 usable.*submit labels for near, far"):
        train_model(config, [], wanted(), never)
    assert Checkpoints(config).current() is None


def test_cases_that_can_not_be_used_are_skipped_and_named(config, studies, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a study")
    others = [
        labelled(tmp_path, "unreadable", 7, image=broken),
        labelled(tmp_path, "other_organs", 8, values={"liver": 1}),
        labelled(tmp_path, "gone", 9, label=tmp_path / "gone.nii.gz"),
    ]
    result = train_model(config, [*studies, *others], wanted(), never)
    record = Checkpoints(config).current().record
    assert result["published"] == 1
    assert set(record["skipped"]) == set(progress_of(config)["skipped"]) == {"unreadable", "other_organs", "gone"}
    assert "not annotated: near, far (has liver)" in record["skipped"]["other_organs"]
    assert sorted(name for part in record["cases"].values() for name in part) == NAMES


def test_when_no_case_can_be_used_the_reason_is_given(config, tmp_path):
    items = [labelled(tmp_path, f"case_{seed}", seed, values={"liver": 1}) for seed in range(5)]
    with pytest.raises(Conflict, match=r"5 labels submitted, 0 usable.*case_0: not annotated: near, far"):
        train_model(config, items, wanted(), never)


def test_a_worse_result_is_not_published(config, studies, monkeypatch):
    train_model(config, studies, wanted(), never)
    true_evaluate = training.evaluate
    served = Checkpoints(config).current()
    calls = []

    def flattering(network, cases, config, device):
        """The second network that is judged is the served one; it finds everything."""
        calls.append(1)
        scores = true_evaluate(network, cases, config, device)
        return [dict.fromkeys(score, 0.99) for score in scores] if len(calls) == 2 else scores

    monkeypatch.setattr(training, "evaluate", flattering)
    result = train_model(config, studies, wanted(1, "scratch"), never)
    assert len(calls) == 2
    assert result["published"] is None
    assert result["message"].startswith("Not published: mean Dice 0.")
    assert "below the served version's 0.990" in result["message"]
    assert Checkpoints(config).current() == served
    assert progress_of(config)["published"] is None


def test_a_trained_version_is_not_replaced_by_one_step_from_scratch(make_config, studies):
    config = make_config(
        patch_size=[12, 12, 12],
        training={"iterations_per_epoch": 12, "learning_rate": 2e-2, "rotation_degrees": 0.0},
    )
    good = train_model(config, studies, wanted(6), never)
    assert good["best_metric"] > 0.4, "the first training has not learned enough for the comparison"
    hasty = config.model_copy(update={"training": config.training.model_copy(update={"iterations_per_epoch": 1})})
    result = train_model(hasty, studies, wanted(1, "scratch"), never)
    assert result["published"] is None and result["message"].startswith("Not published: ")
    assert result["dice_before"] == pytest.approx(good["dice"], abs=1e-4)
    assert Checkpoints(config).current().number == 1


def test_a_version_for_other_labels_is_no_hindrance(make_config, config, studies):
    other = make_config(labels=["near", "far", "third"], patch_size=[8, 8, 8])
    Checkpoints(other).publish(build_network(other), {})
    result = train_model(config, studies, wanted(), never)
    assert result["published"] == 2 and result["dice_before"] is None
    assert progress_of(config)["started_from"] == "scratch"


def test_few_cases_are_judged_without_claiming_more(config, studies):
    result = train_model(config, studies[:1], wanted(), never)
    assert "Judged on the 1 training cases" in result["judged_on"]
    assert "says nothing about new cases" in result["message"]
    assert result["dice_test"] is None


def test_stopping_before_the_first_epoch_publishes_nothing(config, studies):
    result = train_model(config, studies, wanted(), lambda: True)
    assert (result["status"], result["published"]) == ("stopped", None)
    assert Checkpoints(config).current() is None
    assert progress_of(config)["total_time"]


def test_stopping_later_publishes_what_was_reached(config, studies):
    calls = []
    result = train_model(config, studies, wanted(50), lambda: bool(calls.append(1)) or len(calls) > 8)
    assert (result["status"], result["published"]) == ("stopped", 1)
    assert 1 <= progress_of(config)["epoch"] < 50


class Killed(BaseException):
    """Stands in for the end of the process."""


def test_a_killed_training_goes_on_where_it_was_and_then_forgets(config, studies, monkeypatch):
    report = training._Training._report

    def killed(self, epoch, writer):
        report(self, epoch, writer)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._Training, "_report", killed)
        train_model(config, studies, wanted(3), never)
    assert "total_time" not in progress_of(config)
    epochs = []
    monkeypatch.setattr(
        training._Training,
        "_report",
        lambda self, epoch, writer: (epochs.append(epoch.number), report(self, epoch, writer)),
    )
    train_model(config, studies, wanted(3), never)
    assert epochs == [2, 3]
    assert not (Checkpoints(config).folder / "state.safetensors").exists()
    train_model(config, studies, wanted(2), never)
    assert epochs == [2, 3, 1, 2]


@pytest.mark.parametrize("change", ["epochs", "label"])
def test_a_killed_training_of_something_else_is_not_gone_on_with(config, studies, tmp_path, monkeypatch, change):
    report = training._Training._report

    def killed(self, epoch, writer):
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training._Training, "_report", killed)
        train_model(config, studies, wanted(2), never)
    if change == "label":
        labelled(tmp_path, NAMES[0], 77)
    epochs = []
    monkeypatch.setattr(
        training._Training,
        "_report",
        lambda self, epoch, writer: (epochs.append(epoch.number), report(self, epoch, writer)),
    )
    train_model(config, studies, wanted(3 if change == "epochs" else 2), never)
    assert epochs[0] == 1


@pytest.mark.parametrize("error", [LabelRoundsError("the disk sings"), RuntimeError("the disk sings"), MemoryError()])
def test_a_failure_is_written_where_clients_look(config, studies, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(training, "evaluate", fails)
    with pytest.raises(type(error)):
        train_model(config, studies, wanted(), never)
    figures = progress_of(config)
    assert figures["status"] == "failed" and figures["total_time"]
    assert figures["message"] == (str(error) or "MemoryError")


HOLD = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_that_trains_the_model_is_not_disturbed(config, studies):
    folder = Checkpoints(config).folder
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "training.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(Busy, match="a training of tiny runs already"):
            train_model(config, studies, wanted(), never)
        assert not (folder / "progress.json").exists()
        process.stdin.close()
    assert train_model(config, studies, wanted(), never)["published"] == 1


def test_another_model_can_train_at_the_same_time(config, make_config, studies):
    folder = Checkpoints(make_config(name="other")).folder
    folder.mkdir(parents=True)
    with FileLock(folder / "training.lock"):
        assert train_model(config, studies, wanted(), never)["published"] == 1


def test_the_trainer_takes_its_cases_from_the_datastore(config, studies):
    class Datastore:
        def training_items(self):
            return studies

    result = SegmentationTrainer(config)({"model": "tiny", "epochs": 1, "device": "cpu"}, Datastore())
    assert result["published"] == 1
