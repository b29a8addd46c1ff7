"""Sixteen labelled hippocampi, a training on the server, and the served model's Dice on the forty test cases.

Everything goes through the HTTP API as a client's: the images lie in the studies folder, the labels are submitted by
`PUT /datastore/label`, the trainings are started by `POST /train`, the test images are uploaded to `POST /infer`. The
data are the Medical Segmentation Decathlon's Task04 (DOI 10.1038/s41467-022-30695-9), split as `split.json` says;
the 16 cases are drawn with a fixed seed from the training cases, and no figure of a test case decides anything.
With `--cases 0` nothing is trained: the weights that ship are measured.

    python -m tests.benchmarks.hippocampus [--cases 16] [--models unet_hippocampus,vnet_hippocampus] [--seed 0]
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from labelrounds.client import Client, running_server
from labelrounds.config import load_configs
from labelrounds.folders import shipped_configs
from labelrounds.metrics import dice_per_label, hd95, nsd
from labelrounds.reading import read_image, read_label
from tests.benchmarks import machine
from tests.real_images import DATA as REAL_IMAGES

DATA = REAL_IMAGES / "hippocampus"
RESULTS = Path(__file__).parent / "results"
LABELS = ("anterior", "posterior")
console = Console()


def main() -> None:
    """Run the benchmark, print its table and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=16, help="labelled training cases")
    parser.add_argument("--models", default="unet_hippocampus,vnet_hippocampus")
    parser.add_argument("--epochs", type=int, help="of each training; the model's own when left out")
    parser.add_argument("--seed", type=int, default=0, help="which training cases are drawn")
    wanted = parser.parse_args()
    split = json.loads((DATA / "split.json").read_text())
    chosen = sorted(random.Random(wanted.seed).sample(sorted(split["training"]), wanted.cases))
    shown = random.Random(wanted.seed).choice(sorted(split["training"]))  # a studies folder is never empty
    models = wanted.models.split(",")
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies"
        studies.mkdir()
        for name in chosen or [shown]:
            shutil.copy(DATA / "images" / name, studies / name)
        configs = Path(folder) / "configs"
        configs.mkdir()
        # Trained under a name without shipped weights: these may have learnt from the very cases, and the task is to
        # learn from the submitted ones alone, with nothing served to be compared with.
        names = {model: f"{model}_fresh" if chosen else model for model in models}
        for model, name in names.items():
            shutil.copy(shipped_configs() / f"{model}.yaml", configs / f"{name}.yaml")
        with running_server(studies, Path(folder) / "home", 0, list(names.values()), configs) as client:
            submit(client, chosen)
            figures = {}
            for model, name in names.items():
                training = train(client, name, wanted.epochs) if chosen else {}
                if chosen:
                    settings = load_configs([configs], [name])[name].training
                    training["training_settings"] = settings.model_dump(mode="json")
                figures[model] = training | measure(client, name, split["test"])
    console.print(table(figures))
    RESULTS.mkdir(exist_ok=True)
    report = {"cases": chosen, "seed": wanted.seed, "machine": machine.describe(), "models": figures}
    path = RESULTS / f"hippocampus_{wanted.cases or 'shipped'}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {path}")


def submit(client: Client, names: list[str]) -> None:
    """Submit the annotators' labels of the chosen cases."""
    for name in names:
        client.submit(name.removesuffix(".nii.gz"), DATA / "labels" / name, LABELS)


def train(client: Client, model: str, epochs: int | None) -> dict[str, object]:
    """Train a model on the server, and return how long that took and what the server says of it."""
    request = {"policy": "full"} | ({"epochs": epochs} if epochs else {})
    started = time.perf_counter()
    client.call("POST", f"/train/{model}", json=request)
    stats: dict[str, object] = {}
    for stats in client.follow_training(model):
        line = f"{model}: epoch {stats.get('epoch')}/{stats.get('total_epochs')}, Dice {stats.get('best_metric')}"
        console.print(line, end="\r")
    minutes = (time.perf_counter() - started) / 60
    console.print(f"{model}: {stats.get('message')} {minutes:.1f} min")
    return {
        "training_minutes": round(minutes, 2),
        "training": {
            key: stats.get(key) for key in ("epoch", "cases", "best_metric", "dice", "judged_on", "published")
        },
    }


def measure(client: Client, model: str, test: list[str]) -> dict[str, object]:
    """Segment and score every test case through the server."""
    scores = [score(client, model, name) for name in test]
    per_label = {label: [one["dice"][label] for one in scores] for label in LABELS}
    means = sorted(float(np.mean([one["dice"][label] for label in LABELS])) for one in scores)
    interval = bootstrap((means,), np.mean, n_resamples=10_000, method="percentile", random_state=0).confidence_interval
    return {
        "test_dice": {label: round(float(np.mean(values)), 4) for label, values in per_label.items()},
        "test_dice_mean": round(float(np.mean(means)), 4),
        "test_dice_mean_95": [round(float(interval.low), 4), round(float(interval.high), 4)],
        "test_dice_first_decile": round(float(np.percentile(means, 10)), 4),
        "test_dice_worst_decile": round(float(np.mean(means[: max(1, len(means) // 10)])), 4),
        "test_hd95_mm": round(float(np.mean([one["hd95"] for one in scores])), 3),
        "test_nsd_1mm": round(float(np.mean([one["nsd"] for one in scores])), 4),
        "seconds_a_case": round(float(np.median([one["seconds"] for one in scores])), 3),
        "test_cases": [{"name": name, **one} for name, one in zip(test, scores, strict=True)],
    }


def score(client: Client, model: str, name: str) -> dict[str, object]:
    """Segment one test case through the server and compare it with the annotators' label."""
    started = time.perf_counter()
    prediction = client.segment(model, file=DATA / "images" / name)
    seconds = time.perf_counter() - started
    truth = read_label(DATA / "labels" / name).array[0]
    spacing = read_image(DATA / "images" / name).spacing_mm
    masks = [(prediction == value, truth == value) for value in range(1, len(LABELS) + 1)]
    return {
        "dice": {k: round(v, 4) for k, v in dice_per_label(prediction, truth, LABELS).items()},
        "hd95": round(float(np.mean([hd95(one, other, spacing) for one, other in masks])), 3),
        "nsd": round(float(np.mean([nsd(one, other, spacing, 1.0) for one, other in masks])), 4),
        "seconds": round(seconds, 3),
    }


def table(figures: dict[str, dict[str, object]]) -> Table:
    """Return the figures as they are printed."""
    rows = (
        "training_minutes",
        "test_dice_mean",
        "test_dice_mean_95",
        "test_dice_first_decile",
        "test_dice_worst_decile",
        "test_hd95_mm",
        "test_nsd_1mm",
        "seconds_a_case",
    )
    shown = Table("figure", *figures, title="40 test cases, through POST /infer")
    for row in rows:
        shown.add_row(row, *(str(model.get(row, "-")) for model in figures.values()))
    for label in LABELS:
        shown.add_row(f"test_dice {label}", *(str(model["test_dice"][label]) for model in figures.values()))  # type: ignore[index]
    return shown


if __name__ == "__main__":
    main()
