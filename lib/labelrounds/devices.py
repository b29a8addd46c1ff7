"""Which device a request runs on, and which arithmetic is fast there."""

import re
from functools import cache
from typing import Any, TypeVar

import psutil
import torch

from labelrounds.errors import BadInput

_OUT_OF_MEMORY = re.compile(
    r"(can't|cannot|unable to) allocate memory|(out of|not enough) memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
Network = TypeVar("Network", bound=torch.nn.Module)


def available_devices() -> list[str]:
    """Return the devices that a client may ask for, the best first."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] + ["cpu"]


def offered_devices() -> list[str]:
    """Return what a client may choose between, first what it chooses unasked: any GPU, where there are several."""
    devices = available_devices()
    return ["cuda", *devices] if len(devices) > 2 else devices


def choose_device(wanted: object = None) -> torch.device:
    """Return the device that is asked for, or the best there is when none is; raises as `choose_devices` does."""
    return choose_devices(wanted)[0]


def choose_devices(wanted: object = None) -> list[torch.device]:
    """Return the devices that may serve who asks for one: any GPU for ``cuda``, any of the best kind when None.

    Raises:
        BadInput: not a device, or not on this machine.
    """
    available = available_devices()
    if wanted is None or wanted == "":
        wanted = "cuda" if len(available) > 1 else "cpu"
    if not isinstance(wanted, str) or not re.fullmatch(r"cpu|cuda(:\d{1,3})?", wanted):
        raise BadInput(f"device {wanted!r} is not one of {', '.join(available)}")
    chosen = [name for name in available if name == wanted or (wanted == "cuda" and name != "cpu")]
    if not chosen:
        raise BadInput(f"device {wanted!r} is not on this machine; available: {', '.join(available)}")
    return [torch.device(name) for name in chosen]


def free_bytes(device: torch.device) -> int:
    """Return how much memory is free on a device; what PyTorch has reserved there and does not use counts as free."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserve
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a device's memory does not suffice.

    Of the CPU's allocator, of cuDNN, cuBLAS and the driver it is a RuntimeError that only its text tells from others.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


@cache
def low_precision(device_type: str) -> bool:
    """Tell whether bfloat16 is faster than float32 on that kind of device: in hardware, not emulated."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, sound: bool = True) -> torch.autocast:
    """Return the mixed-precision context for a device; it does nothing where that would not pay or is not sound."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=sound and low_precision(device.type))


def sound_gradients(network: torch.nn.Module, shortest: int, device: torch.device) -> bool:
    """Tell whether a network may be trained in bfloat16.

    On the CPU, where the first of a 3-D convolution's three axes is shorter than its kernel, oneDNN reads and writes
    beyond the memory of the kernel's gradient (torch 2.13): it is garbage, or the process crashes.

    Args:
        network: the network.
        shortest: the voxels along that axis at the network's lowest level.
        device: where it is trained.
    """
    kernels = [module.kernel_size[0] for module in network.modules() if isinstance(module, torch.nn.Conv3d)]
    return device.type != "cpu" or max(kernels, default=1) <= shortest


def place(network: Network, device: torch.device, dimensions: int) -> Network:
    """Move a network to a device, in the memory layout that its convolutions are fastest in there."""
    network.to(device)
    if device.type == "cpu":  # on CUDA instance normalisation undoes channels-last and costs more than it saves
        channels_last: Any = torch.channels_last_3d if dimensions == 3 else torch.channels_last
        network.to(memory_format=channels_last)  # type: ignore[call-overload]
    return network


def settle(device: torch.device) -> None:
    """Make the calling thread one that computes on a device; both settings are nothing to a CPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what names no device, as pinned memory, would open the first GPU besides
        torch.backends.cudnn.benchmark = True  # windows have few shapes; cuDNN keeps for a thread what is fastest


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the machine's memory: itself, or from a GPU a copy in pinned memory, once it is complete."""
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return copy


def complete(device: torch.device) -> None:
    """Wait until a GPU has computed what it was given, so that the time of a stage of work is that stage's own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_of(network: torch.nn.Module) -> torch.device:
    """Return where a network is; a training that did not fit into its device may have ended on another."""
    return next(network.parameters()).device
