"""The budget curve and the map of the cases as pictures, from the state of the rounds (`labelrounds.round_state`).

Colours are Okabe and Ito's, which stay apart for the colour blind; each kind of case has a shape of its own besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labelrounds.drawing import GREY, dress, empty_figure, plain, say

_DPI = 140
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_SKY = "#56B4E9"


@dataclass(frozen=True)
class Shades:
    """What differs between a light page and a dark one."""

    paper: str
    ink: str
    pale: str
    line: str


LIGHT = Shades(paper="#ffffff", ink="#2b2b2b", pale="#dddddd", line=_BLUE)
DARK = Shades(paper="#1b1d21", ink="#e4e4e4", pale="#3a3d44", line=_SKY)
# Kind -> marker, size, colour, name; drawn in this order, so that what is asked of a reader lies on top.
_MARKS = {
    "unlabelled": ("o", 9, GREY, "without a label"),
    "labelled": ("o", 26, "line", "labelled"),
    "taken": ("s", 34, _ORANGE, "in somebody's hands"),
    "suspect": ("X", 62, _RED, "suspect label"),
    "queued": ("*", 120, _GREEN, "next in the queue, by rank"),
}


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def draw_curve(state: Mapping[str, Any], shades: Shades = LIGHT) -> Figure:
    """Draw the score of each version against the labels it learnt from, with its band, and that of random cases."""
    curve, points = state["curve"], state["curve"]["points"]
    if not points:
        return _said("No version was trained and judged yet.", shades)
    figure, axes = _figure(6.2, 4.8, shades)
    names = "labels that the version learnt from", f"{curve['measure']} (1 is best)"
    dress(axes, *names, ink=shades.ink, pale=shades.pale)
    _draw_points(axes, points, curve["measure"], shades)
    _draw_monitor(axes, points, curve["monitor"], shades)
    axes.axhline(state["stop"]["target"], color=_RED, linewidth=1.2, linestyle=":", label="target of random cases")
    low = min(_low(point) for point in [*points, *({"score": each["dice"], **each} for each in curve["monitor"])])
    axes.set_ylim(max(-0.02, low - 0.08), 1.02)
    labels = [point["labels"] for point in points]
    margin = max(1.0, 0.08 * (max(labels) - min(labels)))
    axes.set_xlim(min(labels) - margin, max(labels) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes, shades, columns=2)
    return figure


def _low(point: Mapping[str, Any]) -> float:
    return float(point["score"] if point.get("low") is None else point["low"])


def _draw_points(axes: Axes, points: list[dict[str, Any]], measure: str, shades: Shades) -> None:
    judged = [point for point in points if point["claims"]]
    labels, scores = [point["labels"] for point in judged], [point["score"] for point in judged]
    banded = [point for point in judged if point["low"] is not None]
    if judged:
        axes.plot(labels, scores, "o-", color=shades.line, linewidth=2, label=f"{measure} on cases held out")
    if len(banded) == 1:
        axes.errorbar(*_with_bars(banded, "score"), fmt="none", ecolor=shades.line, capsize=4, label="95 % interval")
    elif banded:
        at, low, high = ([each[key] for each in banded] for key in ("labels", "low", "high"))
        axes.fill_between(at, low, high, color=shades.line, alpha=0.2, linewidth=0, label="95 % interval")
    learnt = [point for point in points if not point["claims"]]
    if learnt:
        where = [point["labels"] for point in learnt], [point["score"] for point in learnt]
        axes.plot(*where, "o", markerfacecolor="none", color=GREY, label="on the training cases: no claim")
    for point in points:
        axes.annotate(
            f"v{point['version']}",
            (point["labels"], point["score"]),
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=shades.ink,
        )


def _draw_monitor(axes: Axes, points: list[dict[str, Any]], monitor: list[dict[str, Any]], shades: Shades) -> None:
    """Draw what the versions on the curve reached on the random cases that they predicted."""
    labels = {point["version"]: point["labels"] for point in points}
    known = [{**each, "labels": labels[each["version"]]} for each in monitor if each["version"] in labels]
    if not known:
        return
    name = "prediction against correction, random cases"
    axes.plot([each["labels"] for each in known], [each["dice"] for each in known], "D", color=_ORANGE, label=name)
    banded = [each for each in known if each["low"] is not None]
    if banded:
        axes.errorbar(*_with_bars(banded, "dice"), fmt="none", ecolor=_ORANGE, capsize=4)


def _with_bars(points: list[dict[str, Any]], key: str) -> tuple[list[float], list[float], list[list[float]]]:
    """Return where points are, and how far their intervals reach down and up from them."""
    down = [max(0.0, point[key] - point["low"]) for point in points]
    up = [max(0.0, point["high"] - point[key]) for point in points]
    return [point["labels"] for point in points], [point[key] for point in points], [down, up]


def draw_map(state: Mapping[str, Any], shades: Shades = LIGHT) -> Figure:
    """Draw the cases by their embeddings: near each other what the model takes for alike."""
    found = state["map"]
    if not found["points"]:
        return _said("No case has an embedding yet:\nno version has passed over the images.", shades)
    figure, axes = _figure(6.2, 5.6, shades)
    for kind, (marker, size, colour, name) in _MARKS.items():
        points = [point for point in found["points"] if point["kind"] == kind]
        if points:
            where = [point["x"] for point in points], [point["y"] for point in points]
            shade = shades.line if colour == "line" else colour
            edge = shades.paper if size > 20 else "none"
            axes.scatter(
                *where,
                marker=marker,
                s=size,
                color=shade,
                edgecolors=edge,
                linewidths=0.6,
                label=f"{name} ({len(points)})",
            )
    _draw_ranks(axes, state, shades)
    share = [f"{part:.0%}" for part in found["explained"]]
    names = f"first principal component ({share[0]} of the variance)", f"second ({share[1]})"
    dress(axes, *names, ink=shades.ink, pale=shades.pale)
    axes.set(aspect="equal", adjustable="datalim", xticks=[], yticks=[])
    _legend(axes, shades, columns=2)
    return figure


def _draw_ranks(axes: Axes, state: Mapping[str, Any], shades: Shades) -> None:
    ranks = {each["id"]: each["rank"] for each in state["queue"]}
    for point in state["map"]["points"]:
        if point["kind"] == "queued" and point["id"] in ranks:
            axes.annotate(
                plain(str(ranks[point["id"]])),
                (point["x"], point["y"]),
                (6, 5),
                textcoords="offset points",
                fontsize=9,
                color=shades.ink,
            )


def _figure(width: float, height: float, shades: Shades) -> tuple[Figure, Axes]:
    figure = empty_figure(width, height, 0.1, shades.paper)
    axes: Any = figure.subplots()
    axes.set_facecolor(shades.paper)
    axes.spines[:].set_visible(False)
    return figure, axes


def _legend(axes: Axes, shades: Shades, columns: int) -> None:
    axes.figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=shades.ink, handletextpad=0.6
    )


def _said(text: str, shades: Shades) -> Figure:
    figure, axes = _figure(6.2, 1.4, shades)
    axes.set(xticks=[], yticks=[])
    say(axes, text, 11, shades.ink)
    return figure
