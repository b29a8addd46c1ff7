"""Figures as people read them; without Slicer and Qt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .translation import _

RUNNING = ("SUBMITTED", "RUNNING")


def duration(seconds: float) -> str:
    """Return a time in the unit that fits."""
    if seconds < 60:
        return _("{count} s").format(count=round(seconds))
    if seconds < 90 * 60:
        return _("{count} min").format(count=round(seconds / 60))
    return _("{count:.1f} h").format(count=seconds / 3600)


def moment(unix_s: float) -> str:
    """Return a moment as this machine's clock shows it; empty for none."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s)) if unix_s else ""


def score(value: float | None) -> str:
    """Return a score, 1 being the best."""
    return "-" if value is None else f"{value:.2f}"


def by_label(values: Mapping[str, Any]) -> str:
    """Return the scores of several labels in a line."""
    return ", ".join(f"{label} {score(value)}" for label, value in values.items())


def training(task: Mapping[str, Any], ran: bool) -> str:
    """Say how far a training is, or how it has ended.

    Args:
        task: what the server says of it.
        ran: whether it ran when it was last asked for: else one that has ended is of no interest.
    """
    told = task.get("progress") or {}
    best = told.get("best_metric")
    best = _(" Best {measure} {score:.2f}.").format(measure=told.get("measure", "Dice"), score=best) if best else ""
    if task.get("status") not in RUNNING:
        return _ended(task, told) + best if ran else ""
    if told.get("status") == "waiting":
        return _("Waiting for another training.")
    text = _("Epoch {epoch} of {epochs}.").format(epoch=told.get("epoch", 0), epochs=told.get("total_epochs", "?"))
    stage = str(told.get("stage") or "")
    if stage not in ("", "training"):
        text += " " + _("Now {stage}.").format(stage=stage)
    elif told.get("eta_s"):
        text += " " + _("About {time} left.").format(time=duration(told["eta_s"]))
    return text + best


def _ended(task: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    why = told.get("message") or " / ".join(task.get("details", [])[-1:])
    if task.get("status") == "ERROR":
        return _("The training failed: {why}").format(why=why)
    return " ".join([_("The training has ended."), *([str(told["message"])] if told.get("message") else [])])
