"""Dice at equal wall time: our trainer and nnU-Net v2 (DOI 10.1038/s41592-020-01008-z), each alone on the machine.

Training and validation cases are drawn by seed from the 160 training cases of the Medical Segmentation Decathlon's
Task04 (DOI 10.1038/s41467-022-30695-9, `split.json`); the test cases are not touched. Both learn from all training
cases, and neither sees the validation cases before it is judged, so nothing is chosen by them.

The wall time is that of training alone. Installing, imports, nnU-Net's planning and both preprocessings are not in
it; what they took is in the figures. Both schedules are made to fit the whole wall time, from a measured speed: a
Dice at an earlier time is that of a schedule still under way, so compare whole runs of different --minutes for what
each reaches in that time. The runs of the same cases, threads and seed are gathered in one file of results.

nnU-Net has a Python environment of its own (--peers), its own plan of the data, made by its own commands, its own
augmentation and its own predictor with mirroring; `nnunet_peer.py` says what differs from its command line. Ours is
the shipped configuration of --model; `nnunet_ours.py` says the rest. Ours computes in bfloat16 where the processor
has it, nnU-Net on a CPU always in float32.

    python -m tests.benchmarks.nnunet [--minutes 10] [--cases 140] [--sides ours,nnunet,nnunet_small]

`nnunet_small` is nnU-Net with a batch of two in place of its own plan's, whose size is meant for a GPU. A run that
was stopped goes on from its last checkpoint when it is started again with the same arguments; --fresh starts over.
"""

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from labelrounds.metrics import dice_per_label
from labelrounds.reading import read_label
from tests.benchmarks import machine, peers
from tests.benchmarks.hippocampus import DATA, LABELS, RESULTS

PACKAGE = "nnunetv2==2.8.1"
DATASET = "Dataset004_Hippocampus"
SIDES = ("ours", "nnunet", "nnunet_small")
MARKS_MIN = (2, 5, 10, 20, 40, 60)
# nnU-Net's epochs are at most its own 250 iterations, and short enough that there are about so many of them.
EPOCHS = 50
# Of the wall time; the rest is for what takes longer than was measured, as on our side.
FILLED = 0.97
SMALL_BATCH = 2
console = Console()


def main() -> None:
    """Run both sides one after the other, print their curves and write the figures as they come."""
    peers.end_children_too()
    wanted = arguments()
    split = json.loads((DATA / "split.json").read_text())
    validation = peers.draw(split["training"], wanted.validation, wanted.seed)
    rest = sorted(set(split["training"]) - set(validation))
    training = peers.draw(rest, wanted.cases, wanted.seed)
    marks = [60.0 * mark for mark in MARKS_MIN if mark < wanted.minutes] + [60.0 * wanted.minutes]
    folder = wanted.peers / "runs" / fingerprint(wanted, training, validation, marks)
    if wanted.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"{len(training)} training and {len(validation)} validation cases; files and logs in {folder}")
    result = RESULTS / f"nnunet_{wanted.cases}cases.json"
    about = {
        "seed": wanted.seed,
        "threads": wanted.threads,
        "device": wanted.device,
        "model": wanted.model,
        "cases": {"training": training, "validation": validation},
    }
    report = earlier(result, about)
    for name in wanted.sides.split(","):
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        side = (Ours if name == "ours" else NnUNet)(name, folder, training, validation, marks, wanted)
        run = {"side": name, "minutes": wanted.minutes, "started": started, "machine": machine.describe()}
        run |= {**side.train(), "curve": []}
        kept = [other for other in report["runs"] if (other["side"], other["minutes"]) != (name, wanted.minutes)]
        report["runs"] = sorted([*kept, run], key=lambda one: (one["side"], one["minutes"]))
        for mark in side.reached():
            run["curve"].append(side.judge(mark))
            write(report, result)
            console.print(line(name, run["curve"][-1]))
        write(report, result)
    console.print(table(report))
    console.print(f"Figures: {result}")


