"""What a training step and an answer are said to cost is what the real networks take."""

import json
import subprocess
import sys

import pytest

from labelrounds.footprint import answering_bytes, footprint_of

# Two steps in a process of its own, since memory that another test has used once counts as taken ever after.
STEPS = """
import re, sys, torch
from pathlib import Path
from monai.losses import DiceCELoss
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, place
from labelrounds.networks import build_network
config, cpu = ModelConfig.model_validate_json(sys.argv[1]), torch.device("cpu")
network = place(build_network(config), cpu, config.dimensions)
optimizer = torch.optim.AdamW(network.parameters())
loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
def peak():  # of this process alone; getrusage counts that of its parent too
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
for _ in range(2):
    shape = (config.training.batch_size, 1, *config.patch_size)
    with autocast(cpu):
        logits = network.forward_levels(torch.randn(shape))[0]
    loss(logits.float(), torch.randint(0, 3, shape)).backward()
    optimizer.step()
print(peak() - before)
"""
ANSWER = """
import re, sys, torch
from pathlib import Path
from labelrounds.config import ModelConfig
from labelrounds.networks import build_network
from labelrounds.networks.serving import for_inference
config, cpu = ModelConfig.model_validate_json(sys.argv[1]), torch.device("cpu")
network, image = for_inference(build_network(config), cpu, 3), torch.randn(1, 1, *map(int, sys.argv[2:]))
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
with torch.inference_mode():
    network(image)
print(peak() - before)
"""
FLAT = {"kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]], "strides": [[2, 2, 1], [2, 2, 2]]}


@pytest.mark.parametrize(
    ("network", "patch"),
    [
        ({"name": "unet", "channels": [16, 32, 64, 128]}, [64, 64, 32]),
        ({"name": "unet", "channels": [16, 32, 64, 128]}, [256, 384, 1]),
        ({"name": "vnet", "channels": [16, 32, 64], "depths": [1, 2, 3], **FLAT}, [64, 64, 16]),
    ],
)
def test_memory_is_enough_for_real_steps_and_not_far_above(make_config, network, patch):
    config = make_config(network=network, patch_size=patch)
    command = [sys.executable, "-c", STEPS, config.model_dump_json()]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert measured < footprint_of(config).bytes < 3 * measured


@pytest.mark.parametrize("network", ["residual_unet", "unet"])
def test_memory_is_enough_for_a_real_answer_and_not_far_above(make_config, network):
    config = make_config(network={"name": network, "channels": [16, 32, 64, 128]}, patch_size=[32, 32, 32])
    command = [sys.executable, "-c", ANSWER, config.model_dump_json(), "160", "160", "128"]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert measured < answering_bytes(config, (160, 160, 128)) < 2 * measured


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
