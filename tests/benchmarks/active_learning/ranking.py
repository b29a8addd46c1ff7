"""Which score ranks a pool by the model's true errors, and what scoring costs beside MONAI Label's.

    python -m tests.benchmarks.active_learning --task ranking

The shipped hippocampus U-Net at 1 mm learns from 8 of the 160 training cases of `split.json`; the pool is the
other 152, whose labels only the comparison sees. For each score: Spearman's correlation with 1 - the mean Dice,
on the network's grid. Training cases and seeds were fixed before the first run; no test case is read.

How well could any score do? What makes a case hard for one model, and not for another of as many labels, can't be known
before: the true errors of two models correlate too (``between_models``), and a score that tells more of a model's
errors than another model's true errors do would be a surprise.

MONAI Label's own `EpistemicScoring` runs on the same pool with the same weights: five passes with the network set to
training, dropout of 0.2 put behind each normalisation as in its sample networks, the image read anew for each pass.
It is given our patch size as region; its own default of 128 x 128 x 64 would pad these images to many times their size.
Both sides have one thread and are timed with what they need: ours reads the file and computes all scores and
the embedding.
"""

import hashlib
import inspect
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, Orientationd, Spacingd
from monailabel.tasks.scoring.epistemic import EpistemicScoring
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap, spearmanr

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import costly_scores, scoring, voxel_scores
from labelrounds.cases import prepare_cases
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.config import ModelConfig, load_configs
from labelrounds.costly_scores import PASSES, dropout_on
from labelrounds.devices import place
from labelrounds.evaluation import evaluate, mean_of
from labelrounds.folders import shipped_configs
from labelrounds.learning import Learner, Schedule
from labelrounds.networks import build_network
from labelrounds.scores import SCORES
from labelrounds.scoring import Scorer
from labelrounds.store import LabelledCase
from tests.benchmarks import machine
from tests.benchmarks.active_learning.hippocampus import DATA, split

FOLDER = Path.home() / ".cache" / "labelrounds-benchmarks" / "active_learning"
SEEDS = (4000, 4001, 4002)
CASES, EPOCHS = 8, 48
_CPU = torch.device("cpu")
# As large as most of the crops, and 0.55 times the work of the patch by which the pool is segmented.
_TRAINING_PATCH = (32, 48, 32)
_NAME = "ranking_hippocampus"
console = Console()


def main(seeds: Sequence[int], results: Path, folder: Path = FOLDER) -> None:
    """Train what is not trained yet, compare, print the table and write the figures."""
    torch.set_num_threads(1)
    os.environ["LABELROUNDS_HOME"] = str(folder / "home")  # not in the user's own
    models = [compared(seed, folder) for seed in seeds]
    report = {
        "seeds": list(seeds),
        "labelled": CASES,
        "iterations": EPOCHS * configuration().training.iterations_per_epoch,
        "spearman": {name: summary([model["spearman"][name] for model in models]) for name in models[0]["spearman"]},
        "between_models": between(models),
        "seconds_a_volume": timing(models),
        "models": models,
        "machine": machine.describe(),
    }
    console.print(table(report))
    path = results / "active_learning_ranking.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {path}")


def configuration() -> ModelConfig:
    """Return the shipped hippocampus U-Net, under a name without weights that may have seen the pool."""
    shipped: ModelConfig = load_configs([shipped_configs()], ["unet_hippocampus"])["unet_hippocampus"]
    return shipped.model_copy(update={"name": _NAME})


def compared(seed: int, folder: Path) -> dict[str, Any]:
    """Return one model's correlations and times; from its file where it was compared before."""
    config = configuration()
    about = [config.model_dump(mode="json"), CASES, EPOCHS, _TRAINING_PATCH]
    about += [inspect.getsource(module) for module in (scoring, voxel_scores, costly_scores, sys.modules[__name__])]
    file = folder / f"ranking_{seed}_{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}.json"
    if not file.is_file():
        names = split()["training"]
        drawn = np.random.default_rng(seed).permutation(len(names))
        items = [item(names[index]) for index in drawn]
        network = trained(items[:CASES], config, seed, folder)
        found = {"seed": seed, **judged(network, items[CASES:], config, folder)}
        file.write_text(json.dumps(found))
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def item(name: str) -> LabelledCase:
    """Return a case of the data set as a datastore would."""
    stem = name.removesuffix(".nii.gz")
    return LabelledCase(stem, DATA / "images" / name, DATA / "labels" / name, None, stem)


