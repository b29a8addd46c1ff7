"""MONAI Label's own Slicer extension, unmodified, against the real server: what an annotator sees and gets."""

import numpy as np
import pytest
from label_server import MODEL, MODEL_WITHOUT_SPLEEN, QUICK_MODEL
from observed import read_nifti

from labelrounds import phantoms

each_geometry = pytest.mark.parametrize("geometry", phantoms.GEOMETRIES)


@pytest.fixture
def labels(server):
    """Return the labels of all models, in the server's order."""
    return server.info()["labels"]


def overlap(scene, study, name):
    """Return the Dice of a segment against the truth."""
    segment = scene.segments[name].on_grid_of(study.image) == 1
    truth = study.truth == 1 + phantoms.LABELS.index(name)
    return 2 * np.count_nonzero(segment & truth) / (np.count_nonzero(segment) + np.count_nonzero(truth))


@pytest.fixture
def open_study(slicer, label_all_but, studies):
    """Get a study by Next Sample, as the only one left, and choose the model."""

    def open_(key):
        label_all_but(studies[key])
        assert slicer.next_sample() == []
        assert slicer.current_image() == studies[key].name
        slicer.choose("segmentationModelSelector", MODEL)
        return studies[key]

    return open_


def test_fetch_offers_the_models_strategies_and_trainers_of_the_server(slicer, server):
    info = server.info()
    assert MODEL in slicer.choices("segmentationModelSelector")
    assert slicer.choices("strategyBox") == list(info["strategies"]) != []
    assert slicer.choices("trainerBox") == list(info["trainers"]) != []
    assert slicer.choices("appComboBox") == [info["name"]]
    assert slicer.enabled("nextSampleButton", "segmentationButton", "saveLabelButton") == [True, False, False]


def test_fetch_shows_how_many_studies_are_labelled(slicer, label_all_but, studies):
    assert slicer.bar("activeLearningProgressBar") == 0
    label_all_but(studies["axial"], studies["oblique"])
    slicer.fetch()
    assert slicer.bar("activeLearningProgressBar") == 60


def test_next_sample_from_a_server_elsewhere_downloads_the_image(slicer, open_study, studies, tmp_path):
    slicer.see_no_files_of(studies["oblique"].image_path.parent)
    study = open_study("oblique")
    assert [path.name for path in tmp_path.glob("slicer_0/cache/*")] == [study.image_path.name]
    assert np.array_equal(slicer.scene().image.on_grid_of(study.image), study.image.voxels)


def test_next_sample_prepares_an_empty_segment_for_each_label(slicer, open_study, labels):
    open_study("axial")
    segments = slicer.scene().segments
    assert list(segments) == labels
    assert not any(segment.voxels.any() for segment in segments.values())


@each_geometry
def test_image_and_segments_lie_where_the_scanner_and_the_server_put_them(
    slicer, server, open_study, geometry, tmp_path
):
    study = open_study(geometry)
    names, prediction = server.predict(MODEL, study.name, tmp_path)
    assert slicer.run() == []
    scene = slicer.scene()
    assert np.array_equal(scene.image.on_grid_of(study.image), study.image.voxels)
    assert names == list(phantoms.LABELS)
    assert_segments(scene, names, prediction, study.image)
    assert overlap(scene, study, "liver") > 0.6
    assert scene.labelmaps == []


@each_geometry
def test_submitted_label_is_what_the_scene_held(slicer, server, open_study, geometry):
    study = open_study(geometry)
    slicer.run()
    slicer.fill_box("left_kidney", corner=(2, 3, 4), size=(3, 4, 5))
    slicer.clear_segment("spleen")
    scene = slicer.scene()

    (message,) = slicer.submit()

    assert message.kind == "info"
    assert_saved(server, study.name, study.image, scene)
    assert slicer.scene().labelmaps == []
    assert slicer.bar("activeLearningProgressBar") == 100


def test_next_sample_moves_on_to_a_study_that_has_no_label_yet(slicer, server, label_all_but, studies):
    left = {studies["axial"].name, studies["oblique"].name}
    label_all_but(studies["axial"], studies["oblique"])
    slicer.next_sample()
    first = slicer.current_image()
    slicer.choose("segmentationModelSelector", MODEL)
    slicer.run()
    slicer.submit()
    (question,) = slicer.next_sample()
    assert question.kind == "question"
    assert {first, slicer.current_image()} == left
    (name,) = slicer.scene().images
    assert name.startswith(slicer.current_image())


