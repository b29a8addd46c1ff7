"""Iterations a second and peak memory of our trainer, a plain PyTorch loop and MONAI Label's own trainer.

All get the same cases, drawn by seed from the training cases of the Medical Segmentation Decathlon's Task04 (DOI
10.1038/s41467-022-30695-9, `split.json`), the identical network, patch and batch, and all cores.
`training_contenders.py` says what each does. Each run is a process of its own; the contenders take turns, so that a
disturbance meets them alike. Timed are the iterations after a warm-up: of our trainer whole epochs after the first
without validation, of MONAI Label's likewise, with what its handlers do in between.

    python -m tests.benchmarks.training_speed [--repetitions 3] [--iterations 100] [--device cuda]
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import machine, peers
from tests.benchmarks.hippocampus import DATA, RESULTS
from tests.benchmarks.training_contenders import CONTENDERS

GOALS = {"plain": 0.9, "monailabel": 3.0}
console = Console()


def main() -> None:
    """Run the contenders in turn, print the table and write the figures as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=100, help="at least so many are timed in each run")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="which cases are drawn")
    parser.add_argument("--model", default="unet_hippocampus")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=peers.CORES)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    peers.end_children_too()
    wanted = parser.parse_args()
    contenders = wanted.contenders.split(",")
    unknown = sorted(set(contenders) - set(CONTENDERS))
    if unknown:
        parser.error(f"--contenders: {unknown[0]!r} is not one of {', '.join(CONTENDERS)}")
    if wanted.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: 'cuda' is not on this machine; available: cpu")
    names = peers.draw(json.loads((DATA / "split.json").read_text())["training"], wanted.cases, wanted.seed)
    config = peers.load_model(wanted.model)
    report: dict[str, Any] = {
        "model": wanted.model,
        "patch_size": config.patch_size,
        "batch_size": config.training.batch_size,
        "cases": names,
        "seed": wanted.seed,
        "device": wanted.device,
        "threads": wanted.threads,
        "machine": machine.describe(),
        "runs": {contender: [] for contender in contenders},
    }
    result = RESULTS / f"training_speed_{wanted.device}.json"
    RESULTS.mkdir(exist_ok=True)
    for repetition in range(wanted.repetitions):
        for contender in contenders:
            figures = measure(contender, names, wanted)
            speed = f"{figures['iterations_a_second']:.3f} iterations a second, {figures['peak_mb']} MB"
            console.print(f"{repetition + 1}/{wanted.repetitions} {contender}: {speed}")
            report["runs"][contender].append(figures)
            report["summary"] = summary(report["runs"])
            result.write_text(json.dumps(report, indent=1) + "\n")
    console.print(table(report["summary"], wanted))
    console.print(f"Figures: {result}")


def measure(contender: str, names: list[str], wanted: argparse.Namespace) -> dict[str, Any]:
    """Run one contender once."""
    settings = ("--model", wanted.model, "--device", wanted.device, "--threads", wanted.threads)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        rest = ("--iterations", wanted.iterations, "--output", output, "--names", *names)
        command = peers.python("training_contenders", contender, *settings, *rest)
        peers.run(command, Path(folder) / "log", environment(contender, wanted.threads))
        return dict(json.loads(output.read_text()))


def environment(contender: str, threads: int) -> dict[str, str]:
    """Return what is set for a contender from outside: ours waits passively; the others are as they come."""
    ours = peers.threads(threads)
    return ours if contender in ("labelrounds", "plain") else {k: v for k, v in ours.items() if "WAIT" not in k}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return median and range of each contender, and how our speed relates to the others'."""
    figures: dict[str, Any] = {}
    for contender, each in runs.items():
        if each:
            figures[contender] = {
                key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
                for key in each[0]
                for values in [[one[key] for one in each]]
            }
    ours = figures.get("labelrounds")
    for contender, one in figures.items():
        if ours is not None and contender != "labelrounds":
            ratio = ours["iterations_a_second"]["median"] / one["iterations_a_second"]["median"]
            one["our_speed_to_its"] = round(ratio, 3)
            if contender in GOALS:
                one["goal"], one["reached"] = GOALS[contender], ratio >= GOALS[contender]
    return figures


def table(figures: dict[str, Any], wanted: argparse.Namespace) -> Table:
    """Return the figures as they are printed."""
    title = (
        f"Training {wanted.model} on {wanted.device}, {wanted.threads} threads; median (range) of {wanted.repetitions}"
    )
    shown = Table(
        "contender",
        "iterations a second",
        "processor s each",
        "peak MB",
        "before it is warm, s",
        "ours to it",
        "goal",
        title=title,
    )
    for contender, one in figures.items():
        ratio = one.get("our_speed_to_its")
        goal = f"{one['goal']:g}: {'reached' if one['reached'] else 'missed'}" if "goal" in one else ""
        peak = spread(one["peak_mb"]) + (f", GPU {spread(one['peak_gpu_mb'])}" if "peak_gpu_mb" in one else "")
        speed, work, before = (
            spread(one[key]) for key in ("iterations_a_second", "processor_s_an_iteration", "before_s")
        )
        shown.add_row(contender, speed, work, peak, before, "" if ratio is None else f"{ratio:.2f}", goal)
    return shown


def spread(values: dict[str, float]) -> str:
    """Return a median with its range in words."""
    return f"{values['median']:g} ({values['min']:g} to {values['max']:g})"


if __name__ == "__main__":
    main()
