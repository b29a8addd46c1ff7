"""Pictures of how well classes are predicted: confusion, ROC, reliability, the worst mistakes.

Arrays are those that `labelrounds.classification.metrics.checked` returns: one row per case, one column per label.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labelrounds.classification.metrics import CALIBRATION_BINS, decisions, reliability
from labelrounds.drawing import GREY, INK, dress, empty_figure, plain, say
from labelrounds.errors import LabelRoundsError

MOST_MISTAKES = 12
# Okabe and Ito's colours, which stay apart for the colour blind.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
# With more labels, a matrix shows shades alone.
_MOST_COUNTED = 40
# As many letters as fit below a matrix side by side.
_LETTERS_BELOW = 36
_ID_LENGTH = 34

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


# Confusion -----------------------------------------------------------------------------------------------------------


def draw_confusion(confusion: list[list[int]] | dict[str, list[list[int]]], labels: Sequence[str]) -> Figure:
    """Draw one matrix of all labels, or one of yes and no for each; a cell's shade is its share of the row."""
    if isinstance(confusion, list):
        side = 2.6 + 0.62 * min(max(len(labels), 3), _MOST_COUNTED)
        figure = empty_figure(side + 0.8, side)
        axes: Any = figure.subplots()
        _draw_matrix(axes, np.array(confusion), [plain(label) for label in labels])
        return figure
    columns = min(4, len(confusion))
    rows = -(-len(confusion) // columns)
    figure = empty_figure(2.6 * columns + 0.4, 2.7 * rows)
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(confusion) :]:
        axes.set_axis_off()
    for axes, (label, counts) in zip(panels.flat, confusion.items(), strict=False):
        _draw_matrix(axes, np.array(counts), ["no", "yes"])
        axes.set_title(plain(label), fontsize=10, color=INK)
    return figure


