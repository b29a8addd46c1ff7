"""Each network segments volumes and slices, learns with all its parameters and sums an image up."""

import pytest
import torch
from torch import nn

from labelrounds.config import ModelConfig
from labelrounds.networks import build_network, networks

NAMES = ["attention_unet", "residual_unet", "segresnet", "unet", "vnet"]
WITH_CHANNELS = ["attention_unet", "residual_unet", "unet", "vnet"]


def options_of(name: str, channels: list[int], **more) -> dict:
    if name == "segresnet":  # its widths follow from the first
        return dict(
            networks.options(name)(filters=8, blocks_down=[1] * len(channels), blocks_up=[1] * len(channels[1:]))
        )
    depths = {"depths": [1] * len(channels)} if name == "vnet" else {}
    return {**dict(networks.options(name)(channels=channels, **depths)), **more}


def make(name: str, dimensions: int, channels=(4, 6, 8), in_channels=1, out_channels=3, **more):
    """A network and the smallest images that leave it two voxels an axis at its lowest level."""
    torch.manual_seed(0)
    options = options_of(name, list(channels), **more)
    divisor = networks.get(name).divisor(dimensions, **options)
    network = networks.get(name)(dimensions, in_channels, out_channels, **options)
    sides = [2 * step if axis < dimensions else 1 for axis, step in enumerate(divisor)]
    return network, torch.randn(2, in_channels, *sides)


def test_these_networks_are_registered():
    assert [name for name in NAMES if name not in networks.names()] == []


@pytest.mark.parametrize("channels", [(4, 6, 8), (3, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_logits_have_the_images_shape_and_a_channel_for_each_label(name: str, dimensions: int, channels):
    network, images = make(name, dimensions, channels, in_channels=2, out_channels=5)
    assert network(images).shape == (2, 5, *images.shape[2:])


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(name: str, dimensions: int):
    network, images = make(name, dimensions)
    sum(logits.square().sum() for logits in network.forward_levels(images)).backward()
    parameters = dict(network.named_parameters())
    assert [key for key, value in parameters.items() if value.grad is None] == []
    assert [key for key, value in parameters.items() if not value.grad.isfinite().all()] == []
    # The bias of a convolution before a normalisation has none to speak of.
    assert [key for key, value in parameters.items() if value.ndim > 1 and not value.grad.any()] == []


@pytest.mark.parametrize(("strides", "last"), [(None, 4), ([(2, 2, 1), (2, 2, 2)], 2), ([(2, 2, 1)] * 2, 1)])
@pytest.mark.parametrize("name", WITH_CHANNELS)
def test_strides_can_keep_the_slice_resolution(name: str, strides, last: int):
    options = options_of(name, [4, 6, 8], strides=strides)
    assert networks.get(name).divisor(3, **options) == (4, 4, last)
    network, _ = make(name, 3, strides=strides)
    images = torch.randn(1, 1, 8, 8, last)
    assert network(images).shape == (1, 3, 8, 8, last)
    seen = []
    network.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    network(images)
    assert seen == [(2, 2, 1)]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", ["unet", "vnet"])
def test_all_levels_but_the_two_lowest_are_supervised(name: str, dimensions: int):
    network, images = make(name, dimensions, (4, 4, 4, 4, 4))
    network.eval()
    full, half, quarter = network.forward_levels(images)
    assert torch.equal(full, network(images))
    sides = images.shape[2:]
    for logits, step in ((half, 2), (quarter, 4)):
        assert logits.shape == (2, 3, *(side // step if axis < dimensions else 1 for axis, side in enumerate(sides)))


@pytest.mark.parametrize("name", NAMES)
def test_a_network_sees_locally_that_normalises_by_what_its_training_saw(name: str):
    network, _ = make(name, 3)
    over_all = [module for module in network.modules() if isinstance(module, nn.InstanceNorm3d | nn.GroupNorm)]
    assert networks.get(name).sees_locally(**options_of(name, [4, 6, 8])) is not bool(over_all)


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_has_one_name(name: str):
    tensors = make(name, 3)[0].state_dict(keep_vars=True)
    assert len({id(value) for value in tensors.values()}) == len(tensors)


@pytest.mark.parametrize("name", NAMES)
def test_divisor_is_what_the_sides_must_be_multiples_of(name: str):
    options = options_of(name, [4, 6, 8, 10])
    assert networks.get(name).divisor(3, **options) == (8, 8, 8)
    assert networks.get(name).divisor(2, **options) == (8, 8, 1)
    network, _ = make(name, 3, (4, 6, 8, 10))
    assert network(torch.randn(1, 1, 16, 24, 8)).shape == (1, 3, 16, 24, 8)
    with pytest.raises((RuntimeError, ValueError)):
        network(torch.randn(1, 1, 20, 24, 8))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_is_the_bottlenecks_average_and_repeats_itself(name: str, dimensions: int):
    network, images = make(name, dimensions)
    network.eval()
    seen = []
    handle = network.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(images)
    handle.remove()
    once = network.embed(images)
    assert torch.allclose(once, seen[0].mean(dim=tuple(range(2, seen[0].ndim))), atol=1e-6)
    assert once.shape == (2, 32 if name == "segresnet" else 8)
    assert torch.equal(once, network.embed(images))
    assert not torch.allclose(once[0], once[1])
    assert not once.requires_grad
    assert not network.bottleneck._forward_hooks


@pytest.mark.parametrize("name", NAMES)
def test_the_bottleneck_is_at_the_lowest_resolution(name: str):
    network, images = make(name, 3, (2, 4, 6, 8))
    sizes = {}
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(
                lambda module, inputs, output, key=key: sizes.update({key: output[0, 0].numel()})
            )
    network.bottleneck.register_forward_hook(
        lambda module, inputs, output: sizes.update(bottleneck=output[0, 0].numel())
    )
    network(images)
    assert sizes["bottleneck"] == min(sizes.values()) == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_2d_network_sees_one_slice_at_a_time(name: str):
    network, images = make(name, 2)
    network.eval()
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.shape[-1] == 1


def test_a_vnet_of_the_papers_widths_has_the_parameters_that_its_documentation_says():
    with torch.device("meta"):
        network = networks.get("vnet")(
            3, 1, 2, channels=[16, 32, 64, 128, 256], depths=[1, 2, 3, 3, 3], kernels=[(5, 5, 5)] * 5
        )
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(millions) == 44
    assert "44 million" in networks.get("vnet").__doc__


def test_build_network_follows_the_configuration(make_config):
    config: ModelConfig = make_config(
        labels=["a", "b", "c", "d"],
        channels=3,
        network={
            "name": "vnet",
            "channels": [2, 4, 6],
            "depths": [1, 1, 2],
            "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
        },
    )
    network = build_network(config)
    assert type(network).__name__ == "VNet"
    assert network(torch.zeros(1, 3, 16, 16, 16)).shape == (1, 5, 16, 16, 16)
    assert network.encoder[-1].convolutions[0].kernel_size == (3, 3, 3)


def test_a_segresnet_whose_decoder_does_not_match_its_encoder_is_refused():
    with pytest.raises(ValueError, match="blocks_up has 2 entries, expected 1"):
        networks.get("segresnet").divisor(3, blocks_down=[1, 1], blocks_up=[1, 1])
