"""LabelRounds' own Slicer extension against the real server: what an annotator clicks, sees and gets."""

import json
import re

import numpy as np
import pytest
import requests
from classifier_server import CLASSIFIER, start_classifier
from label_server import MODEL, QUICK_MODEL
from observed import Volume, read_nifti
from relay import Relay
from scipy import ndimage
from tests.waiting import wait_until

from labelrounds import phantoms
from labelrounds.reading import read_label
from labelrounds.store import StudyStore
from labelrounds.writing import write_label

NAMES = list(phantoms.LABELS)
OTHERS = ("axial", "flipped", "anisotropic")
OBLIQUE = ("oblique", "anisotropic")
CORNER, SIZE = (2, 3, 4), (3, 4, 5)


@pytest.fixture
def slicer(open_extension, server):
    return open_extension(server.url)


@pytest.fixture
def open_study(slicer, label_all_but, studies):
    """Get a study by Next case, as the only one left, and segment it."""

    def open_(key):
        label_all_but(studies[key])
        assert slicer.tool("next") == []
        assert slicer.image_id() == studies[key].name
        assert slicer.tool("segment") == []
        return studies[key]

    return open_


@pytest.fixture
def open_any(slicer, studies):
    """Get whichever study Next case hands out, and segment it."""

    def open_():
        assert slicer.tool("next") == []
        assert slicer.tool("segment") == []
        return next(study for study in studies.values() if study.name == slicer.image_id())

    return open_


@pytest.fixture
def relay(server):
    relay = Relay(server.url)
    yield relay
    relay.close()


@pytest.fixture
def own_image(tmp_path):
    return phantoms.write_studies(tmp_path / "own", 1, first_seed=8)[0]


def voxels(segments, name, image):
    return segments[name].on_grid_of(image) == 1


def only(segmentations):
    (segments,) = segmentations
    return segments


def later_counts(drawn):
    """Return the label map of segments, of which the later one counts where they overlap."""
    return np.max([value * inside for value, inside in enumerate(drawn.values(), 1)], axis=0)


def with_box(segment):
    x, y, z = (slice(start, start + length) for start, length in zip(CORNER, SIZE, strict=True))
    drawn = segment.copy()
    drawn[x, y, z] = True
    return drawn


