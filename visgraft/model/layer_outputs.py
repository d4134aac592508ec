"""What the layers of the language model show of themselves, where a caller asks: hidden states and attention weights.

In: what `output_hidden_states` and `output_attentions` say, and the language model's own outputs. Out: the same of
whole rows, in the order in which the rows were given, [image][text], whatever was packed or split on the way.

    shown = LayerOutputs(hidden_states=True, attentions=False)
    output = language(inputs_embeds=embeds, **shown.arguments)
    shown.take(output)                     # or take_part, where rows went through in parts
    shown.hidden_states                    # one tensor [B, S, D] in front of each layer, and one behind the last

Axis letters as in vlm.py; H heads, K keys that a layer looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visgraft.errors import ModelError

Selection = bool | int | Sequence[int] | None  # transformers takes the index of a hidden state, or several, too


class LayerOutputs:
    """What is to be shown, and what was.

    Attributes:
        hidden_states: [B, Q, D] each; None for those that were not asked for. None: none were.
        attentions: [B, H, Q, S] each, of the layers that attend; 0 where a layer does not look. None: none were asked.
    """

    def __init__(self, *, hidden_states: Selection, attentions: bool | None) -> None:
        """Say what is to be shown."""
        self._asked: dict[str, Selection] = {"hidden_states": hidden_states, "attentions": attentions}
        self.hidden_states: tuple[Tensor | None, ...] | None = None
        self.attentions: tuple[Tensor | None, ...] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What the language model's forward is to be told."""
        # 0 asks for the first hidden state, False for none
        return {
            f"output_{name}": value for name, value in self._asked.items() if value is not None and value is not False
        }

    def take(self, output: Any) -> None:
        """Take in what one run of all rows showed.

        Raises:
            ModelError: the language model does not show what was asked for.
        """
        for name in self._names():
            setattr(self, name, _shown(output, name))

    def take_part(
        self, output: Any, *, rows: Tensor, columns: Tensor, keys: Tensor, num_rows: int, num_queries: int, length: int
    ) -> None:
        """Take in what a run of some rows and columns showed.

        Args:
            output: of the language model, for queries [n, q].
            rows: [n] long, which of the B rows they are.
            columns: [q] long, which of the Q columns.
            keys: [k] long, which of the S positions the queries could look at, in the order of the layers' keys.
            num_rows, num_queries, length: B, Q and S.

        Raises:
            ModelError: the language model does not show what was asked for.
        """
        for name in self._names():
            parts = _shown(output, name)
            whole = list(getattr(self, name) or [None] * len(parts))
            for number, part in enumerate(parts):
                if part is None:
                    continue
                shape: tuple[int, ...] = (num_rows, num_queries, part.shape[-1])
                index: tuple[Tensor, ...] = (rows[:, None], columns[None])
                value = part
                if name == "attentions":
                    shape = (num_rows, num_queries, length, part.shape[1])  # heads last, until all is there
                    own = keys[-part.shape[-1] :]
                    index = (rows[:, None, None], columns[None, :, None], own[None, None])
                    value = part[..., -len(own) :].permute(0, 2, 3, 1)
                before = whole[number]
                before = part.new_zeros(shape) if before is None else _heads_last(before, name)
                whole[number] = _heads_first(before.index_put(index, value), name)
            setattr(self, name, tuple(whole))

    def keep_last(self, num_queries: int) -> None:
        """Forget all but the last queries, where a whole row was read to learn of its end."""
        if self.hidden_states is not None:
            self.hidden_states = tuple(None if each is None else each[:, -num_queries:] for each in self.hidden_states)
        if self.attentions is not None:
            self.attentions = tuple(None if each is None else each[:, :, -num_queries:] for each in self.attentions)

    def give_back(self, order: Tensor | None, *, length: int, num_cached: int) -> None:
        """Bring rows that were packed into the order in which they were given.

        Args:
            order: [B, S] long, the old column of each column of a packed row; None = they are as they were given.
            length: S.
            num_cached: positions that stood in the cache already; the queries behind them are in their order.
        """
        if self.attentions is not None:
            self.attentions = tuple(None if each is None else _all_keys(each, length) for each in self.attentions)
        if order is None:
            return
        new = order.argsort(1)  # [B, S], the packed column of each column as given
        if self.hidden_states is not None and num_cached == 0:
            self.hidden_states = tuple(
                None if each is None else each.gather(1, new[..., None].expand_as(each)) for each in self.hidden_states
            )
        if self.attentions is not None:
            moved = []
            for each in self.attentions:
                if each is not None:
                    each = each.gather(3, new[:, None, None].expand_as(each))
                    each = each.gather(2, new[:, None, :, None].expand_as(each)) if num_cached == 0 else each
                moved.append(each)
            self.attentions = tuple(moved)

    def _names(self) -> list[str]:
        return [name.removeprefix("output_") for name in self.arguments]


def _shown(output: Any, name: str) -> tuple[Tensor | None, ...]:
    values = getattr(output, name, None)
    if not values or all(value is None for value in values):
        raise ModelError(
            f"output_{name}: got True, but this language model gives no {name}: its layers do not show them. Leave it "
            "out, or choose another language model"
        )
    return tuple(values)


def _all_keys(weights: Tensor, length: int) -> Tensor:
    """Give weights [B, H, Q, K] a column for every position of the row: [B, H, Q, S].

    A static cache has unwritten keys behind the row, a sliding one has dropped the first of it, and one attention sink
    may stand behind all.
    """
    num_keys = weights.shape[-1]
    if num_keys == length:
        return weights  # itself, in the graph of what was made of it
    if num_keys > length:
        return weights[..., :length]
    return torch.nn.functional.pad(weights, (length - num_keys, 0))


def _heads_last(value: Tensor, name: str) -> Tensor:
    return value if name == "hidden_states" else value.permute(0, 2, 3, 1)


def _heads_first(value: Tensor, name: str) -> Tensor:
    return value if name == "hidden_states" else value.permute(0, 3, 1, 2)
