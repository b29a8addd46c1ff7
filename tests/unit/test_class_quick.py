"""Linear classifiers on embeddings: fitted as by scikit-learn, served as a network's last layer."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import classifier, labelled, picture
from rich.console import Console
from safetensors.torch import load_file
from training_runs import seen_progress, stages_of

from labelrounds import starting, training
from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification import contest, quick
from labelrounds.classification.cases import truth_of
from labelrounds.classification.inferer import ClassificationInferer
from labelrounds.classification.outputs import embeddings_of, logits_of
from labelrounds.classification.quick import Embeddings, fit, obstacle_to_fit
from labelrounds.engine import Engine
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError
from labelrounds.memory_cache import Memory
from labelrounds.networks import build_network
from labelrounds.reading import read_image
from labelrounds.training import Trainer, train_model
from labelrounds.training_request import TrainingRequest

AUTO, FULL, UPDATE = (TrainingRequest(policy, None, "cpu") for policy in ("auto", "full", "quick"))
CPU = torch.device("cpu")
KINDS = ("logistic", "svm")
IDLE = {"epochs": 1, "learning_rate": 0.0001}  # a network that learns nothing


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def _seeded_and_without_pictures(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("labelrounds.classification.task.write_report", lambda *of: [])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A network that tells blobs, trained once."""
    folder = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(folder / "home"))
        config = classifier(name="source")
        train_model(config, labelled(folder / "studies", 60), FULL, never)
        network = build_network(config)
        Checkpoints(config).load(Checkpoints(config).current(), network)
    return network


@pytest.fixture
def source(encoder):
    Checkpoints(classifier(name="source")).publish(encoder, {})
    return encoder


@pytest.fixture
def items(tmp_path):
    return labelled(tmp_path / "studies", 40)


def model(kind: str = "auto", **changes):
    of_training = {"classifier": kind, "init_from": "source", **changes.pop("training", {})}
    return classifier(training=of_training, **changes)


def cases_of(classes: list[list[int]], per_class: int = 6) -> list[PreparedCase]:
    """Make noise of which each class has its own strength."""
    made = []
    for number in range(per_class):
        for index, truth in enumerate(classes):
            random = np.random.default_rng(100 * index + number)
            image = torch.from_numpy(random.normal(0, 1 + index, (1, 16, 16, 1)).astype(np.float32))
            name = f"image_{index}_{number}"
            label = torch.tensor(truth, dtype=torch.uint8)
            made.append(PreparedCase(name, name, image, label, (1.0, 1.0, 1.0), (), name))
    return made


def spied(monkeypatch) -> list:
    """Return the list to which every scikit-learn estimator is added that is made."""
    made, make = [], quick._estimator
    monkeypatch.setattr(quick, "_estimator", lambda *of: made.append(make(*of)) or made[-1])
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3])
def test_the_last_layer_decides_as_scikit_learn_does(kind, count, monkeypatch):
    config = model(kind, labels=["a", "b", "c"][:count])
    cases, made = cases_of(np.eye(count, dtype=int).tolist()), spied(monkeypatch)
    network = fit(kind, Embeddings(build_network(config), CPU, never), cases, config)
    logits = torch.stack(list(logits_of(network, cases, CPU))).numpy()
    embeddings = torch.stack(list(embeddings_of(network, cases, CPU))).double().numpy()
    margins = made[-1].decision_function(embeddings)
    ours = logits[:, 1] - logits[:, 0] if count == 2 else logits
    ratio = ours / margins  # one temperature, which changes no decision
    assert ratio.min() > 0 and np.allclose(ratio, ratio.mean(), rtol=1e-3)
    assert np.array_equal(logits.argmax(1), made[-1].predict(embeddings))
    assert (logits.argmax(1) == truth_of(cases).numpy().argmax(1)).mean() > 0.6  # of which chance has 1 / K


@pytest.mark.parametrize("kind", KINDS)
def test_with_multilabel_each_class_is_told_from_all_else(kind):
    config = model(kind, labels=["strong", "any"], multilabel=True)
    cases = cases_of([[0, 0], [0, 1], [1, 1]])
    network = fit(kind, Embeddings(build_network(config), CPU, never), cases, config)
    told = torch.stack(list(logits_of(network, cases, CPU))) > 0
    assert (told == truth_of(cases).bool()).float().mean() > 0.9


