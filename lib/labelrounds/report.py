"""What a round has brought, for the eye: a table on the terminal and one picture.

Plain data in, nothing of the server. The picture shows axial slices as a radiologist reads them: the patient's right
at the viewer's left, anterior up, distances true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from rich.table import Table

from labelrounds.drawing import GREY, INK, PALE, dress, empty_figure
from labelrounds.errors import BadInput
from labelrounds.metrics import dice_per_label

# Okabe and Ito's colours, which stay apart for the colour blind; on grey they stand out as well.
_TRUTH, _BEFORE, _AFTER = "#F0E442", "#E8601C", "#56B4E9"
_MOST_CASES = 4
_MARGIN_MM = 32.0


@dataclass(frozen=True)
class Case:
    """A case that was held out, with what was predicted for it.

    Attributes:
        name: As the datastore knows it.
        image: ``(X, Y, Z)``, the axes along the patient's right, anterior and superior (see ``oriented``).
        truth: ``(X, Y, Z)``, the human's label.
        before: ``(X, Y, Z)``, the prediction before the round; None where there was no model yet.
        after: ``(X, Y, Z)``, the prediction after it.
        spacing_mm: Between voxel centres, along each axis.
    """

    name: str
    image: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    before: npt.NDArray[Any] | None
    after: npt.NDArray[Any]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def oriented(
        cls,
        name: str,
        image: npt.NDArray[Any],
        truth: npt.NDArray[Any],
        before: npt.NDArray[Any] | None,
        after: npt.NDArray[Any],
        affine: npt.NDArray[np.float64],
    ) -> "Case":
        """Make a case from arrays as they are stored, turning their axes to the nearest of R, A and S.

        An oblique scan stays on its own grid, so that no voxel is interpolated.

        Args:
            name: As the datastore knows it.
            image: ``(I, J, K)``, as ``truth``, ``before`` and ``after``.
            truth: The human's label.
            before: The prediction before the round, or None.
            after: The prediction after it.
            affine: ``(4, 4)``, from voxel indices to RAS mm.
        """
        turn = nib.orientations.io_orientation(affine)
        right, anterior, superior = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])].tolist()

        def turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(nib.orientations.apply_orientation(array, turn))

        return cls(
            name,
            turned(image),
            turned(truth),
            None if before is None else turned(before),
            turned(after),
            (right, anterior, superior),
        )


@dataclass
class LearningCurve:
    """How the model got better: with labelled cases, and within the last training.

    Attributes:
        points: ``(labelled cases, mean Dice)``, one a round.
        epochs: The epochs of the last training.
        loss: The mean training loss of each epoch.
        dice: The mean Dice on the validation cases after each epoch; nan where it was not measured.
    """

    points: list[tuple[int, float]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)


# The table -----------------------------------------------------------------------------------------------------------


def dice_table(before: Mapping[str, Sequence[float]] | None, after: Mapping[str, Sequence[float]]) -> Table:
    """Return a table of Dice with a row for each organ and one for their mean.

    Args:
        before: The Dice of each held-out case by organ, before the round; None where there was no model yet. A nan
            (an organ that is in neither label) is left out of the mean.
        after: The same after the round; its organs make the rows.
    """
    table = Table(title="Dice on held-out cases", title_justify="left", caption="mean (lowest .. highest)")
    table.add_column("organ")
    if before is not None:
        table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    if before is not None:
        table.add_column("change", justify="right")
    for organ in after:
        table.add_row(organ, *_cells(None if before is None else before.get(organ, ()), after[organ]))
    table.add_section()
    means = None if before is None else [_mean(before.get(organ, ())) for organ in after]
    table.add_row("mean", *_cells(means, [_mean(scores) for scores in after.values()], spread=False), style="bold")
    return table


def _cells(before: Sequence[float] | None, after: Sequence[float], spread: bool = True) -> list[str]:
    if before is None:
        return [_summary(after, spread)]
    change = _mean(after) - _mean(before)
    colour = "green" if change > 0 else "red"
    shown = "-" if np.isnan(change) else f"[{colour}]{change:+.3f}[/{colour}]"
    return [_summary(before, spread), _summary(after, spread), shown]


def _summary(scores: Sequence[float], spread: bool) -> str:
    known = _known(scores)
    if not known:
        return "-"
    return f"{_mean(known):.3f}" + (f" ({min(known):.2f} .. {max(known):.2f})" if spread else "")


def _mean(scores: Sequence[float]) -> float:
    known = _known(scores)
    return float(np.mean(known)) if known else float("nan")


def _known(scores: Sequence[float]) -> list[float]:
    return [score for score in scores if not np.isnan(score)]


# The picture ---------------------------------------------------------------------------------------------------------


def draw_report(
    cases: Sequence[Case],
    labels: Sequence[str],
    curve: LearningCurve,
    path: Path,
    window_hu: tuple[float, float] = (-160.0, 240.0),
) -> Path:
    """Draw the held-out cases and the curves into one picture, PNG or SVG by the ending.

    Args:
        cases: The first few are shown; all count for the Dice of each organ.
        labels: The organs; ``labels[k - 1]`` is the name of value k.
        curve: What has no points is left out.
        path: Where it is written; its folder is made.
        window_hu: The intensities that are shown as black and as white.

    Returns:
        ``path``.

    Raises:
        BadInput: There is no case, or the arrays of one differ in shape, or a curve's lists in length.
    """
    _check(cases, curve)
    shown = cases[:_MOST_CASES]
    rows = ["after"] if all(case.before is None for case in shown) else ["before", "after"]
    width, top, bottom = max(3.0 * len(shown), 9.0), 2.5 * len(rows) + 0.6, 3.0
    figure = empty_figure(width, top + bottom, 0.07)
    parts: Any = figure.subfigures(2, 1, height_ratios=(top, bottom), hspace=0.03)
    pictures, curves = parts
    _draw_cases(pictures, shown, labels, rows, window_hu)
    _draw_curves(curves, cases, labels, curve)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _check(cases: Sequence[Case], curve: LearningCurve) -> None:
    if not cases:
        raise BadInput("a report needs at least one case")
    for case in cases:
        for name in ("truth", "before", "after"):
            array = getattr(case, name)
            if array is not None and array.shape != case.image.shape:
                raise BadInput(f"{case.name}: {name} has shape {array.shape}, the image {case.image.shape}")
    if not len(curve.epochs) == len(curve.loss) == len(curve.dice):
        lengths = f"{len(curve.epochs)}, {len(curve.loss)} and {len(curve.dice)}"
        raise BadInput(f"epochs, loss and dice have {lengths} values; they must be as many")


def _draw_cases(
    figure: SubFigure, cases: Sequence[Case], labels: Sequence[str], rows: list[str], window_hu: tuple[float, float]
) -> None:
    panels = figure.subplots(len(rows), len(cases), squeeze=False)
    for axes, case in zip(panels[0], cases, strict=True):
        axes.set_title(case.name, fontsize=10, color=INK)
    frames_mm = [_frame_mm(case) for case in cases]
    # One size for all, so that one millimetre is as long in each picture.
    size_mm = np.max([high - low for low, high in frames_mm], axis=0)
    for row, which in enumerate(rows):
        for axes, case, (low, high) in zip(panels[row], cases, frames_mm, strict=True):
            _draw_slice(axes, case, which, labels, window_hu)
            for limits, middle, length in zip((axes.set_xlim, axes.set_ylim), (low + high) / 2, size_mm, strict=True):
                limits(middle - length / 2, middle + length / 2)
    colours = {"ground truth": _TRUTH, "before the round": _BEFORE, "after the round": _AFTER}
    lines = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()]
    legend = lines if len(rows) > 1 else [lines[0], lines[2]]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False, fontsize=10, labelcolor=INK)


def _draw_slice(axes: Axes, case: Case, which: str, labels: Sequence[str], window_hu: tuple[float, float]) -> None:
    """Draw the axial slice that shows the most of the organs, the outlines of the truth and of one prediction."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    prediction = getattr(case, which)
    if prediction is None:
        return
    axes.set_facecolor("black")
    level = fullest_slice(case.truth)
    wide, deep = (size * step for size, step in zip(case.image.shape[:2], case.spacing_mm, strict=False))
    axes.imshow(
        as_seen(case.image[:, :, level]),
        cmap="gray",
        vmin=window_hu[0],
        vmax=window_hu[1],
        interpolation="bilinear",
        origin="lower",
        extent=(0, wide, 0, deep),
    )
    _outline(axes, as_seen(prediction[:, :, level]), case.spacing_mm, {"before": _BEFORE, "after": _AFTER}[which])
    _outline(axes, as_seen(case.truth[:, :, level]), case.spacing_mm, _TRUTH)
    scores = list(dice_per_label(prediction, case.truth, labels).values())
    _note(axes, 0.03, 0.03, f"{which}  Dice {_mean(scores):.2f}", "left")
    _note(axes, 0.03, 0.9, "R", "left")
    _note(axes, 0.97, 0.9, "L", "right")


