"""One contender of `tests.benchmarks.training_speed`, in a process of its own, whose peak memory is thereby its own.

- `labelrounds`: the server's trainer with all of its augmentation, deep supervision and weight averaging.
- `plain`: the loop that anybody writes, and the limit: patches cut beforehand, no augmentation, our loss at full
  resolution alone, no clipping, no averaging; bfloat16, memory layout and process-wide settings are our trainer's.
- `plain_default`: that loop without the process-wide settings.
- `monailabel`: MONAI Label's `BasicTrainTask` as its radiology sample app's `segmentation` trainer fills it, with that
  app's own transforms, given the identical network, patch and batch.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import autocast, choose_device, place, sound_gradients
from labelrounds.learning import Learner, Schedule
from labelrounds.losses import dice_cross_entropy
from labelrounds.networks import build_network
from labelrounds.networks.base import lowest_shape
from tests.benchmarks import peers
from tests.benchmarks.hippocampus import DATA, LABELS

CONTENDERS = ("labelrounds", "plain", "plain_default", "monailabel")
PATCHES = 64
Marks = list[tuple[int, float, float]]


def main() -> None:
    """Train, and write iterations a second and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--model", default="unet_hippocampus")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=peers.CORES)
    parser.add_argument("--iterations", type=int, default=100, help="at least so many are timed")
    parser.add_argument("--dataset", default="CacheDataset", help="of MONAI Label's trainer")
    parser.add_argument("--names", nargs="*", required=True, help="cases to train on")
    parser.add_argument("--output", type=Path, required=True)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    config, device = peers.load_model(wanted.model), choose_device(wanted.device)
    trainers: dict[str, Callable[..., Marks]] = {
        "labelrounds": learner,
        "plain": plain,
        "plain_default": plain,
        "monailabel": monailabel,
    }
    started = time.perf_counter()
    marks = trainers[wanted.contender](wanted, config, device)
    (first, warm, warm_work), (last, end, end_work) = marks[0], marks[-1]
    figures = {
        "iterations": last - first,
        "iterations_a_second": round((last - first) / (end - warm), 4),
        "processor_s_an_iteration": round((end_work - warm_work) / (last - first), 4),
        "before_s": round(warm - started, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    if device.type == "cuda":
        figures["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    wanted.output.write_text(json.dumps(figures))


def learner(wanted: argparse.Namespace, config: ModelConfig, device: torch.device) -> Marks:
    """Run our trainer; return how many iterations were done at which time, from the end of the first epoch on."""
    each = config.training.iterations_per_epoch
    epochs = 1 + -(-wanted.iterations // each)
    schedule = Schedule(epochs, each, config.training.learning_rate)
    torch.manual_seed(config.training.seed)
    cases = peers.prepare(wanted.names, config)
    ours = Learner(config, build_network(config), cases, [], device, schedule)
    marks: Marks = []
    ours.run(lambda epoch: marks.append((epoch.number * each, *now(device))), lambda: False)
    return marks


def plain(wanted: argparse.Namespace, config: ModelConfig, device: torch.device) -> Marks:
    """Run a plain loop over patches that were cut beforehand."""
    torch.manual_seed(config.training.seed)
    images, labels = cut(peers.prepare(wanted.names, config), config, device)
    network = place(build_network(config), device, config.dimensions).train()
    sound = sound_gradients(network, lowest_shape(config)[0], device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.training.learning_rate)
    generator = torch.Generator().manual_seed(config.training.seed)
    warm_up = config.training.iterations_per_epoch
    marks: Marks = []
    for iteration in range(warm_up + wanted.iterations):
        if iteration == warm_up:
            marks.append((iteration, *now(device)))
        drawn = torch.randint(len(images), (config.training.batch_size,), generator=generator).to(device)
        with autocast(device, sound):
            logits = network(images[drawn])
        loss = dice_cross_entropy(logits, labels[drawn])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return [*marks, (warm_up + wanted.iterations, *now(device))]


def cut(cases: list[PreparedCase], config: ModelConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return patches ``(N, C, *patch)`` at random places of the cases, and their labels ``(N, *patch)``."""
    draw = random.Random(config.training.seed)
    images, labels = [], []
    for _ in range(PATCHES):
        case = draw.choice(cases)
        missing = [max(0, p - s) for p, s in zip(config.patch_size, case.label.shape, strict=True)]
        padding = [amount for side in reversed(missing) for amount in (0, side)]
        image = functional.pad(case.image.float()[None], padding, mode="replicate")[0]
        label = functional.pad(case.label.float()[None, None], padding, mode="replicate")[0]
        corner = [draw.randint(0, s - p) for p, s in zip(config.patch_size, label.shape[1:], strict=True)]
        place_of = (slice(None), *(slice(c, c + p) for c, p in zip(corner, config.patch_size, strict=True)))
        images.append(image[place_of])
        labels.append(label[place_of])
    return torch.stack(images).to(device), torch.cat(labels).long().to(device)


def monailabel(wanted: argparse.Namespace, config: ModelConfig, device: torch.device) -> Marks:
    """Run MONAI Label's own trainer, called as its app calls it for ``POST /train``."""
    stock = peers.sample_app("trainers.segmentation").Segmentation
    marks: Marks = []

    class Timed(stock):  # type: ignore[misc, valid-type]
        """The sample app's trainer and one handler more, which looks at the clock."""

        def train_handlers(self, context: Any) -> list[Any]:
            return [*super().train_handlers(context), Stamp(marks, device)]

    class Datastore:
        """What the trainer asks of the host's datastore."""

        def datalist(self) -> list[dict[str, str]]:
            return [{"image": str(DATA / "images" / n), "label": str(DATA / "labels" / n)} for n in wanted.names]

    torch.manual_seed(config.training.seed)
    an_epoch = -(-len(wanted.names) // config.training.batch_size)
    request = {
        "device": str(device),
        "max_epochs": 1 + -(-wanted.iterations // an_epoch),
        "val_split": 0.0,
        "train_batch_size": config.training.batch_size,
        "multi_gpu": False,
        "pretrained": False,
        "dataset": wanted.dataset,
        "dataloader": "ThreadDataLoader",
        "tracking": "None",
    }
    with tempfile.TemporaryDirectory() as folder:
        task = Timed(
            model_dir=folder,
            network=build_network(config),
            roi_size=config.patch_size,
            target_spacing=config.spacing_mm,
            labels={label: value for value, label in enumerate(LABELS, start=1)},
            publish_path=str(Path(folder) / "published.pt"),
        )
        task(request, Datastore())
    return marks


class Stamp:
    """A handler of MONAI's engines that notes iterations and time after each epoch."""

    def __init__(self, marks: Marks, device: torch.device) -> None:
        self._marks, self._device = marks, device

    def attach(self, engine: Any) -> None:
        """Follow an engine."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Note where the engine is."""
        self._marks.append((engine.state.iteration, *now(self._device)))


def now(device: torch.device) -> tuple[float, float]:
    """Return the time and the processor time of all threads, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
