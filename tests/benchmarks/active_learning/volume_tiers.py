"""Tiers C and D: the strategies on pools of hippocampi, seed by seed, and the report of what is done.

Each run is one JSON file as soon as it has ended, under a fingerprint of all that makes it this run: the settings and
the sources of the benchmark, of training, of scoring and of its strategy. Stopped or killed, the same command goes
on; a strategy that has changed is run again, the others are not.
"""

import hashlib
import importlib
import inspect
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from labelrounds.strategies import strategies
from labelrounds.strategies.base import CaseStrategy
from tests.benchmarks import machine
from tests.benchmarks.active_learning import hippocampus
from tests.benchmarks.active_learning.disturbed import AGAIN, OTHER
from tests.benchmarks.active_learning.hippocampus import BATCH, ROUNDS, START, Hippocampus, OracleWorst
from tests.benchmarks.active_learning.simulation import DRAWS, Curve, play
from tests.benchmarks.active_learning.statistics import summary
from tests.benchmarks.active_learning.table import draw as draw_curves
from tests.benchmarks.active_learning.table import table

FOLDER = Path.home() / ".cache" / "labelrounds-benchmarks" / "active_learning"
ORACLE = "oracle_worst"
FIGURES = ("dice", "worst_decile")
_SHARE_OF_FULL = 0.95
console = Console(width=160)


@dataclass(frozen=True)
class Tier:
    """A pool and who chooses from it.

    Attributes:
        name: of the tier.
        shifted: whether the pool is `disturbed`.
        seeds: fixed before the first run.
        contenders: names of strategies.
    """

    name: str
    shifted: bool
    seeds: Sequence[int]
    contenders: Sequence[str]


TIERS = {
    "C": Tier(
        "C",
        False,
        range(2100, 2110),
        ("auto", "random", "foreground_random", "typiclust", "epistemic", ORACLE),
    ),
    "D": Tier("D", True, range(2600, 2610), ("auto", "random", "foreground_random", "margin", "epistemic")),
}


def run(tier: Tier, seeds: Sequence[int], contenders: Sequence[str], folder: Path = FOLDER) -> list[Curve]:
    """Play what is not played yet, seed by seed, and return all curves of these seeds and contenders."""
    torch.set_num_threads(1)
    source: Hippocampus | None = None
    curves = []
    for seed in seeds:
        for name, draw in turns(contenders):
            file = file_of(folder, tier, name, seed, draw)
            if not file.is_file():
                if source is None or source.seed != seed:
                    source = Hippocampus(seed, tier.shifted)
                _write(file, _played(source, name, draw).plain())
            curves.append(Curve(**json.loads(file.read_text())))
    return curves


def main(
    name: str,
    count: int | None,
    contenders: Sequence[str] | None,
    results: Path,
    plot: Path | None = None,
    folder: Path = FOLDER,
) -> None:
    """Play the first seeds of a tier, all where no number is given; print the tables and write the figures."""
    tier = TIERS[name]
    seeds = list(tier.seeds)[:count]
    for played in range(1, len(seeds) + 1):  # a run cut short leaves the report of what it has played
        curves = run(tier, seeds[:played], contenders or tier.contenders, folder)
        content = report(tier, curves, folder)
        path = results / f"active_learning_{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
    for figure in FIGURES:
        title = f"Tier {name}: area under the curve of {figure}, {len(seeds)} seeds"
        console.print(table(content["figures"][figure], title))
    console.print(others(content))
    if plot:
        draw_curves(curves, FIGURES[0], plot)
    console.print(f"Figures: {path}")


def report(tier: Tier, curves: Sequence[Curve], folder: Path = FOLDER) -> dict[str, Any]:
    """Return all that is published of some curves, as JSON has it."""
    seeds = sorted({curve.seed for curve in curves})
    whole = [full(tier, seed, folder) for seed in seeds]
    known = {figure: float(np.mean([one[figure] for one in whole])) for figure in FIGURES}
    names = list(dict.fromkeys(curve.strategy for curve in curves))
    return {
        "tier": tier.name,
        "seeds": seeds,
        "seeds_not_played": [seed for seed in tier.seeds if seed not in seeds],
        "loop": {"start": START, "batch": BATCH, "rounds": ROUNDS, **hippocampus.STEPS},
        "model": hippocampus.configuration().model_dump(mode="json"),
        "all_labels": {figure: round(value, 4) for figure, value in known.items()},
        "figures": {figure: summary(curves, figure, _SHARE_OF_FULL * known[figure]) for figure in FIGURES},
        "others": {name: _others([curve for curve in curves if curve.strategy == name]) for name in names},
        "training_seconds": round(sum(curve.train_s for curve in curves)),
        "machine": machine.describe(),
        "code": machine.code(),
    }


