"""What readiness says: what is fit, what is not and why, and nothing confidential to who is not logged in."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from monailabel.config import settings as host_settings
from starlette.testclient import TestClient

from labelrounds import audit, health, problem, telemetry
from labelrounds.access import EVERYBODY, Caller
from labelrounds.ahead import Ahead
from labelrounds.audit import audit_log
from labelrounds.checkpoints import Checkpoints
from labelrounds.engine import Engine
from labelrounds.errors import OutOfSpace
from labelrounds.health import readiness
from labelrounds.networks import build_network
from labelrounds.pacs import Series
from labelrounds.pacs_lists import PacsLists
from labelrounds.settings import server_settings
from labelrounds.stopping import Stopping
from labelrounds.store import StudyStore

# isort: split
from fastapi import FastAPI


@pytest.fixture
def studies(tmp_path) -> Path:
    """A folder with an image of a patient whose name nobody may see."""
    folder = tmp_path / "studies-of-ward-7"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), folder / "MUELLER_HANS.nii.gz")
    return folder


@pytest.fixture
def open_store(studies):
    """Open the studies as a server does at its start."""
    opened = []

    def opening() -> StudyStore:
        opened.append(StudyStore(str(studies), known_labels=["near", "far"], auto_reload=False))
        return opened[-1]

    yield opening
    for store in opened:
        store.close()


@pytest.fixture
def app(config, open_store, studies, home, monkeypatch):
    """A server's app of one model that nobody has trained, and what surrounds it."""
    home.mkdir()
    found = SimpleNamespace(configs={"tiny": config}, engine=Engine(), store=open_store(), rounds=SimpleNamespace())
    found.datastore, found.ahead = (lambda: found.store), Ahead(lambda image: None)
    found.rounds.progress = lambda: {"tiny": {"scored": 3, "failed": 1, "of": 6}}
    for module in (health, telemetry):
        monkeypatch.setattr(module, "app_instance", lambda: found)
        monkeypatch.setattr(module, "stopping", Stopping())
    monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", str(studies))
    yield found
    found.engine.close()
    server_settings.cache_clear()


@pytest.fixture
def client(app):
    application = FastAPI()
    application.include_router(health.health)
    application.dependency_overrides[Caller.__metadata__[0].dependency] = lambda: EVERYBODY
    problem.install(application)
    with TestClient(application) as made:
        yield made


@pytest.fixture
def publish(config):
    return lambda: Checkpoints(config).publish(build_network(config), {})


def test_a_new_server_is_ready_with_a_model_that_is_not_trained(client):
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["status"], told["unfit"], told["degraded"]) == ("ready", [], [])
    assert told["models"] == {"tiny": {"ready": False, "reason": "not trained yet"}}
    assert told["store"] == {"ready": True, "images": 1, "warnings": [], "more": 0}
    assert set(told["disk_free_mb"]) == {"home", "studies"}
    assert told["queue"] == {"waiting": {}, "most": 16} and told["gpus"] == 0


def test_a_trained_model_is_told_with_its_version(client, publish):
    assert client.get("/health/ready/tiny").status_code == 503
    publish()
    publish()
    assert client.get("/health/ready").json()["models"] == {"tiny": {"ready": True, "version": 2}}
    assert client.get("/health/ready/tiny").json() == {"model": "tiny", "ready": True, "version": 2}
    assert client.get("/health/ready/nope").status_code == 404


def _cut(version) -> None:
    version.weights.write_bytes(version.weights.read_bytes()[:-10])