def earlier(result: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of results holds of earlier runs, if these were of the same cases and settings."""
    known: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    same = all(known.get(key) == value for key, value in about.items())
    return {**about, "runs": known["runs"] if same else []}


def fingerprint(wanted: argparse.Namespace, training: list[str], validation: list[str], marks_s: list[float]) -> str:
    """Return what makes a run this run; one of another model, code or nnU-Net is never gone on with."""
    model = peers.load_model(wanted.model).model_dump(mode="json")
    settings = [wanted.device, wanted.threads, wanted.seed, training, validation, marks_s]
    about = json.dumps([model, machine.code(), PACKAGE, *settings])
    return hashlib.sha256(about.encode()).hexdigest()[:12]


def arguments() -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall time of each training")
    parser.add_argument("--cases", type=int, default=140, help="training cases")
    parser.add_argument("--validation", type=int, default=20, help="cases that both are judged on")
    parser.add_argument("--seed", type=int, default=0, help="which cases are drawn, and nnU-Net's seed")
    parser.add_argument("--model", default="unet_hippocampus", help="our model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=peers.CORES, help="of each side")
    parser.add_argument("--sides", default="ours,nnunet", help=f"of {', '.join(SIDES)}, in this order")
    parser.add_argument("--peers", type=Path, default=peers.PEERS, help="folder for nnU-Net's environment and all runs")
    parser.add_argument("--fresh", action="store_true", help="do not go on with a stopped run of these arguments")
    wanted = parser.parse_args()
    unknown = sorted(set(wanted.sides.split(",")) - set(SIDES))
    if unknown:
        parser.error(f"--sides: {unknown[0]!r} is not one of {', '.join(SIDES)}")
    if wanted.minutes <= 0:
        parser.error(f"--minutes: {wanted.minutes:g} is not above 0")
    if wanted.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: 'cuda' is not on this machine; available: cpu")
    return wanted


class Side:
    """One trainer's run: train once, then judge the weights of each time.

    Args:
        name: of `SIDES`.
        folder: of this comparison.
        training: names of the cases to learn from.
        validation: names of the cases to be judged on.
        marks_s: the wall times, in seconds.
        wanted: the command line.
    """

    suffix: str

    def __init__(
        self,
        name: str,
        folder: Path,
        training: list[str],
        validation: list[str],
        marks_s: list[float],
        wanted: argparse.Namespace,
    ) -> None:
        self.name, self.folder, self.marks_s, self.wanted = name, folder / name, marks_s, wanted
        self.training, self.validation = training, validation
        self.folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> dict[str, Any]:
        """Train, or go on where a stopped process was; return what it took."""
        raise NotImplementedError

    def predict(self, mark_s: float, output: Path) -> None:
        """Segment the validation cases with the weights of a time."""
        raise NotImplementedError

    @property
    def weights(self) -> Path:
        """The folder that the weights of each time lie in."""
        raise NotImplementedError

    def reached(self) -> list[float]:
        """Return the times whose weights were kept."""
        return [mark for mark in self.marks_s if (self.weights / f"mark_{mark:g}{self.suffix}").is_file()]

    def judge(self, mark_s: float) -> dict[str, Any]:
        """Predict the validation cases and compare them with the annotators' labels."""
        output = self.folder / f"predictions_{mark_s:g}"
        self.predict(mark_s, output)
        cases = {}
        for name in self.validation:
            truth = read_label(DATA / "labels" / name).array[0]
            dice = dice_per_label(read_label(output / name).array[0], truth, LABELS)
            cases[name] = {label: round(value, 4) for label, value in dice.items()}
        means = sorted(float(np.mean(list(dice.values()))) for dice in cases.values())
        return {
            "minutes": round(mark_s / 60, 3),
            **json.loads((self.weights / f"mark_{mark_s:g}.json").read_text()),
            "dice": {label: round(float(np.mean([dice[label] for dice in cases.values()])), 4) for label in LABELS},
            "dice_mean": round(float(np.mean(means)), 4),
            "dice_standard_error": round(float(np.std(means, ddof=1)) / math.sqrt(len(means)), 4)
            if means[1:]
            else None,
            "dice_worst_decile": round(float(np.mean(means[: max(1, len(means) // 10)])), 4),
            **json.loads((output / "figures.json").read_text()),
            "cases": cases,
        }


class Ours(Side):
    """Our trainer."""

    suffix = ".safetensors"

    @property
    def weights(self) -> Path:
        """The run's own folder."""
        return self.folder

    def train(self) -> dict[str, Any]:
        """Train in a process of its own."""
        figures = self.folder / "figures.json"
        if not figures.is_file():
            marks = ",".join(f"{mark:g}" for mark in self.marks_s)
            self._run("train", "--marks", marks, "--names", *self.training)
        return dict(json.loads(figures.read_text()))

    def predict(self, mark_s: float, output: Path) -> None:
        """Predict as the server does."""
        self._run(
            "predict",
            "--weights",
            self.folder / f"mark_{mark_s:g}.safetensors",
            "--names",
            *self.validation,
            output=output,
        )

    def _run(self, step: str, *arguments: object, output: Path | None = None) -> None:
        wanted = self.wanted
        settings = ("--model", wanted.model, "--device", wanted.device, "--threads", wanted.threads)
        command = peers.python("nnunet_ours", step, *settings, "--output", output or self.folder, *arguments)
        peers.run(command, self.folder / f"{step}.log", peers.threads(wanted.threads), "LabelRounds epoch")


class NnUNet(Side):
    """nnU-Net in its own environment, with its own plan or with a small batch."""

    suffix = ".pth"

    @property
    def weights(self) -> Path:
        """The fold's folder, where nnU-Net's predictor looks for checkpoints."""
        return self.folder / "results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_all"

    def train(self) -> dict[str, Any]:
        """Install, plan and preprocess once, measure the speed once, then train."""
        install(self.wanted.peers)
        figures_file = self.folder / "figures.json"
        figures = json.loads(figures_file.read_text()) if figures_file.is_file() else self._prepare()
        figures_file.write_text(json.dumps(figures))
        trained = self.folder / "trained.json"
        if not trained.is_file():
            settings = ("--epochs", figures["epochs"], "--iterations", figures["iterations_an_epoch"])
            marks = ",".join(f"{mark:g}" for mark in self.marks_s)
            self._step("train", trained, *settings, "--marks", marks)
        figures["train_s"] = json.loads(trained.read_text())["seconds"]
        return dict(figures)

    def predict(self, mark_s: float, output: Path) -> None:
        """Predict with nnU-Net's predictor; it wants the channel's number in a file's name."""
        images = self.folder / "validation"
        images.mkdir(exist_ok=True)
        for name in self.validation:
            link(DATA / "images" / name, images / name)
        self._step(
            "predict",
            output,
            "--checkpoint",
            f"mark_{mark_s:g}.pth",
            "--images",
            *(images / n for n in self.validation),
        )

    def _prepare(self) -> dict[str, Any]:
        """Lay the cases out, have nnU-Net plan and preprocess them, measure an iteration, and fit the schedule."""
        raw = self.folder / "raw" / DATASET
        for name in self.training:
            link(DATA / "images" / name, raw / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"))
            link(DATA / "labels" / name, raw / "labelsTr" / name)
        description = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **{label: value for value, label in enumerate(LABELS, start=1)}},
            "numTraining": len(self.training),
            "file_ending": ".nii.gz",
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        console.print(f"{self.name}: nnU-Net plans and preprocesses {len(self.training)} cases")
        started = time.perf_counter()
        cores = self.wanted.threads
        command = [self._bin / "nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres"]
        self._run([*command, "-np", str(cores), "-npfp", str(cores)], self.folder / "preprocess.log")
        seconds = time.perf_counter() - started
        if self.name == "nnunet_small":
            self._shrink_batch()
        calibration = self.folder / "calibration.json"
        console.print(f"{self.name}: measures the speed of an iteration")
        self._step("calibrate", calibration)
        figures = {"prepare_s": round(seconds, 2), **json.loads(calibration.read_text()), "version": PACKAGE}
        iterations = max(1, int(FILLED * self.marks_s[-1] / figures["seconds_an_iteration"]))
        figures["iterations_an_epoch"] = max(1, min(250, iterations // EPOCHS))
        figures["epochs"] = max(1, iterations // figures["iterations_an_epoch"])
        return figures

    def _shrink_batch(self) -> None:
        plan = self.folder / "preprocessed" / DATASET / "nnUNetPlans.json"
        content = json.loads(plan.read_text())
        content["configurations"]["3d_fullres"]["batch_size"] = SMALL_BATCH
        plan.write_text(json.dumps(content))

    @property
    def _bin(self) -> Path:
        return environment_of(self.wanted.peers) / "bin"

    def _step(self, step: str, output: Path, *arguments: object) -> None:
        wanted = self.wanted
        settings = ("--dataset", DATASET, "--device", wanted.device, "--threads", wanted.threads, "--seed", wanted.seed)
        command = [self._bin / "python", Path(__file__).with_name("nnunet_peer.py"), step, "--output", output]
        self._run([*command, *(str(part) for part in (*settings, *arguments))], self.folder / f"{step}.log")

    def _run(self, command: list[str | Path], log: Path) -> None:
        folders = {f"nnUNet_{kind}": str(self.folder / kind) for kind in ("raw", "preprocessed", "results")}
        workers = {"nnUNet_n_proc_DA": str(self.wanted.threads), "nnUNet_def_n_proc": str(self.wanted.threads)}
        environment = {**peers.threads(self.wanted.threads), **folders, **workers}
        peers.run(command, log, environment, "nnU-Net ")


def environment_of(folder: Path) -> Path:
    """Return where nnU-Net's Python environment lies."""
    return folder / "nnunet"


def install(folder: Path) -> None:
    """Make nnU-Net's environment, with the torch that we compute with, unless it is there."""
    done = environment_of(folder) / "installed"
    if done.is_file() and done.read_text() == PACKAGE:
        return
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"Installs {PACKAGE} into {environment_of(folder)}, once")
    subprocess.run([sys.executable, "-m", "venv", environment_of(folder)], check=True)
    torch_release = f"torch=={torch.__version__.split('+')[0]}"
    pip = [environment_of(folder) / "bin" / "pip", "install", "--disable-pip-version-check"]
    peers.run([*pip, torch_release, PACKAGE], folder / "install.log", {})
    done.write_text(PACKAGE)


def link(source: Path, target: Path) -> None:
    """Make a file known under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source.resolve())


def write(report: dict[str, Any], file: Path) -> None:
    """Write the figures so far."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


def line(name: str, point: dict[str, Any]) -> str:
    """Return one point of a curve in words."""
    reached = f"{point['seconds']:.0f} s, {point['iterations']} of {point['of']} iterations"
    return f"{name}: Dice {point['dice_mean']:.4f} after {reached}"


def table(report: dict[str, Any]) -> Table:
    """Return the curves as they are printed."""
    count, runs = len(report["cases"]["validation"]), report["runs"]
    names = [f"{run['side']}, {run['minutes']:g} min" for run in runs]
    shown = Table("minutes of training", *names, title=f"Mean Dice (standard error) of {count} held-back cases")
    for minutes in sorted({point["minutes"] for run in runs for point in run["curve"]}):
        row = []
        for run in runs:
            points = [point for point in run["curve"] if point["minutes"] == minutes]
            row += [f"{p['dice_mean']:.4f} ({p['dice_standard_error']})" for p in points] or ["-"]
        shown.add_row(f"{minutes:g}", *row)
    for figure in ("prepare_s", "batch_size", "epochs", "iterations_an_epoch", "parameters"):
        shown.add_row(figure, *(str(run.get(figure)) for run in runs))
    return shown


if __name__ == "__main__":
    main()
