"""Plan which samples share a row, and which rows go through the model together, so that little of it is padding.

In: lengths in positions. Out: indices: of the samples of each row, of the rows of each micro-batch, of the process that
takes each sample. A sample is never cut: samples (an image prefix with its texts) share a row whole, and the mask keeps
them apart. Plans are pure functions of the lengths.

    rows = fill_rows([50, 30, 22, 31], row_positions=None)       # [[0], [3, 2], ...]: at most 5 % padding
    parts = split_by_positions([50, 53], max_cost=64)            # micro-batches of at most 64 positions
    owners = share_out(lengths, num_processes=8)                 # [3, 0, ...]: about as many positions for each
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visgraft.errors import ConfigError

MAX_PADDING = 0.05  # of all positions, where the length of rows is chosen here


def fill_rows(lengths: Sequence[int], *, row_positions: int | None) -> list[list[int]]:
    """Plan rows of about equal length, each filled with whole samples.

    The samples go, longest first, each to the row that is shortest so far (the LPT rule: Graham 1969, Bounds on
    multiprocessing timing anomalies), which leaves rows of about equal length; what is tried is the number of rows.

    Args:
        lengths: the positions of each sample.
        row_positions: as few rows as go without passing this; a longer sample has a row of its own. None: rows as
            short as they can be with no more than `MAX_PADDING` of padding, which suits attention whose cost grows
            with the square of a row.

    Returns:
        The rows as indices into `lengths`, each index once, rising within a row.

    Raises:
        ConfigError: `row_positions` is below 1.
    """
    if row_positions is not None and row_positions < 1:
        raise ConfigError(f"row_positions: got {row_positions}, must be at least 1 (or None: chosen by the lengths)")
    if not lengths:
        return []
    if row_positions is None:
        most = min(len(lengths), int(sum(lengths) / ((1 - MAX_PADDING) * max([1, *lengths]))))
        tries = (_balance(lengths, num_rows=number) for number in range(max(1, most), 0, -1))
        return next(rows for rows in tries if len(rows) == 1 or _padding(rows, lengths) <= MAX_PADDING)
    alone = [[index] for index, length in enumerate(lengths) if length > row_positions]
    rest = [index for index, length in enumerate(lengths) if length <= row_positions]
    shorter = [lengths[index] for index in rest]
    fewest = -(-sum(shorter) // row_positions)
    tries = (_balance(shorter, num_rows=number) for number in range(fewest, len(rest) + 1))
    filled = next(rows for rows in tries if _width(rows, shorter) <= row_positions)
    return alone + [[rest[index] for index in row] for row in filled]


def split_by_positions(costs: Sequence[int], *, max_cost: int | None, max_rows: int | None = None) -> list[list[int]]:
    """Plan which rows share a micro-batch, longest first, so that little of it is padding.

    Args:
        costs: the length of each row, in positions.
        max_cost: rows of a micro-batch times its longest row, pads included; a longer row goes alone. None: no limit.
        max_rows: the most rows of a micro-batch. None: no limit.

    Returns:
        The micro-batches as indices into `costs`; each index once, and rows of equal length in their given order.

    Raises:
        ConfigError: a limit is below 1.
    """
    for name, limit in (("max_cost", max_cost), ("max_rows", max_rows)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name}: got {limit}, must be at least 1 (or None for no limit)")
    chunks: list[list[int]] = []
    room = 0
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        if room == 0:
            chunks.append([])
            # The first row of a chunk is its longest, so it alone decides how many rows fit.
            room = len(costs) if max_cost is None else max(1, max_cost // max(1, costs[index]))
            room = room if max_rows is None else min(room, max_rows)
        chunks[-1].append(index)
        room -= 1
    return chunks


def share_out(lengths: NDArray[np.int64], *, num_processes: int) -> NDArray[np.int64]:
    """Say which process takes each sample of a step, so that all have about as many positions.

    The samples go, longest first, each to the process that has least so far (the LPT rule, as in `fill_rows`).

    Args:
        lengths: [N], the positions of each sample.
        num_processes: how many there are.

    Returns:
        [N], the number of a process for each; 0 throughout where there is one.
    """
    owners = np.zeros(len(lengths), np.int64)
    order = _rising(-lengths)
    filled = np.zeros(num_processes, np.int64)
    done = 0 if num_processes > 1 else len(order)
    while done < len(order):
        # The next samples go to one process each, from the emptiest on, as long as none of those that have got one
        # by then would be the emptiest again: so a step of many thousands needs a few rounds.
        following = order[done : done + num_processes]
        emptiest = _rising(filled)
        most = filled[emptiest[0]] + lengths[following[-1]]
        number = max(1, int(np.searchsorted(filled[emptiest[: len(following)]], most)))
        owners[following[:number]] = emptiest[:number]
        filled[emptiest[:number]] += lengths[following[:number]]
        done += number
    return owners


def _rising(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Put numbers in order, equal ones as they come; near each other, as lengths are, they sort ten times as fast."""
    least = values.min() if len(values) else 0
    is_near = len(values) > 0 and values.max() - least < 2**16
    return np.argsort((values - least).astype(np.uint16) if is_near else values, kind="stable")


def _balance(lengths: Sequence[int], *, num_rows: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled = [(0, row) for row in range(num_rows)]  # a heap: equal rows are taken in order, so the plan is one
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        so_far, row = filled[0]
        rows[row].append(index)
        heapq.heapreplace(filled, (so_far + lengths[index], row))
    return [sorted(row) for row in rows]


def _width(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max((sum(lengths[index] for index in row) for row in rows), default=0)


def _padding(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    return 1 - sum(lengths) / max(1, len(rows) * _width(rows, lengths))
