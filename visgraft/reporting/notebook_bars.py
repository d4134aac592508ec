"""Bars in a notebook: the same tasks as in a terminal, drawn as HTML in the cell's output.

In: tasks as rich's Progress keeps them. Out: one output that is replaced as they go on; no widget extension is needed.
Usage: `bars = NotebookBars(console)`, then as `rich.progress.Progress`
"""

from __future__ import annotations

import time
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import Progress, Task, TaskID

DRAWN_EVERY_S = 0.2


class NotebookBars(Progress):
    """Keep tasks as rich does, and draw them in the cell."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, auto_refresh=False, disable=True)
        self._output: Any = None
        self._drawn_at = float("-inf")

    def start(self) -> None:
        """Open the output."""
        from IPython.display import HTML, display  # there in every notebook

        self._output = display(HTML(""), display_id=True)

    def stop(self) -> None:
        """Draw how it ended."""
        self._draw()
        self._output = None

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task."""
        super().update(task_id, **changes)
        self._draw(is_due=False)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Say that more of a task is done."""
        super().advance(task_id, advance)
        self._draw(is_due=False)

    def _draw(self, *, is_due: bool = True) -> None:
        if self._output is None or not (is_due or time.monotonic() - self._drawn_at >= DRAWN_EVERY_S):
            return
        from IPython.display import HTML

        self._drawn_at = time.monotonic()
        self._output.update(HTML("".join(map(_bar, self.tasks))))


def _bar(task: Task) -> str:
    share = "" if task.total is None else f' max="{task.total}" value="{task.completed}"'
    unit = task.fields.get("unit")
    done = f"{task.percentage:.0f}%" if unit is None else f"{task.completed:,.0f} {unit}"
    words = escape(task.description)
    return f'<div><progress aria-label="{words}"{share}></progress> {escape(done)} &nbsp; {words}</div>'