def test_auto_run_segments_the_next_sample_at_once(open_slicer, server, label_all_but, studies):
    label_all_but(studies["axial"])
    slicer = open_slicer(server.url, autoRunSegmentationOnNextSample=True)
    slicer.fetch()
    assert slicer.next_sample() == []
    assert any(segment.voxels.any() for segment in slicer.scene().segments.values())


def test_own_image_is_segmented_in_a_session_and_uploaded_with_its_label(slicer, server, tmp_path):
    path = phantoms.write_studies(tmp_path / "own", 1, first_seed=8)[0]
    slicer.load_volume(path)
    slicer.fetch()
    slicer.choose("segmentationModelSelector", MODEL)

    (consent,) = slicer.run()

    assert consent.kind == "question"
    assert "will be sent to remote data processing server" in consent.text
    scene = slicer.scene()
    assert scene.segments["liver"].voxels.any()
    assert "phantom_008" not in server.images()

    messages = slicer.submit()

    assert [message.kind for message in messages] == ["question", "info"]
    assert "phantom_008" in server.images()
    assert_saved(server, "phantom_008", read_nifti(path), scene)


def test_organ_that_was_not_found_has_an_empty_segment_and_shifts_no_other(slicer, server, open_study, tmp_path):
    study = open_study("axial")
    names, prediction = server.predict(MODEL_WITHOUT_SPLEEN, study.name, tmp_path)
    assert set(np.unique(prediction.voxels)) == {0, 1, 3, 4, 5}
    slicer.choose("segmentationModelSelector", MODEL_WITHOUT_SPLEEN)
    assert slicer.run() == []
    scene = slicer.scene()
    assert_segments(scene, names, prediction, study.image)
    assert not scene.segments["spleen"].voxels.any()
    assert overlap(scene, study, "liver") > 0.6


def test_no_server_at_the_address_is_an_error_message(open_slicer, nobody_there):
    slicer = open_slicer(nobody_there)
    (error,) = slicer.fetch()
    assert error.kind == "error"
    assert "Make sure server address is correct" in error.text
    assert "ConnectionRefusedError" in error.details
    assert slicer.choices("segmentationModelSelector") == []


def test_label_outlives_a_server_that_went_away(slicer, server, open_study, nobody_there):
    study = open_study("axial")
    slicer.run()
    before = slicer.scene()

    slicer.enter_server_address(nobody_there)
    errors = slicer.run() + slicer.submit()

    assert [error.kind for error in errors] == ["error", "error"]
    assert all("ConnectionRefusedError" in error.details for error in errors)
    assert_same_scene(slicer.scene(), before)
    # After its message the module asks this server, too, whether a training runs.
    assert all("ConnectionRefusedError" in error for error in slicer.take_uncaught_errors())

    slicer.enter_server_address(server.url)
    (message,) = slicer.submit()
    assert message.kind == "info"
    assert study.name in server.labelled()


def test_model_that_the_server_does_not_have_is_named_in_the_message(slicer, open_study):
    open_study("axial")
    slicer.run()
    before = slicer.scene()
    slicer.remember_model("unet_gone")
    (error,) = slicer.run()
    assert error.kind == "error"
    assert "Status: 404" in error.text
    assert "unet_gone" in error.text
    assert MODEL in error.text
    assert_same_scene(slicer.scene(), before)


def test_no_unlabelled_study_left_is_a_warning(slicer, label_all_but):
    label_all_but()
    (warning,) = slicer.next_sample()
    assert warning.kind == "warning"
    assert "Unlabeled samples or images not found" in warning.text
    assert slicer.scene().images == {}


def test_label_in_a_format_that_the_server_refuses_is_an_error_message(open_slicer, server, label_all_but, studies):
    label_all_but(studies["axial"])
    # MetaImage, for its reader's sake.
    slicer = open_slicer(server.url, fileExtension=".mha")
    slicer.fetch()
    slicer.next_sample()
    slicer.fill_box("liver", corner=(20, 20, 20), size=(5, 5, 5))
    scene = slicer.scene()
    (error,) = slicer.submit()
    assert error.kind == "error"
    assert ".mha" in error.text
    assert ".nii.gz" in error.text
    assert_same_scene(slicer.scene(), scene)
    assert studies["axial"].name not in server.labelled()


