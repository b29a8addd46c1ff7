"""Quick classifiers against the network where labels are few: MedNIST's six classes from weights of another task.

    python -m tests.benchmarks.quick_classifiers [--labels 6 30 60 300] [--draws 2], 4 minutes a draw

Each training starts from `densenet_pneumonia`, which has seen chest X-rays of 28 x 28 pixels alone, and has so many
labels, as many of each class, all of them to learn from. What it publishes is measured on 100 other pictures of each
class, which decide nothing. A draw is another choice of the labels; the test pictures are the same ones.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import labelrounds.host  # noqa: F401 - first, so that the host can be imported

# isort: split
from labelrounds.cases import prepare_cases
from labelrounds.checkpoints import Checkpoints
from labelrounds.classification.calibration import probabilities_of
from labelrounds.classification.cases import class_tensors, truth_of
from labelrounds.classification.config import NETWORK, QUICK, ClassifierConfig
from labelrounds.classification.metrics import class_metrics
from labelrounds.classification.outputs import logits_of
from labelrounds.json_files import write_json
from labelrounds.splits import TRAIN
from labelrounds.store import LabelledCase
from labelrounds.training import train_model
from labelrounds.training_plan import network_of
from labelrounds.training_request import TrainingRequest
from tests.benchmarks import machine
from tests.benchmarks.classification import DATA, RESULTS, shipped

SOURCE, TESTED = "densenet_pneumonia", 100
TRAINING = {"epochs": 6, "iterations_per_epoch": 15, "batch_size": 32}
CPU = torch.device("cpu")
console = Console()


def main() -> None:
    """Run the benchmark, print its table and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[6, 30, 60, 300])
    parser.add_argument("--draws", type=int, default=1, help="choices of labels")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    path = RESULTS / "quick_classifiers_mednist.json"
    about = {"start": SOURCE, "training": TRAINING, "draws": wanted.draws, "machine": machine.describe()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LABELROUNDS_HOME"] = str(Path(folder) / "home")
        os.environ["LABELROUNDS_CACHE_GB"] = "0"
        pictures, tested = divided(Path(folder))
        for labels in wanted.labels:
            for kind in (*QUICK, NETWORK):
                rows.append(run(kind, labels, wanted.draws, pictures, tested))
                path.write_text(json.dumps({**about, "tested": len(tested), "rows": rows}, indent=1) + "\n")
    console.print(table(rows))
    console.print(f"Figures: {path}")


def divided(folder: Path) -> tuple[dict[str, list[LabelledCase]], list[LabelledCase]]:
    """Return each class's pictures to learn from, in an order drawn at random, and the test pictures of all classes."""
    random = np.random.default_rng(1)
    learnt: dict[str, list[LabelledCase]] = {}
    tested: list[LabelledCase] = []
    for kind in shipped("densenet_mednist")["labels"]:
        label = folder / f"{kind}.json"
        label.write_text(json.dumps({"label": kind}))
        paths = sorted((DATA / "mednist" / kind).glob("*.jpeg"))
        names = {path: f"{kind}_{path.stem}" for path in paths}
        cases = [LabelledCase(names[path], path, label, None, names[path]) for path in random.permutation(paths)]
        tested, learnt[kind] = tested + cases[:TESTED], cases[TESTED:]
    return learnt, tested


def configured(kind: str, labels: int, draw: int) -> ClassifierConfig:
    """Return the model: MedNIST's classes, by the network that the start weights are of."""
    content = {key: value for key, value in shipped(SOURCE).items() if key != "task"}
    training = {**TRAINING, "classifier": kind, "init_from": SOURCE, "seed": draw}
    own = {"labels": shipped("densenet_mednist")["labels"], "training": training}
    name = f"mednist_{kind}_{labels}_{draw}"
    return ClassifierConfig.model_validate_json(json.dumps({**content, **own, "name": name}))


def run(
    kind: str, labels: int, draws: int, pictures: dict[str, list[LabelledCase]], tested: list[LabelledCase]
) -> dict[str, Any]:
    """Train one classifier on each draw of so many labels, and measure what is published."""
    found = []
    for draw in range(draws):
        each = labels // len(pictures)
        chosen = [case for cases in pictures.values() for case in cases[draw * each : (draw + 1) * each]]
        if labels < 8:  # of two patients nothing is cross-validated, which takes time and changes nothing measured here
            chosen = [replace(case, patient=f"{number % 2}") for number, case in enumerate(chosen)]
        config = configured(kind, labels, draw)
        write_json(Checkpoints(config).folder / "split.json", {case.patient: TRAIN for case in chosen})
        started = time.perf_counter()
        train_model(config, chosen, TrainingRequest("full", None, "cpu"), lambda: False)
        found.append({"seconds": round(time.perf_counter() - started, 2), **measured(config, tested)})
        console.print(f"{kind}, {labels} labels, draw {draw}: {found[-1]}")
    means = {key: round(mean(one[key] for one in found), 4) for key in found[0]}
    return {"labels": labels, "classifier": kind, **means, "draws": found}


def measured(config: ClassifierConfig, tested: list[LabelledCase]) -> dict[str, float]:
    """Return accuracy, AUROC and calibration error of what is served, on the test pictures."""
    checkpoints = Checkpoints(config)
    version = checkpoints.current()
    assert version is not None
    cases, _ = prepare_cases(tested, config, class_tensors)
    logits = torch.stack(list(logits_of(network_of(version, checkpoints), cases, CPU)))
    probabilities = probabilities_of(logits, config.multilabel, version.record["temperature"])
    metrics = class_metrics(probabilities.numpy(), truth_of(cases).numpy(), config.labels, config.multilabel)
    return {"accuracy": metrics["accuracy"], "auroc": metrics["macro"]["auroc"], "ece": metrics["ece"]}


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the means over the draws as they are printed."""
    shown = Table("labels", "classifier", "accuracy", "AUROC", "calibration error", "seconds")
    for row in rows:
        shown.add_row(*(str(row[key]) for key in ("labels", "classifier", "accuracy", "auroc", "ece", "seconds")))
    return shown


if __name__ == "__main__":
    main()
