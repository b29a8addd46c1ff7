"""Scores are kept for as long as image, preparation and weights are the same, and known in no time."""

import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest

from labelrounds import cold
from labelrounds.checkpoints import Checkpoints
from labelrounds.database import Database
from labelrounds.memory_cache import identity_of
from labelrounds.networks import build_network
from labelrounds.scores import SCHEMA, SCORES, CaseScores, ScoreStore, preparation_of, weights_of

POOL = 2000
BOUND_S = 0.060  # of the thread's own time, as others may have the machine's cores


def scores_of(margin: float = 0.5, version: int = 1, **values: float) -> CaseScores:
    by_label = {measure: {"near": 1.5, "far": 0.25} for measure in ("entropy", "presence", "volume_ml", "components")}
    embedding = np.arange(4, dtype=np.float32) + np.float32(margin)
    return CaseScores({**dict.fromkeys(SCORES, 0.5), "margin": margin, **values}, by_label, embedding, version)


@pytest.fixture
def config(make_small):
    return make_small()


@pytest.fixture
def publish(config):
    """Publish a version, and return the hash of its weights."""
    return lambda: weights_of(Checkpoints(config).publish(build_network(config), {}))


@pytest.fixture
def checkpoints(config):
    return Checkpoints(config)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rounds.sqlite"


@pytest.fixture
def store(path, config):
    return ScoreStore(Database(path, SCHEMA), config)


@pytest.fixture
def images(tmp_path):
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("a", "b", "c")}
    for name, file in files.items():
        file.write_text(name)
    return files


def test_what_is_put_in_is_known_as_it_was(store, config, checkpoints, publish, images, path):
    weights, given = publish(), scores_of(0.25, tta=0.125)
    store.put(images["a"], given, weights)
    for one in (store, ScoreStore(Database(path, SCHEMA), config)):
        known = one.known(images, checkpoints)
        found = known.scores["a"]
        assert (found.values, found.by_label, found.version) == (given.values, given.by_label, 1)
        assert found.embedding.dtype == np.float32 and np.array_equal(found.embedding, given.embedding)
        assert (known.version, known.stale, known.missing, known.failed) == (1, False, ("b", "c"), {})


def test_an_embedding_is_kept_as_the_raw_bytes_of_its_numbers(store, publish, images, path):
    store.put(images["a"], scores_of(0.5), publish())
    with Database(path, SCHEMA).reading() as connection:
        row = connection.execute("SELECT embedding, content FROM scores").fetchone()
    assert np.frombuffer(row["embedding"], "<f4").tolist() == [0.5, 1.5, 2.5, 3.5]
    assert row["content"].startswith('{"values"')


def test_without_a_version_all_is_missing(store, checkpoints, images):
    known = store.known(images, checkpoints)
    assert (known.scores, known.version, known.stale, known.missing) == ({}, None, False, ("a", "b", "c"))


def test_a_changed_image_is_missing_and_no_other_one(store, checkpoints, publish, images, path):
    weights = publish()
    for file in images.values():
        store.put(file, scores_of(), weights)
    images["b"].write_text("other")
    known = store.known(images, checkpoints)
    assert list(known.scores) == ["a", "c"] and known.missing == ("b",)
    store.put(images["b"], scores_of(0.75), weights)
    assert store.known(images, checkpoints).scores["b"].values["margin"] == 0.75
    with Database(path, SCHEMA).reading() as connection:
        assert connection.execute("SELECT COUNT(*) FROM scores").fetchone()[0] == 3
    images["c"].unlink()
    assert store.known(images, checkpoints).missing == ("c",)


def test_scores_of_a_file_that_changed_while_it_was_scored_are_not_taken_for_the_new_ones(
    store, checkpoints, publish, images
):
    before = identity_of(images["a"])
    images["a"].write_text("other")
    store.put(images["a"], scores_of(), publish(), before)
    assert "a" in store.known(images, checkpoints).missing


