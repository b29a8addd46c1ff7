"""Play a tier, print its table, write its figures.

    python -m tests.benchmarks.active_learning --tier A [--spoilt] [--jobs 2] [--strategies auto,random] [--plot FILE]

Tier A: MedNIST's features and a regression (a quarter of an hour). Tier B: MedNIST and a DenseNet121 that our trainer
trains. Tier C: hippocampi at 2 mm; tier D: the same with near-copies and shifted images. Tier http: hippocampi through
a server. With `--task ranking` it is measured instead which score ranks a pool by true errors, and what scoring costs.
Results: `tests/benchmarks/results/active_learning_TIER.json`. A run cut short leaves the seeds it has played; those of
tiers C, D and http and of the ranking go on from there.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from tests.benchmarks import machine
from tests.benchmarks.active_learning import over_http, ranking, tier_a, tier_b, volume_tiers
from tests.benchmarks.active_learning.simulation import Curve
from tests.benchmarks.active_learning.statistics import summary
from tests.benchmarks.active_learning.table import draw, table

RESULTS = Path(__file__).parents[1] / "results"
TIERS = {"A": tier_a, "B": tier_b}
console = Console(width=140)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=[*TIERS, *volume_tiers.TIERS, "http"], default="A")
    parser.add_argument("--task", choices=["rounds", "ranking"], default="rounds")
    parser.add_argument("--seeds", type=int, help="how many of the tier's seeds; all when left out")
    parser.add_argument("--strategies", help="names with commas; the tier's own when left out")
    parser.add_argument("--spoilt", action="store_true", help="tier A with near-copies and shifted intensities")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    parser.add_argument("--plot", type=Path, help="PNG to draw the curves to")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    wanted = parser.parse_args()
    wanted.results.mkdir(parents=True, exist_ok=True)
    chosen = wanted.strategies.split(",") if wanted.strategies else None
    if wanted.task == "ranking":
        ranking.main(ranking.SEEDS[: wanted.seeds], wanted.results)
    elif wanted.tier == "http":
        over_http.main(over_http.SEEDS[: wanted.seeds], wanted.results)
    elif wanted.tier in volume_tiers.TIERS:
        volume_tiers.main(wanted.tier, wanted.seeds, chosen, wanted.results, wanted.plot)
    else:
        play(wanted)


def play(wanted: argparse.Namespace) -> None:
    """Play tier A or B."""
    tier = TIERS[wanted.tier]
    seeds = tier.SEEDS[: wanted.seeds]
    names = wanted.strategies.split(",") if wanted.strategies else tier.NAMES
    title = f"{wanted.tier}_spoilt" if wanted.spoilt else wanted.tier
    options = {"spoilt": True} if wanted.spoilt else {}
    path = wanted.results / f"active_learning_{title}.json"
    curves: list[Curve] = []
    tier.read(**options)
    # Forked, so that what the tier has read is there already; each seed is played by one process alone.
    with ProcessPoolExecutor(wanted.jobs, mp_context=get_context("fork")) as pool:
        playing = [pool.submit(play_seed, wanted.tier, seed, names, options) for seed in seeds]
        for done in as_completed(playing):
            curves += done.result()
            for curve in done.result():
                console.print(f"{curve.strategy} seed {curve.seed} draw {curve.draw}: {curve.area(tier.FIGURE):.4f}")
            write(path, title, curves, tier.FIGURE, tier.TARGET)
    figures = write(path, title, curves, tier.FIGURE, tier.TARGET)
    console.print(table(figures, f"Tier {title}: area under the curve of {tier.FIGURE}, {len(seeds)} seeds"))
    if wanted.plot:
        draw(curves, tier.FIGURE, wanted.plot)
    console.print(f"Figures: {path}")


def play_seed(tier: str, seed: int, names: list[str], options: dict[str, bool]) -> list[Curve]:
    """Return the curves of one seed."""
    return list(TIERS[tier].run([seed], names, **options))


def write(path: Path, title: str, curves: list[Curve], figure: str, target: float) -> dict[str, object]:
    """Write what there is so far."""
    about = {"tier": title, "seeds": sorted({curve.seed for curve in curves}), "machine": machine.describe()}
    versions = {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    figures = summary(curves, figure, target)
    seconds = round(sum(curve.train_s for curve in curves))
    content = {**about, "versions": versions, "code": machine.code(), "training_seconds": seconds, **figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
