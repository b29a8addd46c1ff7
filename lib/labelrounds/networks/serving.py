"""A trained network in the form that answers fastest; training keeps the one that learns fastest."""

import copy
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from labelrounds.devices import place
from labelrounds.networks.base import SegmentationNetwork


def for_inference(
    network: SegmentationNetwork, device: torch.device, dimensions: int, weights: torch.dtype = torch.float32
) -> SegmentationNetwork:
    """Return a copy of a network for inference alone, on a device; it takes float32 images as the network does.

    On a CPU each instance normalisation becomes a group normalisation of one channel a group. That is the same
    function, but torch computes it on channels-last memory as it lies there, not by way of two copies; its backward
    pass is the slower one.

    A batch normalisation is a multiplication by then, which the weights of the convolution before it take over.

    Args:
        network: a trained network; it is not changed.
        device: where it will answer.
        dimensions: 2 or 3.
        weights: float32, or bfloat16, in which it then computes, and answers, whatever the mixed precision.
    """
    served = copy.deepcopy(network).eval()
    _fold_batch_normalisations(served)
    if device.type == "cpu":
        _normalise_in_place(served)
    if weights is torch.bfloat16:
        served.bfloat16()
        served.register_forward_pre_hook(_in_bfloat16)
    return place(served, device, dimensions)


def _fold_batch_normalisations(network: nn.Module) -> None:
    """Multiply the weights of MONAI's convolution blocks by what the batch normalisation behind them does."""
    for block in network.modules():
        if not isinstance(block, Convolution) or not hasattr(block, "adn"):
            continue
        name, first = next(block.adn.named_children())
        if isinstance(first, nn.BatchNorm2d | nn.BatchNorm3d):
            block.conv = fuse_conv_bn_eval(block.conv, first, block.is_transposed)
            setattr(block.adn, name, nn.Identity())


def _normalise_in_place(module: nn.Module) -> None:
    """Replace the instance normalisations of a module, but for those that keep statistics of their training."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d) and not child.track_running_stats:
            group = nn.GroupNorm(child.num_features, child.num_features, child.eps, child.affine)
            group.load_state_dict(child.state_dict())
            setattr(module, name, group.eval())
        else:
            _normalise_in_place(child)


def _in_bfloat16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    return images.bfloat16(), *others
