"""The pool is scored in the background: candidates first, never in a user's way, and no fault of an image ends it."""

import threading
import time

import nibabel as nib
import numpy as np
import pytest
import torch

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import cold, pool_scoring, scores
from labelrounds.checkpoints import Checkpoints
from labelrounds.cold import ColdStore
from labelrounds.database import Database
from labelrounds.engine import Engine
from labelrounds.errors import OutOfSpace, TooLarge
from labelrounds.networks import build_network
from labelrounds.pool_scoring import PoolScoring
from labelrounds.scores import ScoreStore
from labelrounds.scoring import Scorer

PATIENCE_S = 60
CPU = torch.device("cpu")


@pytest.fixture
def config(make_small):
    return make_small()


@pytest.fixture
def publish(config):
    return lambda: Checkpoints(config).publish(build_network(config), {})


@pytest.fixture
def images(tmp_path):
    rng, made = np.random.default_rng(0), {}
    for name in ("a", "b", "c", "d"):
        made[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(rng.normal(0, 1, (14, 12, 12)).astype(np.float32), np.eye(4)), made[name])
    return made


class Pool:
    """The parts that a server has."""

    def __init__(self, config, path):
        self.base = Database(path, scores.SCHEMA + cold.SCHEMA)
        self.store, self.cold = ScoreStore(self.base, config), ColdStore(self.base, config)
        self.engine, self.checkpoints = Engine(), Checkpoints(config)
        self.training = False
        self.scoring = PoolScoring(
            config, self.engine, self.store, self.cold, lambda: [CPU], training=lambda: self.training
        )

    def known(self, images):
        return self.store.known(images, self.checkpoints)

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.scoring.progress()
            time.sleep(0.01)

    def until_done(self):
        self.until(lambda: (progress := self.scoring.progress())["eta_s"] == 0 and not progress["running"])


@pytest.fixture
def pool(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_scoring, "_POLL_S", 0.05)
    monkeypatch.setattr(pool_scoring, "_PAUSE_S", 0.2)
    made = Pool(config, tmp_path / "rounds.sqlite")
    yield made
    made.scoring.close()
    made.engine.close()


@pytest.fixture
def order(monkeypatch):
    """The images in the order in which they were scored, and by which version."""
    seen, score = [], Scorer.score_prepared
    names, read = {}, Scorer.read

    def noted_read(self, path):
        prepared = read(self, path)
        names[prepared.identity] = path.name[0]
        return prepared

    def noted(self, prepared, *arguments):
        found = score(self, prepared, *arguments)
        seen.append((names[prepared.identity], self.version.number))
        return found

    monkeypatch.setattr(Scorer, "read", noted_read)
    monkeypatch.setattr(Scorer, "score_prepared", noted)
    return seen


def test_each_image_is_scored_once_in_the_order_in_which_it_is_wanted(pool, publish, images, order):
    publish()
    assert pool.scoring.progress()["scored"] == 0
    pool.scoring.wanted({name: images[name] for name in "cadb"})
    pool.until_done()
    assert [name for name, _ in order] == list("cadb")
    expected = {"scored": 4, "of": 4, "failed": 0, "version": 1, "eta_s": 0, "running": False, "note": ""}
    assert pool.scoring.progress() == expected
    pool.scoring.wanted(images)
    time.sleep(0.3)
    assert len(order) == 4 and pool.known(images).missing == ()


def test_where_nothing_is_left_to_score_it_rests_without_a_fault(pool, publish, images, order, caplog):
    publish()
    for wanted in ({}, images, images, {}):  # none is wanted, and all are scored
        pool.scoring.wanted(wanted)
        time.sleep(0.3)
        pool.until_done()
        assert pool.scoring.progress()["note"] == ""
    assert len(order) == 4 and not [record for record in caplog.records if record.exc_info]


def test_scores_are_those_that_the_scorer_gives(pool, publish, images, config):
    publish()
    pool.scoring.wanted(images, ["tta"])
    pool.until_done()
    known = pool.known(images).scores
    assert known.keys() == images.keys()
    for name, found in known.items():
        expected = Scorer(config).score(images[name], CPU, ["tta"])
        assert found.values == pytest.approx(expected.values)
        assert found.embedding == pytest.approx(expected.embedding)


def test_a_costly_score_that_is_wanted_later_is_computed_then_and_one_that_can_not_be_is_not_waited_for(
    pool, publish, images, order
):
    publish()
    pool.scoring.wanted(images)
    pool.until_done()
    pool.scoring.wanted(images, ["tta", "committee"])
    pool.until(lambda: len(order) == 8)
    pool.until_done()
    assert all(
        "tta" in found.values and "committee" not in found.values for found in pool.known(images).scores.values()
    )
    time.sleep(0.3)
    assert len(order) == 8


