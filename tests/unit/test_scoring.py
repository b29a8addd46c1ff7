"""Scores equal their formulas in plain numpy, come of one pass, and leave the network as it was."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch
from blobs import classifier, picture
from scipy import ndimage

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import inference
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.scoring import class_scores
from labelrounds.classification.served import Ready, classify
from labelrounds.costly_scores import disagreement, dropout_on, epistemic, variations
from labelrounds.errors import Cancelled, Conflict, TooLarge, UnsupportedMedia
from labelrounds.inference import logit_pieces, predict, probabilities, probability_pieces, windows_of
from labelrounds.networks import build_network
from labelrounds.scoring import COSTLY, Scorer
from labelrounds.sliding import gather
from labelrounds.voxel_scores import VoxelSums, extents

CPU = torch.device("cpu")
FLOAT32 = {"overlap": 0.25, "runtime": "eager"}
BATCH_NORM = {"name": "residual_unet", "channels": [4, 6, 8]}


def by_numpy(chances: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the scores of probabilities ``(K, X, Y, Z)`` as the formulas stand, in float64."""
    p = chances.reshape(len(chances), -1).astype(np.float64)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(0)
    ranked = np.sort(p, axis=0)
    unsure, foreground = 1 - (ranked[-1] - ranked[-2]), 1 - p[0]
    likeliest = np.eye(len(p))[p.argmax(0)].T
    top = np.sort(entropy)[-math.ceil(len(entropy) / 100) :]
    dice = (2 * (p * likeliest).sum(1) + 1) / (p.sum(1) + likeliest.sum(1) + 1)
    values = {
        "margin": (foreground * unsure).sum() / foreground.sum(),
        "entropy": (foreground * entropy).sum() / foreground.sum(),
        "top_entropy": top.mean(),
        "mean_entropy": entropy.mean(),
        "self_dice": 1 - dice[1:].mean(),
    }
    return values, {"entropy": ((p * entropy).sum(1) / p.sum(1))[1:], "presence": p.max(1)[1:]}


def published(config, seed=0):
    """Publish a version of random weights, whose logits are large enough to be sure of something."""
    torch.manual_seed(seed)
    network = build_network(config).eval()
    for name, buffer in network.named_buffers():  # as if it had been trained
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    with torch.no_grad():
        list(network.parameters())[-1].add_(torch.randn(config.outputs))
    return Checkpoints(config).publish(network, {}), network


def exactly(network):
    """Return the network as the runtime ``eager`` runs it, in float32 throughout."""

    def run(windows):
        with torch.autocast("cpu", enabled=False):
            return network(windows)

    return run


