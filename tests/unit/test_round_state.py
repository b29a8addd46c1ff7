"""The state of the rounds is plain JSON, whatever there is or is not, and costs no pass of a network."""

import json
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import nibabel
import numpy as np
import pytest
from blobs import CLASSES as CLASSES_OF_BLOBS
from blobs import classifier, picture

from labelrounds import leases, pool_means, scores
from labelrounds.budget import PoolMean
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.labels import class_label
from labelrounds.database import Database
from labelrounds.leases import Asking, Leases
from labelrounds.networks import build_network
from labelrounds.pool import PoolSource
from labelrounds.pool_means import note_pool_mean
from labelrounds.round_state import Parts, plain_json, state_of
from labelrounds.scores import SCORES, CaseScores, Known, weights_of
from labelrounds.store import CLASSES, StudyStore
from labelrounds.strategies.base import Choice


class Group:
    """A studies folder with its rounds."""

    def __init__(self, tmp_path: Path, config, images: int) -> None:
        studies = tmp_path / "studies"
        studies.mkdir()
        self.work, self.config = tmp_path, config
        rng = np.random.default_rng(0)
        for index in range(images):
            voxels = rng.normal(size=(8, 8, 8)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), studies / f"case_{index:02d}.nii.gz")
        self.store = StudyStore(studies, known_labels=config.labels)
        schema = leases.SCHEMA + scores.SCHEMA + pool_means.SCHEMA
        self.database = Database(tmp_path / "rounds.sqlite", schema)
        self.leases = Leases(self.database)
        self.source = PoolSource(config, self.store, self.database, self.leases)

    def label(self, image: str, client: str = "anna", size: int = 3) -> str:
        array = np.zeros((8, 8, 8), np.uint8)
        array[:size], array[7:] = 1, 2
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), self.work / "label.nii.gz")
        names = {"label_info": [{"name": name} for name in self.config.labels]}
        self.store.save_label(image, str(self.work / "label.nii.gz"), "final", names)
        digest = self.store.get_label_info(image, "final")["sha256"]
        self.leases.submitted(image, client, digest, self.config.name, 1)
        return digest

    def compare(self, image: str, dice: float, version: int) -> None:
        """Note how well a prediction agreed with the last label of an image."""
        last = [each for each in self.leases.ledger.entries(event="submitted") if each["image"] == image][-1]
        self.leases.ledger.note_agreement(
            last["id"], last["label"], dice, {"model": self.config.name, "version": version}
        )

    def train(self, **record) -> None:
        Checkpoints(self.config).publish(build_network(self.config), {"wall_time_s": 0.0, **record})

    def score(self, embedding=None) -> None:
        """Pass over all images, as it were: each has its own number as every score."""
        version = Checkpoints(self.config).current()
        rng = np.random.default_rng(1)
        for index, (image, path) in enumerate(self.store.files_at_hand().items()):
            vector = (embedding or {}).get(image, rng.normal(size=8))
            values = dict.fromkeys(SCORES, 0.01 * index)
            found = CaseScores(values, {}, np.asarray(vector, np.float32), version.number)
            self.source.scores.put(path, found, weights_of(version))

    def parts(self, **options) -> Parts:
        gathered = self.source.gather()
        chosen = [Choice(image, "unlike any labelled case", 0.5) for image in gathered.pool.candidates[:3]]
        ledger = self.leases.ledger.entries()
        known = {"choices": chosen, "ledger": ledger, **options}
        return Parts(self.config, self.store, self.database, gathered, **known)


@pytest.fixture
def group(tmp_path, make_small):
    return lambda images=12: Group(tmp_path, make_small(), images)


def strict(state: dict) -> dict:
    """Return a state as a client reads it; NaN and what is no JSON fail."""
    return json.loads(json.dumps(state, allow_nan=False))


def test_without_an_image_a_model_or_a_ledger_there_is_a_state(group):
    state = strict(state_of(group(0).parts()))
    assert (state["queue"], state["suspects"], state["duplicates"], state["ledger"]) == ([], [], [], [])
    assert (state["curve"]["points"], state["map"]["points"]) == ([], [])
    assert state["cases"]["images"] == 0
    assert state["stop"]["stop"] is False
    assert "no trained version" in state["warnings"][0]


