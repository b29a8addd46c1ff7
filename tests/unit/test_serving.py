"""The form in which a network answers gives the answers of the network that was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.real_images import real
from torch import nn

from labelrounds import folders
from labelrounds.config import load_config
from labelrounds.devices import autocast, low_precision
from labelrounds.metrics import dice
from labelrounds.networks import build_network
from labelrounds.networks.serving import for_inference
from labelrounds.reading import read_image
from labelrounds.sliding import Windows, label_map
from labelrounds.transforms import Grid, prepare

CPU = torch.device("cpu")
NETWORKS = [
    {"name": "unet", "channels": [4, 6, 8]},
    {"name": "vnet", "channels": [4, 6, 8], "depths": [1, 2, 2]},
    {"name": "attention_unet", "channels": [4, 6, 8]},
    {"name": "residual_unet", "channels": [4, 6, 8]},
]


@pytest.fixture(params=NETWORKS, ids=lambda network: network["name"])
def options(request) -> dict:
    return request.param


@pytest.fixture
def trained():
    """Build a network whose normalisations are not those of an untrained one."""

    def build(config):
        torch.manual_seed(0)
        network = build_network(config).eval()
        with torch.no_grad():
            for value in network.parameters():
                value.add_(0.1 * torch.randn_like(value))
            for value in network.buffers():  # a variance stays positive
                if value.is_floating_point():
                    value.add_(torch.rand_like(value))
        return network

    return build


def kinds(network: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in network.modules()}


@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=["3-D", "2-D"])
def test_normalised_in_place_it_is_the_same_function(make_config, trained, options, patch_size):
    config = make_config(network=options, patch_size=patch_size)
    network, images = trained(config), torch.randn(2, 1, *patch_size)
    served = for_inference(network, CPU, config.dimensions)
    assert not kinds(served) & {nn.InstanceNorm2d, nn.InstanceNorm3d}
    with torch.inference_mode():
        assert served(images).allclose(network(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=["3-D", "2-D"])
def test_in_bfloat16_it_is_nearly_the_same_function(make_config, trained, options, patch_size):
    config = make_config(network=options, patch_size=patch_size)
    network, images = trained(config), torch.randn(2, 1, *patch_size)
    served = for_inference(network, CPU, config.dimensions, torch.bfloat16)
    assert {value.dtype for value in served.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        exact, found = network(images), served(images)
        with autocast(CPU):
            assert served(images).equal(found)
    assert (found - exact).abs().mean() < 0.05 * exact.std()


def test_the_network_itself_is_not_changed(make_config, trained):
    config = make_config()
    network = trained(config).train()
    before, weights = kinds(network), {name: value.clone() for name, value in network.state_dict().items()}
    served = for_inference(network, CPU, config.dimensions)
    assert kinds(network) == before and network.training and not served.training
    assert all(value.equal(weights[name]) for name, value in network.state_dict().items())


def test_statistics_of_the_training_are_kept(make_config, trained):
    network = trained(make_config())
    network.net.input_block.norm1 = nn.InstanceNorm3d(4, affine=True, track_running_stats=True).eval()
    assert nn.InstanceNorm3d in kinds(for_inference(network, CPU, 3))


@pytest.mark.parametrize("model", ["unet_hippocampus", "vnet_hippocampus"])
def test_shipped_weights_label_real_images_as_in_float32(model):
    images = real("hippocampus")
    if not low_precision("cpu"):
        pytest.skip("this CPU computes in float32 anyway")
    config = load_config(folders.shipped_configs() / f"{model}.yaml")
    network = build_network(config).eval()
    network.load_state_dict(load_file(folders.shipped_weights() / f"{model}.safetensors"))
    served = for_inference(network, CPU, config.dimensions, torch.bfloat16)
    for name in json.loads((images / "split.json").read_text())["training"][:3]:
        image = read_image(images / "images" / name, channels=config.channels)
        prepared = prepare(image, config, Grid.of(image, config))
        windows = Windows.over(prepared.shape[1:], config.patch_size, config.inference.overlap)
        with torch.inference_mode():
            exact, found = (label_map(run, prepared, windows, "gaussian").numpy() for run in (network, served))
        assert all(dice(found, exact, value) >= 0.995 for value in config.label_values.values())
