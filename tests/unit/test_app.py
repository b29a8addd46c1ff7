"""What clients are shown of trainings, and what the host asks of the app by its clock."""

import io
import os
import time
from collections.abc import Iterator

import pytest

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import jobs
from labelrounds.app import LabelRoundsApp
from labelrounds.checkpoints import Checkpoints
from labelrounds.progress import Progress
from labelrounds.sessions import SessionStore

MODEL = "unet_phantom"


@pytest.fixture
def app(home, tmp_path, monkeypatch) -> Iterator[LabelRoundsApp]:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    monkeypatch.setattr(jobs, "_queues", {})
    (tmp_path / "studies").mkdir()
    app = LabelRoundsApp(str(tmp_path / "app"), str(tmp_path / "studies"), {"models": MODEL})
    yield app
    app.close()


def bar(app: LabelRoundsApp) -> float:
    """Return what the bar of MONAI Label's own Slicer module shows of a training that it takes for running."""
    figures = next(iter(app.info()["train_stats"].values()))
    return 100 * (0 if figures.get("total_time") else figures["epoch"]) / figures["total_epochs"]


def test_the_bar_stays_full_where_a_training_ends_before_the_client_could_know(app):
    task = {"request": {"model": MODEL}, "status": "RUNNING", "began": time.time(), "details": []}
    queue = jobs.job_queue("train")
    queue.tasks.append(task)
    written = Progress(Checkpoints(app.configs[MODEL]))
    written.write(epoch=2, total_epochs=2, best_metric=0.5, started=time.time(), total_time="00:00:01")
    assert queue.tell(task)["status"] == "RUNNING"
    assert bar(app) == 100
    task |= {"status": "DONE", "ended": time.time()}
    assert bar(app) == 100
    assert queue.tell(task)["status"] == "DONE"
    assert bar(app) == 0


def test_the_hosts_clock_clears_away_what_the_server_before_has_left(app, tmp_path):
    before = SessionStore(tmp_path / "sessions", 3600)
    old, fresh = (before.add({"a.nii": io.BytesIO(b"a")}) for _ in range(2))
    long_ago = time.time() - 2 * 3600
    os.utime(old.image.parent / "meta.info", (long_ago, long_ago))
    app.cleanup_sessions()
    assert not old.image.exists() and fresh.image.is_file()
