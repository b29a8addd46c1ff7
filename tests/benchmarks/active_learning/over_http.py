"""Tier http: the simulated annotator as a client of a real server, from the first label to the last training.

    python -m tests.benchmarks.active_learning --tier http

For each case: `POST /activelearning/STRATEGY`, `POST /infer` for the prediction that an annotator would correct,
`PUT /datastore/label` with the true label; after each batch `POST /train`, the way a clinic works. The loop is shorter
than tier C's and the pool is 40 of the training cases of `split.json`, as a server does more than train: it prepares,
splits, cross-validates, judges and publishes. What it serves after each training is judged on the 40
test cases, through `POST /infer` again; no figure of them decides anything. (Seeds below `FIRST_PUBLISHED` are for
development and read none of them.)
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from labelrounds.client import Client, running_server
from labelrounds.metrics import dice_per_label
from labelrounds.reading import read_label
from tests.benchmarks import machine
from tests.benchmarks.active_learning.hippocampus import DATA, FIRST_PUBLISHED, configuration, split
from tests.benchmarks.active_learning.simulation import Curve

FOLDER = Path.home() / ".cache" / "labelrounds-benchmarks" / "active_learning"
SEEDS = (3100, 3101, 3102)
STRATEGIES = ("auto", "random")
POOL, START, BATCH, ROUNDS = 40, 4, 4, 3
EPOCHS, QUICK_EPOCHS = 12, 6
MODEL = "hippocampus_2mm"
_WAIT_S = 120
console = Console()


def main(seeds: Sequence[int], results: Path, folder: Path = FOLDER) -> None:
    """Play what is not played yet, print the table and write the figures."""
    curves = [kept(seed, strategy, folder) for seed in seeds for strategy in STRATEGIES]
    report = {
        "seeds": list(seeds),
        "pool": POOL,
        "labels": curves[0].labels,
        "figures": {
            name: {
                figure: round(float(np.mean([one.area(figure) for one in curves if one.strategy == name])), 4)
                for figure in ("dice", "worst_decile")
            }
            | {"query_s": round(float(np.median([one.query_s for one in curves if one.strategy == name])), 4)}
            for name in STRATEGIES
        },
        "curves": [curve.plain() for curve in curves],
        "machine": machine.describe(),
    }
    console.print(table(report, len(seeds)))
    path = results / "active_learning_http.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {path}")


def kept(seed: int, strategy: str, folder: Path) -> Curve:
    """Return a run's curve; from its file where this code has played it before."""
    file = folder / f"http_{strategy}_{seed}_{machine.code()[:12]}.json"
    if not file.is_file():
        with tempfile.TemporaryDirectory() as work:
            curve = play(seed, strategy, Path(work))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(curve.plain()))
        console.print(f"{seed} {strategy}: {[round(one['dice'], 3) for one in curve.figures]}")
    return Curve(**json.loads(file.read_text()))


def play(seed: int, strategy: str, work: Path) -> Curve:
    """Label and train over HTTP for some rounds."""
    order = np.random.default_rng(seed).permutation(split()["training"]).tolist()
    drawn, tests = order[:POOL], split()["test"] if seed >= FIRST_PUBLISHED else order[POOL : 2 * POOL]
    studies = work / "studies"
    studies.mkdir()
    for name in drawn:
        shutil.copy(DATA / "images" / name, studies / name)
    curve = Curve(strategy, seed)
    seconds: list[float] = []
    with running_server(studies, work / "home", 0, [MODEL], written(work / "configs")) as client:
        for name in drawn[:START]:
            label(client, name.removesuffix(".nii.gz"), curve)
        learn(client, curve, tests)
        for _ in range(ROUNDS):
            for _ in range(BATCH):
                started = time.perf_counter()
                answer = client.call("POST", f"/activelearning/{strategy}", json={"client_id": "annotator"}).json()
                seconds.append(time.perf_counter() - started)
                client.segment(MODEL, image=answer["id"])
                label(client, answer["id"], curve)
            learn(client, curve, tests)
    curve.query_s = float(np.median(seconds))
    return curve


def written(configs: Path) -> Path:
    """Write the model's YAML file and return its folder: tier C's, with a patch that holds a whole crop."""
    content = configuration().model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    content["patch_size"] = [24, 32, 24]
    content["training"] = {"epochs": EPOCHS, "quick_epochs": QUICK_EPOCHS, "iterations_per_epoch": 25, "batch_size": 2}
    configs.mkdir()
    (configs / f"{MODEL}.yaml").write_text(yaml.safe_dump(content))
    return configs


def label(client: Client, image: str, curve: Curve) -> None:
    """Submit the true label of an image."""
    if image in curve.picked:
        raise SystemExit(f"{image} was handed out a second time")
    client.submit(image, DATA / "labels" / f"{image}.nii.gz", configuration().labels)
    curve.picked.append(image)


def learn(client: Client, curve: Curve, tests: Sequence[str]) -> None:
    """Train, wait until the pool is scored by what was published, and note how good that is."""
    started = time.perf_counter()
    client.call("POST", f"/train/{MODEL}", json={"policy": "quick" if curve.labels else "full"})
    stats = list(client.follow_training(MODEL))[-1]
    curve.train_s += time.perf_counter() - started
    found = sorted(dice_of_test_case(client, name) for name in tests)
    curve.labels.append(len(curve.picked))
    curve.figures.append(
        {"dice": float(np.mean(found)), "worst_decile": float(np.mean(found[: max(1, len(found) // 10)]))}
    )
    wait_for_scores(client, stats.get("published"))


def wait_for_scores(client: Client, published: int | None) -> None:
    """Wait until the pool is scored by a version that was just published; not for ever."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        progress = client.call("GET", "/rounds/").json()["scoring"]
        left = progress["of"] - progress["scored"] - progress["failed"]
        if not left and not progress["stale"] and published in (None, progress["version"]):
            return
        time.sleep(0.5)
    console.print(f"not scored within {_WAIT_S} s: the last version's scores serve")


def dice_of_test_case(client: Client, name: str) -> float:
    """Return the mean Dice of a test case as the server segments it, on the image's own grid."""
    prediction = client.segment(MODEL, file=DATA / "images" / name)
    truth = read_label(DATA / "labels" / name).array[0]
    return float(np.nanmean(list(dice_per_label(prediction, truth, configuration().labels).values())))


def table(report: dict[str, Any], seeds: int) -> Table:
    """Return the figures as they are printed."""
    shown = Table("strategy", "AUBC of Dice", "of worst decile", "seconds a query", title=f"over HTTP, {seeds} seeds")
    for name, figures in report["figures"].items():
        shown.add_row(name, *(f"{figures[key]:.4f}" for key in ("dice", "worst_decile", "query_s")))
    return shown