def test_label_of_which_no_model_knows_a_name_is_an_error_message(slicer, server, open_study):
    study = open_study("axial")
    slicer.add_segment("hepar")
    slicer.fill_box("hepar", corner=(20, 20, 20), size=(5, 5, 5))
    scene = slicer.scene()
    (error,) = slicer.submit()
    assert error.kind == "error"
    assert "hepar" in error.text
    assert "liver" in error.text
    assert_same_scene(slicer.scene(), scene)
    assert study.name not in server.labelled()


@pytest.mark.timeout(600)
def test_training_moves_the_bars_and_gives_the_button_back(slicer, server, open_study):
    open_study("axial")
    slicer.fetch()
    slicer.choose("trainerBox", QUICK_MODEL)
    slicer.set_option("train", QUICK_MODEL, "epochs", "2")
    assert slicer.click("trainingButton") == []
    training = slicer.watch_training(timeout_s=400)
    assert training.progress[0] == 1
    assert 50 in training.progress
    assert training.progress[-1] == 100
    assert training.progress == sorted(training.progress)
    assert len(set(training.accuracy)) > 1
    assert training.accuracy[-1] == int(100 * server.info()["train_stats"][QUICK_MODEL]["best_metric"]) > 0
    assert training.buttons == [(False, True), (True, False)]


@pytest.mark.timeout(600)
def test_stopping_a_training_gives_the_button_back(slicer, open_study):
    open_study("axial")
    slicer.fetch()
    slicer.choose("trainerBox", QUICK_MODEL)
    assert slicer.click("trainingButton") == []
    assert slicer.enabled("trainingButton", "stopTrainingButton") == [False, True]
    (question,) = slicer.click("stopTrainingButton")
    assert question.kind == "question"
    training = slicer.watch_training(timeout_s=240)
    assert training.buttons[-1] == (True, False)


# The very last: from here on the server has a login.
def test_a_round_works_with_a_login_and_nothing_without(slicer, server, label_all_but, studies):
    study = studies["axial"]
    server.submit(study.name, study.truth_path, list(phantoms.LABELS))  # ends whosever lease there is
    server.withdraw_label(study.name)
    label_all_but(study)
    key = server.demand_login()
    slicer.log_in_as("ann", "not the key")
    (error,) = slicer.fetch()
    assert error.kind == "error" and "Status: 401" in error.details
    slicer.log_in_as("ann", key)
    assert slicer.fetch() == []
    slicer.see_no_files_of(server.studies)  # it is downloaded, for which Slicer sends no token
    assert slicer.next_sample() == []
    assert slicer.current_image() == study.name
    slicer.choose("segmentationModelSelector", MODEL)
    assert slicer.run() == []
    slicer.fill_box("left_kidney", corner=(2, 3, 4), size=(3, 4, 5))
    scene = slicer.scene()
    (message,) = slicer.submit()
    assert message.kind == "info"
    assert_saved(server, study.name, study.image, scene)
    assert key not in server.take_log()


def assert_segments(scene, names, prediction, image):
    """Check that the scene's segments are the values of a prediction, the k-th name the value k, and nothing else."""
    predicted = prediction.on_grid_of(image)
    assert set(names) <= set(scene.segments)
    for name, segment in scene.segments.items():
        expected = predicted == names.index(name) + 1 if name in names else np.zeros_like(predicted)
        assert np.count_nonzero(segment.voxels) == np.count_nonzero(expected), name
        assert np.array_equal(segment.on_grid_of(image), expected), name


def assert_saved(server, study_name, image, scene):
    """Check that the server keeps the scene's segments, voxel for voxel, numbered and named in their order."""
    label, info = server.saved_label(study_name)
    saved = label.on_grid_of(image)
    assert [entry["name"] for entry in info["label_info"]] == list(scene.segments)
    for value, (name, segment) in enumerate(scene.segments.items(), 1):
        assert np.array_equal(saved == value, segment.on_grid_of(image) == 1), name
    assert saved.max() <= len(scene.segments)


def assert_same_scene(scene, expected):
    assert list(scene.segments) == list(expected.segments)
    for name, segment in scene.segments.items():
        assert np.array_equal(segment.on_grid_of(scene.image), expected.segments[name].on_grid_of(expected.image)), name
    assert np.array_equal(scene.image.voxels, expected.image.voxels)
    assert scene.labelmaps == []