def test_while_a_new_version_is_being_scored_the_last_ones_scores_serve(store, checkpoints, publish, images):
    first = publish()
    for file in images.values():
        store.put(file, scores_of(0.1), first)
    second = publish()
    known = store.known(images, checkpoints)
    assert known.stale and known.version == 1 and known.missing == ("a", "b", "c") and len(known.scores) == 3
    for name in ("a", "b"):
        store.put(images[name], scores_of(0.9, 2), second)
    known = store.known(images, checkpoints)
    assert known.stale and known.missing == ("c",)
    assert {scores.version for scores in known.scores.values()} == {1}  # of two they could not be compared
    store.put(images["c"], scores_of(0.9, 2), second)
    known = store.known(images, checkpoints)
    assert (known.stale, known.version, known.missing) == (False, 2, ())
    assert {scores.values["margin"] for scores in known.scores.values()} == {0.9}


def test_an_image_that_only_the_new_version_could_not_score_does_not_keep_the_last_one_serving(
    store, checkpoints, publish, images
):
    first = publish()
    for file in images.values():
        store.put(file, scores_of(), first)
    second = publish()
    for name in ("a", "b"):
        store.put_failure(images[name], "too large", second, 2)
        assert store.known(images, checkpoints).stale
    store.put(images["c"], scores_of(version=2), second)
    known = store.known(images, checkpoints)
    assert (known.stale, known.version, list(known.scores), list(known.failed)) == (False, 2, ["c"], ["a", "b"])


def test_a_new_image_does_not_bring_the_last_version_back(store, checkpoints, publish, images, tmp_path):
    first, second = publish(), publish()
    for version, weights in enumerate((first, second), start=1):
        for file in images.values():
            store.put(file, scores_of(version=version), weights)
    new = tmp_path / "d.nii.gz"
    new.write_text("d")
    known = store.known({**images, "d": new}, checkpoints)
    assert (known.stale, known.version, known.missing) == (False, 2, ("d",))


def test_after_a_rollback_the_older_versions_scores_serve_without_being_computed_again(
    store, checkpoints, publish, images
):
    for version, weights in enumerate((publish(), publish()), start=1):
        for file in images.values():
            store.put(file, scores_of(version=version), weights)
    checkpoints.rollback()
    known = store.known(images, checkpoints)
    assert (known.stale, known.version, known.missing) == (False, 1, ())


def test_scores_of_versions_older_than_the_last_two_are_forgotten(store, config, checkpoints, publish, images, path):
    other = ScoreStore(Database(path, SCHEMA), config)
    for version in range(1, 5):
        weights = publish()
        store.put(images["a"], scores_of(version=version), weights)
        assert other.known(images, checkpoints).scores["a"].version == version
    with Database(path, SCHEMA).reading() as connection:
        versions = [row["version"] for row in connection.execute("SELECT version FROM scores ORDER BY id")]
    assert versions == [3, 4]
    assert len(store._rows) <= 2 and len(other._rows) == 2


def test_another_model_and_another_preparation_have_scores_of_their_own(
    store, config, checkpoints, publish, images, path
):
    weights = publish()
    store.put(images["a"], scores_of(), weights)
    for changes in ({"name": "other"}, {"spacing_mm": (2.0, 2.0, 2.0)}, {"inference": replace_overlap(config)}):
        other = config.model_copy(update=changes)
        assert ScoreStore(Database(path, SCHEMA), other).known(images, checkpoints).scores == {}
    assert store.known(images, checkpoints).scores


def replace_overlap(config):
    return config.inference.model_copy(update={"overlap": 0.75})


def test_what_changes_no_score_changes_no_preparation(config):
    training = config.training.model_copy(update={"epochs": 77})
    changed = config.model_copy(update={"description": "another", "training": training})
    assert preparation_of(changed) == preparation_of(config)


def test_costly_scores_that_were_kept_stay_when_the_image_is_scored_without_them(store, checkpoints, publish, images):
    weights = publish()
    store.put(images["a"], scores_of(0.5, tta=0.25), weights)
    store.put(images["a"], scores_of(0.6, committee=0.75), weights)
    values = store.known(images, checkpoints).scores["a"].values
    assert (values["margin"], values["tta"], values["committee"]) == (0.6, 0.25, 0.75)


def test_a_failure_is_kept_until_the_file_changes_or_another_version_is_served(store, checkpoints, publish, images):
    weights = publish()
    store.put_failure(images["a"], "a.nii.gz: cut off", weights, 1)
    known = store.known(images, checkpoints)
    assert known.failed == {"a": "a.nii.gz: cut off"} and known.missing == ("b", "c") and not known.scores
    images["a"].write_text("mended")
    assert store.known(images, checkpoints).missing == ("a", "b", "c")
    store.put_failure(images["a"], "again", weights, 1)
    publish()
    known = store.known(images, checkpoints)
    assert known.failed == {} and known.missing == ("a", "b", "c")


