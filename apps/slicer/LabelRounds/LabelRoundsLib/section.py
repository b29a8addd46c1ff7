"""A part of the panel with widgets of its own; what all of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

import qt

if TYPE_CHECKING:
    from .panel import Panel


class Section:
    """A part of the panel.

    Args:
        panel: whose part it is; its widgets are there already.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel, self.ui = panel, panel.ui

    def slots(self) -> dict[str, Callable[[], Any]]:
        """Return what each of its buttons does."""
        return {}

    def connected(self) -> None:
        """Look for what the server knows, as it is there now."""

    def model_chosen(self) -> None:
        """Show what is known of the model that is chosen now."""

    def tick(self) -> None:
        """Look, once a second, for what has to be asked again."""

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""


def fill(table: Any, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show rows of text in a table; a row that was chosen stays chosen where its first cell is still there."""
    chosen = chosen_in(table)
    table.setColumnCount(len(columns))
    table.setRowCount(len(rows))
    table.setHorizontalHeaderLabels(list(columns))
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(row, column, item)
    table.resizeColumnsToContents()
    names = [cells[0] for cells in rows]
    if chosen in names:
        table.selectRow(names.index(chosen))
    else:
        table.clearSelection()


def chosen_in(table: Any) -> str:
    """Return the first cell of the row that is chosen; empty where none is."""
    rows = {item.row() for item in table.selectedItems()}
    return table.item(min(rows), 0).text() if rows else ""
