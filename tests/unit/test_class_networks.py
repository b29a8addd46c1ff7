"""Each classification network judges volumes and slices, learns with all its parameters and sums an image up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from labelrounds.classification.networks import classifiers
from labelrounds.classification.networks.slices import GatedAttention
from labelrounds.errors import BadInput
from labelrounds.host import UNUSED

TINY = {
    "densenet": {"growth_rate": 4, "init_features": 6, "block_config": [2, 1, 2]},
    "inception": {"width": 8, "blocks": [1, 2, 1]},
    "resnet": {"depth": 10, "width": 4},
}
STEP = {"densenet": 4, "inception": 4, "resnet": 8}  # between the voxels of the last map, with a small stem
SIZE = {"densenet": 13, "inception": 32, "resnet": 32}
NAMES = sorted(TINY)
KINDS = ["attention", "max", "mean"]


def build_classifier(name, dimensions, in_channels, out_channels, options):
    """Build a network as a configuration does, its options checked."""
    settings = dict(classifiers.options(name).model_validate(options))
    return classifiers.get(name)(dimensions, in_channels, out_channels, **settings)


def smallest_input_of(name, dimensions, options):
    settings = dict(classifiers.options(name).model_validate(options))
    return classifiers.get(name).smallest_input(dimensions, **settings)


def make(name: str, dimensions: int, in_channels=1, out_channels=3, **more):
    torch.manual_seed(0)
    return build_classifier(name, dimensions, in_channels, out_channels, {**TINY[name], "stem": "small", **more})


def images_for(name: str, dimensions: int, batch=2, channels=1, steps=2, slices=3) -> torch.Tensor:
    """Random images that leave `steps` voxels an axis in the last map of a network with a small stem."""
    side = steps * STEP[name]
    return torch.randn(batch, channels, side, side, side if dimensions == 3 else slices)


def map_shape(network: nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    seen = []
    handle = network.maps.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    network(images)
    handle.remove()
    return seen[0]


each_network = pytest.mark.parametrize("name", NAMES)
each_dimensions = pytest.mark.parametrize("dimensions", [2, 3])
with_and_without_excitation = pytest.mark.parametrize("squeeze_excitation", [False, True])


def test_these_networks_are_registered():
    assert [name for name in NAMES if name not in classifiers.names()] == []


@with_and_without_excitation
@each_dimensions
@each_network
def test_there_is_a_logit_for_each_class_and_an_embedding_before_it(name, dimensions, squeeze_excitation):
    network = make(name, dimensions, in_channels=2, out_channels=5, squeeze_excitation=squeeze_excitation).eval()
    images = images_for(name, dimensions, channels=2)
    embedding = network.embed(images)
    assert embedding.shape == (2, network.embedding_size) == (2, SIZE[name])
    assert not embedding.requires_grad
    logits = network(images)
    assert logits.shape == (2, 5)
    assert torch.allclose(logits, network.head(embedding), atol=1e-6)
    assert not torch.allclose(logits[0], logits[1])
    assert [torch.equal(level, logits) for level in network.forward_levels(images)] == [True]


@with_and_without_excitation
@each_dimensions
@each_network
def test_the_gradient_reaches_every_parameter(name, dimensions, squeeze_excitation):
    network = make(name, dimensions, squeeze_excitation=squeeze_excitation)
    network(images_for(name, dimensions, batch=4)).square().sum().backward()
    parameters = dict(network.named_parameters())
    assert [key for key, value in parameters.items() if value.grad is None] == []
    assert [key for key, value in parameters.items() if not value.grad.isfinite().all()] == []
    assert [key for key, value in parameters.items() if not value.grad.any()] == []


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_a_resnet_has_the_convolutions_that_its_depth_says(depth: int):
    network = make("resnet", 2, depth=depth, width=2)
    counted = [
        key for key, part in network.features.named_modules() if isinstance(part, nn.Conv2d) and "downsample" not in key
    ]
    assert len(counted) + 1 == depth  # the head counts too
    assert network(torch.randn(2, 1, 16, 16, 1)).shape == (2, 3)


def test_the_networks_that_bear_a_known_name_have_its_number_of_parameters():
    """Of torchvision's models of 3 channels and 1000 classes: 7 978 856 and 25 557 032."""
    with torch.device("meta"):
        known = {name: build_classifier(name, 2, 3, 1000, {"slices": "mean"}) for name in NAMES if name != "resnet"}
        known["resnet"] = build_classifier("resnet", 2, 3, 1000, {"depth": 50, "slices": "mean"})
    counts = {name: sum(part.numel() for part in network.parameters()) for name, network in known.items()}
    assert counts["densenet"] == 7_978_856
    assert counts["resnet"] == 25_557_032


