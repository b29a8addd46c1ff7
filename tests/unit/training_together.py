"""What test_distributed.py runs in several processes, and in its own: ``training_together.py FOLDER``, by torchrun.

The networks compute in float64. In float32 the rounding of a share of a batch turns the sign of a value at the kink of
a ReLU now and then, and by it the gradients of all levels below change by parts of a percent.
"""

import json
import os
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import labelrounds.host  # noqa: F401 - first, or all of MONAI is imported

# isort: split
from learners import StopAfter
from safetensors.torch import save_file

from labelrounds import distributed, tasks
from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.errors import LabelRoundsError
from labelrounds.learning import Epoch, Learner, Schedule
from labelrounds.networks import build_network

CPU = torch.device("cpu")


def case_of(seed: int) -> PreparedCase:
    """A bright and a darker box in noise."""
    rng = np.random.default_rng(seed)
    label = np.zeros((20, 18, 16), np.uint8)
    for value in (1, 2):
        start = rng.integers(1, 9, 3)
        label[tuple(slice(at, at + 6) for at in start)] = value
    image = np.array([-0.6, 0.2, 0.8])[label] + rng.normal(0, 0.05, label.shape)
    voxels = torch.from_numpy(label)
    foreground = tuple(torch.nonzero(voxels == value) for value in (1, 2))
    return PreparedCase(
        f"case_{seed}", f"patient_{seed}", torch.from_numpy(image)[None], voxels, (1.0, 1.0, 1.0), foreground
    )


def learner(batch_size: int, epochs: int, state: Path | None = None) -> Learner:
    """A network with deep supervision, two training cases and three validation cases."""
    content = {
        "name": "shared",
        "description": "two boxes",
        "labels": ["near", "far"],
        "intensity": {"kind": "window", "low": -1, "high": 1},
        "network": {"name": "unet", "channels": [4, 6, 8, 8]},
        "patch_size": [16, 16, 16],
        "inference": {"overlap": 0.25},
        "training": {"iterations_per_epoch": 4, "batch_size": batch_size, "learning_rate": 1e-2},
    }
    config = ModelConfig.model_validate_json(json.dumps(content))
    # Of another seed in each process, as nothing but process 0's weights may count.
    torch.manual_seed(distributed.rank())
    cases = [case_of(seed) for seed in range(5)]
    return Learner(
        config, build_network(config).double(), cases[:2], cases[2:], CPU, Schedule(epochs, 4, 1e-2), state=state
    )


def run(folder: Path, name: str, learner: Learner, stop_after: float = float("inf")) -> dict[str, object]:
    """Train, keep the weights in the folder and return the figures."""
    reported: list[Epoch] = []
    with patch.object(distributed, "share", wraps=distributed.share) as share:
        outcome = learner.run(reported.append, StopAfter(stop_after))
    file = folder / f"{name}_{distributed.rank()}.safetensors"
    save_file({key: value.contiguous() for key, value in outcome.network.state_dict().items()}, file)
    return {
        "epochs": [epoch.number for epoch in reported],
        "stopped": outcome.stopped,
        "pickled": share.call_count,
        "loss": [epoch.loss for epoch in reported],
        "dice": [epoch.dice for epoch in reported],
        "predictions": [[int(shown.sum()) for shown in epoch.predictions] for epoch in reported],
    }


def refusal(action) -> str:
    """Return what a user is told."""
    try:
        action()
    except LabelRoundsError as error:
        return str(error)
    return ""


def killed(folder: Path, learner: Learner) -> None:
    """Train until process 0 has saved its first epoch, and kill it."""

    def end(epoch: Epoch) -> None:
        if distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    learner.run(end, StopAfter(float("inf")))


def out_of_memory(levels, labels):
    raise torch.OutOfMemoryError("CUDA out of memory")


def all_figures(folder: Path) -> dict[str, object]:
    """Train in all the ways that are tested."""
    figures: dict[str, object] = {
        "resumed": run(folder, "resumed", learner(2, 3, folder / f"state_{distributed.rank()}.safetensors")),
        "even": run(folder, "even", learner(2, 3)),
        "uneven": run(folder, "uneven", learner(3, 2)),
        # Process 0 is told to stop within the second epoch, the others never.
        "stopped": run(folder, "stopped", learner(2, 3), 6 if distributed.rank() == 0 else float("inf")),
        "only another is told": run(folder, "told", learner(2, 1), float("inf") if distributed.rank() == 0 else 1),
        "too many": refusal(lambda: learner(1, 1)),
    }
    tasks.supervised_loss, loss = out_of_memory, tasks.supervised_loss
    figures["out of memory"] = refusal(lambda: run(folder, "none", learner(2, 1)))
    tasks.supervised_loss = lambda levels, labels: loss(levels, labels) * float("nan")
    figures["diverged"] = refusal(lambda: run(folder, "none", learner(2, 1)))
    tasks.supervised_loss = loss
    return figures


def main(folder: Path) -> None:
    """Train as one of the processes that torchrun started; the first time, be killed."""
    torch.set_num_threads(1)
    distributed.join(CPU)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        killed(folder, learner(2, 3, folder / f"state_{distributed.rank()}.safetensors"))
    states = sorted(file.name for file in folder.glob("state_*"))
    distributed.gather(None)  # so that nobody has begun another before all have looked
    figures = {"states": states, **all_figures(folder)}
    (folder / f"figures_{distributed.rank()}.json").write_text(json.dumps(figures))
    distributed.leave()
    distributed.end()


if __name__ == "__main__":
    from labelrounds import devices

    devices.low_precision = lambda device_type: False
    main(Path(sys.argv[1]))
