"""The figures of a tier as they are printed and drawn."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from tests.benchmarks.active_learning.simulation import Curve


def table(figures: dict[str, Any], title: str) -> Table:
    """Return one row a strategy, the best first, and how auto does against it."""
    against = {one["other"]: one for one in figures["auto_against"]}
    shown = Table(
        "strategy", "area (95 %)", "last", "labels to target", "ms a choice", "auto minus it (95 %)", title=title
    )
    shown.add_column("auto better")
    shown.add_column("p (Holm)")
    for name, one in figures["strategies"].items():
        low, high = one["interval"]
        row = [f"{one['area']:.3f} ({low:.3f} to {high:.3f})", f"{one['final']:.3f}"]
        row += [str(one.get("labels_to_target", "-")), str(one["query_ms"])]
        if name in against:
            other = against[name]
            row += [f"{other['difference']:+.3f} ({other['low']:+.3f} to {other['high']:+.3f})"]
            row += [f"{other['better']} of {other['seeds']}", f"{other['p_holm']:.2g}"]
        shown.add_row(name, *row)
    return shown


def draw(curves: list[Curve], figure: str, path: Path) -> None:
    """Draw the mean curve of each strategy, with a band of two standard errors, as a PNG."""
    picture = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    for name in dict.fromkeys(curve.strategy for curve in curves):
        own = [curve for curve in curves if curve.strategy == name]
        heights = np.array([[one[figure] for one in curve.figures] for curve in own])
        mean, error = heights.mean(axis=0), heights.std(axis=0) / np.sqrt(len(heights))
        (line,) = axes.plot(own[0].labels, mean, label=name, linewidth=2.5 if name == "auto" else 1)
        axes.fill_between(own[0].labels, mean - 2 * error, mean + 2 * error, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("labels")
    axes.set_ylabel(figure.replace("_", " "))
    axes.legend(fontsize="small")
    picture.savefig(path, dpi=150)