def test_a_failure_does_not_replace_scores(store, checkpoints, publish, images):
    weights = publish()
    store.put(images["a"], scores_of(), weights)
    store.put_failure(images["a"], "too large for tta", weights, 1)
    assert "a" in store.known(images, checkpoints).scores


def test_a_file_of_a_series_that_is_changed_in_place_is_seen_when_it_is_looked_at_again(
    store, checkpoints, publish, tmp_path
):
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_text("one")
    weights, images = publish(), {"series": series}
    store.known(images, checkpoints)
    store.put(series, scores_of(), weights)
    assert store.known(images, checkpoints).missing == ()
    (series / "1.dcm").write_text("other")
    store.look_again(images)
    assert store.known(images, checkpoints).missing == ("series",)
    store.put(series, scores_of(), weights)
    (series / "2.dcm").write_text("two")
    assert store.known(images, checkpoints).missing == ("series",)


def test_a_child_process_shares_the_scores(store, config, checkpoints, publish, images, path):
    weights = publish()
    assert store.known(images, checkpoints).scores == {}
    script = f"""
        from pathlib import Path
        import numpy as np
        import labelrounds.host
        from labelrounds.config import ModelConfig
        from labelrounds.database import Database
        from labelrounds.scores import SCHEMA, CaseScores, ScoreStore
        config = ModelConfig.model_validate_json({config.model_dump_json()!r})
        store = ScoreStore(Database(Path({str(path)!r}), SCHEMA), config)
        scores = CaseScores({{"margin": 0.5}}, {{}}, np.ones(3, np.float32), 1)
        store.put(Path({str(images["b"])!r}), scores, {weights!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
    assert store.known(images, checkpoints).scores["b"].embedding.tolist() == [1, 1, 1]


def test_a_file_that_was_damaged_and_begun_anew_has_forgotten_what_memory_had(
    store, checkpoints, publish, images, path
):
    weights = publish()
    for file in images.values():
        store.put(file, scores_of(), weights)
    assert len(store.known(images, checkpoints).scores) == 3
    for file in path.parent.glob("rounds.sqlite*"):
        file.unlink()
    assert store.known(images, checkpoints).missing == ("a", "b", "c")
    store.put(images["b"], scores_of(), weights)
    assert list(store.known(images, checkpoints).scores) == ["b"]


def test_of_a_large_pool_all_is_known_at_once_also_while_it_is_being_scored(
    store, config, checkpoints, publish, tmp_path, path
):
    weights = publish()
    images = {f"case_{number:04d}": tmp_path / f"case_{number:04d}.nii.gz" for number in range(POOL)}
    for file in images.values():
        file.touch()
    scores = replace(scores_of(), embedding=np.ones(256, np.float32))
    first = next(iter(images.values()))
    store.put(first, scores, weights)
    base = Database(path, SCHEMA)
    with base.writing() as connection:
        row = dict(connection.execute("SELECT * FROM scores").fetchone())
        del row["id"]
        identities = {file: store._identities.of(file) for file in images.values()}
        rows = [{**row, "image": str(file), "identity": identity} for file, identity in identities.items()]
        names = ", ".join(row)
        connection.executemany(
            f"INSERT OR REPLACE INTO scores ({names}) VALUES ({', '.join(f':{name}' for name in row)})", rows
        )
    assert len(store.known(images, checkpoints).scores) == POOL
    seconds = []
    for _ in range(7):
        store.put(first, scores, weights)
        since = time.thread_time()
        known = store.known(images, checkpoints)
        seconds.append(time.thread_time() - since)
        assert len(known.scores) == POOL and known.missing == ()
    assert min(seconds) < BOUND_S


def test_two_kinds_of_tables_live_in_one_file(path, config, checkpoints, publish, images):
    base = Database(path, SCHEMA + cold.SCHEMA)
    cold.ColdStore(base, config).put(images["a"], np.ones(3, np.float32))
    ScoreStore(base, config).put(images["a"], scores_of(), publish())
    assert cold.ColdStore(base, config).known(images)[0].keys() == {"a"}
    assert ScoreStore(base, config).known(images, checkpoints).scores.keys() == {"a"}