def trained(items: list[LabelledCase], config: ModelConfig, seed: int, folder: Path) -> Any:
    """Return a network that has learnt from some cases; stopped, it goes on from the last epoch."""
    training = config.training.model_copy(update={"seed": seed, "epochs": EPOCHS})
    config = config.model_copy(update={"training": training, "patch_size": _TRAINING_PATCH})
    cases, skipped = prepare_cases(items, config)
    if skipped:
        raise SystemExit(f"not usable: {skipped}")
    torch.manual_seed(seed)
    schedule = Schedule(EPOCHS, training.iterations_per_epoch, training.learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"ranking_{seed}.safetensors"
    about = [config.model_dump_json(), *(case.key for case in cases)]
    fingerprint = hashlib.sha256("".join(about).encode()).hexdigest()
    learner = Learner(config, build_network(config), cases, [], _CPU, schedule, state, fingerprint)
    outcome = learner.run(
        lambda epoch: console.print(f"{seed}: epoch {epoch.number}/{EPOCHS}, {epoch.seconds:.0f} s", end="\r"),
        lambda: False,
    )
    return outcome.network.eval()


def judged(network: Any, items: list[LabelledCase], config: ModelConfig, folder: Path) -> dict[str, Any]:
    """Return each score's correlation with the true error over a pool, and the seconds a volume of both ways."""
    cases, _ = prepare_cases(items, config)
    dice = evaluate(place(network, _CPU, 3), cases, config, console.print)
    errors = [1 - mean_of(dice[one.image_id]) for one in items]
    sizes = [float((case.label > 0).sum()) for case in cases]
    paths = {one.image_id: Path(one.image) for one in items}
    scorer = Scorer(config, published(network, config))
    paired = next(iter(paths.values()))
    scorer.score(paired, _CPU)  # what is done once a version is not a volume's
    scores, ours = timed(lambda: [scorer.score(path, _CPU) for path in paths.values()])
    columns = {name: [one.values[name] for one in scores] for name in SCORES}
    columns["tta"] = [scorer.score(path, _CPU, ("tta",)).values["tta"] for path in paths.values()]
    epistemic = [scorer.score(path, _CPU, ("epistemic",)).values for path in paths.values()]
    columns |= {name: [one[name] for one in epistemic] for name in ("epistemic", "epistemic_variance")}
    host, theirs = timed(lambda: host_scores(network, config, paths))
    columns["MONAI Label's epistemic"] = [host[name] for name in paths]
    return {
        "pool": len(items),
        "mean_dice": round(1 - float(np.mean(errors)), 4),
        "worst_decile_dice": round(1 - float(np.mean(sorted(errors)[-max(1, len(errors) // 10) :])), 4),
        "spearman": {name: round(float(spearmanr(values, errors)[0]), 4) for name, values in columns.items()},
        "spearman_95": interval(columns["margin"], errors),
        "size_and_margin": round(float(spearmanr(columns["margin"], sizes)[0]), 4),
        "size_and_error": round(float(spearmanr(errors, sizes)[0]), 4),
        "errors": {one.image_id: round(error, 4) for one, error in zip(items, errors, strict=True)},
        "ours_s": {what: round(value / len(paths), 4) for what, value in ours.items()},
        "host_s": {what: round(value / len(paths), 4) for what, value in theirs.items()},
    }


def published(network: Any, config: ModelConfig) -> Version:
    """Publish a network where `LABELROUNDS_HOME` is, as a training does, and return the version."""
    return Checkpoints(config).publish(network, {})


def host_scores(network: Any, config: ModelConfig, paths: Mapping[str, Path]) -> dict[str, float]:
    """Return MONAI Label's epistemic score of images, computed by its own class."""
    transforms = [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image"),
        Orientationd(keys="image", axcodes="RAS", labels=None),
        Spacingd(keys="image", pixdim=config.spacing_mm),
        NormalizeIntensityd(keys="image"),
    ]
    store = _Datastore(paths)
    with dropout_on(network):
        method = EpistemicScoring(None, network, transforms, roi_size=list(config.patch_size), num_samples=PASSES)
        found = method({}, store)
    return {name: float(one["epistemic_entropy"]) for name, one in found.items()}


class _Datastore:
    """What MONAI Label's scoring asks of a datastore."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def get_unlabeled_images(self) -> list[str]:
        """Return all ids."""
        return list(self._paths)

    def get_image_info(self, image: str) -> dict[str, Any]:
        """Return nothing that was known before."""
        return {}

    def get_image_uri(self, image: str) -> str:
        """Return the path."""
        return str(self._paths[image])

    def update_image_info(self, image: str, info: Mapping[str, Any]) -> None:
        """Keep nothing."""


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what some work gives, and its seconds: by the clock, and of the processor, which other work spares."""
    started, busy = time.perf_counter(), time.process_time()
    result = work()
    return result, {"clock": time.perf_counter() - started, "processor": time.process_time() - busy}


def interval(values: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Return the 95 % bootstrap interval of Spearman's correlation over cases."""
    found = bootstrap(
        (values, errors),
        lambda one, other: spearmanr(one, other)[0],
        paired=True,
        vectorized=False,
        n_resamples=1_000,
        method="percentile",
        random_state=0,
    ).confidence_interval
    return [round(float(found.low), 4), round(float(found.high), 4)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return mean, least and most over models."""
    return {"mean": round(float(np.mean(values)), 4), "least": min(values), "most": max(values)}


def between(models: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean correlation of two models' true errors, over the cases that neither has learnt from."""
    found = []
    for one, other in itertools.combinations([model["errors"] for model in models], 2):
        shared = sorted(one.keys() & other.keys())
        found.append(float(spearmanr([one[name] for name in shared], [other[name] for name in shared])[0]))
    return round(float(np.mean(found)), 4) if found else None


def timing(models: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean seconds a volume of both ways, and how many times faster ours is."""
    means = {
        f"{side}_{what}": round(float(np.mean([model[f"{side}_s"][what] for model in models])), 4)
        for side in ("ours", "host")
        for what in ("clock", "processor")
    }
    ratios = {
        f"times_{what}": round(means[f"host_{what}"] / means[f"ours_{what}"], 2) for what in ("clock", "processor")
    }
    return means | ratios


def table(report: Mapping[str, Any]) -> Table:
    """Return the correlations as they are printed."""
    models = report["models"]
    pool = f"{len(models)} models of {CASES} labels, {models[0]['pool']} cases"
    speed = report["seconds_a_volume"]
    shown = Table(
        "score",
        "mean",
        *(str(model["seed"]) for model in models),
        title=f"Spearman with 1 - Dice: {pool}",
        caption=f"true errors of two models: {report['between_models']}\na volume: ours {speed['ours_processor']} s,"
        f" MONAI Label's {speed['host_processor']} s of processor: {speed['times_processor']} times",
    )
    for name, values in sorted(report["spearman"].items(), key=lambda one: -one[1]["mean"]):
        shown.add_row(name, f"{values['mean']:.3f}", *(f"{model['spearman'][name]:.3f}" for model in models))
    return shown
