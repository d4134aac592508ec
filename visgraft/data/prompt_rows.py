"""Prompts as rows of one length, padded on the side that is asked for.

In: token ids of each prompt, or marks of each token. Out: one tensor.

    pad_rows([[5, 6], [7]], pad=0, padding_side="left")        # [[5, 6], [0, 7]]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visgraft.errors import ConfigError

SIDES = ("left", "right")


def check_padding(*, return_tensors: str, padding: bool | str, padding_side: str | None) -> None:
    """See that rows are asked for in a form that there is.

    Raises:
        ConfigError: with what was got.
    """
    if return_tensors != "pt" or padding not in (True, False, "longest") or padding_side not in (*SIDES, None):
        raise ConfigError(
            f"got return_tensors={return_tensors!r}, padding={padding!r} and padding_side={padding_side!r}; allowed "
            "are 'pt', True or 'longest', and left or right: prompts are padded to the longest"
        )


def pad_rows(
    rows: Sequence[Sequence[int]],
    *,
    pad: int,
    padding_side: str,
    multiple_of: int = 1,
    max_length: int | None = None,
) -> Tensor:
    """Make one tensor [B, T] long of rows of unlike length.

    Args:
        rows: of each prompt a value a token.
        pad: what stands where a row has ended, or has not begun.
        padding_side: left or right.
        multiple_of: T is one of its multiples.
        max_length: longer rows lose their end.
    """
    rows = [row[:max_length] for row in rows]
    length = -(-max(map(len, rows)) // multiple_of) * multiple_of
    gaps = [[pad] * (length - len(row)) for row in rows]
    pairs = zip(gaps, rows, strict=True)
    return torch.tensor([[*row, *gap] if padding_side == "right" else [*gap, *row] for gap, row in pairs]).long()
