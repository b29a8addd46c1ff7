"""What a training step and an answer are said to cost is what the real networks take."""

import json
import subprocess
import sys

import pytest

from labelrounds.footprint import answering_bytes, footprint_of

# Each in a process of its own, since memory that another has used once counts as taken ever after; forked from one that
# has imported everything, and computed nothing.
PROGRAM = """
import labelrounds.host
import json, os, re, sys, torch
from pathlib import Path
from monai.losses import DiceCELoss
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, place
from labelrounds.networks import build_network
from labelrounds.networks.serving import for_inference
cpu = torch.device("cpu")

def peak():  # of this process alone; getrusage counts that of its parent too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def of_steps(config):
    network = place(build_network(config), cpu, config.dimensions)
    optimizer = torch.optim.AdamW(network.parameters())
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    before = peak()
    for _ in range(2):
        shape = (config.training.batch_size, 1, *config.patch_size)
        with autocast(cpu):
            logits = network.forward_levels(torch.randn(shape))[0]
        loss(logits.float(), torch.randint(0, 3, shape)).backward()
        optimizer.step()
    return peak() - before

def of_answer(config, shape):
    network, image = for_inference(build_network(config), cpu, 3), torch.randn(1, 1, *shape)
    with torch.inference_mode():
        network(image[..., :32, :32, :32])  # what is loaded by then is no part of the answer
        before = peak()
        network(image)
    return peak() - before

for line in sys.stdin:
    if not (child := os.fork()):
        content, shape = json.loads(line)
        config = ModelConfig.model_validate(content, strict=False)
        print(of_answer(config, shape) if shape else of_steps(config), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed", flush=True)
"""
FLAT = {"kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]], "strides": [[2, 2, 1], [2, 2, 2]]}


@pytest.fixture(scope="module")
def measured():
    """Return a function that measures how many bytes two steps need, or the answer for an image of a shape."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def measure(config, shape=None) -> int:
        process.stdin.write(json.dumps([config.model_dump(mode="json"), shape]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield measure
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("network", "patch"),
    [
        ({"name": "unet", "channels": [16, 32, 64, 128]}, [64, 64, 32]),
        ({"name": "unet", "channels": [16, 32, 64, 128]}, [256, 384, 1]),
        ({"name": "vnet", "channels": [16, 32, 64], "depths": [1, 2, 3], **FLAT}, [64, 64, 16]),
    ],
)
def test_memory_is_enough_for_real_steps_and_not_far_above(make_config, measured, network, patch):
    config = make_config(network=network, patch_size=patch)
    taken = measured(config)
    assert taken < footprint_of(config).bytes < 3 * taken


@pytest.mark.parametrize("network", ["residual_unet", "unet"])
def test_memory_is_enough_for_a_real_answer_and_not_far_above(make_config, measured, network):
    config, shape = make_config(network={"name": network, "channels": [16, 32, 64, 128]}), (160, 160, 128)
    taken = measured(config, shape)
    assert taken < answering_bytes(config, shape) < 2 * taken


def test_cost_grows_with_batch_and_patch(make_config):
    def cost(batch, patch):
        return footprint_of(make_config(patch_size=patch, training={"batch_size": batch}))

    one, two, large = cost(1, [16, 16, 16]), cost(2, [16, 16, 16]), cost(1, [32, 16, 16])
    assert two.operations == large.operations == 2 * one.operations
    assert one.bytes < two.bytes
    assert one.cpu_seconds < two.cpu_seconds
    assert one.parameters == two.parameters


def test_operations_are_those_of_forward_and_backward(make_config):
    config = make_config(network={"name": "vnet", "channels": [1, 1, 1], "depths": [1, 1, 1]}, patch_size=[4, 4, 8])
    assert json.loads(config.model_dump_json())["patch_size"] == [4, 4, 8]
    first_convolution = 2 * 27 * 4 * 4 * 8  # a product and a sum for each of 27 weights at each voxel
    assert footprint_of(config).operations > 3 * config.training.batch_size * first_convolution
