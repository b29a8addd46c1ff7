"""Classification through the whole app: pictures imported, trained by the command, tested through `POST /infer`.

    python -m tests.benchmarks.classification --task mednist [--network densenet121] [--epochs 15]

Tasks: `mednist` (2,400 pictures of six classes, split 6:2:2 by the app's own hash of the names; the test part decides
nothing), `pneumonia` (PneumoniaMNIST's training and validation parts; the validation part chooses the epoch and there
is no test part here, so its figures are validation figures), `hippocampus` (whether one is in the smallest third by
volume, an atrophy proxy computed from the labels: the 40 test cases of `split.json` are its test part), `phantom` (a
bright lesion of 2 to 5 voxels' radius or none in a noisy volume, invented here). With `--weights FOLDER` the trained
version is written there in half precision, to be shipped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image as Picture
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from tests.real_images import DATA

# isort: split
from labelrounds.classification.cases import prepared
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.inferer import ReadyClassifiers, classify
from labelrounds.classification.metrics import class_metrics
from labelrounds.client import Client, running_server
from labelrounds.config import load_config
from labelrounds.folders import shipped_configs
from labelrounds.reading import read_image
from labelrounds.splits import TEST, TRAIN, VALIDATION
from tests.benchmarks import machine

RESULTS = Path(__file__).parent / "results"
NETWORKS: dict[str, dict[str, Any]] = {
    "own": {},
    "densenet121": {"name": "densenet"},
    "resnet18": {"name": "resnet", "depth": 18},
    "inception": {"name": "inception"},
}
VOLUMES = {
    "task": "classification",
    "intensity": {"kind": "zscore"},
    "network": {"name": "densenet", "growth_rate": 16, "init_features": 32, "block_config": [4, 8, 8]},
    "training": {"epochs": 30, "iterations_per_epoch": 15, "batch_size": 8},
}
console = Console()


def main() -> None:
    """Run the benchmark, print its table and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), default="mednist")
    parser.add_argument("--network", choices=list(NETWORKS), default="own", help="own: that of the model's YAML file")
    parser.add_argument("--epochs", type=int, help="the model's own when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="folder to write the trained weights to, in half precision")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(wanted, Path(folder))
    console.print(table(figures, f"{wanted.task}, {wanted.network}"))
    RESULTS.mkdir(exist_ok=True)
    name = wanted.task if wanted.network == "own" else f"{wanted.task}_{wanted.network}"
    path = RESULTS / f"classification_{name}.json"
    path.write_text(json.dumps({"seed": wanted.seed, "machine": machine.describe(), **figures}, indent=1) + "\n")
    console.print(f"Figures: {path}")


def run(wanted: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Import, train and test one task in a folder."""
    studies, home, configs = folder / "studies", folder / "home", folder / "configs"
    for made in (studies, configs):
        made.mkdir()
    os.environ["LABELROUNDS_HOME"] = str(home)
    config, split, truth = TASKS[wanted.task](studies)
    if wanted.network != "own":
        dropped = {"name", "growth_rate", "init_features", "block_config", "depth"}
        kept = {key: value for key, value in config["network"].items() if key not in dropped}
        config["network"] = {**kept, **NETWORKS[wanted.network]}
    config["training"] = {**config.get("training", {}), "seed": wanted.seed}
    # Trained under a name without shipped weights, so that nothing is known before.
    model = f"{wanted.task}_fresh"
    (configs / f"{model}.yaml").write_text(yaml.safe_dump(config))
    known = load_config(configs / f"{model}.yaml")
    parts = home / "models" / model / "split.json"
    if split:
        parts.parent.mkdir(parents=True)
        parts.write_text(json.dumps(split))
    with (folder / "labels.csv").open("w") as rows:
        rows.write("image,label\n" + "".join(f"{image},{name}\n" for image, name in truth.items()))
    command("import-labels", "--studies", str(studies), "--csv", str(folder / "labels.csv"))
    started = time.perf_counter()
    epochs = ["--epochs", str(wanted.epochs)] if wanted.epochs else []
    common = ("--model", model, "--configs", str(configs))
    command("train", *common, "--studies", str(studies), "--policy", "full", *epochs)
    minutes = (time.perf_counter() - started) / 60
    version = home / "models" / model / "versions" / "0001"
    record = json.loads((version / "version.json").read_text())
    figures: dict[str, Any] = {
        "configuration": record["configuration"],
        "parameters": sum(value.numel() for value in load_file(version / "weights.safetensors").values()),
        "cases": {part: len(names) for part, names in record["cases"].items()},
        "training_minutes": round(minutes, 2),
        "epochs": record["epochs"],
        "temperature": record["temperature"],
        "validation": record["metrics"].get(VALIDATION),
    }
    test = [image for image in record["cases"][TEST] if image in truth]
    if test:
        with running_server(studies, home, 0, [model], configs) as client:
            figures |= tested(client, studies, known, {image: truth[image] for image in test})
    if wanted.weights:
        ship(version, record, wanted.weights / wanted.task)
    return figures


def command(*arguments: str) -> None:
    """Run the project's command as a user does.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, "-m", "labelrounds", *arguments], check=True)


def tested(client: Client, studies: Path, config: ClassifierConfig, truth: dict[str, str]) -> dict[str, Any]:
    """Classify the test images through the server, one request each, and in turn by the bare network; measure both."""
    found, served, bare = [], [], []
    ready = ReadyClassifiers(config).get(torch.device("cpu"))
    files = {path.name.split(".")[0]: path for path in studies.iterdir() if path.is_file()}
    for image in truth:
        started = time.perf_counter()
        answer = client.call("POST", f"/infer/{config.name}?image={image}&output=json").json()
        served.append(time.perf_counter() - started)
        scores = {one["label"]: one["score"] for one in answer["prediction"]}
        found.append([scores[label] for label in config.labels])
        started = time.perf_counter()
        classify(ready, prepared(read_image(files[image], channels=config.channels), config)[None], config)
        bare.append(time.perf_counter() - started)
    of_class = np.array([[name == label for label in config.labels] for name in truth.values()])
    metrics = class_metrics(np.array(found), of_class, list(config.labels), multilabel=False)
    milliseconds = {name: round(float(np.median(of)) * 1000, 2) for name, of in (("served", served), ("bare", bare))}
    return {"test": metrics, "milliseconds": milliseconds}


def ship(version: Path, record: dict[str, Any], target: Path) -> None:
    """Write a version in half precision, with its record."""
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = load_file(version / "weights.safetensors")
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(half, target.with_suffix(".safetensors"))
    target.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


Made = tuple[dict[str, Any], dict[str, str], dict[str, str]]
"""A model's YAML, each image's part (empty: the app decides), and each image's class."""


def mednist(studies: Path) -> Made:
    """Copy MedNIST's pictures, named by class and number."""
    truth = {}
    for path in sorted((DATA / "mednist").glob("*/*.jpeg")):
        image = f"{path.parent.name}_{path.stem}"
        (studies / f"{image}.jpeg").write_bytes(path.read_bytes())
        truth[image] = path.parent.name
    return shipped("densenet_mednist"), {}, truth


def pneumonia(studies: Path) -> Made:
    """Write PneumoniaMNIST's pictures with its own split."""
    split, truth = {}, {}
    with np.load(DATA / "pneumonia_cxr" / "train_val.npz") as content:
        for part, name in (("train", TRAIN), ("val", VALIDATION)):
            pictures, classes = content[f"{part}_images"], content[f"{part}_labels"].reshape(-1)
            for number, (picture, value) in enumerate(zip(pictures, classes, strict=True)):
                image = f"{part}_{number:04d}"
                Picture.fromarray(picture).save(studies / f"{image}.png")
                split[image], truth[image] = name, ("normal", "pneumonia")[int(value)]
    return shipped("densenet_pneumonia"), split, truth


def hippocampus(studies: Path) -> Made:
    """Take the 200 crops; a hippocampus of the smallest third, as its labels' volume says, is `small`."""
    folder = DATA / "hippocampus"
    parts = json.loads((folder / "split.json").read_text())
    volumes = {}
    for name in sorted([*parts["training"], *parts["test"]]):
        (studies / name).write_bytes((folder / "images" / name).read_bytes())
        label = nibabel.load(folder / "labels" / name)
        voxel = float(np.prod(label.header.get_zooms()[:3]))
        volumes[name.removesuffix(".nii.gz")] = int((np.asarray(label.dataobj) > 0).sum()) * voxel
    training = [name.removesuffix(".nii.gz") for name in sorted(parts["training"])]
    # The third's border is the training cases', so that nothing of the test cases is known.
    border = float(np.quantile([volumes[image] for image in training], 1 / 3))
    held = set(np.random.default_rng(0).permutation(training)[: len(training) // 5].tolist())
    split = {image: VALIDATION if image in held else TRAIN for image in training}
    split |= {name.removesuffix(".nii.gz"): TEST for name in parts["test"]}
    truth = {image: "small" if volume <= border else "other" for image, volume in volumes.items()}
    config = {
        **VOLUMES,
        "description": "Whether a hippocampus is in the smallest third",
        "labels": ["other", "small"],
        "spacing_mm": [1.0, 1.0, 1.0],
        "input_size": [40, 56, 40],
    }
    config["training"] = {**VOLUMES["training"], "scale_range": [1.0, 1.0]}  # size is what is asked for
    return config, split, truth


def phantom(studies: Path) -> Made:
    """Invent 200 noisy volumes, half of them with a bright lesion, small or large."""
    random = np.random.default_rng(0)
    truth = {}
    for number in range(200):
        image, lesion = f"phantom_{number:03d}", number % 2 == 1
        nibabel.save(nibabel.Nifti1Image(volume(random, lesion), np.eye(4)), studies / f"{image}.nii.gz")
        truth[image] = "lesion" if lesion else "none"
    config = {
        **VOLUMES,
        "description": "Whether a lesion is in a volume",
        "labels": ["none", "lesion"],
        "input_size": [32, 32, 32],
        "mirror": ["left_right", "posterior_anterior", "inferior_superior"],
    }
    return config, {}, truth


def volume(random: np.random.Generator, lesion: bool) -> NDArray[np.float32]:
    """Return a smooth noisy volume ``(32, 32, 32)``, with a lesion of a radius of 2 to 5 voxels or without."""
    field = random.normal(size=(32, 32, 32))
    for axis in range(3):
        field = sum(np.roll(field, step, axis) for step in (-1, 0, 1)) / 3
    field = field / field.std()
    if lesion:
        radius = random.uniform(2, 5)
        centre = random.uniform(radius + 1, 31 - radius, size=3)
        distance = np.sqrt(((np.indices(field.shape).T - centre) ** 2).sum(-1)).T
        field = field + 2.5 * (distance <= radius)
    return field.astype(np.float32)


def shipped(model: str) -> dict[str, Any]:
    """Return a shipped model's YAML."""
    return dict(yaml.safe_load((shipped_configs() / f"{model}.yaml").read_text()))


TASKS = {"mednist": mednist, "pneumonia": pneumonia, "hippocampus": hippocampus, "phantom": phantom}


def table(figures: dict[str, Any], title: str) -> Table:
    """Return the figures as they are printed."""
    shown = Table("figure", "validation", "test", title=title)
    parts = [figures.get(part) or {} for part in ("validation", "test")]
    for key in ("accuracy", "balanced_accuracy", "ece"):
        shown.add_row(key, *(str(part.get(key, "-")) for part in parts))
    shown.add_row("AUROC", *(str(part.get("macro", {}).get("auroc", "-")) for part in parts))
    for key in ("cases", "parameters", "epochs", "training_minutes", "milliseconds"):
        shown.add_row(key, str(figures.get(key, "-")), "")
    return shown


if __name__ == "__main__":
    main()
