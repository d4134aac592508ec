"""What a language model carries on from what it has read: keys, values and the states of recurrent layers.

In: what the layers of a hybrid or recurrent language model hand over. Out: a cache that `transformers` takes wherever
it takes one. Nothing in it is written in place or extended: a pass reads the `base`, and what it makes is `written`
beside it. So gradients flow through the base, and a layer that is computed twice (gradient checkpointing) finds again
what it found.

    image = StateCache()                        # a pass over images fills it
    texts = image.behind(P).select(owner)       # and K texts read behind copies of its rows
    cache.advance(Q)                            # decoding: what was written is the base of what comes next

A layer's convolution holds its last inputs, [B, channels, kernel]; its recurrent state has any shape [B, ...]; keys and
values are [B, heads, positions, width].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from visgraft.errors import ModelError
from visgraft.model.cache import KeptStates

Place = tuple[str, int, int]  # what it is, the layer's index, which of the layer's states
NO_WAY_BACK = (
    "a recurrent state cannot go back from position {} to {}: keep the row where it may have to go on (`keep`), and "
    "`put` it again"
)
POSITIONAL = ("keys", "values", "indexer", "inputs")  # one entry a position, along the last axis but one


@dataclass(frozen=True)
class KeptRow(KeptStates):
    """What was read of one row: each tensor without its batch axis."""

    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    states: Mapping[Place, Tensor] = field(default_factory=dict)
    length: int = 0

    @property
    def can_be_cut(self) -> bool:  # type: ignore[override]
        """Whether what stands in front of any position can be used without what follows: not where there is a state."""
        return all(place[0] in POSITIONAL for place in self.states)

    @property
    def num_positions(self) -> int:
        """How many positions are kept."""
        return self.length

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in self.states.values())

    def begin(self, length: int) -> KeptRow:
        """Give what stands in the first positions.

        Raises:
            ModelError: a state cannot be taken back to an earlier position.
        """
        if length == self.length:
            return self
        if not self.can_be_cut:
            raise ModelError(NO_WAY_BACK.format(self.length, length))
        return KeptRow(states={place: own[..., :length, :] for place, own in self.states.items()}, length=length)


class StateCache(Cache):
    """Keys, values and states of rows that are equally long; what a row lacks stands in front of it and is masked.

    Attributes:
        base: what was read before, by place; a pass reads it and leaves it as it is.
        written: what the pass that runs (or ran last) has made of it.
        num_positions: how many positions were read before the pass.
    """

    def __init__(self, base: Mapping[Place, Tensor] | None = None, *, num_positions: int = 0) -> None:
        """Begin with nothing read, or with a base."""
        super().__init__(layers=[])
        self.base: dict[Place, Tensor] = dict(base or {})
        self.written: dict[Place, Tensor] = {}
        self.num_positions = num_positions

    # --- What the layers call

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Give the keys and values of all positions, the new ones [B, heads, Q, width] last."""
        return self._extend("keys", layer_idx, key_states), self._extend("values", layer_idx, value_states)

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Tensor:
        """Give the keys of an indexer for all positions, the new ones [B, Q, width] last."""
        return self._extend("indexer", layer_idx, indexer_key_states)

    def _extend(self, what: str, layer: int, new: Tensor) -> Tensor:
        place = (what, layer, 0)
        before = self.base.get(place)
        self.written[place] = new if before is None else torch.cat([before, new], dim=-2)
        return self.written[place]

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Give the inputs of a convolution, the new ones [B, channels, Q] last, and keep as many as it is wide."""
        place = ("conv", layer_idx, state_idx)
        before = self.base.get(place)
        width = conv_kernel_size or (conv_states if before is None else before).shape[-1]
        if before is None:
            whole = nn.functional.pad(conv_states, (max(0, width - conv_states.shape[-1]), 0))
        else:
            whole = torch.cat([before, conv_states], dim=-1)
        self.written[place] = whole[..., -width:]
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Keep a layer's state [B, ...] behind the new positions."""
        self.written["recurrent", layer_idx, state_idx] = recurrent_states
        return recurrent_states

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Give what a convolution saw last, [B, channels, kernel]; what is written into it is kept."""
        return self._read("conv", layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Give a layer's state [B, ...]; what is written into it is kept."""
        return self._read("recurrent", layer_idx, state_idx)

    def _read(self, what: str, layer: int, index: int) -> Tensor | None:
        before = self.base.get((what, layer, index))
        if before is None:
            return None
        # Single tokens are decoded by kernels that write into what they are given: a copy, which a layer that is
        # computed twice finds unwritten.
        self.written[what, layer, index] = before.clone()
        return self.written[what, layer, index]

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Say whether anything was read before."""
        return self.num_positions > 0

    def is_recording_past(self, layer_idx: int) -> bool:
        """Say no: a state cannot be taken back."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Give the number of positions that were read before this pass."""
        return self.num_positions

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Give the number of positions that were read before this pass."""
        return self.num_positions

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Give how many keys a layer looks at, and from which column on."""
        return self.num_positions + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Say that there is no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """Say no: its keys grow."""
        return False

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return bool(self.base)

    # --- What its owner calls

    def behind(self, num_positions: int) -> StateCache:
        """Give a cache for what stands behind a pass over so many positions; this one stays as that pass found it."""
        return StateCache({**self.base, **self.written}, num_positions=self.num_positions + num_positions)

    def advance(self, num_positions: int) -> None:
        """Take what a pass over so many positions has written for the base of the next."""
        self.base.update(self.written)
        self.written = {}
        self.num_positions += num_positions

    def select(self, rows: Tensor) -> StateCache:
        """Give a cache whose rows are copies of these rows [B] of the base, through which gradients flow."""
        copies = {place: tensor.index_select(0, rows) for place, tensor in self.base.items()}
        return StateCache(copies, num_positions=self.num_positions)

    def keep(self, row: int, *, length: int | None = None, columns: Tensor | None = None) -> KeptRow:
        """Copy what was read of a row; of its positions only the first ones, or these columns [n], in their order."""
        states = {}
        if columns is None:
            num_kept = self.num_positions if length is None else length
            columns = torch.arange(num_kept, device=next(iter(self.base.values())).device)
        for place, tensor in self.base.items():
            own = tensor[row]
            states[place] = own.index_select(-2, columns) if place[0] in POSITIONAL else own.clone()
        return KeptRow(states=states, length=len(columns))

    def put(self, rows: Sequence[KeptStates | None]) -> None:
        """Fill an empty cache with what was kept, a row each, so that all rows end together.

        Args:
            rows: at least one of them not None; in front of a shorter one stand zeros instead of keys, which a mask
                must hide. A state of zeros is that of a row that has read nothing.
        """
        kept = [KeptRow() if row is None else row for row in rows]
        assert all(isinstance(row, KeptRow) for row in kept)
        self.num_positions = max(row.num_positions for row in kept)
        present = next(row for row in kept if isinstance(row, KeptRow) and row.states)
        for place, like in present.states.items():
            own = [row.states[place] if isinstance(row, KeptRow) and row.states else None for row in kept]
            self.base[place] = torch.stack([self._aligned(place, each, like) for each in own])

    def _aligned(self, place: Place, own: Tensor | None, like: Tensor) -> Tensor:
        """Put zeros in front of what was read of a row, up to the longest one's length."""
        if place[0] not in POSITIONAL:
            return torch.zeros_like(like) if own is None else own
        own = like[..., :0, :] if own is None else own
        return nn.functional.pad(own, (0, 0, self.num_positions - own.shape[-2], 0))

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on; where there are states, all or none.

        Raises:
            ModelError: a state cannot be taken back to an earlier position.
        """
        if length == 0:
            self.base, self.written, self.num_positions = {}, {}, 0
        elif length != self.num_positions and all(place[0] in POSITIONAL for place in self.base):
            self.base = {place: tensor[..., :length, :] for place, tensor in self.base.items()}
            self.num_positions = length
        elif length != self.num_positions:
            raise ModelError(NO_WAY_BACK.format(self.num_positions, length))

    # --- What Hugging Face's `generate` calls

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows in another order."""
        self.base = {place: tensor.index_select(0, beam_idx.to(tensor.device)) for place, tensor in self.base.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, its copies next to each other."""
        self.base = {place: tensor.repeat_interleave(repeats, 0) for place, tensor in self.base.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self.base = {place: tensor[indices] for place, tensor in self.base.items()}

    def reset(self) -> None:
        """Forget everything."""
        self.cut(0)
