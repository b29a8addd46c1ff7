"""A training in words; without Slicer."""

from __future__ import annotations

from typing import Any


def how_far(progress: dict[str, Any]) -> tuple[str, float]:
    """Return a training's epoch, Dice and time left in words, and the part that is done in percent."""
    if progress.get("status") == "waiting":
        return "Waiting for another training.", 0.0
    epoch, epochs = progress.get("epoch", 0), progress.get("total_epochs", 0)
    left = progress.get("eta_s")
    return (
        f"Epoch {epoch} of {epochs or '?'}.{best_dice(progress)}{_time_left(left) if left else ''}",
        100 * epoch / epochs if epochs else 0.0,
    )


def best_dice(progress: dict[str, Any]) -> str:
    """Return the best Dice so far, in words; empty where none was measured yet."""
    best = progress.get("best_metric")
    return f" Dice {best:.2f}." if best else ""


def _time_left(seconds: float) -> str:
    return f" {seconds:.0f} s left." if seconds < 90 else f" {seconds / 60:.0f} min left."
