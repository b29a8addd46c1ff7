"""What the panel of LabelRounds' own Slicer extension shows of a server, and what its buttons ask of it."""

import pytest
from scripted_server import MODEL, ScriptedServer

# A grey picture of one pixel.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


SHA = "5" * 64


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


def test_model_that_nobody_has_trained_is_listed_last_with_its_classes_and_can_be_trained(connected, server):
    server.answers["POST /train/new"] = {"status": "SUBMITTED", "progress": {"status": "waiting"}}
    slicer = connected()
    assert slicer.choices("modelBox") == [MODEL, "other", "new"] and slicer.choices("classBox") == []
    slicer.choose("modelBox", "new")
    assert slicer.choices("classBox") == ["slim", "stout"]
    assert slicer.tool("train") == []
    assert slicer.text("trainLabel") == "Waiting for another training."


def rounds(*images, **more):
    labels = [{"image": image, "user": "ann", "client": "", "time": 0, "sha256": SHA, "review": {}} for image in images]
    return {"labels": labels, "stop": {"sentence": "Go on."}, **more}


def test_next_cases_are_shown_with_pictures_and_their_reasons_once_somebody_looks(connected, server):
    queued = [{"rank": 1, "id": "a", "reason": "unlike the others", "thumbnail": PICTURE}]
    queued.append({"rank": 2, "id": "b", "reason": "unsure", "thumbnail": None})
    server.answers["GET /rounds/"] = rounds(queue=queued)
    slicer = connected()
    assert "GET /rounds/" not in [asked for asked, _, _ in server.asked]
    slicer.unfold("queueSection")
    assert slicer.queue() == [("1. a\nunlike the others", True), ("2. b\nunsure", False)]
    (query,) = [query for asked, query, _ in server.asked if asked == "GET /rounds/"]
    assert (query["model"], query["strategy"], query["thumbnails"]) == ([MODEL], ["auto"], ["true"])


def test_reviewer_sees_suspects_first_and_approves_or_sends_back_with_a_reason(connected, server):
    suspects = [{"image": "b", "reason": "Dice 0.10"}]
    server.answers["GET /rounds/"] = rounds("a", "b", suspects=suspects)
    server.answers["GET /datastore/"] = {"objects": {name: {"labels": {"final": {}}} for name in "ab"}}
    server.answers["POST /rounds/review"] = {}
    slicer = connected()
    slicer.unfold("reviewSection")
    assert slicer.table("labelTable") == [["b", "ann", "Look again: Dice 0.10", ""], ["a", "ann", "", ""]]
    assert slicer.text("adviceLabel") == "Go on." and not slicer.can_click("approveButton")
    slicer.choose_row("labelTable", "b")
    assert slicer.text("labelledBox") == "b"
    (warning,) = slicer.click("sendBackButton")
    assert "Say what is to be corrected" in warning.text and server.bodies("POST /rounds/review") == []
    slicer.type("reviewEdit", "no spleen")
    assert slicer.click("sendBackButton") == []
    slicer.choose_row("labelTable", "a")
    assert slicer.click("approveButton") == []
    assert {body["sha256"] for body in server.bodies("POST /rounds/review")} == {SHA}
    sent = [(body["image"], body["verdict"], body["reason"]) for body in server.bodies("POST /rounds/review")]
    assert sent == [("b", "sent_back", "no spleen"), ("a", "approved", "")]


def test_annotator_sees_who_labelled_what_but_reviews_nothing(connected, server):
    server.answers["GET /auth/token/valid"] = {"username": "ann", "role": "annotator"}
    server.answers["GET /rounds/"] = rounds("a")
    slicer = connected()
    slicer.unfold("reviewSection")
    slicer.choose_row("labelTable", "a")
    assert not slicer.can_click("approveButton") and not slicer.can_click("curveButton")


def test_budget_curve_is_a_plot_in_place_of_the_last_one(connected, server):
    points = [
        {"labels": 5, "score": 0.6, "low": 0.5, "high": 0.7},
        {"labels": 9, "score": 0.8, "low": 0.7, "high": 0.9},
    ]
    server.answers["GET /rounds/"] = rounds(curve={"measure": "Dice", "points": points})
    slicer = connected()
    slicer.unfold("reviewSection")
    slicer.click("curveButton")
    slicer.click("curveButton")
    (plot,) = slicer.plots()
    assert plot["Dice"] == ((5.0, 0.6), (9.0, 0.8)) and len(plot) == 3