def test_margins_that_are_all_right_do_not_become_certainty():
    margins, classes = np.linspace(-3, 3, 6), np.array([0, 0, 0, 1, 1, 1])
    _, temperature = quick._surest(margins, classes)
    sure = 1 / (1 + np.exp(-np.abs(margins) / temperature))
    assert 0.75 < sure.mean() < 0.95
    _, unsure = quick._surest(margins, classes[::-1].copy())  # all wrong: nothing is to be believed
    assert unsure == pytest.approx(20, rel=1e-3)


def test_a_patient_is_never_in_two_parts_of_the_inner_cross_validation():
    classes, patients = np.array([0, 0, 1, 1] * 5), np.repeat(np.arange(10), 2)
    folds = quick._folds(classes, patients, 0)
    assert len(folds) == 5
    assert not any(set(patients[train]) & set(patients[test]) for train, test in folds)
    assert quick._folds(np.array([0, 0, 1]), np.array([1, 2, 3]), 0) == []


@pytest.mark.parametrize(
    ("labels", "multilabel", "truth", "said"),
    [
        ("ab", False, [[1, 0]] * 3, "all of the 3 training case(s) are of class 'a'; it takes at least one of each"),
        ("abc", False, [[1, 0, 0], [0, 1, 0]], "2 training cases are fewer than the 3 classes"),
        ("abc", False, [[1, 0, 0], [0, 1, 0]] * 2, "none of the 4 training cases is of class c; it takes"),
        ("ab", True, [[1, 0], [0, 0]], "of 2 training case(s) none is of class 'b'; each class takes images of it and"),
        ("ab", True, [[1, 0], [1, 1]], "of 2 training case(s) all are of class 'a'"),
    ],
)
def test_cases_that_no_classifier_can_be_fitted_to_are_named(labels, multilabel, truth, said):
    config, cases = model("logistic", labels=list(labels), multilabel=multilabel), cases_of(truth, 1)
    assert said in obstacle_to_fit(cases, config)
    with pytest.raises(Conflict, match="no logistic classifier for blobs: "):
        fit("logistic", Embeddings(build_network(config), CPU, never), cases, config)