def image_file(folder, shape=(20, 33, 18), spacing=(1.0, 1.0, 1.0), name="image"):
    array = np.random.default_rng(5).normal(0, 0.6, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


MODELS = {
    "gaussian": {},
    "owner": {"inference": {**FLOAT32, "blend": "owner"}},
    "2-D": {"patch_size": [16, 16, 1]},
    "whole": {"network": BATCH_NORM, "inference": {**FLOAT32, "blend": "whole"}},
    "one window": {"patch_size": [24, 40, 24]},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_scores_equal_their_formulas_in_plain_numpy(make_config, tmp_path, changes):
    config = make_config(**{"inference": FLOAT32, **changes})
    _, network = published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    scores = scorer.score(file, CPU)
    values, by_label = by_numpy(probabilities(exactly(network), scorer.read(file).voxels, config).numpy())
    assert scores.values == pytest.approx(values, rel=1e-4, abs=1e-6)
    for measure, expected in by_label.items():
        assert list(scores.by_label[measure]) == ["near", "far"]
        assert list(scores.by_label[measure].values()) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_embedding_is_the_mean_of_the_windows_bottleneck_by_the_voxels_that_are_their_own(
    make_config, tmp_path, changes
):
    config = make_config(**{"inference": FLOAT32, **changes})
    _, network = published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    image = scorer.read(file).voxels
    windows = windows_of(image, config)
    expected, total = 0, 0
    for corners in windows.batches():
        for corner, average in zip(corners, network.embed(gather(image, windows, corners)), strict=True):
            own = np.prod([part.stop - part.start for part in windows.owned(corner)])
            expected, total = expected + own * average.numpy(), total + own
    assert total == image[0].numel()
    found = scorer.score(file, CPU).embedding
    assert found.dtype == np.float32 and found.shape == (8,)
    assert found == pytest.approx(expected / total, rel=1e-3, abs=1e-4)
    assert scorer.score(file, CPU).embedding == pytest.approx(found)  # of this image alone, not of those before


def test_one_image_is_one_pass(make_config, tmp_path):
    config = make_config(inference=FLOAT32)
    published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    scorer.score(file, CPU)
    calls = []
    run = scorer._kind._made["run", "cpu"]._run
    run.network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    scorer.score(file, CPU)
    assert sum(calls) == windows_of(scorer.read(file).voxels, config).count > 4


def test_volume_and_parts_are_of_the_label_map_in_the_images_own_millimetres(make_config, tmp_path):
    config = make_config(inference=FLOAT32, spacing_mm=[2.0, 2.0, 2.0])
    _, network = published(config)
    scorer, file = Scorer(config), image_file(tmp_path, (30, 30, 30), (1.0, 1.5, 1.0))
    label = predict(exactly(network), scorer.read(file).voxels, config).numpy()
    assert label.shape == (15, 22, 15)
    found = scorer.score(file, CPU).by_label
    for value, name in ((1, "near"), (2, "far")):
        ml_of_voxel = 30 * 45 * 30 / (15 * 22 * 15) / 1000
        assert found["volume_ml"][name] == pytest.approx((label == value).sum() * ml_of_voxel)
        assert found["components"][name] == ndimage.label(label == value)[1]


def test_parts_of_a_label_that_touch_by_an_edge_are_two():
    label = np.zeros((6, 6, 6), np.uint8)
    label[0, 0, 0] = label[1, 1, 0] = label[1, 2, 0] = 1
    label[1, 3, 0], label[5, 5, 5] = 3, 3
    found = extents(label, ["a", "b", "c"], 0.5)
    assert found["components"] == {"a": 2, "b": 0, "c": 2}
    assert found["volume_ml"] == {"a": 1.5, "b": 0, "c": 1.0}


def summed(logits: torch.Tensor, parts: int = 1) -> dict[str, float]:
    sums = VoxelSums(len(logits), logits[0].numel(), CPU)
    label = torch.empty(logits.shape[1:], dtype=torch.uint8)
    for block, target in zip(logits.chunk(parts, dim=1), label.chunk(parts), strict=True):
        sums.add(block, target)
    assert label.equal(logits.argmax(0).to(torch.uint8))
    return sums.values(torch.bincount(label.flatten().long(), minlength=len(logits)).tolist())


@pytest.mark.parametrize("classes", [2, 5])
def test_in_pieces_scores_are_those_of_the_whole(classes, monkeypatch):
    logits = 3 * torch.randn(classes, 24, 20, 10, generator=torch.Generator().manual_seed(1))
    whole = summed(logits)
    assert whole == pytest.approx(by_numpy(logits.softmax(0).numpy())[0], rel=1e-4)
    assert summed(logits, parts=6) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr("labelrounds.voxel_scores._VALUES", 700)
    assert summed(logits.permute(0, 3, 1, 2), parts=2) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("gap", [1.0, 10.0, 60.0, 1000.0])
def test_an_image_without_foreground_has_finite_scores_and_is_the_surer_the_farther_from_any(gap):
    logits = torch.zeros(3, 10, 10, 10)
    logits[0] += gap
    values, closer = summed(logits), summed(logits * 0.9)
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    assert all(values[name] <= closer[name] for name in values)
    if gap >= 60:
        assert max(values.values()) < 1e-6
    if gap == 1:
        assert values["margin"] > 0.4 and values["self_dice"] > 0.9


def test_pieces_make_up_the_whole_and_leave_mixed_precision_to_the_network(make_config, monkeypatch):
    monkeypatch.setattr(inference, "autocast", lambda device: torch.autocast("cpu", dtype=torch.bfloat16))
    config = make_config()
    network, image = build_network(config).eval(), torch.randn(1, 33, 17, 20)
    whole = probabilities(network, image, config)
    chances, logits = torch.full_like(whole, 9.0), torch.full_like(whole, 9.0)
    for block, piece in probability_pieces(network, image, config):
        assert not torch.is_autocast_enabled("cpu") and piece.dtype == torch.float32
        chances[(slice(None), *block)] = piece
    for block, piece in logit_pieces(network, image, windows_of(image, config), config):
        logits[(slice(None), *block)] = piece
    assert chances.allclose(whole, atol=1e-6)
    assert logits.softmax(0).allclose(whole, atol=1e-6)


def test_tta_is_small_where_variations_change_little_and_flips_only_along_the_models_mirror_axes(make_config):
    assert len(variations(make_config())) == 3
    image = torch.randn(1, 4, 5, 6)
    flips = [vary(image) for vary, _ in variations(make_config(mirror=["left_right", "inferior_superior"]))][:2]
    assert flips[0].equal(image.flip(1)) and flips[1].equal(image.flip(3))
    for vary, undo in variations(make_config(mirror=["left_right", "posterior_anterior", "inferior_superior"])):
        assert undo(vary(image)).equal(image)
    assert all(vary(image).sub(image).abs().max() < 0.5 for vary, _ in variations(make_config()))


def test_disagreement_is_1_minus_the_mean_dice_of_the_labels_that_are_there():
    one, other = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[1, 0, 2, 0]])
    assert disagreement(one, other, 3) == pytest.approx(1 - (2 / 3 + 1) / 2)
    assert disagreement(one, one, 3) == 0 and disagreement(one * 0, one * 0, 3) == 0
    assert disagreement(one, one * 0, 3) == 1


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_committee_is_of_the_last_two_versions_and_none_of_one(make_config, tmp_path, task):
    config = make_config(inference=FLOAT32) if task == "segmentation" else classifier()
    file = image_file(tmp_path) if task == "segmentation" else picture(tmp_path, "image", 0, True)
    published(config)
    first = Scorer(config)
    assert first.able(COSTLY) == ("tta", "epistemic")
    assert "committee" not in first.score(file, CPU, COSTLY).values
    published(config)
    assert Scorer(config).score(file, CPU, ["committee"]).values["committee"] == pytest.approx(0, abs=1e-6)
    published(config, seed=1)
    scorer = Scorer(config)
    scores = scorer.score(file, CPU, COSTLY)
    assert scorer.able(COSTLY) == COSTLY and set(COSTLY) <= scores.values.keys() and scores.version == 3
    assert 0.01 < scores.values["committee"] <= 1 and 0 <= scores.values["tta"] <= 1