def test_the_queue_has_reasons_and_pictures_where_they_are_asked_for(group):
    found = group()
    parts = found.parts(ready=lambda path: path.name.startswith("case_01"))
    state = strict(state_of(parts))
    assert [each["id"] for each in state["queue"]] == ["case_00", "case_01", "case_02"]
    assert [each["ready"] for each in state["queue"]] == [False, True, False]
    assert state["queue"][0] == {
        "id": "case_00",
        "rank": 1,
        "reason": "unlike any labelled case",
        "score": 0.5,
        "monitor": False,
        "ready": False,
        "thumbnail": None,
    }
    pictured = state_of(replace(parts, thumbnails=True))
    assert pictured["queue"][0]["thumbnail"].startswith("data:image/png;base64,")


def test_the_map_shows_what_is_labelled_taken_queued_and_suspect(group):
    found = group()
    for index in range(5, 12):
        found.label(f"case_{index:02d}")
    held_out = {f"case_{index:02d}": {"near": 0.05 if index == 11 else 0.9, "far": 0.9} for index in range(5, 12)}
    later = datetime.fromtimestamp(time.time() + 60, timezone.utc).isoformat()
    found.train(scores=held_out, judged_by="validation", cases={"train": {}}, created=later)
    found.score()
    found.leases.take(Choice("case_04", "near the border"), 1, Asking("berta", "auto"), found.leases.standing())
    state = strict(state_of(found.parts()))
    kinds = {point["id"]: point["kind"] for point in state["map"]["points"]}
    assert kinds["case_11"] == "suspect"
    assert kinds["case_04"] == "taken"
    assert kinds["case_00"] == kinds["case_02"] == "queued"
    assert kinds["case_03"] == "unlabelled"
    assert kinds["case_05"] == "labelled"
    assert [each["image"] for each in state["suspects"]] == ["case_11"]
    assert [each["image"] for each in state["leases"]] == ["case_04"]
    assert state["map"]["by"] == "version 1"


def test_the_curve_and_the_random_cases_come_from_versions_and_ledger(group):
    found = group()
    for image, monitor in (("case_00", True), ("case_01", False)):
        choice = Choice(image, "drawn at random", monitor=monitor)
        found.leases.take(choice, 1, Asking("berta", "auto", "tiny", 1), found.leases.standing())
        found.label(image, "somebody else")
        found.compare(image, 0.8, version=1)
    found.label("case_00", "berta", size=4)
    found.compare("case_00", 1.0, version=2)  # which has learnt from it
    held_out = {f"held_{index}": {"near": 0.7, "far": 0.9} for index in range(4)}
    found.train(scores=held_out, judged_by="validation", cases={"train": {"case_00": "key"}})
    state = strict(state_of(found.parts()))
    (point,) = state["curve"]["points"]
    assert (point["labels"], point["score"], point["version"]) == (1, pytest.approx(0.8), 1)
    assert [(each["version"], each["dice"], each["cases"]) for each in state["curve"]["monitor"]] == [(1, 0.8, 1)]
    assert "1 random case corrected" in state["stop"]["reasons"][2]["sentence"]


def test_images_that_are_there_twice_and_two_annotators_are_named(group):
    found = group()
    first = found.store.files_at_hand()["case_00"]
    first.with_name("copy.nii.gz").write_bytes(first.read_bytes())
    found.store._reconcile_datastore()
    found.label("case_05", "anna", 3)
    found.label("case_05", "berta", 4)
    found.train()
    found.score({"case_00": np.arange(8) % 3, "copy": np.arange(8) % 3})
    state = strict(state_of(found.parts()))
    assert [each["images"] for each in state["duplicates"]] == [["case_00", "copy"]]
    assert state["duplicates"][0]["across_patients"] is False
    (pair,) = state["agreement"]["pairs"]
    assert (pair["image"], pair["annotators"]) == ("case_05", ["anna", "berta"])
    assert pair["by_label"]["far"] == 1.0
    assert pair["by_label"]["near"] == pytest.approx(2 * 3 / 7)


def test_a_versions_mean_of_the_pool_is_kept_once_all_images_are_scored(group):
    found = group()
    found.label("case_00")
    found.train()
    state_of(found.parts())
    assert pool_means.pool_means(found.database, "tiny") == []
    found.score()
    state_of(found.parts())
    expected = PoolMean(1, pytest.approx(np.mean([0.01 * index for index in range(1, 12)])), 11)
    assert pool_means.pool_means(found.database, "tiny") == [expected]
    found.label("case_11")
    state_of(found.parts())
    assert pool_means.pool_means(found.database, "tiny") == [expected]


def test_scores_of_an_earlier_version_are_no_mean_of_the_pool(group):
    found = group()
    known = Known({"case_00": CaseScores({"margin": 0.5}, {}, np.zeros(2, np.float32), 1)}, version=1)
    for stale in (replace(known, stale=True), replace(known, missing=("case_01",)), Known()):
        note_pool_mean(found.database, "tiny", stale, ["case_00"])
    assert pool_means.pool_means(found.database, "tiny") == []


