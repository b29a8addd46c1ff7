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

import torch
from rich.console import Console

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.strategies import strategies
from labelrounds.strategies.base import CaseStrategy
from tests.benchmarks.active_learning.hippocampus import BATCH, ROUNDS, START, Hippocampus, OracleWorst
from tests.benchmarks.active_learning.simulation import DRAWS, Curve, play

FOLDER = Path.home() / ".cache" / "labelrounds-benchmarks" / "active_learning"
ORACLE = "oracle-worst"
FIGURES = ("dice", "worst_decile")
_SHARE_OF_FULL = 0.95
console = Console()


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
        range(2000, 2010),
        ("auto", "random", "foreground_random", "typiclust", "epistemic", ORACLE),
    ),
    "D": Tier(
        "D",
        True,
        range(2500, 2510),
        ("auto", "random", "foreground_random", "typiclust", "epistemic", ORACLE),
    ),
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


def turns(contenders: Sequence[str]) -> list[tuple[str, int]]:
    """Return each contender with the number of each of its draws."""
    return [(name, draw) for name in contenders for draw in range(DRAWS if name == "random" else 1)]


def finished(tier: Tier, folder: Path = FOLDER) -> list[int]:
    """Return the tier's seeds that every contender has played."""
    return [
        seed
        for seed in tier.seeds
        if all(file_of(folder, tier, name, seed, draw).is_file() for name, draw in turns(tier.contenders))
    ]


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