def test_a_new_version_is_noticed_and_all_is_scored_by_it(pool, publish, images, order):
    publish()
    pool.scoring.wanted(images)
    pool.until_done()
    publish()
    pool.until(lambda: pool.known(images).version == 2)
    assert order == [(name, 1) for name in "abcd"] + [(name, 2) for name in "abcd"]


def test_a_changed_image_is_scored_again_when_it_is_woken_and_no_other_one(pool, publish, images, order):
    publish()
    pool.scoring.wanted(images)
    pool.until_done()
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)), images["b"])
    assert pool.known(images).missing == ("b",)
    pool.scoring.wake()
    pool.until(lambda: not pool.known(images).missing)
    assert [name for name, _ in order] == list("abcdb")


def test_an_image_that_can_not_be_used_is_noted_skipped_and_tried_again_when_it_has_changed(
    pool, publish, images, tmp_path
):
    publish()
    bad, gone = tmp_path / "bad.nii.gz", tmp_path / "gone.nii.gz"
    bad.write_bytes(images["a"].read_bytes()[:300])
    wanted = {"bad": bad, "gone": gone, **images}
    pool.scoring.wanted(wanted)
    pool.until_done()
    known = pool.known(wanted)
    assert known.scores.keys() == images.keys() and known.failed.keys() == {"bad", "gone"}
    assert "bad.nii.gz" in known.failed["bad"] and "gone.nii.gz" in known.failed["gone"]
    assert pool.scoring.progress()["failed"] == 2
    bad.write_bytes(images["a"].read_bytes())
    pool.scoring.wake()
    pool.until(lambda: "bad" in pool.known(wanted).scores)


def test_a_fault_of_ours_is_noted_as_the_images_and_the_next_one_is_scored(pool, publish, images, monkeypatch, caplog):
    score = Scorer.score_prepared

    def faulty(self, prepared, *arguments):
        if not raised:
            raised.append(1)
            raise ZeroDivisionError("one")
        return score(self, prepared, *arguments)

    raised = []
    monkeypatch.setattr(Scorer, "score_prepared", faulty)
    publish()
    pool.scoring.wanted(images)
    pool.until_done()
    known = pool.known(images)
    assert known.failed == {"a": "a.nii.gz: ZeroDivisionError: one"} and len(known.scores) == 3
    assert "Not scored: a.nii.gz" in caplog.text


def test_a_user_is_not_waited_for_twice_and_what_is_broken_off_is_taken_up_again(pool, publish, images, monkeypatch):
    score, begun, stops = Scorer.score_prepared, threading.Event(), []

    def slow(self, prepared, device, costly, stopped):
        begun.set()
        deadline = time.monotonic() + (PATIENCE_S if not stops else 0)
        while time.monotonic() < deadline and not stopped():
            time.sleep(0.005)
        stops.append(stopped())
        return score(self, prepared, device, costly, stopped)

    monkeypatch.setattr(Scorer, "score_prepared", slow)
    publish()
    pool.scoring.wanted(images)
    assert begun.wait(PATIENCE_S)
    since = time.monotonic()
    with pool.engine.place({CPU: "a user's"}, "another image") as place:
        assert place.compute(lambda stopped: "answer") == "answer"
        assert time.monotonic() - since < 5
        before = len(stops)
        time.sleep(0.2)
        assert len(stops) == before  # nothing is computed while a user has a place
    pool.until_done()
    assert stops[0] and not any(stops[1:]) and len(stops) == 5
    assert pool.known(images).scores.keys() == images.keys()


def test_a_full_disk_pauses_it_and_is_told_and_nothing_is_computed_twice(pool, publish, images, order, monkeypatch):
    put, full = ScoreStore.put, threading.Event()

    def refused(self, *arguments):
        if full.is_set():
            raise OutOfSpace("rounds.sqlite: not written, the disk is full; free some space first")
        put(self, *arguments)

    full.set()
    monkeypatch.setattr(ScoreStore, "put", refused)
    publish()
    pool.scoring.wanted(images)
    pool.until(lambda: "the disk is full" in pool.scoring.progress()["note"])
    assert pool.scoring.progress()["note"].startswith("paused: rounds.sqlite: not written")
    full.clear()
    pool.until_done()
    assert [name for name, _ in order] == list("abcd") and pool.scoring.progress()["note"] == ""