def fullest_slice(label: npt.NDArray[Any]) -> int:
    """Return the index of the axial slice that shows the most of the organs; the middle one where there is none.

    Each organ counts by the share of it that the slice holds, so that a large one does not hide the others.
    """
    counts = np.stack([np.count_nonzero(label == value, axis=(0, 1)) for value in np.unique(label[label > 0])] or [[0]])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return int(shares.sum(axis=0).argmax()) if counts.any() else label.shape[2] // 2


def as_seen(axial: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn a slice ``(X, Y)``, right and anterior, into rows from posterior to anterior and columns from right to left.

    Shown with the first row at the bottom, this is a radiologist's view: from the patient's feet.
    """
    return axial[::-1].T


def _outline(axes: Axes, label: npt.NDArray[Any], spacing_mm: Sequence[float], colour: str) -> None:
    # A border of background, so that an organ which the image cuts off has a closed outline.
    padded = np.pad(label, 1)
    x = (np.arange(padded.shape[1]) - 0.5) * spacing_mm[0]
    y = (np.arange(padded.shape[0]) - 0.5) * spacing_mm[1]
    for value in np.unique(label[label > 0]):
        axes.contour(x, y, padded == value, levels=[0.5], colors=[colour], linewidths=1.4)


def _frame_mm(case: Case) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return two corners, as ``_draw_slice`` places them, of what holds the organs and some of what is round them."""
    y, x = np.nonzero(as_seen(np.asarray(case.truth.any(axis=2))))
    if not x.size:
        y, x = (np.arange(size) for size in case.truth.shape[1::-1])
    step_mm = np.array(case.spacing_mm[:2])
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()]) + 1
    return low * step_mm - _MARGIN_MM, high * step_mm + _MARGIN_MM