@pytest.mark.parametrize("network", [{"name": "unet", "channels": [4, 6, 8]}, BATCH_NORM], ids=["instance", "batch"])
def test_scoring_with_dropout_changes_no_weight_no_statistic_and_no_later_answer(make_config, tmp_path, network):
    """Reliability 29. The buffers of BatchNorm, with every score."""
    config = make_config(network=network, inference=FLOAT32)
    version, _ = published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    plain = scorer.score(file, CPU)
    first = scorer.score(file, CPU, COSTLY)
    bare = scorer._kind._made["bare", "cpu"]
    kept = build_network(config)
    Checkpoints(config).load(version, kept)
    for module in (bare, scorer._kind.network):
        state = module.state_dict()
        assert state.keys() == kept.state_dict().keys()
        assert all(value.contiguous().equal(state[name].contiguous()) for name, value in kept.state_dict().items())
        assert not any(part.training for part in module.modules())
        assert not any(part._forward_hooks for part in module.modules())
    if network is BATCH_NORM:
        assert any(name.endswith("running_var") for name, _ in bare.named_buffers())
    again = scorer.score(file, CPU, COSTLY)
    assert first.values["epistemic"] > 0 and first.values["epistemic_variance"] > 1e-4
    assert again.values == first.values
    assert {name: again.values[name] for name in plain.values} == plain.values


def test_epistemic_is_the_mean_entropy_of_the_mean_of_five_passes_with_dropout(make_config):
    config = make_config(inference=FLOAT32)
    _, network = published(config)
    image = torch.randn(1, 33, 17, 20, generator=torch.Generator().manual_seed(0))
    found = epistemic(network, image, config)
    with dropout_on(network):
        passes = torch.stack([probabilities(network, image, config) for _ in range(5)]).double()
    mean = passes.mean(0)
    # Drawn in another order, so only alike: the order of the blocks is that of the passes there, of the image here.
    assert found["epistemic"] == pytest.approx(float(-(mean * mean.log()).sum(0).mean()), rel=0.05)
    assert found["epistemic_variance"] == pytest.approx(float(passes.var(0, correction=0).sum(0).mean()), rel=0.2)