@pytest.mark.parametrize("geometry", ["oblique", *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_three_clicks_in_the_toolbar_are_a_round(slicer, server, open_study, geometry, tmp_path):
    study = open_study(geometry)
    names, prediction = server.predict(MODEL, study.name, tmp_path)
    segments, predicted = only(slicer.segmentations()), prediction.on_grid_of(study.image)
    assert list(segments) == names == NAMES
    for value, name in enumerate(names, 1):
        assert np.array_equal(voxels(segments, name, study.image), predicted == value), name
    assert np.array_equal(slicer.image().on_grid_of(study.image), study.image.voxels)
    slicer.fill_box("left_kidney", CORNER, SIZE)
    segments = only(slicer.segmentations())

    assert slicer.tool("submit") == []

    label, info = server.saved_label(study.name)
    saved = label.on_grid_of(study.image)
    assert [entry["name"] for entry in info["label_info"]] == NAMES
    kidney = voxels(segments, "left_kidney", study.image)
    assert np.array_equal(saved == 1 + NAMES.index("left_kidney"), kidney)
    assert f"{study.name} is submitted" in slicer.text("statusLabel")
    assert slicer.longest_standstill_s() < 5


def test_segments_are_coloured_and_shown_in_slices_and_in_3d(slicer, open_any):
    open_any()
    looks = slicer.looks()
    assert list(looks) == NAMES
    assert len({colour for colour, _, _ in looks.values()}) >= 4  # the kidneys share theirs
    assert all(in_slices for _, in_slices, _ in looks.values())
    assert all(points > 100 for _, _, points in looks.values())
    terms = slicer.terms()
    assert (terms["liver"], terms["left_kidney"]) == ("Liver", "Left Kidney")
    slicer.choose("modelBox", QUICK_MODEL)
    slicer.tool("segment")
    assert slicer.looks()["liver"][0] == pytest.approx((1, 0, 0.2))


def test_uncertainty_lies_over_the_image_and_is_taken_away_again(slicer, open_study):
    study = open_study("oblique")
    assert slicer.click("unsureButton") == []
    unsure, segments = slicer.overlay().on_grid_of(study.image), only(slicer.segmentations())
    liver = voxels(segments, "liver", study.image)
    shell = ndimage.binary_dilation(liver) & ~ndimage.binary_erosion(liver)
    assert unsure.min() >= 0 and unsure.max() <= 100
    assert unsure[shell].mean() > 2 * unsure[ndimage.binary_erosion(liver, iterations=2)].mean()
    assert slicer.image_id() == study.name and slicer.volumes() == 2
    slicer.click("clearButton")
    assert slicer.overlay() is None and slicer.volumes() == 1


def test_toolbar_shows_what_the_panel_shows_and_needs_no_panel(slicer, server, studies):
    before = slicer.toolbar()
    assert all(before["icons"].values())
    assert before["enabled"] == {"segment": True, "next": True, "submit": True, "train": True, "cancel": False}
    (warning,) = slicer.tool("segment")
    assert "No image is shown" in warning.text
    info = server.info()
    untrained = [model for model in info["trainers"] if model not in info["models"]]
    assert slicer.toolbar()["models"] == slicer.choices("modelBox") == [*info["models"], *untrained]
    assert slicer.toolbar()["model"] == MODEL


def test_each_next_case_is_segmented_at_once_where_the_user_wants_it(open_extension, server):
    slicer = open_extension(server.url, segment_next="yes")
    assert slicer.tool("next") == []
    assert list(only(slicer.segmentations())) == NAMES


def test_reason_queue_and_lease_of_the_case_are_shown(slicer, label_all_but, studies):
    label_all_but(studies["axial"], studies["oblique"])
    slicer.tool("next")
    assert re.fullmatch(r"\w.{15,} \d more wait\.", slicer.text("caseLabel"))
    assert "60 min" in slicer.text("leaseLabel")


@pytest.mark.slow
def test_case_that_is_put_aside_is_handed_out_no_more(slicer, server, label_all_but, studies):
    label_all_but(studies["axial"], studies["oblique"])
    slicer.tool("next")
    first = slicer.image_id()
    slicer.type("reasonEdit", "moved while scanned")
    assert slicer.click("skipButton") == []
    aside = requests.get(f"{server.url}/rounds/", timeout=60).json()["aside"]
    assert [(entry["image"], entry["reason"]) for entry in aside] == [(first, "moved while scanned")]
    slicer.tool("next")
    assert slicer.image_id() != first
    requests.delete(f"{server.url}/rounds/aside", params={"image": first}, timeout=60).raise_for_status()


@pytest.mark.slow
def test_no_case_left_is_a_sentence(slicer, label_all_but):
    label_all_but()
    assert slicer.tool("next") == []
    assert "abel" in slicer.text("statusLabel")
    assert slicer.image() is None


def test_own_image_leaves_the_machine_after_consent_alone_and_without_its_name(slicer, server, own_image):
    slicer.load_volume(own_image)
    images = server.images()
    assert slicer.tool("segment") == []
    (question,) = slicer.asked()
    assert server.url in question and slicer.segmentations() == []
    slicer.answer_with("Send")
    assert slicer.tool("segment") == []
    assert list(only(slicer.segmentations())) == NAMES
    assert server.images() == images
    slicer.tool("submit")
    assert len(slicer.asked()) == 1
    (added,) = server.images() - images
    assert slicer.volumes() == 1
    assert added == slicer.image_id() and added.startswith("case_")
    image, label = read_nifti(own_image), server.saved_label(added)[0]
    liver = voxels(only(slicer.segmentations()), "liver", image)
    assert liver.any() and np.array_equal(label.on_grid_of(image) == 1, liver)


@pytest.mark.slow
def test_own_image_keeps_its_name_where_the_user_wants_it(slicer, server, own_image):
    slicer.load_volume(own_image)
    slicer.answer_with("untick, Send")
    slicer.tool("segment")
    slicer.tool("submit")
    assert slicer.image_id() == slicer.image_name()
    assert slicer.image_id() in server.labelled()


@pytest.mark.slow
def test_prediction_that_nobody_has_touched_is_replaced_without_a_question(slicer, open_any):
    open_any()
    assert slicer.drawn_by_hand() == []
    slicer.tool("segment")
    assert slicer.asked() == [] and list(only(slicer.segmentations())) == NAMES


def test_merge_keeps_what_was_drawn_and_no_label_grows_into_it(slicer, open_any):
    study = open_any()
    before = only(slicer.segmentations())
    slicer.fill_box("spleen", (20, 20, 20), (20, 20, 20))  # into the liver too
    drawn = voxels(only(slicer.segmentations()), "spleen", study.image)
    slicer.answer_with("Merge")
    slicer.tool("segment")
    (question,) = slicer.asked()
    assert "spleen" in question
    after = only(slicer.segmentations())
    assert np.array_equal(voxels(after, "spleen", study.image), drawn)
    for name in set(NAMES) - {"spleen"}:
        assert np.array_equal(voxels(after, name, study.image), voxels(before, name, study.image) & ~drawn), name


def test_replaced_edits_come_back_by_undo_in_one_step(slicer, open_any):
    study = open_any()
    predicted = voxels(only(slicer.segmentations()), "liver", study.image)
    slicer.fill_box("liver", CORNER, SIZE)
    drawn = voxels(only(slicer.segmentations()), "liver", study.image)
    assert np.array_equal(drawn, with_box(predicted)) and (drawn != predicted).any()
    slicer.answer_with("Replace")
    slicer.tool("segment")
    assert np.array_equal(voxels(only(slicer.segmentations()), "liver", study.image), predicted)
    slicer.click("undoButton")
    assert np.array_equal(voxels(only(slicer.segmentations()), "liver", study.image), drawn)
    assert slicer.drawn_by_hand() == ["liver"]


def test_new_segmentation_leaves_the_edited_one_as_it_is(slicer, open_any):
    study = open_any()
    slicer.fill_box("liver", CORNER, SIZE)
    drawn = voxels(only(slicer.segmentations()), "liver", study.image)
    slicer.answer_with("Put it into a new")
    slicer.tool("segment")
    first, second = slicer.segmentations()
    assert np.array_equal(voxels(first, "liver", study.image), drawn)
    assert not np.array_equal(voxels(second, "liver", study.image), drawn)
    slicer.click("undoButton")
    assert np.array_equal(voxels(only(slicer.segmentations()), "liver", study.image), drawn)


def test_question_that_is_closed_drops_the_prediction(slicer, open_any):
    study = open_any()
    slicer.fill_box("liver", CORNER, SIZE)
    drawn = voxels(only(slicer.segmentations()), "liver", study.image)
    slicer.tool("segment")
    assert len(slicer.asked()) == 1
    assert np.array_equal(voxels(only(slicer.segmentations()), "liver", study.image), drawn)


@pytest.mark.slow
def test_completed_segment_stays_also_where_edits_are_replaced(slicer, open_any):
    study = open_any()
    slicer.fill_box("liver", CORNER, SIZE)
    slicer.fill_box("spine", CORNER, SIZE)
    slicer.finish("spine")
    drawn = voxels(only(slicer.segmentations()), "spine", study.image)
    slicer.answer_with("Replace")
    slicer.tool("segment")
    after = only(slicer.segmentations())
    assert np.array_equal(voxels(after, "spine", study.image), drawn)
    assert slicer.drawn_by_hand() == ["spine"]


def test_submitted_case_opens_again_with_its_label(slicer, server, studies, label_all_but):
    study = studies["oblique"]
    label_all_but()
    slicer.click("connectButton")
    slicer.choose("labelledBox", study.name)
    assert slicer.click("reopenButton") == []
    segments = only(slicer.segmentations())
    assert list(segments) == NAMES
    for value, name in enumerate(NAMES, 1):
        assert np.array_equal(voxels(segments, name, study.image), study.truth == value), name
    slicer.tool("segment")
    assert len(slicer.asked()) == 1  # a submitted label is somebody's work


@pytest.mark.parametrize("geometry", ["flipped", *(pytest.param(other, marks=pytest.mark.slow) for other in OBLIQUE)])
def test_segments_that_overlap_are_kept_open_again_so_and_train_as_slicer_would_export_them(
    slicer, server, open_study, geometry
):
    study = open_study(geometry)
    sides = slicer.image().voxels.shape
    slicer.fill_box("spleen", [side // 4 for side in sides], [side // 2 for side in sides])  # into the liver too
    slicer.fill_box("liver", CORNER, SIZE)
    before, exported = only(slicer.segmentations()), slicer.export()
    drawn = {name: voxels(before, name, study.image) for name in NAMES}
    assert (drawn["liver"] & drawn["spleen"]).sum() > 100 and slicer.layers() > 1

    assert slicer.tool("submit") == []

    assert slicer.asked() == [] and "overlap are kept" in slicer.text("statusLabel")
    (case,) = [one for one in StudyStore(server.studies, read_only=True).training_items() if one.image_id == study.name]
    assert case.values == {name: value for value, name in enumerate(NAMES, 1)}
    assert case.label.name.endswith(".seg.nrrd")
    label = read_label(case.label)
    trained = Volume(label.array[0], label.affine).on_grid_of(study.image)
    assert np.array_equal(trained, Volume(exported, slicer.image().ijk_to_ras).on_grid_of(study.image))
    assert np.array_equal(trained, later_counts(drawn))
    for name, there in slicer.load_segmentation(case.label).items():  # as any Slicer does
        assert np.array_equal(Volume(there, slicer.image().ijk_to_ras).on_grid_of(study.image), drawn[name]), name

    slicer.close_scene()
    slicer.click("connectButton")
    slicer.choose("labelledBox", study.name)
    assert slicer.click("reopenButton") == []
    again, looks = only(slicer.segmentations()), slicer.looks()
    assert list(again) == NAMES and slicer.layers() > 1
    for name in NAMES:
        assert np.array_equal(voxels(again, name, study.image), drawn[name]), name
    assert all(points > 100 for _, _, points in looks.values()) and slicer.terms()["liver"] == "Liver"
    slicer.fill_box("spine", CORNER, SIZE)
    assert slicer.tool("submit") == []
    again = only(slicer.segmentations())
    label = read_label(server.studies / "labels" / "final" / f"{study.name}.seg.nrrd")
    drawn = {name: voxels(again, name, study.image) for name in NAMES}
    assert np.array_equal(Volume(label.array[0], label.affine).on_grid_of(study.image), later_counts(drawn))


def test_segmentation_file_in_the_servers_folder_opens_by_its_own_names(slicer, server, studies, label_all_but):
    study = studies["flipped"]
    label_all_but(study)
    others = NAMES[::-1]  # in which no server's list has them
    voxels_of = np.choose(study.truth, [0, *(1 + others.index(name) for name in NAMES)]).astype(np.uint8)
    folder = server.studies / "labels" / "final"
    write_label(voxels_of, study.image.ijk_to_ras, folder / f"{study.name}.seg.nrrd", others)
    wait_until(lambda: study.name in server.labelled(), 60)
    slicer.click("connectButton")
    slicer.choose("labelledBox", study.name)
    assert slicer.click("reopenButton") == []
    segments = only(slicer.segmentations())
    assert sorted(segments) == sorted(NAMES)
    for value, name in enumerate(NAMES, 1):
        assert np.array_equal(voxels(segments, name, study.image), study.truth == value), name


def test_segments_of_one_name_are_not_submitted_before_each_has_its_own(slicer, server, open_any):
    study = open_any()
    slicer.add_segment("liver ")
    (warning,) = slicer.tool("submit")
    assert "Several segments are named liver" in warning.text and study.name not in server.labelled()


def test_case_that_was_sent_back_comes_first_with_its_label_and_what_is_to_be_corrected(
    slicer, server, studies, label_all_but
):
    study = studies["axial"]
    label_all_but()
    review = {"image": study.name, "verdict": "sent_back", "reason": "the spleen is cut"}
    requests.post(f"{server.url}/rounds/review", json=review, timeout=60).raise_for_status()
    assert slicer.tool("next") == []
    assert slicer.image_id() == study.name
    assert slicer.text("caseLabel").startswith("sent back by admin: the spleen is cut")
    assert np.array_equal(
        voxels(only(slicer.segmentations()), "spleen", study.image), study.truth == 1 + NAMES.index("spleen")
    )
    slicer.fill_box("spleen", CORNER, SIZE)
    assert slicer.tool("submit") == []
    slicer.unfold("reviewSection")
    assert [row[2] for row in slicer.table("labelTable") if row[0] == study.name] == [""]


def test_slow_answer_is_cancelled_and_slicer_never_stands_still(open_extension, relay):
    slicer = open_extension(relay.url)
    slicer.tool("next")
    relay.hold()
    slicer.begin("segment")
    state = slicer.state()
    assert state["busy"] and state["enabled"]["cancel"] and not state["enabled"]["segment"]
    slicer.begin("cancel")
    assert slicer.wait() == []
    assert "Cancelled" in slicer.text("statusLabel")
    assert slicer.segmentations() == []
    relay.release()
    assert slicer.tool("segment") == []
    assert list(only(slicer.segmentations())) == NAMES


def test_server_that_is_lost_in_mid_inference_is_a_sentence(open_extension, relay):
    slicer = open_extension(relay.url)
    slicer.tool("next")
    relay.hold()
    slicer.begin("segment")
    relay.cut()
    (error,) = slicer.wait()
    assert error.kind == "error" and "was lost before it had answered" in error.text
    assert slicer.segmentations() == []
    relay.release()
    assert slicer.tool("segment") == []
    assert list(only(slicer.segmentations())) == NAMES


def test_server_down_is_a_sentence_and_the_module_usable_with_another(open_extension, server, nobody_there):
    slicer = open_extension(nobody_there)
    assert slicer.enter() == []  # nobody has clicked anything
    assert nobody_there in slicer.text("statusLabel")
    (error,) = slicer.tool("next")
    assert f"No server answers at {nobody_there}" in error.text and "Traceback" not in error.text
    slicer.enter_server_address(server.url)
    assert slicer.click("connectButton") == []
    assert "Connected" in slicer.toolbar()["sentence"]


@pytest.mark.slow
def test_server_model_and_consent_are_remembered(open_extension, server, own_image):
    first = open_extension(server.url)
    first.click("connectButton")
    first.choose("modelBox", QUICK_MODEL)
    first.load_volume(own_image)
    first.answer_with("Send")
    first.tool("segment")
    first.close()
    second = open_extension(server.url, model=QUICK_MODEL)
    second.load_volume(own_image)
    assert second.tool("segment") == [] and second.asked() == []
    assert second.toolbar()["model"] == QUICK_MODEL


@pytest.mark.slow
def test_shortcuts_work_within_the_module_alone(slicer, server):
    assert slicer.shortcuts() == []
    slicer.enter()
    slicer.press("Ctrl+Shift+N")
    slicer.press("Ctrl+Shift+G")
    assert list(only(slicer.segmentations())) == NAMES
    slicer.press("Ctrl+Shift+U")
    assert server.labelled() == {slicer.image_id()}
    slicer.exit()
    assert slicer.shortcuts() == []


@pytest.mark.slow
def test_closing_the_scene_leaves_a_usable_module(slicer, open_any):
    open_any()
    slicer.close_scene()
    (warning,) = slicer.tool("submit")
    assert "No image is shown" in warning.text
    slicer.tool("next")
    slicer.tool("segment")
    assert list(only(slicer.segmentations())) == NAMES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_shows_its_epochs_and_can_be_stopped(slicer, open_study):
    open_study("axial")
    slicer.choose("modelBox", QUICK_MODEL)
    assert slicer.tool("train") == []
    slicer.wait_for_text("trainLabel", "Epoch")
    assert slicer.toolbar()["texts"]["train"] == "Stop training"
    (question,) = slicer.tool("train")
    assert question.kind == "question"
    slicer.wait_for_text("trainLabel", "The training has ended")
    assert slicer.toolbar()["texts"]["train"] == "Train"


def test_self_test_of_the_extension_plays_a_whole_round(slicer, server):
    slicer.play_self_test(server.url)
    assert server.labelled() == {slicer.image_id()}


@pytest.fixture
def strict_server(tmp_path, monkeypatch):
    """A server of a classification model that takes small uploads and demands a login; and its key."""
    monkeypatch.setenv("LABELROUNDS_LARGEST_UPLOAD_MB", "0.01")
    server = start_classifier(tmp_path, "input_size: [32, 32, 32]")
    yield server, server.demand_login()
    server.stop()
    assert "Traceback" not in server.take_log()


@pytest.mark.slow
def test_classes_are_shown_and_corrected_behind_a_login(strict_server, open_extension, own_image):
    server, key = strict_server
    slicer = open_extension(server.url, model=CLASSIFIER)
    slicer.answer_with("ann/wrong", "Cancel")
    (error,) = slicer.tool("next")
    assert "Log in to" in error.text and len(slicer.asked()) == 2
    slicer.answer_with(f"ann/{key}")
    assert slicer.tool("next") == []
    assert not slicer.can_click("rollbackButton")  # of an annotator
    assert slicer.tool("segment") == []
    shown = slicer.table("classTable")
    assert {name for name, _ in shown} == {"slim", "stout"}
    assert sum(float(percent.split()[0]) for _, percent in shown) == pytest.approx(100, abs=0.2)
    assert slicer.click("explainButton") == []
    found = slicer.overlay().on_grid_of(slicer.image())
    assert 0.5 < found.max() <= 1 and found.min() >= 0
    slicer.choose("classBox", shown[1][0])
    assert slicer.click("submitClassButton") == []
    saved = server.studies / "labels" / "classes" / f"{slicer.image_id()}.json"
    assert json.loads(saved.read_text()) == {"label": shown[1][0]}

    slicer.load_volume(own_image)
    slicer.answer_with("Send")
    (error,) = slicer.tool("segment")
    assert "larger than the server takes" in error.text
    assert slicer.tool("next") == []


@pytest.fixture
def short_login(monkeypatch):
    monkeypatch.setenv("LABELROUNDS_SESSION_HOURS", "0.006")  # 22 s


@pytest.mark.slow
def test_lease_is_renewed_again_after_the_login_that_follows_an_ended_one(short_login, strict_server, open_extension):
    server, key = strict_server
    slicer = open_extension(server.url, model="patients")
    slicer.answer_with(f"ann/{key}")
    assert slicer.tool("next") == [] and "60 min" in slicer.text("leaseLabel")
    slicer.let_lease_pass(40 * 60)
    slicer.wait_for_text("leaseLabel", "another 60 min")
    slicer.wait_for_text("statusLabel", "Your login at the server has ended. Press Connect")
    slicer.let_lease_pass(40 * 60)
    slicer.wait_for_text("leaseLabel", "it could not be renewed")
    slicer.asked()
    slicer.answer_with(f"ann/{key}")
    assert slicer.click("connectButton") == []
    (question,) = slicer.asked()
    assert "expired" in question
    slicer.wait_for_text("leaseLabel", "another 60 min; it is renewed")
