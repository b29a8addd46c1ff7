"""One contender of `tests.benchmarks.inference` that is not our server, in a process of its own with its own memory.

- `bare`: the network alone, in the arithmetic and layout that the server uses, on the very windows that it uses;
  reading, preparing, blending, restoring and writing are not in it. The limit.
- `monailabel`: MONAI Label's `BasicInferTask` as its radiology sample app's `segmentation` model fills it, called as
  its app calls it for `POST /infer`, given the identical network and weights, spacing and window. HTTP is not in it.
"""

import argparse
import json
import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from labelrounds import heap
from labelrounds.config import ModelConfig, load_config
from labelrounds.devices import choose_device
from labelrounds.inference import segment
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.reading import read_image
from labelrounds.runtimes import Runtime, Subject, default_runtime, runtimes
from tests.benchmarks import peers

CONTENDERS = ("bare", "monailabel")


class Timed(torch.nn.Module):
    """A network that adds up the time it takes."""

    def __init__(self, network: Runtime, device: torch.device) -> None:
        super().__init__()
        self.network, self._device, self.seconds = network, device, 0.0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the network's logits."""
        synchronise(self._device)
        started = time.perf_counter()
        logits: torch.Tensor = self.network(windows)
        synchronise(self._device)
        self.seconds += time.perf_counter() - started
        return logits


def main() -> None:
    """Segment an image several times, and write the seconds of each and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--config", type=Path, required=True, help="the model's YAML file")
    parser.add_argument("--weights", type=Path, required=True, help="its weights, safetensors")
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--repetitions", type=int, default=2, help="of each image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    config, device = load_config(wanted.config), choose_device(wanted.device)
    network = build_network(config)
    network.load_state_dict(load_file(wanted.weights))
    run = {"bare": bare, "monailabel": monailabel}[wanted.contender]
    seconds = run(network.eval(), config, device, wanted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wanted.output.write_text(json.dumps({"seconds": seconds, "peak_mb": round(peak)}))


def bare(
    network: SegmentationNetwork, config: ModelConfig, device: torch.device, wanted: argparse.Namespace
) -> list[list[float]]:
    """Return the seconds that the network alone takes of each segmentation of each image."""
    heap.keep_freed()  # as a server does
    runtime = runtimes.get(default_runtime(device))
    timed = Timed(runtime(Subject(network, config, device, wanted.output.parent)), device)
    seconds = []
    for path in wanted.images:
        image = read_image(path, channels=config.channels)
        each = []
        for _ in range(wanted.repetitions):
            timed.seconds = 0.0
            segment(timed, image, config, device)
            each.append(round(timed.seconds, 4))
        seconds.append(each)
    return seconds


def monailabel(
    network: SegmentationNetwork, config: ModelConfig, device: torch.device, wanted: argparse.Namespace
) -> list[list[float]]:
    """Return the seconds of MONAI Label's own task for each segmentation of each image."""
    logging.getLogger("monailabel").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        torch.save(network.state_dict(), weights)
        task = peers.sample_app("infers.segmentation").Segmentation(
            path=str(weights),
            network=network,
            roi_size=config.patch_size,
            target_spacing=config.spacing_mm,
            labels=config.label_values,
            preload=False,
        )
        seconds = []
        for path in wanted.images:
            each = []
            for _ in range(wanted.repetitions):
                started = time.perf_counter()
                result, _ = task({"image": str(path), "device": str(device), "model": config.name})
                each.append(round(time.perf_counter() - started, 4))
                Path(result).unlink()
            seconds.append(each)
    return seconds


def synchronise(device: torch.device) -> Any:
    """Wait until the device has done what it was given."""
    return torch.cuda.synchronize(device) if device.type == "cuda" else None


if __name__ == "__main__":
    main()