@pytest.mark.parametrize(("name", "layers"), [("densenet", 3), ("inception", 4), ("resnet", 4)])
def test_squeeze_and_excitation_stands_behind_each_block(name: str, layers: int):
    def count(network: nn.Module) -> int:
        return sum(isinstance(part, ChannelSELayer) for part in network.modules())

    assert count(make(name, 3)) == 0
    assert count(make(name, 3, squeeze_excitation=True)) == layers


@each_dimensions
@each_network
def test_the_maps_are_the_last_features_and_average_to_the_embedding(name, dimensions):
    network = make(name, dimensions, slices="mean").eval()
    images = images_for(name, dimensions)
    sides = (2,) * dimensions
    assert map_shape(network, images) == (2 if dimensions == 3 else 6, SIZE[name], *sides)
    seen = []
    network.maps.register_forward_hook(lambda module, inputs, output: seen.append(output))
    embedding = network.embed(images)
    assert torch.allclose(seen[0].reshape(2, -1, SIZE[name], 2**dimensions).mean(dim=(1, 3)), embedding, atol=1e-6)
    assert seen[0].min() >= 0


@each_dimensions
@each_network
def test_the_gradient_of_a_class_with_respect_to_the_maps_can_be_had(name, dimensions):
    network = make(name, dimensions).eval()
    seen = []
    network.maps.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = network(images_for(name, dimensions))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), seen[0])
    assert gradient.shape == seen[0].shape
    assert gradient.any()


@pytest.mark.parametrize("stem", ["full", "small"])
@each_dimensions
@each_network
def test_the_smallest_input_leaves_one_voxel_and_can_be_learnt_from(name, dimensions, stem):
    side = STEP[name] * (4 if stem == "full" else 1)
    smallest = smallest_input_of(name, dimensions, {**TINY[name], "stem": stem})
    assert smallest == (side, side, side if dimensions == 3 else 1)
    network = make(name, dimensions, stem=stem)
    images = torch.randn(2, 1, *smallest)
    assert map_shape(network, images) == (2, SIZE[name], *(1,) * dimensions)
    assert network(images).isfinite().all()
    assert network.eval()(images[:1]).shape == (1, 3)


@each_network
def test_a_small_stem_suits_pictures_of_28_pixels(name):
    defaults = {"densenet": 3, "inception": 4, "resnet": 4}  # 28 / 8, rounded down by DenseNet's pooling, else up
    network = build_classifier(name, 2, 3, 2, {"stem": "small"}).eval()
    assert smallest_input_of(name, 2, {"stem": "small"}) == (8, 8, 1)
    assert smallest_input_of(name, 2, {}) == (32, 32, 1)
    with torch.no_grad():
        assert map_shape(network, torch.randn(1, 3, 28, 28, 1))[2:] == (defaults[name],) * 2


@pytest.mark.parametrize("slices", KINDS)
@each_network
def test_one_slice_alone_is_the_image(name, slices):
    network = make(name, 2, slices=slices).eval()
    images = images_for(name, 2, slices=1)
    with torch.no_grad():
        alone = network.features(images.squeeze(-1)).mean(dim=(2, 3))
    assert torch.allclose(network.embed(images), alone, atol=1e-6)


@pytest.mark.parametrize("slices", KINDS)
@each_network
def test_the_order_of_slices_does_not_matter_but_the_image_they_are_of_does(name, slices):
    network = make(name, 2, slices=slices).eval()
    images = images_for(name, 2, slices=5)
    embedding = network.embed(images)
    assert torch.allclose(embedding, network.embed(images.flip(-1)), atol=1e-6)
    alone = torch.cat([network.embed(image[None]) for image in images])
    assert torch.allclose(embedding, alone, atol=1e-6)
    assert not torch.allclose(embedding[0], embedding[1], atol=1e-4)


@each_network
def test_a_repeated_slice_changes_nothing_of_the_maximum_but_moves_the_mean_and_the_attention(name):
    images = images_for(name, 2)
    repeated = torch.cat([images, images[..., :1], images[..., :1]], dim=-1)
    same = {}
    for slices in KINDS:
        network = make(name, 2, slices=slices).eval()
        same[slices] = torch.allclose(network.embed(images), network.embed(repeated), atol=1e-6)
    assert same == {"attention": False, "max": True, "mean": False}