def test_settings_page_and_panel_show_the_same_and_icons_take_the_texts_colour(open_extension, server):
    slicer = open_extension(server.url)
    slicer.tick("segment_next", True)
    assert slicer.is_ticked("segmentNextBox")
    assert len(slicer.icon_colours()) > 3
    slicer.tick("plain_icons", True)
    assert len(slicer.icon_colours()) == 1
    slicer.click("connectButton")  # while which Qt writes them down
    slicer.close()
    again = open_extension(server.url)
    assert again.is_ticked("segmentNextBox") and len(again.icon_colours()) == 1
    again.tick("plain_icons", False)
    assert len(again.icon_colours()) > 3


def test_panel_speaks_slicers_language(open_extension, nobody_there):
    german = {"language": "de_DE", "Internationalization/Enabled": "true"}
    slicer = open_extension(nobody_there, **german)
    assert slicer.text("statusLabel") == "Noch nicht verbunden." and slicer.text("segmentButton") == "Segmentieren"
    assert slicer.toolbar()["texts"]["next"] == "N\u00e4chster Fall"
    (error,) = slicer.click("connectButton")
    assert error.text.startswith(f"Unter {nobody_there} antwortet kein Server")


def test_case_that_went_to_others_is_let_go_and_said(connected, server, studies):
    told = {"id": "phantom_000", "reason": "chosen at random", "lease_s": 1.0, "queue": 0}
    server.answers["POST /activelearning/auto"] = told
    server.answers["GET /datastore/image"] = studies["axial"].image_path.read_bytes()
    server.answers["POST /rounds/lease"] = 409, {"detail": "phantom_000 is in other hands"}
    slicer = connected()
    assert slicer.tool("next") == [] and "Yours for another" in slicer.text("leaseLabel")
    slicer.wait_for_text("statusLabel", "phantom_000 is in other hands")
    assert slicer.text("leaseLabel") == "" and not slicer.can_click("skipButton")
    assert [body["image"] for body in server.bodies("POST /rounds/lease")] == ["phantom_000"]


def test_login_that_ends_while_one_draws_is_said_and_the_case_renewed_after_the_next(connected, server, studies):
    def with_login(content):
        return lambda headers: content if headers["Authorization"] == "Bearer new" else (401, {"detail": "expired"})

    told = {"id": "phantom_000", "reason": "chosen at random", "lease_s": 1.0, "queue": 0}
    server.answers["POST /activelearning/auto"] = told
    server.answers["GET /datastore/image"] = studies["axial"].image_path.read_bytes()
    server.answers["POST /rounds/lease"] = with_login({"lease_s": 3600})
    server.answers["POST /auth/token"] = {"access_token": "new"}
    slicer = connected()
    assert slicer.tool("next") == []
    slicer.wait_for_text("statusLabel", "Your login at the server has ended. Press Connect")
    slicer.wait_for_text("leaseLabel", "could not be renewed")
    assert slicer.can_click("skipButton") and slicer.asked() == []  # it is still theirs, and nothing stands in the way

    server.answers["GET /info/"] = with_login(server.answers["GET /info/"])
    slicer.answer_with("ann/key")
    assert slicer.click("connectButton") == []
    assert "Connected" in slicer.text("statusLabel")
    slicer.wait_for_text("leaseLabel", "Yours for another 60 min; it is renewed")


@pytest.mark.parametrize("both_kinds", [True, False])
def test_class_leaves_a_case_in_hand_that_was_handed_out_to_be_segmented(connected, server, studies, both_kinds):
    if not both_kinds:
        info = server.answers["GET /info/"]
        server.answers["GET /info/"] = {**info, "models": {}, "trainers": {"new": info["trainers"]["new"]}}
    told = {"id": "phantom_000", "reason": "chosen at random", "lease_s": 3600, "queue": 0}
    server.answers["POST /activelearning/auto"] = told
    server.answers["GET /datastore/image"] = studies["axial"].image_path.read_bytes()
    server.answers["PUT /datastore/label"] = {"image": "phantom_000", "label": "phantom_000", "classes": ["slim"]}
    slicer = connected()
    slicer.choose("modelBox", "new")
    assert slicer.tool("next") == []
    slicer.choose("classBox", "slim")
    assert slicer.click("submitClassButton") == [] and "is submitted" in slicer.text("statusLabel")
    assert ("Yours for another 60 min" in slicer.text("leaseLabel")) is both_kinds
    assert slicer.can_click("skipButton") is both_kinds
