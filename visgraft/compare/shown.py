"""A column of the results as the page shows it: a short heading with its unit, numbers as narrow as they can be.

In: a `Column` of `results`. Out: HTML of its heading and of a cell, all cells in one unit, mean ± spread over seeds.

    shown = Shown(column); shown.heading(), shown.cell("lora")      # time, min; 12.4 ± 0.3
"""

from __future__ import annotations

import math
from statistics import median

from visgraft.compare.differences import ABSENT
from visgraft.compare.results_table import Cell, Column, Kind, written
from visgraft.reporting.page import escape

# What a heading says, where a column's own title is long; its unit stands below it.
SHORT = {
    "validation_loss": "val. loss",
    "training_loss": "train loss",
    "trainable": "trained",
    "minutes": "train time",
    "wall_minutes": "wall time",
    "samples_per_second": "samples",
    "tokens_per_second": "tokens",
    "peak_memory": "memory",
}
FIXED_UNITS = {"samples_per_second": "/s", "tokens_per_second": "/s"}
UNITS: dict[Kind, tuple[tuple[float, str], ...]] = {
    "count": ((1e9, "B"), (1e6, "M"), (1e3, "k")),
    "minutes": ((60.0, "h"), (1.0, "min"), (1 / 60, "s")),
    "memory": ((2.0**30, "GiB"), (2.0**20, "MiB")),
    "share": ((0.01, "%"),),
}
DIGITS: dict[Kind, int] = {"loss": 4, "score": 4}  # significant ones; three elsewhere
ALIKE: tuple[Kind, ...] = (
    "loss",
    "score",
    "share",
)  # of about one size, so all have as many decimals as the middle one


class Shown:
    """One column, in the unit in which the middle one of its values reads best."""

    def __init__(self, column: Column) -> None:
        """Choose the unit."""
        self.column = column
        middle = median([abs(cell.mean) for cell in column.cells.values() if cell.mean] or [0.0])
        units = UNITS.get(column.kind, ((1.0, ""),))
        smallest = (1.0, "") if column.kind == "count" else units[-1]
        self.size, self.unit = next((unit for unit in units if middle >= unit[0]), smallest)
        self.middle = middle / self.size

    def heading(self) -> str:
        """Give the heading; its full words stand under the pointer."""
        column = self.column
        part = column.key.removeprefix("trainable.") if column.key.startswith("trainable.") else ""
        name = f"of it {part}" if part else SHORT.get(column.key, column.title)
        unit = FIXED_UNITS.get(column.key, self.unit)
        if column.kind == "loss":
            unit = f"/{column.title.rsplit(' ', 1)[-1]}"  # per token or per character
        title = escape(column.title)
        return f'<abbr title="{title}">{escape(name)}</abbr>{f"<small>{escape(unit)}</small>" if unit else ""}'

    def cell(self, variant: str) -> str:
        """Give a variant's value as a whole td."""
        cell = self.column.cells.get(variant)
        if cell is None:
            return f"<td class=number>{ABSENT}</td>"
        best = " best" if cell.is_best else ""
        return f'<td class="number{best}"{self._range(cell)}>{self._value(cell)}</td>'

    def _range(self, cell: Cell) -> str:
        low, high = written(cell.low, self.column.kind), written(cell.high, self.column.kind)
        return "" if low == high else f' title="{low} to {high}, {cell.num_seeds} seeds"'

    def _value(self, cell: Cell) -> str:
        mean, half = cell.mean / self.size, (cell.high - cell.low) / 2 / self.size
        decimals = self._decimals(mean)
        spread = f"{half:,.{decimals}f}"
        small = f"<small>± {spread}</small>" if float(spread.replace(",", "")) else ""
        return f"{mean:,.{decimals}f}{small}"

    def _decimals(self, value: float) -> int:
        """Count the decimals that leave a value its significant digits; a whole number needs none."""
        value = self.middle if self.column.kind in ALIKE else value
        if not value or (self.column.kind == "count" and self.size == 1):
            return 0
        return max(0, DIGITS.get(self.column.kind, 3) - 1 - math.floor(math.log10(abs(value))))
