"""Our side of `tests.benchmarks.nnunet`, in a process of its own: prepare, calibrate, train, predict.

The trainer is the server's, with its own configuration and augmentation. Its schedule has as many epochs as fit into
the wall time; no case chooses an epoch, so the averaged weights of each given time are what is judged. The clock
stands still while weights of a given time are set aside. The predictions are those that the server makes, without the
cleaning of components, as nnU-Net's own postprocessing is not looked for either.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors import safe_open

from labelrounds.cases import PreparedCase
from labelrounds.config import ModelConfig
from labelrounds.devices import choose_device, place
from labelrounds.inference import segment
from labelrounds.learning import Epoch, Learner, Schedule
from labelrounds.networks import build_network
from labelrounds.reading import read_image
from labelrounds.writing import write_label
from tests.benchmarks import peers
from tests.benchmarks.hippocampus import DATA

# Of the wall time; the rest is for the epochs that take longer than those that were measured.
FILLED = 0.97
TIMED = 8
SHOWN = "LabelRounds"


def main() -> None:
    """Do one step: train or predict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("train", "predict"))
    parser.add_argument("--model", default="unet_hippocampus")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=peers.CORES)
    parser.add_argument("--names", nargs="*", help="cases to train on or to predict")
    parser.add_argument("--marks", help="seconds, separated by commas; the last ends the training")
    parser.add_argument("--weights", type=Path, help="file of weights to predict with")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    config = peers.load_model(wanted.model)
    wanted.output.mkdir(parents=True, exist_ok=True)
    {"train": train, "predict": predict}[wanted.step](wanted, config)


def train(wanted: argparse.Namespace, config: ModelConfig) -> None:
    """Train to the last of the given times, going on from what a stopped process left."""
    started = time.perf_counter()
    cases = peers.prepare(wanted.names, config)
    preparing = time.perf_counter() - started
    marks = [float(mark) for mark in wanted.marks.split(",")]
    device = choose_device(wanted.device)
    plan = wanted.output / "plan.json"
    if not plan.is_file():
        seconds = calibrate(config, cases, device)
        epochs = max(2, int(FILLED * marks[-1] / seconds))
        plan.write_text(json.dumps({"epochs": epochs, "seconds_an_epoch": round(seconds, 3)}))
    epochs = json.loads(plan.read_text())["epochs"]
    state, clock_file = wanted.output / "state.safetensors", wanted.output / "clock.json"
    clock = peers.Clock()

    def note(epoch: Epoch, seconds: float) -> dict[str, float]:
        each = config.training.iterations_per_epoch
        return {"seconds": round(seconds, 1), "iterations": epoch.number * each, "of": epoch.total * each}

    def report(epoch: Epoch) -> None:
        seconds = clock.seconds
        shown = f"{SHOWN} epoch {epoch.number}/{epoch.total}: {seconds:.0f} s, loss {epoch.loss:.3f}"
        print(shown, flush=True)
        clock_file.write_text(json.dumps({"seconds": seconds}))
        for mark in marks:
            # The last epoch that ended before the time.
            if seconds + epoch.seconds > mark or epoch.number == epoch.total:
                keep(wanted.output / f"mark_{mark:g}", state, note(epoch, seconds))
        clock.set(seconds)

    schedule = Schedule(epochs, config.training.iterations_per_epoch, config.training.learning_rate)
    learner = build(config, cases, device, schedule, state)
    clock.set(json.loads(clock_file.read_text())["seconds"] if clock_file.is_file() and state.is_file() else 0.0)
    learner.run(report, lambda: clock.seconds >= marks[-1])
    figures = {
        "prepare_s": round(preparing, 2),
        "train_s": round(clock.seconds, 1),
        "batch_size": config.training.batch_size,
        "patch_size": list(config.patch_size),
        "iterations_an_epoch": config.training.iterations_per_epoch,
        "parameters": sum(parameter.numel() for parameter in build_network(config).parameters()),
        **json.loads(plan.read_text()),
    }
    (wanted.output / "figures.json").write_text(json.dumps(figures))


def build(
    config: ModelConfig, cases: list[PreparedCase], device: torch.device, schedule: Schedule, state: Path | None = None
) -> Learner:
    """Return our trainer from the configuration's seed."""
    torch.manual_seed(config.training.seed)
    network = build_network(config)
    return Learner(config, network, cases, [], device, schedule, state=state, fingerprint=str(schedule.epochs))


def calibrate(config: ModelConfig, cases: list[PreparedCase], device: torch.device) -> float:
    """Return the seconds of an epoch once it is warm, from two short ones after a first."""
    seconds: list[float] = []
    short = Schedule(3, TIMED, config.training.learning_rate)
    build(config, cases, device, short).run(lambda epoch: seconds.append(epoch.seconds), lambda: False)
    return sum(seconds[1:]) / (2 * TIMED) * config.training.iterations_per_epoch


def keep(file: Path, state: Path, note: dict[str, float]) -> None:
    """Set the resumable state aside, once, with what it is."""
    weights = file.with_suffix(".safetensors")
    if not weights.is_file():
        shutil.copy(state, weights)
        file.with_suffix(".json").write_text(json.dumps(note))


def predict(wanted: argparse.Namespace, config: ModelConfig) -> None:
    """Segment the named cases with averaged weights, each on its own grid."""
    device = choose_device(wanted.device)
    config = config.model_copy(update={"cleaning": {}})
    network = build_network(config)
    with safe_open(wanted.weights, framework="pt") as state:
        names = [key for key in state.keys() if key.startswith("average/")]  # noqa: SIM118 - not a dict
        network.load_state_dict({name.removeprefix("average/"): state.get_tensor(name) for name in names})
    place(network, device, config.dimensions).eval()
    started = time.perf_counter()
    for name in wanted.names:
        image = read_image(DATA / "images" / name, channels=config.channels)
        write_label(segment(network, image, config, device), image.affine, wanted.output / name, config.labels)
    seconds = (time.perf_counter() - started) / len(wanted.names)
    (wanted.output / "figures.json").write_text(json.dumps({"seconds_a_case": round(seconds, 3)}))


if __name__ == "__main__":
    main()
