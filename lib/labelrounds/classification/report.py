"""What a user sees of a classifier: four pictures, and one page that holds them with the numbers.

The page is one file without a script or an address, so that it can be sent and opened anywhere. Ids and labels come
from users; they are shown as text, whatever they hold.
"""

import base64
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure

from labelrounds.atomic import write_bytes
from labelrounds.classification.figures import (
    draw_confusion,
    draw_reliability,
    draw_roc,
    draw_worst,
    worst_mistakes,
)
from labelrounds.classification.metrics import checked
from labelrounds.errors import BadInput

_DPI = 110
_HEADINGS = {
    "confusion": "Confusion: cases, and their share of those with the same truth",
    "roc": "ROC curves, each label against all others",
    "reliability": "Reliability: is it as often right as it says?",
    "worst": "The worst mistakes, by the probability given to the truth",
}
_MACRO = (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2b2b; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; } th, td { padding: 0.25em 0.9em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; max-width: 24em; overflow-wrap: anywhere; }
img { max-width: 100%; }
"""


def write_report(
    folder: Path,
    ids: Sequence[str],
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    labels: Sequence[str],
    multilabel: bool,
    metrics: dict[str, Any],
    pictures: Callable[[int], npt.NDArray[Any]] | None,
    title: str,
) -> list[Path]:
    """Write ``confusion.png``, ``roc.png``, ``reliability.png``, ``worst.png`` and ``report.html``.

    Args:
        folder: where they are written; it is made.
        ids: the N cases, as the datastore knows them.
        probabilities: ``(N, K)``, 0 to 1.
        truth: ``(N, K)``, 0 or 1.
        labels: names of the K labels.
        multilabel: whether a case may have any number of labels.
        metrics: what `labelrounds.classification.metrics.class_metrics` returned for the same arrays.
        pictures: gives the 2-D picture of the case with an index, first row at the top; None for no pictures. Where
            it raises a ``LabelRoundsError`` or an ``OSError``, that case is shown without.
        title: the page's heading.

    Returns:
        The files, the page last.

    Raises:
        BadInput: arrays that are unusable, or not as many ids as cases.
        OutOfSpace: the disk is full.
    """
    given, known = checked(probabilities, truth, labels, multilabel)
    if len(ids) != len(given):
        raise BadInput(f"{len(ids)} ids for {len(given)} cases; one each is needed")
    mistakes = worst_mistakes(given, known, multilabel)
    aurocs = [metrics["per_class"][label]["auroc"] for label in labels]
    figures = {
        "confusion": draw_confusion(metrics["confusion"], labels),
        "roc": draw_roc(given, known, labels, aurocs),
        "reliability": draw_reliability(given, known, multilabel, metrics["ece"]),
        "worst": draw_worst(mistakes, ids, given, known, labels, multilabel, pictures),
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: _png(figure) for name, figure in figures.items()}
    files = {folder / f"{name}.png": content for name, content in drawn.items()}
    files[folder / "report.html"] = _page(title, metrics, drawn).encode()
    for path, content in files.items():
        write_bytes(path, content, durable=False)
    return list(files)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _page(title: str, metrics: dict[str, Any], pictures: dict[str, bytes]) -> str:
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _summary(metrics),
        "<h2>Each label against all others</h2>",
        _per_class(metrics),
    ]
    for name, content in pictures.items():
        source = base64.b64encode(content).decode()
        parts += [f"<h2>{_HEADINGS[name]}</h2>", f'<img alt="{name}" src="data:image/png;base64,{source}">']
    return "\n".join([*parts, "</body></html>", ""])


def _summary(metrics: dict[str, Any]) -> str:
    intervals, macro = metrics["intervals_95"], metrics["macro"]
    right = "Accuracy (every label of a case right)" if metrics["multilabel"] else "Accuracy"
    rows = [
        ("Cases", str(metrics["cases"]), ""),
        (right, _number(metrics["accuracy"]), _interval(intervals["accuracy"])),
        ("Balanced accuracy", _number(metrics["balanced_accuracy"]), _interval(intervals["balanced_accuracy"])),
        ("AUROC, mean over the labels", _number(macro["auroc"]), _interval(intervals["macro_auroc"])),
        *((f"{shown}, mean over the labels", _number(macro[name]), "") for name, shown in _MACRO),
        ("Expected calibration error", _number(metrics["ece"]), ""),
        ("Brier score", _number(metrics["brier"]), ""),
    ]
    return _table(("", "value", "95 % interval"), rows)


def _per_class(metrics: dict[str, Any]) -> str:
    names = ("precision", "recall", "specificity", "f1", "auroc")
    rows = [
        (label, str(scores["support"]), *(_number(scores[name]) for name in names))
        for label, scores in metrics["per_class"].items()
    ]
    return _table(("label", "cases", "precision", "recall", "specificity", "F1", "AUROC"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line(head, "th"), *(line(row, "td") for row in rows), "</table>"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
