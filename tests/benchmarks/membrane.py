"""The 2-D U-Net on electron microscopy, cross-validated, beside the U-Net paper's figures for the same data.

Data: 24 of the 30 labelled sections of the ISBI 2012 challenge (DOI 10.3389/fnana.2015.00142). The paper (DOI
10.1007/978-3-319-24574-4_28) reports its errors on the challenge's 30 test sections, whose labels are not public; ours
are on held-out training sections, so the two stand beside each other and can't be compared digit for digit. Both the
pixel error and the foreground-restricted Rand error are those of the challenge's first leader board, which the paper
quotes; `labelrounds.metrics` has their definitions.

Each fold holds back neighbouring sections: 50 nm apart they show nearly the same tissue, and a section whose
neighbours were trained on is no new one. The schedule is the model's own and fixed: no figure of a held-out section
decides anything, except the best threshold, which the challenge chooses on the judged sections too; the errors at 0.5
are those of the label map that the server hands out. No averaging over turned copies, which the paper did.

What is finished lies in --folder: stopped with Ctrl-C or killed, the same command goes on from the last epoch.

    python -m tests.benchmarks.membrane [--folds 4] [--epochs N] [--seed 0] [--device cpu] [--folder DIR]
"""

import argparse
import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.cases import PreparedCase, prepare_cases
from labelrounds.config import ModelConfig, load_configs
from labelrounds.devices import choose_device
from labelrounds.folders import shipped_configs
from labelrounds.inference import probabilities, segment
from labelrounds.learning import Epoch, Learner, Schedule
from labelrounds.metrics import THRESHOLDS, Overlap, least_error, pixel_overlap, rand_overlap
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.reading import read_image
from labelrounds.store import LabelledCase
from labelrounds.transforms import Grid, prepare
from labelrounds.writing import write_label
from tests.benchmarks import machine
from tests.real_images import DATA as REAL_IMAGES

DATA = REAL_IMAGES / "membrane_em"
RESULTS = Path(__file__).parent / "results"
MODEL = "unet_membrane_em"
# Table 1 of the paper, the U-Net's row.
PAPER = {"pixel_error": 0.0611, "rand_error": 0.0382}
CAVEAT = (
    "The paper's errors are on the challenge's test sections, whose labels are not public; ours are on held-out"
    " training sections."
)
console = Console()