def test_an_image_that_could_not_be_scored_is_not_counted_as_scored(group):
    found = group(2)
    version = Checkpoints(found.config).publish(build_network(found.config), {})
    scores_of = CaseScores({"margin": 0.5}, {}, np.zeros(2, np.float32), 1)
    found.source.scores.put(Path(found.store.get_image_uri("case_00")), scores_of, weights_of(version))
    found.source.scores.put_failure(Path(found.store.get_image_uri("case_01")), "too large", weights_of(version), 1)
    scoring = state_of(found.parts())["scoring"]
    assert (scoring["scored"], scoring["failed"], scoring["of"]) == (1, 1, 2)


def test_where_every_case_has_a_label_nobody_is_told_to_go_on(group):
    found = group(2)
    found.label("case_00")
    found.label("case_01")
    assert state_of(found.parts())["stop"]["sentence"] == "Every case has a label: 2 of 2."


def test_numbers_that_json_has_not_are_null():
    assert plain_json({"a": float("nan"), "b": [np.float32("inf"), np.int64(3)], 4: (Path("x"), True)}) == {
        "a": None,
        "b": [None, 3],
        "4": ["x", True],
    }


def test_two_thousand_cases_take_a_moment(group):
    found = group(3)
    rng = np.random.default_rng(0)
    images = [f"image_{index:04d}" for index in range(2000)]
    many = {
        image: CaseScores(dict.fromkeys(SCORES, 0.1), {}, rng.normal(size=256).astype(np.float32), 1)
        for image in images
    }
    gathered = found.source.gather()
    parts = found.parts()
    files = {image: parts.gathered.files["case_00"] for image in images}
    pool = replace(gathered.pool, candidates=images, scores=many)
    crowd = replace(gathered, pool=pool, files=files, known=Known(many, 1), unlabelled=set(images))
    parts = replace(parts, gathered=crowd, choices=[])
    state_of(parts)
    began = time.perf_counter()
    state = state_of(parts)
    assert len(state["map"]["points"]) == 2000
    assert time.perf_counter() - began < 5


@pytest.fixture
def pictures(tmp_path):
    """A group that classifies: 24 pictures with a class each, of which the first has a wrong one."""
    config = classifier()
    group = Group(tmp_path, config, 0)
    group.store = StudyStore(tmp_path / "studies", known_classes=config.labels, rounds_tag=CLASSES)
    truth = {f"picture_{index:02d}": CLASSES_OF_BLOBS[index % 2] for index in range(24)}
    for index, name in enumerate(truth):
        picture(tmp_path / "studies", name, seed=index, blob=bool(index % 2))
    group.store._reconcile_datastore()
    given = {**truth, "picture_00": CLASSES_OF_BLOBS[1]}
    group.store.save_classes({image: class_label([name], False, "test") for image, name in given.items()})
    group.source = PoolSource(config, group.store, group.database, group.leases)
    return group, truth


def test_a_wrong_class_is_named_by_a_version_that_did_not_learn_from_it(pictures):
    group, truth = pictures
    group.train(cases={"train": {"picture_23": "key"}})
    version = Checkpoints(group.config).current()
    for image, path in group.store.files_at_hand().items():
        sure = {name: 0.9 if name == truth[image] else 0.1 for name in CLASSES_OF_BLOBS}
        found = CaseScores(dict.fromkeys(SCORES, 0.1), {"presence": sure}, np.ones(2, np.float32), version.number)
        group.source.scores.put(path, found, weights_of(version))
    (suspect,) = strict(state_of(group.parts()))["suspects"]
    assert (suspect["image"], suspect["label"]) == ("picture_00", "blob")
    assert "labelled blob (10%); a model says none (90%)" in suspect["reason"]


def test_wrong_predictions_of_a_classifier_are_no_suspects(pictures):
    group, truth = pictures
    later = datetime.fromtimestamp(time.time() + 60, timezone.utc).isoformat()
    scored = {image: {truth[image]: 0.1 if image == "picture_04" else 0.95} for image in list(truth)[1:]}
    right = {image: [0.9, 0.1] if name == "none" else [0.1, 0.9] for image, name in truth.items()}
    group.train(scores=scored, judged_by="validation", created=later, cases={"train": {}}, out_of_fold=right)
    state = strict(state_of(group.parts()))
    assert [each["image"] for each in state["suspects"]] == ["picture_00"]
    assert state["curve"]["measure"] == "Quadratic score"