DAMAGE = {
    "cut": (_cut, "damaged", "cannot be read"),
    "gone": (lambda version: version.weights.unlink(), "damaged", "cannot be read"),
    "pointer": (lambda version: (version.weights.parents[2] / "current.json").write_text("{"), "damaged", "is damaged"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_model_is_told_to_anybody_and_the_reason_to_who_is_logged_in(client, publish, home, how):
    damage, reason, words = DAMAGE[how]
    damage(publish())
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.headers["retry-after"]  # no model is left that could be asked
    assert answer.json()["unfit"] == ["models"]
    assert answer.json()["models"] == {"tiny": {"ready": False, "reason": reason}}
    assert str(home) not in answer.text
    (detail,) = client.get("/health/details").json()["reasons"]["models"]
    assert detail.startswith("tiny: ") and words in detail


def test_one_damaged_model_of_several_takes_no_other_out(app, client, publish, config):
    version = publish()
    app.configs["other"] = config.model_copy(update={"name": "other"})
    Checkpoints(app.configs["other"]).publish(build_network(config), {})
    _cut(version)
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["degraded"]) == ("degraded", ["models"])
    assert client.get("/health/ready/tiny").status_code == 503 and client.get("/health/ready/other").status_code == 200


def test_weights_for_another_configuration_are_told(app, client, publish, config):
    publish()
    app.configs["tiny"] = config.model_copy(update={"labels": ("near", "beyond")})
    assert client.get("/health/ready/tiny").json()["reason"] == "trained for another configuration"
    assert "beyond" in client.get("/health/details").json()["reasons"]["models"][0]


def test_a_torn_index_that_was_rebuilt_is_a_warning_that_anybody_sees(app, client, studies, open_store):
    """Reliability 19: the part of readiness."""
    index = next(studies.glob("datastore*.json"))
    index.write_bytes(index.read_bytes()[:25])
    app.store = open_store()
    answer = client.get("/health/ready")
    told = answer.json()
    assert answer.status_code == 200 and told["status"] == "degraded" and told["degraded"] == ["store"]
    assert "the index was torn" in told["store"]["warnings"][0] and told["store"]["images"] == 1
    assert str(studies) not in answer.text


def test_a_name_is_shown_to_nobody_who_is_not_logged_in(app, client):
    app.store.warnings.append("'MUELLER_HANS.nrrd' is left out: 'MUELLER_HANS.nii.gz' has the same id")
    answer = client.get("/health/ready")
    assert answer.json()["store"]["more"] == 1 and "MUELLER" not in answer.text
    assert "MUELLER" in client.get("/health/details").text


def test_studies_that_cant_be_listed_make_it_unfit(app, client, studies):
    def fails() -> list[str]:
        raise OSError(5, "Input/output error", str(studies))

    app.store = SimpleNamespace(list_images=fails)
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.json()["unfit"] == ["store"]
    assert str(studies) not in answer.text


def test_studies_that_have_gone_make_it_unfit(client, studies):
    studies.rename(studies.with_name("elsewhere"))
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.json()["unfit"] == ["store", "disk"]
    assert str(studies) not in answer.text
    assert set(client.get("/health/details").json()["reasons"]) == {"store", "disk"}


def test_a_dicomweb_server_is_not_asked_at_each_look(app, client, tmp_path, monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_STUDIES", "http://pacs/dicom-web")
    asked = []
    pacs = SimpleNamespace(search=lambda of: asked.append(1) or [Series("1.2.3", "1.2"), Series("1.2.4", "1.2")])
    app.store = SimpleNamespace(list_images=PacsLists(pacs, {}, tmp_path, server_settings().pacs_list_s).images)
    told = [client.get("/health/ready").json() for _ in range(3)]
    assert len(asked) == 1 and [one["store"]["images"] for one in told] == [2, 2, 2]
    assert set(told[0]["disk_free_mb"]) == {"home"}


def test_a_disk_that_does_not_answer_makes_it_unfit_in_time(app, client, monkeypatch):
    monkeypatch.setattr(health, "_PATIENCE_S", 0.1)
    answers = threading.Event()
    app.store = SimpleNamespace(list_images=lambda: answers.wait(60) and [])
    answer = client.get("/health/ready")  # while the disk waits
    answers.set()
    assert answer.status_code == 503 and answer.json()["unfit"] == ["disk"]


def test_little_space_is_a_warning(client, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_LEAST_FREE_MB", str(10**12))
    server_settings.cache_clear()
    told = client.get("/health/ready").json()
    assert told["status"] == "degraded" and told["degraded"] == ["disk"]


@pytest.mark.parametrize(("required", "status"), [("false", 200), ("true", 503)])
def test_an_audit_log_that_cant_be_written_is_told(client, monkeypatch, required, status):
    monkeypatch.setenv("LABELROUNDS_AUDIT_REQUIRED", required)
    server_settings.cache_clear()
    monkeypatch.setattr(audit.os, "write", lambda *of: 0)
    with pytest.raises(OutOfSpace):
        audit_log().append({})
    answer = client.get("/health/ready")
    assert answer.status_code == status and answer.json()["audit"] == {"ready": False}


def test_a_server_that_is_ending_is_not_ready_and_lives(client, publish):
    publish()
    health.stopping.begin()
    answer = client.get("/health/ready")
    assert answer.status_code == 503 and answer.json()["unfit"] == ["stopping"] and answer.json()["stopping"]
    assert client.get("/health/ready/tiny").status_code == 503
    assert client.get("/health/live").json() == {"status": "live"}


def test_figures_tell_of_models_queue_and_scoring(app, publish):
    publish()
    app.engine.worker("cpu")
    telemetry.inference_done("tiny", {"latencies": {"segment": 0.2}, "device": "cpu", "cached": "nothing"})
    moved = {"latencies": {}, "device": "cpu", "cached": "nothing", "note": "out of memory on cuda:0: on the CPU"}
    telemetry.inference_done("tiny", moved)
    telemetry.training_done("tiny", "STOPPED")
    text = telemetry.generate_latest(telemetry.registry).decode()
    for line in (
        'labelrounds_model_versions{model="tiny"} 1.0',
        'labelrounds_model_served_version{model="tiny"} 1.0',
        'labelrounds_queue_length{device="cpu"} 0.0',
        "labelrounds_ahead_length 0.0",
        'labelrounds_scoring_images{model="tiny",state="left"} 2.0',
        'labelrounds_trainings_total{model="tiny",outcome="stopped"} 1.0',
        'labelrounds_inference_stage_seconds_bucket{le="0.25",model="tiny",stage="segment"} 1.0',
        'labelrounds_inferences_total{cached="nothing",device="cpu",model="tiny",out_of_memory="yes"} 1.0',
        "labelrounds_stopping 0.0",
        "process_open_fds ",
        "process_resident_memory_bytes ",
    ):
        assert line in text, line


def test_a_figure_that_cant_be_looked_up_takes_no_other_with_it(app):
    app.rounds.progress = lambda: 1 / 0
    text = telemetry.generate_latest(telemetry.registry).decode()
    assert "labelrounds_scoring_images" not in text and "labelrounds_model_versions" in text


def test_readiness_costs_little(app, publish):
    publish()
    readiness()
    since = time.process_time()
    for _ in range(10):
        json.dumps(readiness().shown)
    assert (time.process_time() - since) / 10 < 0.02
