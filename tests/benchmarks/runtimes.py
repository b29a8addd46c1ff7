"""How fast each runtime is on this machine, and how alike its labels are to float32's, for each shipped model.

Images are training cases of the Medical Segmentation Decathlon's Task04 (DOI 10.1038/s41467-022-30695-9), drawn with a
fixed seed from those that `split.json` calls so, never test cases; for `unet_phantom` they are invented patients. The
8-bit integers are calibrated on cases of their own. Label maps are of whole images by the model's own windows and
blend, and are compared with float32's of overlapping windows (half a side, Gaussian weights), so that what the blend
costs is in the Dice too. The runtimes are timed in turn on the same windows, the median counts; on a busy machine only
the ratios mean something. A minute or two.

    python -m tests.benchmarks.runtimes [--cases 20] [--rounds 15] [--seed 0]
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from labelrounds.checkpoints import Checkpoints
from labelrounds.config import ModelConfig, load_configs
from labelrounds.devices import choose_device
from labelrounds.evaluation import mean_dice
from labelrounds.folders import shipped_configs
from labelrounds.inference import predict
from labelrounds.metrics import dice_per_label
from labelrounds.networks import build_network
from labelrounds.phantoms import write_studies
from labelrounds.reading import read_image
from labelrounds.runtime_measurement import available
from labelrounds.runtimes import REFERENCE, Runtime, Subject, default_runtime, runtimes
from labelrounds.sliding import Windows, gather
from labelrounds.transforms import Grid, prepare
from tests.benchmarks import machine
from tests.real_images import DATA as REAL_IMAGES

DATA = REAL_IMAGES / "hippocampus"
RESULTS = Path(__file__).parent / "results"
HIPPOCAMPUS = ("unet_hippocampus", "vnet_hippocampus")
PHANTOM = "unet_phantom"
CALIBRATION_CASES = 16
PHANTOMS, PHANTOM_CALIBRATION = 6, 2
console = Console()


def main() -> None:
    """Run the benchmark, print its table and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20, help="to compare label maps of")
    parser.add_argument("--rounds", type=int, default=15, help="in each of which every runtime is timed once")
    parser.add_argument("--seed", type=int, default=0, help="which training cases are drawn")
    wanted = parser.parse_args()
    split = json.loads((DATA / "split.json").read_text())
    drawn = random.Random(wanted.seed).sample(sorted(split["training"]), CALIBRATION_CASES + wanted.cases)
    configs = load_configs([shipped_configs()], [*HIPPOCAMPUS, PHANTOM])
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LABELROUNDS_HOME"] = str(Path(folder) / "home")
        for model in HIPPOCAMPUS:
            files = [DATA / "images" / name for name in drawn]
            figures[model] = measure(configs[model], files, CALIBRATION_CASES, wanted.rounds, Path(folder) / model)
        write_studies(Path(folder) / "studies", PHANTOMS, first_seed=wanted.seed)
        files = sorted((Path(folder) / "studies").glob("*.nii.gz"))
        figures[PHANTOM] = measure(configs[PHANTOM], files, PHANTOM_CALIBRATION, wanted.rounds, Path(folder) / PHANTOM)
    for model, found in figures.items():
        console.print(table(model, found))
    extras = {name: metadata.version(name) for name in ("openvino", "nncf") if util.find_spec(name)}
    report = {
        "seed": wanted.seed,
        "calibration_cases": drawn[:CALIBRATION_CASES],
        "cases": drawn[CALIBRATION_CASES:],
        "machine": {**machine.describe(), **extras, "threads": torch.get_num_threads()},
        "models": figures,
    }
    path = RESULTS / "runtimes.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {path}")


def measure(config: ModelConfig, files: Sequence[Path], calibration: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the figures of each runtime of a model; the first files are those to calibrate on."""
    device = choose_device()
    checkpoints, network = Checkpoints(config), build_network(config)
    version = checkpoints.version(0)
    checkpoints.load(version, network)
    images = [prepared(file, config) for file in files]
    folder.mkdir()
    subject = Subject(
        network,
        config,
        device,
        folder,
        [window for image in images[:calibration] for window in windows_of(image, config).split(1)],
    )
    running = {name: runtimes.get(name)(subject) for name in available(config, device)}
    compared = [image.to(device) for image in images[calibration:]]
    blended = config.model_copy(
        update={"inference": config.inference.model_copy(update={"overlap": 0.5, "blend": "gaussian"})}
    )
    reference = [predict(running[REFERENCE], image, blended) for image in compared]
    seconds = time_in_turn(running, windows_of(compared[0], config)[:1], rounds)
    found = {}
    for name, run in running.items():
        scores = [
            dice_per_label(predict(run, image, config).cpu().numpy(), exact.cpu().numpy(), config.labels)
            for image, exact in zip(compared, reference, strict=True)
        ]
        found[name] = {
            "ms_a_window": round(1e3 * seconds[name], 2),
            "speedup": round(seconds[REFERENCE] / seconds[name], 2),
            "dice": {label: round(value, 5) for label, value in mean_dice(scores).items()},
            "lowest_dice_of_a_case": round(min(min(score.values()) for score in scores), 5),
        }
        console.print(f"{config.name}: {name} done", end="\r")
    left_out = {name: runtimes.get(name).obstacle(device) for name in runtimes.names() if name not in running}
    return {
        "device": str(device),
        "default": default_runtime(device),
        "cases": len(compared),
        "runtimes": found,
        "left_out": left_out,
    }


def prepared(file: Path, config: ModelConfig) -> torch.Tensor:
    """Return an image file as the model sees it, ``(C, X, Y, Z)``."""
    image = read_image(file, channels=config.channels)
    return prepare(image, config, Grid.of(image, config))


def windows_of(image: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Return the windows ``(B, C, *patch)`` of the first batch of an image."""
    windows = Windows.over(image.shape[1:], config.patch_size, config.inference.overlap)
    return gather(image, windows, windows.batches()[0])


@torch.inference_mode()
def time_in_turn(running: dict[str, Runtime], window: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return the seconds that a window takes each runtime, the median of the rounds after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds + 1):
        for name, run in running.items():
            since = time.perf_counter()
            run(window)
            if window.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - since)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def table(model: str, found: dict[str, Any]) -> Table:
    """Return a model's figures as they are printed."""
    shown = Table(
        "runtime",
        "ms a window",
        "times float32",
        "Dice to float32, each label",
        "lowest of a case",
        title=f"{model}, {found['cases']} cases on {found['device']}",
    )
    for name, figures in found["runtimes"].items():
        dice = ", ".join(f"{value:.4f}" for value in figures["dice"].values())
        mark = " (default)" if name == found["default"] else ""
        shown.add_row(
            name + mark,
            f"{figures['ms_a_window']:.1f}",
            f"{figures['speedup']:.2f}",
            dice,
            f"{figures['lowest_dice_of_a_case']:.4f}",
        )
    for name, why in found["left_out"].items():
        shown.add_row(name, "", "", why, "")
    return shown


if __name__ == "__main__":
    main()