def test_dropout_is_where_the_network_has_it_else_behind_its_normalisations():
    own = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)).eval().requires_grad_(False)
    other = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.0)).eval().requires_grad_(False)
    ones = torch.ones(1000, 4)
    with dropout_on(own), dropout_on(other):
        assert own(ones).unique().numpy() == pytest.approx([0, 2], rel=1e-3)
        assert other(ones).unique().numpy() == pytest.approx([0, 1.25], rel=1e-3)
        assert (other(ones) == 0).float().mean() == pytest.approx(0.2, abs=0.03)
    assert own(ones).unique().numpy() == pytest.approx([1], rel=1e-3)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_classifiers_scores_are_of_its_calibrated_probabilities_and_the_embedding_of_the_same_pass(
    tmp_path, multilabel
):
    config = classifier(multilabel=multilabel)
    network = build_network(config).eval()
    version = Checkpoints(config).publish(network, {"temperature": 0.25})
    scorer, file = Scorer(config), picture(tmp_path, "image", 3, True)
    voxels = scorer.read(file).voxels
    p = classify(Ready(version, network, 0.25), voxels[None], config)[0].double().numpy()
    scores = scorer.score(file, CPU)
    assert list(scores.by_label["presence"].values()) == pytest.approx(p.tolist(), rel=1e-5)
    assert scores.embedding == pytest.approx(network.embed(voxels[None])[0].numpy(), rel=1e-5, abs=1e-6)
    each = -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert list(scores.by_label["entropy"].values()) == pytest.approx(each.tolist(), rel=1e-5)
    if multilabel:
        assert scores.values == pytest.approx({"margin": 1 - abs(2 * p - 1).min(), "entropy": each.sum()}, rel=1e-5)
    else:
        entropy = -(p * np.log(p)).sum()
        assert scores.values == pytest.approx({"margin": 1 - abs(p[0] - p[1]), "entropy": entropy}, rel=1e-5)


def test_a_class_of_which_a_classifier_is_certain_is_sure_without_a_fault():
    values, by_label = class_scores(torch.tensor([1.0, 0.0]), ["a", "b"], False)
    assert values == {"margin": 0, "entropy": 0} and by_label["entropy"] == {"a": 0, "b": 0}


def test_what_can_not_be_scored_is_told(make_config, tmp_path, monkeypatch):
    config = make_config(inference=FLOAT32)
    with pytest.raises(Conflict, match="model tiny has no trained version yet: there is nothing to score images by"):
        Scorer(config)
    published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    with pytest.raises(ValueError, match="costly score 'entropie' is not one of tta, committee, epistemic"):
        scorer.score(file, CPU, ["entropie"])
    with pytest.raises(Cancelled):
        scorer.score(file, CPU, stopped=lambda: True)
    (tmp_path / "bad.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(UnsupportedMedia, match=r"bad\.nii\.gz"):
        scorer.score(tmp_path / "bad.nii.gz", CPU)
    monkeypatch.setattr(inference, "free_bytes", lambda device: 1000)
    with pytest.raises(TooLarge, match=r"of 20 x 33 x 18 voxels can't be scored in the memory of cpu: .* GB are free"):
        scorer.score(file, CPU)


def test_where_the_memory_suffices_for_one_window_alone_the_scores_are_the_same(make_config, tmp_path, monkeypatch):
    config = make_config(inference=FLOAT32)
    published(config)
    scorer, file = Scorer(config), image_file(tmp_path)
    before, asked = scorer.score(file, CPU), []

    def noted(image, config, most_at_once):
        asked.append(most_at_once)
        return windows_of(image, config, most_at_once)

    monkeypatch.setattr("labelrounds.scoring.windows_of", noted)
    monkeypatch.setattr(inference, "free_bytes", lambda device: 350_000)
    after = scorer.score(file, CPU)
    assert asked == [None, 1]
    assert after.values == pytest.approx(before.values, rel=1e-4)
    assert after.embedding == pytest.approx(before.embedding, rel=1e-4, abs=1e-6)


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(make_config, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = make_config(inference=FLOAT32)
    published(config)
    published(config, seed=1)
    scorer, file = Scorer(config), image_file(tmp_path, (40, 33, 50))
    cpu, gpu = (scorer.score(file, torch.device(name), ["tta", "committee"]) for name in ("cpu", "cuda:0"))
    assert gpu.values == pytest.approx(cpu.values, rel=0.02, abs=2e-3)
    assert gpu.embedding == pytest.approx(cpu.embedding, rel=0.05, abs=0.01)
    assert gpu.by_label["volume_ml"] == pytest.approx(cpu.by_label["volume_ml"], rel=0.02)