def _note(axes: Axes, x: float, y: float, text: str, side: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, color="white", fontsize=9, ha=side)


def _draw_curves(figure: SubFigure, cases: Sequence[Case], labels: Sequence[str], curve: LearningCurve) -> None:
    panels = ["organs"] + ["points"] * bool(curve.points) + ["epochs"] * bool(curve.epochs)
    axes: dict[str, Axes] = figure.subplot_mosaic([panels])
    _draw_organs(axes["organs"], cases, labels)
    if curve.points:
        _draw_points(axes["points"], curve)
    if curve.epochs:
        _draw_epochs(axes["epochs"], curve)


def _draw_organs(axes: Axes, cases: Sequence[Case], labels: Sequence[str]) -> None:
    """Draw each organ's mean Dice over the cases, with a line from before to after."""
    _plain(axes, "Dice of each organ", "")
    places = np.arange(len(labels))
    after = _organ_means([case.after for case in cases], cases, labels)
    before = _organ_means([case.before for case in cases], cases, labels)
    axes.hlines(places, before, after, color=PALE, linewidth=3, zorder=1)
    axes.scatter(before, places, color=_BEFORE, s=42, zorder=2)
    axes.scatter(after, places, color=_AFTER, s=42, zorder=3)
    axes.set_yticks(places, [label.replace("_", " ") for label in labels])
    axes.set_xlim(-0.03, 1.03)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _organ_means(
    predictions: Sequence[npt.NDArray[Any] | None], cases: Sequence[Case], labels: Sequence[str]
) -> list[float]:
    scores = [
        dice_per_label(prediction, case.truth, labels)
        for prediction, case in zip(predictions, cases, strict=True)
        if prediction is not None
    ]
    return [_mean([each[label] for each in scores]) for label in labels]


def _draw_points(axes: Axes, curve: LearningCurve) -> None:
    _plain(axes, "Mean Dice on held-out cases", "labelled cases")
    labelled, scores = zip(*curve.points, strict=True)
    axes.plot(labelled, scores, color=_AFTER, marker="o", linewidth=2)
    for x, y in curve.points:
        axes.annotate(f"{y:.2f}", (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axes.set_xticks(labelled)
    axes.set_ylim(-0.03, 1.1)
    axes.margins(x=0.12)


def _draw_epochs(axes: Axes, curve: LearningCurve) -> None:
    _plain(axes, "Last training", "epoch")
    measured = [(epoch, score) for epoch, score in zip(curve.epochs, curve.dice, strict=True) if not np.isnan(score)]
    axes.plot(curve.epochs, curve.loss, color=GREY, linewidth=2, label="loss")
    if measured:
        axes.plot(*zip(*measured, strict=True), color=_AFTER, linewidth=2, label="validation Dice")
    axes.set_ylim(bottom=-0.03)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _plain(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    dress(axes, below, size=9)