def main() -> None:
    """Train and judge each fold that is not done yet, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=4, choices=range(2, 13), metavar="2..12")
    parser.add_argument("--epochs", type=int, help="of each fold; the model's own when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda; the best there is when left out")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "labelrounds-benchmarks" / "membrane")
    wanted = parser.parse_args()
    if wanted.seed < 0 or (wanted.epochs is not None and wanted.epochs < 1):
        parser.error(f"--seed {wanted.seed} must be 0 or more, --epochs {wanted.epochs} 1 or more")
    names = sorted(path.stem for path in (DATA / "images").glob("*.png"))
    if len(names) < wanted.folds:
        parser.error(f"{DATA} has {len(names)} sections, too few for {wanted.folds} folds; see LABELROUNDS_DATA")
    config = configuration(wanted.epochs, wanted.seed)
    device = choose_device(wanted.device)
    parts = [[names[i] for i in part] for part in np.array_split(np.arange(len(names)), wanted.folds)]
    folder = wanted.folder / fingerprint(config, parts, device)
    folds = run_folds(parts, config, device, folder)
    if folds is None:
        console.print("Stopped. The same command goes on from the last epoch; what is done lies in", folder)
        return
    report = {
        "caveat": CAVEAT,
        "paper": PAPER,
        "sections": len(names),
        "figures": judge(folds),
        "folds": [
            {"held_out": part, "training_minutes": minutes(fold), **judge([fold])}
            for part, fold in zip(parts, folds, strict=True)
        ],
        "seed": wanted.seed,
        "device": str(device),
        "machine": machine.describe(),
        "model": config.model_dump(mode="json"),
    }
    console.print(table(report))
    console.print(CAVEAT)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "membrane_em.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {path}")


def configuration(epochs: int | None, seed: int) -> ModelConfig:
    """Return the model as its file describes it, with another seed or number of epochs where one is wanted."""
    config = load_configs([shipped_configs()], [MODEL])[MODEL]
    changes = {"seed": seed} | ({"epochs": epochs} if epochs else {})
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def fingerprint(config: ModelConfig, parts: list[list[str]], device: torch.device) -> str:
    """Return what makes a run this run, the code that trains included: another's folds are never taken for its own."""
    about = [config.model_dump(mode="json"), parts, device.type, machine.code()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def prepare_sections(names: Sequence[str], labels: Path, config: ModelConfig) -> list[PreparedCase]:
    """Write the membranes as label maps, as an annotator submits them, and prepare the cases as a training does."""
    labels.mkdir(parents=True, exist_ok=True)
    items = []
    for name in names:
        drawn = read_image(DATA / "labels" / f"{name}.png")
        label = write_label((drawn.array[0] == 0).astype(np.uint8), drawn.affine, labels / f"{name}.nii.gz")
        items.append(LabelledCase(name, DATA / "images" / f"{name}.png", label, None, name))
    cases, skipped = prepare_cases(items, config)
    if skipped:
        raise SystemExit(f"not usable: {skipped}")
    return cases


def run_folds(
    parts: list[list[str]], config: ModelConfig, device: torch.device, folder: Path
) -> list[dict[str, np.ndarray]] | None:
    """Return what each fold's network says of its held-out sections; None where the run was stopped before the end."""
    os.environ["LABELROUNDS_HOME"] = str(folder / "home")  # where prepared cases are cached: not in the user's own
    cases = prepare_sections([name for part in parts for name in part], folder / "labels", config)
    stopped = stop_on_interrupt()
    folds = []
    for number, held_out in enumerate(parts, start=1):
        file = folder / f"fold_{number}.npz"
        if not file.is_file():
            console.print(f"Fold {number} of {len(parts)}: sections {held_out[0]} to {held_out[-1]} held out")
            if not run_fold(cases, held_out, config, device, file, stopped):
                return None
        folds.append(dict(np.load(file)))
    return folds


def run_fold(
    cases: list[PreparedCase],
    held_out: list[str],
    config: ModelConfig,
    device: torch.device,
    file: Path,
    stopped: Callable[[], bool],
) -> bool:
    """Train without the held-out sections, segment them and write the outcome; return whether it came to that."""
    settings = config.training
    torch.manual_seed(settings.seed)
    schedule = Schedule(settings.epochs, settings.iterations_per_epoch, settings.learning_rate, None)
    train = [case for case in cases if case.image_id not in held_out]
    state = file.with_suffix(".safetensors")
    learner = Learner(config, build_network(config), train, [], device, schedule, state, file.stem)
    with Progress(console=console) as progress:
        bar = progress.add_task("training", total=settings.epochs)

        def report(epoch: Epoch) -> None:
            progress.update(bar, completed=epoch.number, description=f"loss {epoch.loss:.3f}")

        outcome = learner.run(report, stopped)
    if outcome.stopped:
        return False
    sections = [segment_section(outcome.network.eval(), name, config, device) for name in held_out]
    seconds = [epoch.seconds for epoch in outcome.history]  # of this process alone, where it went on from another
    found = {"minutes": np.median(seconds) * settings.epochs / 60 if seconds else np.nan}
    found |= {key: np.stack([section[key] for section in sections]) for key in sections[0]}
    staging = file.with_suffix(".new.npz")
    np.savez_compressed(staging, **found)
    staging.replace(file)
    state.unlink(missing_ok=True)
    return True


def segment_section(
    network: SegmentationNetwork, name: str, config: ModelConfig, device: torch.device
) -> dict[str, np.ndarray]:
    """Return a section's ``(X, Y)`` chance of being cell, the served label map's cells and the annotators' cells."""
    image = read_image(DATA / "images" / f"{name}.png", channels=config.channels)
    grid = Grid.of(image, config)
    chances = probabilities(network, prepare(image, config, grid, device), config)
    return {
        "chance": grid.backward(chances[0].cpu().numpy())[..., 0].astype(np.float16),
        "served": segment(network, image, config, device)[..., 0] == 0,
        "truth": read_image(DATA / "labels" / f"{name}.png").array[0, ..., 0] != 0,
    }


def judge(folds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Return the errors over all sections of some folds, at the best common threshold and as served."""
    chances, served, truths = (
        [section for fold in folds for section in fold[key]] for key in ("chance", "served", "truth")
    )
    return {
        "best_threshold": errors(chances, truths, THRESHOLDS),
        "served": errors([mask.astype(float) for mask in served], truths, (0.5,)),
    }


def errors(
    chances: Sequence[np.ndarray], truths: Sequence[np.ndarray], thresholds: Sequence[float]
) -> dict[str, float]:
    """Return pixel and Rand error at the best of some thresholds, and what the Rand error is made of there."""
    pixel_error, pixel_threshold = least_error(pixel_overlap, chances, truths, thresholds)
    rand_error, rand_threshold = least_error(rand_overlap, chances, truths, thresholds)
    pairs = reduce(Overlap.__add__, map(rand_overlap, [chance > rand_threshold for chance in chances], truths))
    figures = {
        "pixel_error": pixel_error,
        "pixel_threshold": pixel_threshold,
        "rand_error": rand_error,
        "rand_threshold": rand_threshold,
        "rand_split_score": pairs.recall,
        "rand_merge_score": pairs.precision,
    }
    return {key: round(value, 4) for key, value in figures.items()}


def table(report: dict[str, Any]) -> Table:
    """Return the figures as they are printed."""
    shown = Table("", "held out", "pixel error", "Rand error", "served, pixel", "served, Rand", title=MODEL)
    rows = [
        (f"fold {number}", f"{fold['held_out'][0]} to {fold['held_out'][-1]}", fold)
        for number, fold in enumerate(report["folds"], start=1)
    ]
    for name, held_out, fold in [*rows, ("all", f"{report['sections']} sections", report["figures"])]:
        shown_errors = [fold[how][what] for how in ("best_threshold", "served") for what in PAPER]
        shown.add_row(name, held_out, *(f"{error:.4f}" for error in shown_errors))
    shown.add_row("U-Net paper", "test sections", *(f"{error:.4f}" for error in PAPER.values()), "", "")
    return shown


def minutes(fold: Mapping[str, np.ndarray]) -> float | None:
    """Return how long a fold's training took; None where nothing was left to train after a kill."""
    value = float(fold["minutes"])
    return None if math.isnan(value) else round(value, 2)


def stop_on_interrupt() -> Callable[[], bool]:
    """Let Ctrl-C and SIGTERM end the epoch in good order, and tell whether one came."""
    asked = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: asked.set())
    return asked.is_set


if __name__ == "__main__":
    main()
