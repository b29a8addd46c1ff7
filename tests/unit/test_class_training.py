"""Classification trained as segmentation is: the same split, versions, promotion and resuming, other scores."""

import json

import pytest
import torch
from blobs import classifier, labelled, volume

from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.cases import ClassLoss, ImageSampler, class_tensors
from labelrounds.errors import Conflict, LabelRoundsError, NotFound
from labelrounds.networks import build_network
from labelrounds.tasks import task_of
from labelrounds.training import Trainer, train_model
from labelrounds.training_plan import network_of
from labelrounds.training_request import TrainingRequest

FULL, QUICK = TrainingRequest("full", None, "cpu"), TrainingRequest("quick", None, "cpu")
CPU = torch.device("cpu")


def never() -> bool:
    return False


def prepared(items, config) -> list[PreparedCase]:
    cases, skipped = prepare_cases(items, config, class_tensors)
    assert not skipped
    return cases


def case(truth: list[int], number: int = 0) -> PreparedCase:
    name = f"image_{number}"
    image = torch.full((1, 16, 16, 1), float(number))
    return PreparedCase(name, name, image, torch.tensor(truth, dtype=torch.uint8), (1.0, 1.0, 1.0), (), name)


@pytest.fixture
def items(tmp_path):
    """Forty labelled pictures, half of them with a blob."""
    return labelled(tmp_path / "studies", 40)


def test_a_training_publishes_a_version_that_tells_blobs_with_metrics_temperature_and_report(items):
    config = classifier()
    result = train_model(config, items, FULL, never)
    version = Checkpoints(config).current()
    assert result["published"] == version.number == 1
    metrics = version.record["metrics"]
    assert set(metrics) == {"validation", "test"}
    assert metrics["test"]["macro"]["auroc"] > 0.9 and metrics["test"]["accuracy"] > 0.8
    assert version.record["temperature"] > 0
    held_out = {image for part in ("validation", "test") for image in version.record["cases"][part]}
    assert version.record["out_of_fold"].keys() == held_out
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in version.record["out_of_fold"].values())
    assert result["quadratic_score"]["blob"] > 0.7 and "dice" not in result
    for part in ("validation", "test"):
        pages = {path.name for path in (version.weights.parent / "report" / part).iterdir()}
        assert {"report.html", "confusion.png", "roc.png", "reliability.png", "worst.png"} <= pages


def test_the_figures_of_a_running_training_are_those_that_clients_read(items):
    config = classifier()
    train_model(config, items, FULL, never)
    stats = Trainer(config).stats()
    assert stats["status"] == "done" and stats["epoch"] == stats["total_epochs"] == 4
    assert 0.7 < stats["best_metric"] <= 1 and set(stats["quadratic_score"]) == {"none", "blob"}


def test_the_same_seed_gives_the_same_weights(items, home):
    config = classifier(training={"epochs": 1})
    train_model(config, items[:12], FULL, never)
    train_model(config, items[:12], FULL, never)
    first, second = (home / "models" / "blobs" / "versions").glob("*/weights.safetensors")
    assert first.read_bytes() == second.read_bytes()


def test_a_worse_version_is_not_published(items, monkeypatch):
    config = classifier()
    train_model(config, items, FULL, never)
    # A rate so low that nothing is learnt, from nothing.
    result = train_model(classifier(training={"epochs": 1, "learning_rate": 1e-9}), items, FULL, never)
    assert result["published"] is None
    assert "Not published: mean Quadratic score" in result["message"]
    assert Checkpoints(config).current().number == 1


def test_a_quick_training_goes_on_from_what_is_served(items):
    config = classifier()
    train_model(config, items, FULL, never)
    result = train_model(config, items, QUICK, never)
    newest = Checkpoints(config).versions()[-1]
    assert newest.record["parent"] == 1 if result["published"] else newest.number == 1


def test_an_image_with_an_unknown_class_or_a_broken_file_is_skipped_and_named(items):
    items[3].label.write_text(json.dumps({"label": "tumour"}))
    items[4].label.write_text("{")
    items[5].image.write_bytes(items[5].image.read_bytes()[:60])
    result = train_model(classifier(training={"epochs": 1}), items, FULL, never)
    assert "Skipped 3" in result["message"]
    assert "class 'tumour' is not one of the model's: none, blob" in result["message"]


def test_images_of_one_class_alone_are_refused(items):
    with pytest.raises(Conflict, match="all of the 20 usable labels are 'none'; it takes images of at least two"):
        train_model(classifier(), items[::2], FULL, never)


def test_several_classes_are_refused_by_a_model_of_one(items):
    items[0].label.write_text(json.dumps({"labels": ["none", "blob"]}))
    with pytest.raises(LabelRoundsError, match="of 2 classes"):
        class_tensors(items[0], classifier())


def test_a_multilabel_model_learns_each_class_by_itself(items):
    config = classifier(labels=["blob"], multilabel=True)
    for item in items:
        blob = json.loads(item.label.read_text())["label"] == "blob"
        item.label.write_text(json.dumps({"labels": ["blob"] if blob else []}))
    train_model(config, items, FULL, never)
    metrics = Checkpoints(config).current().record["metrics"]["test"]
    assert metrics["per_class"]["blob"]["auroc"] > 0.9