def test_a_database_that_can_not_be_read_pauses_it(pool, publish, images, monkeypatch):
    known, broken = ScoreStore.known, threading.Event()

    def refused(self, *arguments):
        if broken.is_set():
            raise OutOfSpace("rounds.sqlite: disk I/O error")
        return known(self, *arguments)

    broken.set()
    monkeypatch.setattr(ScoreStore, "known", refused)
    publish()
    pool.scoring.wanted(images)
    pool.until(lambda: pool.scoring.progress()["note"] == "paused: rounds.sqlite: disk I/O error")
    broken.clear()
    pool.until_done()
    assert pool.scoring.progress()["scored"] == 4


def test_without_a_version_images_are_embedded_without_a_model_until_there_is_one(pool, publish, images, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"nonsense")
    wanted = {**images, "bad": tmp_path / "bad.nii.gz"}
    pool.scoring.wanted(wanted)
    pool.until_done()
    found, failed = pool.cold.known(wanted)
    assert found.keys() == images.keys() and failed.keys() == {"bad"}
    progress = pool.scoring.progress()
    assert (progress["scored"], progress["failed"], progress["version"]) == (4, 1, None)
    assert progress["note"] == "there is no trained version yet"
    publish()
    pool.until(lambda: len(pool.known(wanted).scores) == 4)
    pool.until(lambda: pool.scoring.progress()["version"] == 1)
    assert pool.scoring.progress()["note"] == ""


def test_with_a_version_images_are_embedded_without_it_only_where_that_is_wanted(pool, publish, images):
    publish()
    pool.scoring.wanted(images)
    pool.until_done()
    assert pool.cold.known(images) == ({}, {})
    pool.scoring.wanted(images, cold_too=True)
    pool.until(lambda: pool.cold.known(images)[0].keys() == images.keys())


def test_where_the_memory_does_not_suffice_for_costly_scores_the_others_are_kept(pool, publish, images, monkeypatch):
    asked, score = [], Scorer.score_prepared

    def scarce(self, prepared, device, costly, stopped):
        asked.append(tuple(costly))
        if costly:
            raise TooLarge("no memory for five passes")
        return score(self, prepared, device, costly, stopped)

    monkeypatch.setattr(Scorer, "score_prepared", scarce)
    publish()
    pool.scoring.wanted({"a": images["a"]}, ["epistemic"])
    pool.until_done()
    time.sleep(0.3)
    assert asked == [("epistemic",), ()]
    pool.scoring.wake()
    time.sleep(0.3)
    assert len(asked) == 2 and pool.known(images).scores.keys() == {"a"}


def test_closing_ends_it_within_seconds_while_it_computes_and_while_it_waits(pool, publish, images, monkeypatch):
    begun = threading.Event()

    def endless(self, prepared, device, costly, stopped):
        begun.set()
        while not stopped():
            time.sleep(0.005)
        raise pool_scoring.Cancelled("stopped")

    monkeypatch.setattr(Scorer, "score_prepared", endless)
    publish()
    pool.scoring.wanted(images)
    assert begun.wait(PATIENCE_S)
    since = time.monotonic()
    pool.scoring.close()
    assert time.monotonic() - since < 3 and not pool.scoring._thread.is_alive()
    assert pool.known(images).scores == {} and pool.known(images).failed == {}
    pool.scoring.wanted(images)  # of no effect any more


def test_closing_what_never_began_is_no_error(pool):
    pool.scoring.close()
    assert pool.scoring._thread is None


def test_nothing_is_scored_while_a_training_runs(pool, images, publish):
    publish()
    pool.training = True
    pool.scoring.wanted(images)
    pool.until(lambda: pool.scoring.progress()["note"] == "paused: a training runs")
    time.sleep(0.3)
    assert not pool.known(images).scores
    pool.training = False
    pool.until_done()
    assert set(pool.known(images).scores) == set(images)
    assert pool.scoring.progress()["note"] == ""


def test_what_is_scored_when_a_training_begins_is_scored_after_it(pool, images, publish, monkeypatch):
    publish()
    score = Scorer.score_prepared
    broken_off = []

    def begun(self, prepared, device, costly, stopped):
        if not broken_off:
            pool.training = True
            broken_off.append(stopped())
        return score(self, prepared, device, costly, stopped)

    monkeypatch.setattr(Scorer, "score_prepared", begun)
    pool.scoring.wanted(images)
    pool.until(lambda: pool.scoring.progress()["note"] == "paused: a training runs")
    assert broken_off == [True] and not pool.known(images).scores
    pool.training = False
    pool.until_done()
    assert set(pool.known(images).scores) == set(images)
