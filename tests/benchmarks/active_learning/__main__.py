"""Play a tier, print its table, write its figures.

    python -m tests.benchmarks.active_learning --tier A [--spoilt] [--seeds 20] [--strategies auto,random] [--plot FILE]

Tier A: MedNIST's features and a regression (a quarter of an hour). Tier B: MedNIST and a DenseNet121 that our trainer
trains. Results: `tests/benchmarks/results/active_learning_TIER.json`. A run cut short leaves the seeds it has played.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path

from rich.console import Console

from tests.benchmarks import machine
from tests.benchmarks.active_learning import tier_a, tier_b
from tests.benchmarks.active_learning.simulation import Curve
from tests.benchmarks.active_learning.statistics import summary
from tests.benchmarks.active_learning.table import draw, table

RESULTS = Path(__file__).parents[1] / "results"
TIERS = {"A": tier_a, "B": tier_b}
console = Console(width=140)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=sorted(TIERS), default="A")
    parser.add_argument("--seeds", type=int, help="how many of the tier's seeds; all when left out")
    parser.add_argument("--strategies", help="names with commas; the tier's own when left out")
    parser.add_argument("--spoilt", action="store_true", help="tier A with near-copies and shifted intensities")
    parser.add_argument("--plot", type=Path, help="PNG to draw the curves to")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    wanted = parser.parse_args()
    tier = TIERS[wanted.tier]
    seeds = tier.SEEDS[: wanted.seeds]
    names = wanted.strategies.split(",") if wanted.strategies else tier.NAMES
    title = f"{wanted.tier}_spoilt" if wanted.spoilt else wanted.tier
    options = {"spoilt": True} if wanted.spoilt else {}
    path = wanted.results / f"active_learning_{title}.json"
    wanted.results.mkdir(parents=True, exist_ok=True)
    curves: list[Curve] = []
    for curve in tier.run(seeds, names, **options):
        curves.append(curve)
        console.print(f"{curve.strategy} seed {curve.seed} draw {curve.draw}: {curve.area(tier.FIGURE):.4f}")
        if curve.strategy == names[-1]:
            write(path, title, curves, tier.FIGURE, tier.TARGET)
    figures = write(path, title, curves, tier.FIGURE, tier.TARGET)
    console.print(table(figures, f"Tier {title}: area under the curve of {tier.FIGURE}, {len(seeds)} seeds"))
    if wanted.plot:
        draw(curves, tier.FIGURE, wanted.plot)
    console.print(f"Figures: {path}")


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
