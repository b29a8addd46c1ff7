"""What a step of training and an answer cost, found by tracing the real network without computing.

PyTorch's fake tensors know shape and type of everything that autograd keeps for the way back, so the count follows any
network, and any change of one, by itself. What comes on top (gradients of activations, workspaces, the loss) was
measured: on 2 cores in bfloat16, steps of U-Net and V-Net, 2-D and 3-D, flat and cubic patches from 40x56x40 to
96x96x64 took 1.8 to 2.5 times the activations and 50 MB, and `tests/unit/test_footprint.py` measures again.
"""

import functools
import math
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, low_precision
from labelrounds.networks import build_network

# Beside the activations held at once an answer takes workspaces: of 160x160x128 voxels up to 50 % on 2 cores.
_ANSWERING_FACTOR = 1.6
_ACTIVATIONS_FACTOR = 2.5
_CONSTANT_BYTES = 150e6
# Weights, gradients, AdamW's two moments, and the averaged and the best weights; 4 bytes each.
_BYTES_A_PARAMETER = 6 * 4
# Measured on the same steps in bfloat16, 35 to 72 thousand million operations a second and core; float32 takes about
# twice as long on such CPUs.
_OPERATIONS_A_CORE = 50e9
_FLOAT32_SLOWER = 2


@dataclass(frozen=True)
class Footprint:
    """What a training step of a model takes.

    Attributes:
        bytes: memory, weights and optimiser included.
        operations: floating-point operations of forward and backward pass.
        parameters: weights of the network.
    """

    bytes: int
    operations: int
    parameters: int

    @property
    def cpu_seconds(self) -> float:
        """Return about how long the step takes on this machine's CPU."""
        rate = torch.get_num_threads() * _OPERATIONS_A_CORE
        return self.operations / rate * (1 if low_precision("cpu") else _FLOAT32_SLOWER)


def footprint_of(config: ModelConfig) -> Footprint:
    """Return what a training step costs that a model's configuration describes.

    The types are those of the CPU's mixed precision; those on CUDA take no more.
    """
    batch = config.training.batch_size
    storages: dict[int, torch.UntypedStorage] = {}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(), torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counted:
        network = build_network(config)
        images = torch.zeros(batch, config.channels, *config.patch_size)
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor), autocast(torch.device("cpu")):
            levels = network.forward_levels(images)
    parameters = sum(math.prod(weight.shape) for weight in network.parameters())
    # The logits, their softmax and its gradient in float32, for the loss at full resolution.
    logits = 3 * 4 * batch * math.prod(config.patch_size) * (len(config.labels) + 1)
    activations = sum(storage.nbytes() for storage in storages.values()) + logits
    del levels
    return Footprint(
        bytes=int(_ACTIVATIONS_FACTOR * activations + _BYTES_A_PARAMETER * parameters + _CONSTANT_BYTES),
        operations=3 * counted.get_total_flops(),  # backward: gradients of inputs and of weights, once each
        parameters=parameters,
    )


def answering_bytes(config: ModelConfig, shape: tuple[int, ...]) -> int:
    """Return the memory that the network takes at most for the logits of one window ``(X, Y, Z)`` of any size."""
    return int(_held_a_voxel(config.model_dump_json()) * math.prod(shape) * _ANSWERING_FACTOR)


@functools.lru_cache(maxsize=64)
def _held_a_voxel(model: str) -> float:
    """Return the bytes a voxel of the activations that a model, as JSON, holds at once, at most."""
    config = ModelConfig.model_validate_json(model)
    with FakeTensorMode(), torch.random.fork_rng(devices=[]), torch.inference_mode():
        network = build_network(config).eval()
        images = torch.zeros(1, config.channels, *config.patch_size)
        with _Held() as held:  # in float32, of which no runtime takes more
            network(images)
    return held.most / math.prod(config.patch_size)


class _Held(TorchDispatchMode):
    """Counts the memory of the tensors that are made while it is on.

    Attributes:
        most: bytes that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most, self._held = 0, 0
        self._tensors: Counter[int] = Counter()  # those that refer to a piece of memory, by its address

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        given = {id(tensor) for tensor in tree_leaves((args, kwargs))}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in given:
                self._count(tensor)
        self.most = max(self.most, self._held)
        return made

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._held += 0 if self._tensors[key] else size
        self._tensors[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        self._held -= 0 if self._tensors[key] else size