def _draw_matrix(axes: Axes, counts: npt.NDArray[np.int64], names: list[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares if len(names) <= _MOST_COUNTED else np.empty((0, 0))):
        text = f"{counts[row, column]}\n{share:.0%}" if counts[row, column] else "0"
        colour = "white" if share > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    long = len(names) * max(map(len, names)) > _LETTERS_BELOW
    axes.set_xticks(range(len(names)), names, rotation=40 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted", fontsize=10, color=INK)
    axes.set_ylabel("truth", fontsize=10, color=INK)
    axes.tick_params(labelsize=9, length=0, colors=INK)
    axes.spines[:].set_visible(False)


# ROC -----------------------------------------------------------------------------------------------------------------


def draw_roc(probabilities: _Floats, truth: _Bools, labels: Sequence[str], aurocs: Sequence[float | None]) -> Figure:
    """Draw the ROC curve of each label against all others; a label without an AUROC has none."""
    from sklearn.metrics import roc_curve

    columns = -(-len(labels) // 20)
    figure = empty_figure(5.2 + 2.9 * columns, 5.0)
    axes: Any = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for index, (label, auroc) in enumerate(zip(labels, aurocs, strict=True)):
        if auroc is None:
            axes.plot([], [], " ", label=f"{plain(label)}: undefined")
            continue
        missed, found, _ = roc_curve(truth[:, index], probabilities[:, index])
        style = _STYLES[index // len(_COLOURS) % len(_STYLES)]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(missed, found, style, color=colour, linewidth=2, label=f"{plain(label)}: {auroc:.3f}", clip_on=False)
    if all(auroc is None for auroc in aurocs):
        say(axes, "No label is both present and absent in these cases:\nthere is no ROC curve.")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", anchor="W")
    dress(axes, "1 - specificity", "sensitivity")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        frameon=False,
        fontsize=9,
        title="AUROC",
        alignment="left",
        labelcolor=INK,
        ncols=columns,
    )
    return figure


# Reliability ---------------------------------------------------------------------------------------------------------


def draw_reliability(probabilities: _Floats, truth: _Bools, multilabel: bool, ece: float) -> Figure:
    """Draw how often what was given a probability came true, and how many were given it."""
    counts, _, frequency = reliability(probabilities, truth, multilabel)
    filled = counts > 0
    width = 1 / CALIBRATION_BINS
    middles = (np.arange(CALIBRATION_BINS) + 0.5) * width
    figure = empty_figure(5.4, 5.8)
    both: Any = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper, lower = both
    upper.bar(
        middles[filled], frequency[filled], 0.92 * width, color=_COLOURS[5], edgecolor=_COLOURS[0], label="came true"
    )
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle="--", label="perfect")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"Expected calibration error {ece:.3f}", fontsize=11, color=INK, loc="left")
    upper.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    lower.bar(middles, counts, 0.92 * width, color=GREY)
    dress(upper, "", "share that came true")
    what = "probability of a label" if multilabel else "probability of the predicted label"
    dress(lower, what, "labels" if multilabel else "cases")
    return figure


# The worst mistakes --------------------------------------------------------------------------------------------------


def worst_mistakes(probabilities: _Floats, truth: _Bools, multilabel: bool) -> list[tuple[int, int, float]]:
    """Return up to 12 cases predicted wrongly, the least probability given to the truth first.

    Returns:
        ``(case, label, probability)``: the index of a case, that of its true label (with ``multilabel``: of the label
        that is most wrong), and what the truth about that label was given.
    """
    wrong = decisions(probabilities, multilabel) != truth
    given = np.where(truth, probabilities, 1 - probabilities)
    considered = wrong if multilabel else truth
    labels = np.where(considered, given, np.inf).argmin(axis=1)
    cases = np.flatnonzero(wrong.any(axis=1))
    found = [(int(case), int(labels[case]), float(given[case, labels[case]])) for case in cases]
    return sorted(found, key=lambda mistake: mistake[2])[:MOST_MISTAKES]


def draw_worst(
    mistakes: Sequence[tuple[int, int, float]],
    ids: Sequence[str],
    probabilities: _Floats,
    truth: _Bools,
    labels: Sequence[str],
    multilabel: bool,
    pictures: Callable[[int], npt.NDArray[Any]] | None,
) -> Figure:
    """Draw each mistake with its id, the truth, the prediction, and its picture where there is one."""
    if not mistakes:
        figure = empty_figure(6.0, 1.6)
        axes: Any = figure.subplots()
        axes.set_axis_off()
        say(axes, f"No mistakes in {len(ids)} case(s).")
        return figure
    columns = min(4, len(mistakes))
    rows = -(-len(mistakes) // columns)
    height = 0.75 if pictures is None else 3.0
    figure = empty_figure(max(2.7 * columns, 4.0), height * rows)
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (case, label, given) in zip(panels.flat, mistakes, strict=False):
        if pictures is not None:
            _draw_picture(axes, pictures, case)
        said = _said(case, label, given, probabilities, truth, labels, multilabel)
        axes.set_title(
            "\n".join([plain(ids[case], _ID_LENGTH), *said]),
            fontsize=8,
            color=INK,
            y=0 if pictures is None else None,
        )
    return figure


def _said(
    case: int,
    label: int,
    given: float,
    probabilities: _Floats,
    truth: _Bools,
    labels: Sequence[str],
    multilabel: bool,
) -> list[str]:
    name = plain(labels[label])
    if multilabel:
        state = "present" if truth[case, label] else "absent"
        return [f"truth: {name} {state}", f"predicted: {name} {probabilities[case, label]:.0%}"]
    predicted = int(probabilities[case].argmax())
    return [f"truth: {name} {given:.0%}", f"predicted: {plain(labels[predicted])} {probabilities[case, predicted]:.0%}"]


def _draw_picture(axes: Axes, pictures: Callable[[int], npt.NDArray[Any]], case: int) -> None:
    try:
        picture = np.asarray(pictures(case), np.float64)
    except (LabelRoundsError, OSError):
        # An image that has gone since takes nothing from what is known of the mistake.
        say(axes, "no picture")
        return
    known = picture[np.isfinite(picture)]
    low, high = np.percentile(known, (1, 99)) if known.size else (0, 1)
    if low == high:
        low, high = known.min(), known.max()
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