def test_the_weights_of_the_attention_sum_to_one_and_weigh_the_mean():
    torch.manual_seed(0)
    attention = GatedAttention(6)
    embeddings = torch.randn(2, 7, 6)
    weights = attention.weights(embeddings)
    assert weights.shape == (2, 7)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2))
    assert weights.min() > 0
    assert weights.std() > 0
    assert torch.allclose(attention(embeddings), torch.einsum("bz,bzd->bd", weights, embeddings), atol=1e-6)


def test_the_attention_learns_which_slice_counts():
    torch.manual_seed(0)
    attention, head = GatedAttention(4), nn.Linear(4, 1)
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], lr=0.02)
    for _ in range(500):
        embeddings, truth = _one_marked_slice(32)
        loss = nn.functional.mse_loss(head(attention(embeddings)).squeeze(1), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    embeddings, _ = _one_marked_slice(200)
    found = attention.weights(embeddings).argmax(dim=1) == embeddings[..., 0].argmax(dim=1)
    assert found.float().mean() > 0.8  # by chance 0.11


def _one_marked_slice(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of nine slices: the second feature of the one that is marked by its first is the truth."""
    embeddings = torch.randn(count, 9, 4)
    embeddings[..., 0] = 0
    rows, marked = torch.arange(count), torch.randint(0, 9, (count,))
    embeddings[rows, marked, 0] = 3
    return embeddings, embeddings[rows, marked, 1]


@with_and_without_excitation
@each_network
def test_a_network_learns_to_find_a_spot(name, squeeze_excitation):
    network = make(name, 2, out_channels=2, squeeze_excitation=squeeze_excitation)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        images, truth = _spots(16)
        loss = nn.functional.cross_entropy(network(images), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, truth = _spots(60)
    network.eval()
    assert (network(images).argmax(dim=1) == truth).float().mean() > 0.85


def _spots(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, every other image of which has a bright spot somewhere."""
    truth = torch.arange(count) % 2
    images = torch.randn(count, 1, 16, 16, 3)
    for image in images[1::2]:
        x, y = torch.randint(0, 12, (2,)).tolist()
        image[0, x : x + 4, y : y + 4, 1:] += 2
    return images, truth


@each_network
def test_a_volumetric_network_has_no_parameters_for_slices(name):
    assert [key for key in make(name, 3).state_dict() if key.startswith("slices")] == []


@each_network
def test_dropout_falls_on_the_embedding_in_training_alone(name):
    network = make(name, 3, dropout=0.5)
    images = images_for(name, 3)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.dropout.train()
    assert not torch.equal(network(images), network(images))
    assert torch.equal(network.embed(images), network.embed(images))


@with_and_without_excitation
@each_dimensions
@each_network
def test_weights_come_back_from_a_file_as_they_were(name, dimensions, squeeze_excitation, tmp_path: Path):
    network = make(name, dimensions, squeeze_excitation=squeeze_excitation).eval()
    tensors = network.state_dict(keep_vars=True)
    assert len({id(value) for value in tensors.values()}) == len(tensors)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    other = build_classifier(
        name, dimensions, 1, 3, {**TINY[name], "stem": "small", "squeeze_excitation": squeeze_excitation}
    ).eval()
    images = images_for(name, dimensions)
    assert not torch.equal(network(images), other(images))
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(network(images), other(images))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 3},
        {"slices": "median"},
        {"stem": "tiny"},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"squeeze_excitation": "yes"},
    ],
    ids=str,
)
@each_network
def test_an_option_that_a_network_does_not_take_is_refused(name, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        build_classifier(name, 2, 1, 2, wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("densenet", {"block_config": []}),
        ("densenet", {"growth_rate": 0}),
        ("inception", {"width": 3}),
        ("inception", {"blocks": [1, 0]}),
        ("resnet", {"depth": 101}),
    ],
    ids=str,
)
def test_a_size_out_of_range_is_refused(name, wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        build_classifier(name, 2, 1, 2, wrong)


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(BadInput, match="'vgg' is not one of densenet"):
        build_classifier("vgg", 2, 1, 2, {})


def test_the_networks_load_no_package_that_a_server_has_no_use_for():
    program = (
        "import sys, labelrounds.host; from labelrounds.classification.networks import classifiers; "
        "classifiers.names(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    packages = {module.partition(".")[0] for module in done.stdout.split()}
    assert "monai" in packages
    assert packages & UNUSED == set()
