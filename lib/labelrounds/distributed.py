"""Several processes that train one network together, started by ``torchrun`` (torch.distributed, DDP).

Everything here also works in a process of its own, where there is nobody to agree with. Each step's batch is
shared out among the processes and the gradients are averaged, so the weights are those that one process would get,
up to rounding; but for batch normalisation, for which each process knows its own share alone.
"""

import logging
import os
import sys
import warnings
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from labelrounds.errors import Conflict

Content = TypeVar("Content")
# The others wait while process 0 prepares cases and judges. If it dies, torchrun ends them.
_PATIENCE = timedelta(days=1)


def processes() -> int:
    """Return how many processes train together; 1 for a process of its own."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 is the one that reports, saves and publishes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def launched() -> bool:
    """Tell whether ``torchrun`` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device) -> torch.device:
    """Join the processes that ``torchrun`` started and return this one's device: of the kind asked for, its own GPU.

    Raises:
        Conflict: there are more processes on this machine than GPUs.
    """
    if not launched():
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if device.index >= torch.cuda.device_count():
            raise Conflict(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {torch.cuda.device_count()} GPUs:"
                " start one for each, or train on the CPU (device cpu)"
            )
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return device


def leave() -> None:
    """End the group that ``join`` entered."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def end() -> None:
    """End this process at once, and well, where it is one of several; else do nothing. Call it last.

    DDP never lets go of the group, so gloo's threads live on after `leave`, and one that still holds a tensor when the
    interpreter is taken down aborts the process, on a busy machine about once in ten times (torch 2.13).
    """
    if launched():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def share(content: Content) -> Content:
    """Return what process 0 passes in, in every process."""
    if processes() == 1:
        return content
    box: list[Any] = [content]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def share_flag(flag: bool, device: torch.device) -> bool:
    """Return what process 0 passes in, in every process, for every step: nothing is pickled, unlike by ``share``.

    Args:
        flag: what process 0 has to say.
        device: the one that this process trains on, which the group's backend reaches.
    """
    if processes() == 1:
        return flag
    told = torch.tensor(int(flag), device=device)
    distributed.broadcast(told, src=0)
    return bool(told.item())


def gather(content: Content) -> list[Content]:
    """Return what each process passes in, by rank."""
    if processes() == 1:
        return [content]
    boxes: list[Any] = [None] * processes()
    distributed.all_gather_object(boxes, content)
    return boxes


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes.

    Each process gets the gradient of what all compute alike from the sum times the number of processes, so that the
    mean over them, which DDP takes, is the gradient of the whole.
    """
    if processes() == 1:
        return value
    whole = value.detach().clone()
    distributed.all_reduce(whole)
    return whole + processes() * (value - value.detach())


def mean(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes."""
    return total(value) / processes()


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module whose gradients are averaged over the processes."""
    if processes() == 1:
        return module
    # Of a kernel of one voxel the layouts that DDP compares are the same in all but name.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
