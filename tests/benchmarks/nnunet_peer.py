"""nnU-Net v2's side of `tests.benchmarks.nnunet`, run by the Python of the environment that nnU-Net has for itself.

It is nnU-Net's stock trainer, plan, loss, augmentation and predictor, with a clock. What differs from
`nnUNetv2_train ... -device cpu`, each to nnU-Net's advantage at a given wall time:

- the polynomial schedule has as many epochs as fit into the time, and shorter ones, so that the rate falls to its end;
- no progress picture and no best checkpoint is written, and one pseudo-validation batch an epoch is computed, not 50;
- the clock stands still while a checkpoint of a given time is written.

Neither timm nor torchvision is imported on this path (nnunetv2 2.8.1, dynamic-network-architectures 0.4.4).
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock

CONFIGURATION, FOLD = "3d_fullres", "all"
WARM_UP, TIMED = 3, 12


class OutOfTimeError(Exception):
    """The wall time is used up."""


class nnUNetTrainer(stock.nnUNetTrainer):
    """The stock trainer with a clock; it has its name, by which the predictor finds the stock network."""

    seconds, iterations = 0.0, 0

    def fit_to(self, epochs: int, iterations: int, marks_s: list[float]) -> None:
        """Set the schedule, and the wall times at which weights are kept; the last one ends the training."""
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = epochs, iterations, 1
        self.save_every = max(1, epochs // 20)
        self.marks_s = marks_s
        self.logger.plot_progress_png = lambda folder: None
        self.clock_file = Path(self.output_folder) / "clock.json"
        if self.clock_file.is_file() and (Path(self.output_folder) / "checkpoint_latest.pth").is_file():
            self.load_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            self.iterations = self.current_epoch * iterations
            self.seconds = json.loads(self.clock_file.read_text())["seconds"]
            print(f"nnU-Net goes on from epoch {self.current_epoch}, {self.seconds:.0f} s", flush=True)

    def on_train_start(self) -> None:
        """Start the clock once the data loaders deliver."""
        super().on_train_start()
        self.started = time.perf_counter() - self.seconds

    def train_step(self, batch: dict) -> dict:
        """Take a step; keep the weights at each given time."""
        result = super().train_step(batch)
        self.iterations += 1
        if self.elapsed() >= self.marks_s[-1]:
            raise OutOfTimeError
        for mark in self.marks_s[:-1]:
            if self.elapsed() >= mark:
                self.keep(mark)
        return result

    def on_epoch_end(self) -> None:
        """Show how far the training is."""
        super().on_epoch_end()
        loss = self.logger.get_value("train_losses", step=-1)
        print(
            f"nnU-Net epoch {self.current_epoch}/{self.num_epochs}: {self.elapsed():.0f} s, loss {loss:.3f}", flush=True
        )

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint outside the measured time; the best by pseudo Dice is not used here, and not written."""
        if Path(filename).name == "checkpoint_best.pth":
            return
        seconds = self.elapsed()
        super().save_checkpoint(filename)
        if Path(filename).name == "checkpoint_latest.pth":
            self.clock_file.write_text(json.dumps({"seconds": seconds}))
        self.started = time.perf_counter() - seconds

    def keep(self, mark_s: float) -> None:
        """Write the weights of a given time, once."""
        file = Path(self.output_folder) / f"mark_{mark_s:g}.pth"
        if not file.is_file():
            self.save_checkpoint(str(file))
            planned = self.num_epochs * self.num_iterations_per_epoch
            note = {"seconds": round(self.elapsed(), 1), "iterations": self.iterations, "of": planned}
            file.with_suffix(".json").write_text(json.dumps(note))

    def elapsed(self) -> float:
        """Return the seconds of training so far."""
        return time.perf_counter() - self.started


def main() -> None:
    """Do one step: calibrate, train or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("calibrate", "train", "predict"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--marks", help="seconds, separated by commas")
    parser.add_argument("--checkpoint", help="name in the fold's folder")
    parser.add_argument("--images", nargs="*", help="files to predict")
    parser.add_argument("--output", type=Path, required=True, help="file of figures, or folder of predictions")
    wanted = parser.parse_args()
    # So that the processes that augment end with this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    torch.set_num_threads(wanted.threads)
    torch.manual_seed(wanted.seed)
    np.random.seed(wanted.seed)
    {"calibrate": calibrate, "train": train, "predict": predict}[wanted.step](wanted)


def calibrate(wanted: argparse.Namespace) -> None:
    """Measure the seconds of an iteration, once the data loaders deliver."""
    trainer = build(wanted)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for _ in range(WARM_UP):
        stock.nnUNetTrainer.train_step(trainer, next(trainer.dataloader_train))
    started = time.perf_counter()
    for _ in range(TIMED):
        stock.nnUNetTrainer.train_step(trainer, next(trainer.dataloader_train))
    seconds = (time.perf_counter() - started) / TIMED
    plan = trainer.configuration_manager
    figures = {
        "seconds_an_iteration": round(seconds, 4),
        "batch_size": plan.batch_size,
        "patch_size": [int(side) for side in plan.patch_size],
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    }
    wanted.output.write_text(json.dumps(figures))
    end_loaders(trainer)


def train(wanted: argparse.Namespace) -> None:
    """Train to the last of the given times, or to the end of the schedule if that comes first."""
    marks = [float(mark) for mark in wanted.marks.split(",")]
    trainer = build(wanted)
    trainer.fit_to(wanted.epochs, wanted.iterations, marks)
    try:
        trainer.run_training()
        trainer.current_epoch -= 1  # as the stock trainer does before its last checkpoint
    except OutOfTimeError:
        pass
    trainer.keep(marks[-1])
    (Path(trainer.output_folder) / "checkpoint_latest.pth").unlink(missing_ok=True)
    wanted.output.write_text(json.dumps({"seconds": round(trainer.elapsed(), 1), "iterations": trainer.iterations}))
    end_loaders(trainer)


def predict(wanted: argparse.Namespace) -> None:
    """Segment images with the weights of a checkpoint, by nnU-Net's own predictor as it comes."""
    predictor = nnUNetPredictor(device=torch.device(wanted.device), allow_tqdm=False)
    folder = build(wanted).output_folder_base
    predictor.initialize_from_trained_model_folder(folder, use_folds=(FOLD,), checkpoint_name=wanted.checkpoint)
    wanted.output.mkdir(parents=True, exist_ok=True)
    targets = [str(wanted.output / Path(image).name.removesuffix(".nii.gz")) for image in wanted.images]
    started = time.perf_counter()
    predictor.predict_from_files_sequential([[image] for image in wanted.images], targets, overwrite=True)
    seconds = (time.perf_counter() - started) / len(wanted.images)
    (wanted.output / "figures.json").write_text(json.dumps({"seconds_a_case": round(seconds, 3)}))


def build(wanted: argparse.Namespace) -> nnUNetTrainer:
    """Return the trainer of a dataset that nnU-Net has planned and preprocessed."""
    folder = Path(nnUNet_preprocessed.require()) / wanted.dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    description = json.loads((folder / "dataset.json").read_text())
    return nnUNetTrainer(plans, CONFIGURATION, FOLD, description, torch.device(wanted.device))


def end_loaders(trainer: nnUNetTrainer) -> None:
    """End the processes that augment, as the stock trainer does at the end of its schedule."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()


if __name__ == "__main__":
    main()
