"""What the panel of LabelRounds' own Slicer extension shows of a server, and what its buttons ask of it."""

import pytest
from scripted_server import MODEL, ScriptedServer


@pytest.fixture
def server():
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def connected(open_extension, server):
    """Open Slicer and connect it to the server as it is now."""

    def connect():
        slicer = open_extension(server.url, model=MODEL)
        assert slicer.click("connectButton") == []
        return slicer

    return connect


VERSIONS = [
    {
        "version": 1,
        "created": "2026-11-01T10:00:00+00:00",
        "best_metric": 0.7,
        "by_label": {"liver": 0.7, "spleen": None},
    },
    {"version": 2, "best_metric": 0.9, "by_label": {"liver": 0.92, "spleen": 0.88}, "judged_on": "Judged on 3 cases"},
]


def test_versions_have_their_scores_and_an_older_one_is_served_again(connected, server):
    listed = {"model": MODEL, "served": 2, "measure": "F1", "versions": VERSIONS}
    server.answers[f"GET /model/{MODEL}/versions"] = listed
    server.answers[f"POST /model/{MODEL}/rollback"] = {"model": MODEL, "served": 1}
    slicer = connected()
    assert slicer.table("versionTable") == [
        ["2", "served", "0.90", "liver 0.92, spleen 0.88", "Judged on 3 cases", ""],
        ["1", "", "0.70", "liver 0.70, spleen -", "", "2026-11-01 10:00"],
    ]
    slicer.choose_row("versionTable", "2")
    assert not slicer.can_click("rollbackButton")
    slicer.choose_row("versionTable", "1")
    server.answers[f"GET /model/{MODEL}/versions"] = {**listed, "served": 1}
    (question,) = slicer.click("rollbackButton")
    assert question.kind == "question" and "Serve version 1 of unet" in question.text
    assert server.bodies(f"POST /model/{MODEL}/rollback") == [{"to": 1}]
    assert "Version 1 of unet is served" in slicer.text("statusLabel")
    assert [row[0] for row in slicer.table("versionTable") if row[1]] == ["1"]
    slicer.choose("modelBox", "other")
    slicer.wait()
    assert slicer.table("versionTable") == []


def test_only_an_admin_is_offered_a_rollback(connected, server):
    server.answers["GET /auth/token/valid"] = {"username": "ann", "role": "reviewer"}
    server.answers[f"GET /model/{MODEL}/versions"] = {"model": MODEL, "served": 2, "versions": VERSIONS}
    slicer = connected()
    slicer.choose_row("versionTable", "1")
    assert not slicer.can_click("rollbackButton")


def test_training_is_shown_with_its_time_left_and_each_labels_score(connected, server):
    progress = {
        "epoch": 3,
        "total_epochs": 40,
        "eta_s": 150,
        "best_metric": 0.8,
        "measure": "Dice",
        "measure_key": "dice",
    }
    progress |= {"stage": "training", "dice": {"liver": 0.91, "spleen": None}}
    server.answers["GET /train/"] = {"status": "RUNNING", "progress": progress}
    slicer = connected()
    assert slicer.text("trainLabel") == "Epoch 3 of 40. About 2 min left. Best Dice 0.80."
    assert slicer.table("trainTable") == [["liver", "0.91"], ["spleen", "-"]]
    assert slicer.toolbar()["texts"]["train"] == "Stop training"
    ended = {**progress, "status": "done", "message": "Published version 3."}
    server.answers["GET /train/"] = {"status": "DONE", "progress": ended, "details": []}
    slicer.wait_for_text("trainLabel", "The training has ended. Published version 3.")
    assert slicer.toolbar()["texts"]["train"] == "Train"