def test_volumes_train_a_3d_model_and_by_their_slices_a_2d_one(tmp_path):
    volumes = labelled(tmp_path / "volumes", 12, volume)
    for size, slices in (([16, 16, 16], 1), ([16, 16, 1], 8)):
        config = classifier(input_size=size, slices_of_volume=slices, training={"epochs": 1, "iterations_per_epoch": 2})
        assert prepared(volumes[:1], config)[0].image.shape == (1, 16, 16, max(size[2], slices))
        assert train_model(config, volumes, FULL, never)["best_metric"] > 0
        Checkpoints(config).folder.rename(tmp_path / f"done_{slices}")


def test_with_balanced_sampling_rare_classes_are_drawn_as_often():
    cases = [case([1, 0], 0) for _ in range(18)] + [case([0, 1], 1) for _ in range(2)]
    sampler = ImageSampler(cases, classifier(training={"vary_intensity": False}), CPU)
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    drawn = sampler.draw(generators)[1][:, 1].float().mean()
    assert 0.4 < drawn < 0.6
    plain = ImageSampler(cases, classifier(training={"balance": "none", "vary_intensity": False}), CPU)
    assert plain.draw([torch.Generator().manual_seed(seed) for seed in range(200)])[1][:, 1].float().mean() < 0.25


def test_with_weights_an_error_on_a_rare_class_costs_more():
    cases = [case([1, 0]) for _ in range(9)] + [case([0, 1])]
    loss = ClassLoss(cases, classifier(training={"balance": "weights", "label_smoothing": 0}))
    logits, truth = torch.tensor([[2.0, -2.0], [2.0, -2.0]]), torch.tensor([[1, 0], [0, 1]])
    plain = ClassLoss(cases, classifier(training={"balance": "none", "label_smoothing": 0}))
    assert loss([logits], truth) > plain([logits], truth)


def test_a_frozen_encoder_keeps_its_weights_and_statistics(items):
    config = classifier(training={"encoder_rate": 0, "epochs": 1})
    before = network_of(None, Checkpoints(config)).state_dict()
    train_model(config, items[:12], FULL, never)
    network = build_network(config)
    Checkpoints(config).load(Checkpoints(config).current(), network)
    after = network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert set(before) - same == {"head.weight", "head.bias"}


def test_transfer_starts_from_another_models_encoder(items):
    source = classifier(name="source", labels=["a", "b", "c"])
    published = build_network(source)
    Checkpoints(source).publish(published, {})
    network = network_of(None, Checkpoints(classifier(training={"init_from": "source"})))
    own, other = network.state_dict(), published.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own if not name.startswith("head."))
    assert own["head.weight"].shape == (2, other["head.weight"].shape[1])


def test_transfer_from_nothing_or_something_else_says_so():
    with pytest.raises(NotFound, match="no version of a model 'absent' is served"):
        network_of(None, Checkpoints(classifier(training={"init_from": "absent"})))
    Checkpoints(classifier(name="line")).publish(torch.nn.Linear(3, 3), {})
    with pytest.raises(LabelRoundsError, match=r"init_from 'line': .* tensors are not those of blobs \(features\."):
        network_of(None, Checkpoints(classifier(training={"init_from": "line"})))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"block_config": [2, 3]}}, r"features\..* is unknown"),
        ({"network": {"stem": "full"}}, r"has shape \[8, 1, 7, 7\], not \[8, 1, 3, 3\]"),
        ({"network": {"growth_rate": 6}}, "has shape"),
        ({"network": {"squeeze_excitation": True}}, "is unknown"),
        ({"channels": 3}, r"has shape \[8, 3, 3, 3\], not \[8, 1, 3, 3\]"),
        ({"input_size": [16, 16, 16]}, "has shape"),
    ],
)
def test_transfer_from_a_network_that_is_the_same_in_part_alone_is_refused_with_what_differs(changes, said):
    source = classifier(name="source", **changes)
    Checkpoints(source).publish(build_network(source), {})
    with pytest.raises(LabelRoundsError, match=f"init_from 'source': .*{said}.*both need the same network"):
        network_of(None, Checkpoints(classifier(training={"init_from": "source"})))


def test_transfer_to_a_model_that_combines_slices_in_another_way_takes_the_features():
    source = classifier(name="source")
    Checkpoints(source).publish(build_network(source), {})
    target = classifier(slices_of_volume=4, network={"slices": "attention"}, training={"init_from": "source"})
    own, other = network_of(None, Checkpoints(target)).state_dict(), build_network(source).state_dict()
    assert {name for name in own if name.startswith("features.")} <= other.keys()


def test_scores_do_not_depend_on_how_cases_are_batched(items):
    config, network = classifier(), build_network(classifier())
    cases = prepared(items[:5], config)
    together = list(task_of(config).measured(network, cases, config, CPU, print))
    alone = [next(task_of(config).measured(network, [one], config, CPU, print)) for one in cases]
    for (_, one), (_, other) in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