def _others(curves: Sequence[Curve]) -> dict[str, float]:
    """Return what one strategy cost, how smooth the last borders are, and which cases it chose."""
    chosen = [image for curve in curves for image in curve.picked[START:]]
    scoring = [one["scoring_s"] for curve in curves for one in curve.figures if one["scoring_s"]]
    return {
        "final_nsd_1mm": round(float(np.mean([curve.figures[-1]["nsd_1mm"] for curve in curves])), 4),
        "foreground_voxels": round(float(np.mean([curve.figures[-1]["foreground_voxels"] for curve in curves]))),
        "query_s": round(float(np.median([curve.query_s for curve in curves])), 4),
        "scoring_a_pool_s": round(float(np.median(scoring)), 2) if scoring else 0.0,
        "shifted_chosen": round(sum(OTHER in image for image in chosen) / len(chosen), 3),
        "duplicates_chosen": round(sum(AGAIN in image for image in chosen) / len(chosen), 3),
    }


def others(content: Mapping[str, Any]) -> Table:
    """Return the other figures as they are printed."""
    rows = content["others"]
    shown = Table("strategy", *(key.replace("_", " ") for key in next(iter(rows.values()))))
    for name, figures in rows.items():
        shown.add_row(name, *map(str, figures.values()))
    return shown


def turns(contenders: Sequence[str]) -> list[tuple[str, int]]:
    """Return each contender with the number of each of its draws."""
    return [(name, draw) for name in contenders for draw in range(DRAWS if name == "random" else 1)]


def full(tier: Tier, seed: int, folder: Path = FOLDER) -> dict[str, Any]:
    """Return the figures of a model of all labels of a seed's pool."""
    file = folder / f"{tier.name}_full_{seed}_{_hash(_of_training())}.json"
    if not file.is_file():
        _write(file, Hippocampus(seed, tier.shifted).full())
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def file_of(folder: Path, tier: Tier, name: str, seed: int, draw: int) -> Path:
    """Return where a run is kept."""
    return folder / f"{tier.name}_{name}_{seed}_{draw}_{_hash([*_of_training(), *_of_strategy(name)])}.json"


def _played(source: Hippocampus, name: str, draw: int) -> Curve:
    started = time.perf_counter()
    strategy: CaseStrategy = OracleWorst(source) if name == ORACLE else strategies.get(name)()
    curve = play(source, strategy, seed=source.seed, start=START, batch=BATCH, rounds=ROUNDS, name=name, draw=draw)
    console.print(
        f"{source.seed} {name} {draw}: "
        + ", ".join(f"{figure} {curve.area(figure):.4f}" for figure in FIGURES)
        + f", {time.perf_counter() - started:.0f} s"
    )
    return curve


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_suffix(".new")
    staging.write_text(json.dumps(content))
    staging.replace(file)


def _of_training() -> list[str]:
    """Return the sources of what is the same for all strategies."""
    about = ("cases", "augmentation", "training_steps", "losses", "voxel_scores", "networks.unet", "networks.base")
    modules = [f"labelrounds.{name}" for name in about]
    modules += [f"tests.benchmarks.active_learning.{name}" for name in ("hippocampus", "disturbed", "simulation")]
    return [inspect.getsource(importlib.import_module(name)) for name in modules]


def _of_strategy(name: str) -> list[str]:
    """Return the sources of a strategy and of what it is made of."""
    if name == ORACLE:
        return []
    found: dict[str, str] = {}
    waiting = [strategies.get(name).__module__]
    while waiting:
        module = sys.modules[waiting.pop()]
        if module.__name__ in found:
            continue
        found[module.__name__] = inspect.getsource(module)
        used = {getattr(value, "__module__", None) for value in vars(module).values()}
        waiting += sorted(one for one in used if one and one.startswith("labelrounds.strategies."))
    return [found[one] for one in sorted(found)]


def _hash(sources: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:12]
