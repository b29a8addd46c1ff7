"""The budget curve as a plot of Slicer's: the score of each version against the labels that it learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import slicer
import vtk

from .translation import _

NAME = "LabelRounds budget curve"


def show(points: Sequence[Mapping[str, Any]], measure: str) -> Any:
    """Plot the points, in place of an earlier plot of theirs, and return the chart.

    Args:
        points: ``labels`` and ``score`` of each version; ``low`` and ``high``, the ends of its interval, may be None.
        measure: what the scores are.
    """
    for node in slicer.util.getNodesByClass("vtkMRMLNode"):
        if node.GetAttribute(NAME):
            slicer.mrmlScene.RemoveNode(node)
    table = _added("vtkMRMLTableNode", NAME)
    whole = [point for point in points if point.get("score") is not None]
    banded = bool(whole) and all(point.get("low") is not None for point in whole)
    names = {"labels": _("Labels"), "score": measure}
    names |= {"low": _("95 % interval, low end"), "high": _("95 % interval, high end")} if banded else {}
    for key, name in names.items():
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        for point in whole:
            column.InsertNextValue(float(point[key]))
        table.AddColumn(column)
    chart = _added("vtkMRMLPlotChartNode", NAME)
    chart.SetTitle(_("What the labels have brought"))
    chart.SetXAxisTitle(_("Labels"))
    chart.SetYAxisTitle(measure)
    for key in [key for key in names if key != "labels"]:
        series = _added("vtkMRMLPlotSeriesNode", names[key])
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(names["labels"])
        series.SetYColumnName(names[key])
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        main = key == "score"
        series.SetMarkerStyle(
            slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle if main else slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone
        )
        series.SetLineStyle(
            slicer.vtkMRMLPlotSeriesNode.LineStyleSolid if main else slicer.vtkMRMLPlotSeriesNode.LineStyleDash
        )
        series.SetColor(0.0, 0.45, 0.70)  # Okabe and Ito's blue
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    plots = getattr(slicer.modules, "plots", None)
    if plots is not None:
        plots.logic().ShowChartInLayout(chart)
    return chart


def _added(kind: str, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetAttribute(NAME, "1")
    return node
