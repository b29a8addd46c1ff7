"""How all figures look.

Drawn with matplotlib's objects and its Agg canvas, so that it works without a display and in any thread.
"""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, PALE, GREY = "#2B2B2B", "#DDDDDD", "#8A8A8A"
_LABEL_LENGTH = 22


def empty_figure(width: float, height: float, padding: float = 0.12, paper: str = "white") -> Figure:
    """Return a figure that lays its parts out itself; lengths in inches."""
    figure = Figure(figsize=(width, height), facecolor=paper)
    figure.set_layout_engine("constrained", h_pad=padding, w_pad=padding)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, below: str, beside: str = "", size: float = 10, ink: str = INK, pale: str = PALE) -> None:
    """Name what axes show, and leave of their frame a pale grid behind it alone.

    Args:
        axes: to be dressed.
        below: name of what is shown along x.
        beside: along y.
        size: of the names, in points.
        ink: colour of what is written.
        pale: of the grid.
    """
    axes.set_xlabel(below, fontsize=size, color=ink)
    axes.set_ylabel(beside, fontsize=size, color=ink)
    axes.tick_params(labelsize=9, length=0, colors=ink)
    axes.grid(color=pale, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def say(axes: Axes, text: str, size: float = 10, ink: str = INK) -> None:
    """Write a text in the middle of axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=size, color=ink)


def plain(text: str, length: int = _LABEL_LENGTH) -> str:
    """Return a user's text as one line, cut in the middle, that matplotlib draws as it is and not as a formula."""
    line = " ".join(text.split())
    half = length // 2
    short = line if len(line) <= length else f"{line[: length - half - 1]}…{line[-half:]}"
    return short.replace("$", r"\$")