def test_weights_that_make_no_numbers_are_refused():
    config = model("logistic")
    network = build_network(config)
    torch.nn.init.constant_(next(network.parameters()), float("nan"))
    with pytest.raises(BadInput, match="the embedding of image_0_0 is not finite: the weights it comes from"):
        fit("logistic", Embeddings(network, CPU, never), cases_of([[1, 0], [0, 1]]), config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_classifier_trains_no_network_and_keeps_the_encoder(kind, items, source, monkeypatch):
    monkeypatch.setattr(training, "Learner", None)
    config = model(kind)
    result = train_model(config, items, AUTO, never)
    version = Checkpoints(config).current()
    assert result["published"] == 1 and version.record["metrics"]["test"]["accuracy"] > 0.8
    assert version.record["classifier"]["chosen"] == kind and version.record["epochs"] == 0
    tensors, before = load_file(version.weights), source.state_dict()
    changed = {name for name in before if not torch.equal(tensors[name], before[name])}
    assert changed == {"head.weight", "head.bias"}
    stats = Trainer(config).stats()
    assert stats["status"] == "done" and stats["epoch"] == stats["total_epochs"] == 1
    assert "which also chose" not in result["judged_on"]


def test_nothing_of_a_version_is_a_pickle(items, source):
    config = model("svm")
    train_model(config, items, AUTO, never)
    files = [path for path in Checkpoints(config).current().weights.parent.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["version.json", "weights.safetensors"]
    assert set(load_file(Checkpoints(config).current().weights)) == set(source.state_dict())


def test_of_few_cases_the_best_is_chosen_by_cross_validation(items, source, monkeypatch):
    seen = seen_progress(monkeypatch)
    result = train_model(model(training=IDLE), items[:6], FULL, never)
    record = Checkpoints(model()).current().record["classifier"]
    assert record["chosen"] in KINDS and set(record["scores"]) == {"network", *KINDS}
    assert record["scores"][record["chosen"]] == max(record["scores"].values()) == result["best_metric"]
    assert record["compared_on"] == "cross-validation" and record["cases"] == 6
    assert "each by a fit without its patient, which also chose the classifier" in result["judged_on"]
    assert f"The classifier is {record['chosen']}, the best by quadratic score on 6" in result["message"]
    assert [stage for stage in stages_of(seen) if stage.startswith("fitting")] == [
        "fitting the logistic classifier",
        "fitting the svm classifier",
    ]


def test_who_is_judged_on_a_patient_has_not_learnt_from_the_patient(items, source, monkeypatch):
    learnt, take = [], contest.fit
    monkeypatch.setattr(
        contest,
        "fit",
        lambda kind, start, cases, config: (
            learnt.append({case.patient for case in cases}) or take(kind, start, cases, config)
        ),
    )
    train_model(model(training=IDLE), items[:4], FULL, never)
    everyone = {item.patient for item in items[:4]}
    of_kind = learnt[: len(learnt) // 2]
    assert of_kind[0] == everyone and sorted(map(len, of_kind)) == [3, 3, 3, 3, 4]
    assert set.union(*(everyone - some for some in of_kind)) == everyone


def test_validation_cases_choose_where_there_are_some(items, source):
    config = model(training=IDLE)
    result = train_model(config, items, FULL, never)
    record = Checkpoints(config).current().record
    assert record["classifier"]["compared_on"] == "validation" and record["classifier"]["chosen"] in KINDS
    assert record["epochs"] == 0 and record["epochs_planned"] == 1
    assert "validation case(s), which also chose the classifier" in result["judged_on"]


def test_a_network_that_does_best_is_kept(items):
    torch.manual_seed(7)
    Checkpoints(classifier(name="source")).publish(build_network(classifier(name="source")), {})
    config = model(training={"epochs": 8, "label_smoothing": 0.0})
    result = train_model(config, items, FULL, never)
    assert result["classifier"]["chosen"] == "network" and len(result["classifier"]["scores"]) == 3
    assert "which also chose the epoch and the classifier" in result["judged_on"]


@pytest.mark.parametrize(
    ("changes", "count", "said"),
    [
        ({"classifier": "network"}, 12, "training.classifier is network"),
        ({"init_from": None}, 12, "weights that it starts from are random: no version is served"),
        ({}, 2, "there is no case to compare it with"),
    ],
)
def test_the_network_stays_without_a_comparison_where_none_is_possible(items, source, changes, count, said):
    result = train_model(model(training={**IDLE, **changes}), items[:count], FULL, never)
    assert result["classifier"]["chosen"] == "network" and said in result["classifier"]["reason"]
    assert result["classifier"]["scores"] == {}


def test_more_labels_than_the_limit_train_the_network_alone(items, source, monkeypatch):
    monkeypatch.setattr(contest, "MOST_LABELS", 5)
    result = train_model(model(training=IDLE), items, FULL, never)
    assert "training labels are more than 5" in result["classifier"]["reason"]


def test_random_weights_never_pose_as_trained_ones(items, source):
    with pytest.raises(Conflict, match=r"no svm classifier for blobs: the weights .* are random: no version is served"):
        train_model(model("svm", training={"init_from": None}), items, FULL, never)
    deeper = {"block_config": [2, 3]}
    with pytest.raises(LabelRoundsError, match=r"'source': \d+ of its \d+ tensors are not those of blobs"):
        train_model(model("svm", network=deeper), items, FULL, never)
    assert Checkpoints(model()).current() is None
    assert Trainer(model("svm")).stats()["status"] == "failed"


def test_a_segmentation_models_features_are_no_embeddings(items, make_config):
    config = make_config()
    Checkpoints(config).publish(build_network(config), {})
    with pytest.raises(LabelRoundsError, match=r"training.init_from 'tiny' is a segmentation model, whose features"):
        train_model(model("logistic", training={"init_from": "tiny"}), items, FULL, never)


def test_images_of_a_class_that_is_missing_are_asked_for(items, source):
    config = model("logistic", labels=["none", "blob", "rest"])
    with pytest.raises(Conflict, match=r"none of the \d+ training cases is of class rest; it takes at least one of"):
        train_model(config, items, FULL, never)
    result = train_model(model(labels=["none", "blob", "rest"], training=IDLE), items, FULL, never)
    assert result["classifier"]["chosen"] == "network" and "is of class rest" in result["classifier"]["reason"]


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_fit_that_is_stopped_raises_what_says_so(calls):
    left = [calls]

    def stopped() -> bool:
        left[0] -= 1
        return left[0] < 0

    config = model("logistic")
    with pytest.raises(Cancelled, match="stopped while a quick classifier was fitted"):
        fit("logistic", Embeddings(build_network(config), CPU, stopped), cases_of([[1, 0], [0, 1]], 2), config)


def test_a_stopped_fit_publishes_nothing(items, source, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(quick, "cross_val_predict", None, raising=False)
    monkeypatch.setattr(quick, "_folds", lambda *of: asked.append(True) or [])
    result = train_model(model("logistic"), items, FULL, lambda: bool(asked))
    assert result["status"] == "stopped" and result["published"] is None
    assert "nothing was published" in result["message"] and Checkpoints(model()).current() is None


def test_a_stop_while_classifiers_are_compared_publishes_the_network(items, source, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(quick, "_folds", lambda *of: asked.append(True) or [])
    result = train_model(model(training=IDLE), items, FULL, lambda: bool(asked))
    assert result["status"] == "stopped" and result["published"] == 1
    assert result["classifier"]["chosen"] == "network"
    assert "stopped before the quick classifiers were compared" in result["message"].lower()


def test_a_training_in_full_goes_on_from_the_served_encoder_as_there_is_no_other(items, source):
    train_model(model("logistic"), items[:20], FULL, never)
    config = model("svm", training={"init_from": None})
    result = train_model(config, items, FULL, never)
    assert result["classifier"]["chosen"] == "svm"
    stats = Trainer(config).stats()
    assert stats["started_from"] == "version 1" and stats["policy"] == "quick"
    assert stats["reason"] == "what trains no network goes on from the served one"


def test_a_fitted_version_is_served_explained_and_rolled_back_to(items, source, tmp_path):
    config = model("logistic", training=IDLE)
    train_model(config, items, FULL, never)
    fitted = build_network(config)
    Checkpoints(config).load(Checkpoints(config).current(), fitted)
    Checkpoints(config).publish(build_network(config), {})
    assert Checkpoints(config).rollback()[1].number == 1
    engine = Engine()
    try:
        inferer = ClassificationInferer(config, engine, Memory())
        path = str(picture(tmp_path, "one", 100, True, (4, 11)))
        _, answer = inferer({"image": path, "json": True})
        assert answer["version"] == 1 and answer["prediction"][0]["label"] == "blob"
        assert 0.5 < answer["prediction"][0]["score"] < 1
        file, _ = inferer({"image": path, "explain": "blob"})
        found = read_image(Path(file), channels=1).array
        assert found.max() == pytest.approx(1, abs=1e-3) and found.min() >= 0
    finally:
        engine.close()


def test_the_table_of_models_says_which_classifier_was_chosen_of_which(items, source, tmp_path):
    config = model(training=IDLE)
    train_model(config, items[:6], FULL, never)
    assert starting._history(Checkpoints(config).current().record)[1].startswith("full, ")
    shown = io.StringIO()
    folder = tmp_path / "configs"
    folder.mkdir()
    content = {**config.model_dump(mode="json", exclude={"name"}), "task": "classification"}
    (folder / "blobs.yaml").write_text(json.dumps(content))
    Console(file=shown, width=400).print(starting.models_table(folder))
    line = next(line for line in shown.getvalue().splitlines() if " blobs " in line)
    record = Checkpoints(config).current().record["classifier"]
    assert f"{record['chosen']} of network {record['scores']['network']:.3f}" in line
