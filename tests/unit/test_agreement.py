"""Each submission is compared once with what the server had predicted, whatever else happens."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelrounds import agreement as agreement_module
from labelrounds.agreement import Agreement
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.labels import ClassLabel
from labelrounds.database import Database
from labelrounds.errors import Cancelled, OutOfSpace, Overloaded
from labelrounds.leases import SCHEMA, Leases
from labelrounds.networks import build_network
from labelrounds.store import CLASSES, FINAL, StudyStore


def write_map(path: Path, near: slice, far: slice | None = None, affine=None) -> Path:
    voxels = np.zeros((8, 8, 8), np.uint8)
    voxels[near, :4, :4] = 1
    if far is not None:
        voxels[far, 4:, 4:] = 2
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


class App:
    """Predicts a label map or classes, or raises what it is told to."""

    def __init__(self, config, folder: Path) -> None:
        self.configs: Mapping = {config.name: config}
        self.folder = folder
        (folder / "studies").mkdir()
        for name in ("a", "b"):
            nibabel.save(
                nibabel.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), folder / f"studies/{name}.nii.gz"
            )
        known = {} if config.task == "segmentation" else {"known_classes": config.labels, "rounds_tag": CLASSES}
        self.store = StudyStore(folder / "studies", **known)
        self.asked: list[dict] = []
        self.errors: list[Exception] = []
        self.version = 1
        self.prediction: dict = {}
        self.free = threading.Event()
        self.free.set()

    def datastore(self) -> StudyStore:
        return self.store

    def infer(self, request):
        self.asked.append(request)
        assert self.free.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        if "classes" in self.prediction:
            return {"file": None, "params": {"version": self.version, "prediction": self.prediction["classes"]}}
        return {
            "file": str(write_map(self.folder / "said.nii.gz", **self.prediction)),
            "params": {"version": self.version},
        }


@pytest.fixture
def leases(tmp_path) -> Leases:
    return Leases(Database(tmp_path / "rounds.sqlite", SCHEMA))


@pytest.fixture
def app(config, tmp_path) -> App:
    made = App(config, tmp_path)
    made.prediction = {"near": slice(0, 4), "far": slice(0, 4)}
    return made


@pytest.fixture
def agreement(app, leases):
    made = Agreement(app, leases.ledger)
    yield made
    app.free.set()
    made.close()


def submit(
    app: App, leases: Leases, image: str = "a", near=slice(0, 4), names=("near", "far"), version=1, **label
) -> int:
    file = write_map(app.folder / "label.nii.gz", near, **label)
    app.store.save_label(image, str(file), FINAL, {"label_info": [{"name": name} for name in names]})
    digest = app.store.entries[image].labels[FINAL].info["sha256"]
    number = leases.submitted(image, "ann", digest, "tiny", version)
    assert number is not None
    return number


def found(leases: Leases, count: int = 1) -> list[dict]:
    until = time.monotonic() + 60
    while len(entries := leases.ledger.entries(event="agreement")) < count:
        assert time.monotonic() < until, "it was not compared"
        time.sleep(0.02)
    return entries


def test_an_untouched_prediction_agrees_wholly(app, leases, agreement):
    number = submit(app, leases, far=slice(0, 4))
    agreement.resume()
    (entry,) = found(leases)
    assert (entry["dice"], entry["image"], entry["client"], entry["version"]) == (1.0, "a", "ann", 1)
    assert entry["details"]["submission"] == number and entry["details"]["per_label"] == {"near": 1.0, "far": 1.0}
    assert app.asked[0]["background"] is True and not (app.folder / "said.nii.gz").exists()


def test_a_corrected_one_agrees_by_its_dice(app, leases, agreement):
    submit(app, leases, near=slice(0, 2), far=slice(0, 4))
    agreement.resume()
    (entry,) = found(leases)
    assert entry["details"]["per_label"] == {"near": pytest.approx(2 / 3, abs=1e-4), "far": 1.0}
    assert entry["dice"] == pytest.approx(5 / 6, abs=1e-4)


def test_labels_are_compared_by_name_whatever_their_values(app, leases, agreement):
    app.prediction = {"near": slice(0, 4)}
    submit(app, leases, names=("far", "near"))  # value 1, in its place, is called far
    agreement.resume()
    (entry,) = found(leases)
    assert entry["details"]["per_label"] == {"near": 0.0, "far": 0.0} and entry["details"]["present"] == ["far"]


def test_a_label_that_is_in_neither_does_not_count(app, leases, agreement):
    app.prediction = {"near": slice(0, 4)}
    submit(app, leases)
    agreement.resume()
    (entry,) = found(leases)
    assert entry["dice"] == 1.0 and entry["details"]["per_label"] == {"near": 1.0}


def test_without_a_trained_version_the_entry_says_so(app, leases, agreement):
    submit(app, leases, version=None)
    agreement.resume()
    (entry,) = found(leases)
    assert entry["dice"] is None and entry["details"]["why"] == "there was no trained version to predict with"
    assert not app.asked


def test_a_version_that_has_learnt_from_the_label_is_not_asked(app, leases, agreement, config):
    Checkpoints(config).publish(build_network(config), {"cases": {"train": {"a": ""}}})
    submit(app, leases)
    agreement.resume()
    (entry,) = found(leases)
    assert entry["dice"] is None and "has learnt from a label of this image" in entry["details"]["why"]


def test_a_label_that_was_replaced_before_it_was_compared_is_noted_and_the_new_one_compared(app, leases, agreement):
    submit(app, leases, near=slice(0, 2))
    submit(app, leases, far=slice(0, 4))
    agreement.resume()
    first, second = found(leases, 2)
    assert first["dice"] is None and "replaced" in first["details"]["why"] and second["dice"] == 1.0


def test_it_waits_for_users_and_comes_back(app, leases, agreement):
    app.errors = [Cancelled("a user comes first")] * 2
    submit(app, leases, far=slice(0, 4))
    agreement.resume()
    assert found(leases)[0]["dice"] == 1.0 and len(app.asked) == 3


@pytest.mark.parametrize("error", [Overloaded("the server is ending"), OutOfSpace("full")])
def test_what_only_the_moment_is_to_blame_for_is_not_noted_as_failed(app, leases, agreement, monkeypatch, error):
    monkeypatch.setattr(agreement_module, "_PAUSE_S", 0.05)
    app.errors = [error] * 2
    submit(app, leases, far=slice(0, 4))
    agreement.resume()
    assert found(leases)[0]["dice"] == 1.0 and len(app.asked) == 3


def test_a_ledger_that_was_begun_anew_meanwhile_gets_nothing_of_the_lost_one(app, leases, agreement):
    submit(app, leases, "a")
    app.free.clear()
    agreement.resume()
    while not app.asked:  # it is being compared
        time.sleep(0.01)
    for file in app.folder.glob("rounds.sqlite*"):
        file.unlink()
    submit(app, leases, "b", far=slice(0, 4))  # which has the number of the lost one
    app.free.set()
    agreement.resume()
    assert [(entry["image"], entry["dice"]) for entry in found(leases)] == [("b", 1.0)]


def test_what_fails_is_noted_and_keeps_no_other_from_being_compared(app, leases, agreement):
    app.errors = [RuntimeError("bad luck")]
    submit(app, leases, "a")
    submit(app, leases, "b", far=slice(0, 4))
    agreement.resume()
    first, second = found(leases, 2)
    assert first["details"]["why"] == "the comparison failed: bad luck" and second["dice"] == 1.0


def test_a_submission_does_not_wait_for_it_and_a_restart_loses_none(app, leases, agreement):
    app.free.clear()
    number = submit(app, leases, far=slice(0, 4))
    since = time.perf_counter()
    agreement.resume()
    assert time.perf_counter() - since < 1
    assert not leases.ledger.entries(event="agreement")
    app.errors = [Cancelled("the server ends")]
    threading.Timer(0.1, app.free.set).start()
    agreement.close()
    after = Agreement(app, leases.ledger)
    after.resume()
    assert [entry["details"]["submission"] for entry in found(leases)] == [number]
    after.resume()
    after.close()
    assert len(leases.ledger.entries(event="agreement")) == 1


def test_a_full_disk_delays_it_and_loses_nothing(app, leases, agreement, monkeypatch):
    submit(app, leases, far=slice(0, 4))
    note, failures = leases.ledger.note_agreement, [OutOfSpace("full"), OutOfSpace("full")]

    def noted(*entry) -> None:
        if failures:
            raise failures.pop()
        note(*entry)

    monkeypatch.setattr(leases.ledger, "note_agreement", noted)
    monkeypatch.setattr(agreement_module, "_PAUSE_S", 0.05)
    agreement.resume()
    assert found(leases)[0]["dice"] == 1.0


@pytest.mark.parametrize(
    ("multilabel", "scores", "truth", "dice"),
    [
        (False, {"dog": 0.6, "cat": 0.4}, ("dog",), 1.0),
        (False, {"dog": 0.6, "cat": 0.4}, ("cat",), 0.0),
        (True, {"dog": 0.9, "cat": 0.6}, ("cat",), 2 / 3),
        (True, {"dog": 0.4, "cat": 0.1}, (), 1.0),
    ],
)
def test_of_classes_it_is_whether_they_were_right(tmp_path, leases, multilabel, scores, truth, dice):
    content = {
        "name": "pets",
        "description": "pets",
        "labels": ["cat", "dog"],
        "multilabel": multilabel,
        "intensity": {"kind": "range"},
        "network": {"name": "densenet", "growth_rate": 4, "init_features": 8, "block_config": [2, 2]},
        "input_size": [32, 32, 1],
    }
    config = ClassifierConfig.model_validate_json(json.dumps(content))
    app = App(config, tmp_path)
    app.store.multilabel_classes = config.labels if multilabel else ()
    app.prediction = {"classes": [{"label": name, "score": score} for name, score in scores.items()]}
    app.store.save_classes({"a": ClassLabel(truth, multilabel)})
    leases.submitted("a", "ann", app.store.entries["a"].labels[CLASSES].info["sha256"], "pets", 1)
    agreement = Agreement(app, leases.ledger)
    agreement.resume()
    (entry,) = found(leases)
    agreement.close()
    assert entry["dice"] == pytest.approx(dice, abs=1e-4) and entry["details"]["right"] is (dice == 1.0)
