"""Reading piece by piece: what was read stands in a cache, and a table says what it is.

In: image tokens and texts, one after the other, and a cache. Out: the cache, written on, and logits. Which kind of
cache a language model takes is decided here, in three short functions: keys and values alone, or states too.

    cache = model.make_reading_cache(capacity=512)
    table = model.read_image(tokens, image_token_mask=mask, context=empty_table(1), cache=cache)
    logits = model.read_text(ids, context=table, cache=cache).logits

Axis letters as in vlm.py.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from visgraft.branches import grow
from visgraft.model.cache import PreallocatedCache, as_argument
from visgraft.model.joined import JoinedModel
from visgraft.model.layer_outputs import LayerOutputs
from visgraft.model.loss import VisionLanguageOutput, gathered_head
from visgraft.model.parts import input_embedding
from visgraft.model.sequence import SegmentTable, append_branches, append_segment, rows_going_on
from visgraft.model.slots import SlotCache
from visgraft.model.state_cache import StateCache
from visgraft.model.state_slots import StateSlots
from visgraft.segments import IMAGE, TEXT


class PieceByPieceMixin(JoinedModel):
    """Images and texts, read behind what a cache holds."""

    @abc.abstractmethod
    def _decode(
        self,
        embeds: Tensor,
        table: SegmentTable,
        cache: Cache | None,
        logits_to_keep: int,
        shown: LayerOutputs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the language model on the last Q of the table's positions: logits and states."""

    @abc.abstractmethod
    def _check_length(self, table: SegmentTable) -> None:
        """Refuse a row that is longer than the language model's positions."""

    # --- Caches of the kind that the language model takes

    @property
    def _carries_states(self) -> bool:
        return self.attention_spec.sharing != "mask"

    def make_cache(self) -> Cache:
        """Make an empty cache for `forward` and `generate`."""
        return StateCache() if self._carries_states else DynamicCache(config=self.config.text_config)

    def make_reading_cache(self, *, capacity: int) -> PreallocatedCache | StateCache:
        """Make an empty cache for pieces, with room for so many positions of a row; it drops nothing."""
        return StateCache() if self._carries_states else PreallocatedCache(capacity=capacity)

    def make_slots(self) -> SlotCache | StateSlots:
        """Make an empty cache for rows that come and go; see `read_rows`."""
        if self._carries_states:
            return StateSlots(device=self.device)
        num_layers = self.language.config.get_text_config(decoder=True).num_hidden_layers
        return SlotCache(num_layers=num_layers, device=self.device)

    # --- Reading

    @property
    def image_sees_before(self) -> bool:
        """Whether an image sees what was read before it: where it was trained inside a text, as LLaVA's."""
        return self.config.text_before_images is not None

    def read_image(
        self, image_tokens: Tensor, *, image_token_mask: Tensor, context: SegmentTable, cache: Cache
    ) -> SegmentTable:
        """Read an image of every row into a cache, behind what the rows hold.

        Args:
            image_tokens: [B, P, width], as `image_prefix` makes them.
            image_token_mask: [B, P] bool, True = real.
            context: what the cache holds, S positions.
            cache: one that drops nothing (`PreallocatedCache`); it is written to.

        Returns:
            The table of S + P positions: the context of what is read next.

        Raises:
            ModelError: a row becomes longer than the language model's positions.
        """
        table = append_segment(context, image_token_mask, kind=IMAGE, image_sees_before=self.image_sees_before)
        self._check_length(table)
        embedding = input_embedding(self)  # [V, D_lm]
        embeds = embedding.new_zeros(*image_token_mask.shape, embedding.shape[1])  # [B, P, D_lm]
        embeds = self.prefix_injection.inject(embeds, image_tokens, image_token_mask)
        self._decode(embeds, table, cache, 1)
        return table

    def read_text(
        self,
        input_ids: Tensor,
        *,
        context: SegmentTable,
        cache: Cache | None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> VisionLanguageOutput:
        """Read a text of every row into a cache, behind what the rows hold; it sees all of that.

        Args:
            input_ids: [B, Q] long, the tokens that are not in the cache.
            context: what stands in front of the text: the cache holds that, and maybe the text's beginning.
            cache: one that drops nothing (`PreallocatedCache`); it is written to.
            attention_mask: [B, T], 1 = real, over the whole text behind the context, T >= Q; None = all real.
            logits_to_keep: only the last n positions' logits; 0 = all.

        Returns:
            `logits` [B, Q or n, V] and the cache.

        Raises:
            ModelError: a row becomes longer than the language model's positions.
        """
        assert cache is not None, "a context stands in a cache"
        num_text = int(cache.get_seq_length()) - context.length + input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(input_ids.shape[0], num_text, device=input_ids.device)
        table = append_segment(context, attention_mask.bool(), kind=TEXT)  # [B, context + T]
        self._check_length(table)
        logits, _ = self._decode(self.get_input_embeddings()(input_ids), table, cache, logits_to_keep)
        return VisionLanguageOutput(logits=logits, **as_argument(cache))

    def read_branches(self, texts: Sequence[Sequence[int]], *, context: SegmentTable, cache: Cache) -> Tensor:
        """Read several texts behind the one row that a cache holds; each sees all of that, and none another.

        What texts begin with in common is read once; where a language model carries states, with each of them.

        Args:
            texts: their ids; some may be empty.
            context: what the cache holds, one row.
            cache: one that drops nothing (`PreallocatedCache`); it is written to, and is of no use but for its context.

        Returns:
            Logits [T, V] of all texts, one behind the other.

        Raises:
            ModelError: a text ends beyond the language model's positions.
        """
        if isinstance(cache, StateCache):  # texts side by side would read each other's states
            return self._read_branches_in_rows(texts, context=context, cache=cache)
        grown = grow(texts)
        table = append_branches(context, branches=grown.branches)
        self._check_length(table)
        ids = [texts[branch.text][branch.start : branch.end] for branch in grown.branches]
        read = torch.tensor([list(chain.from_iterable(ids))], dtype=torch.long, device=table.kind.device)  # [1, U]
        logits, _ = self._decode(self.get_input_embeddings()(read), table, cache, 0)  # [1, U, V]
        spans = list(pairwise(accumulate(map(len, ids), initial=0)))
        columns = [column for path in grown.paths for number in path for column in range(*spans[number])]
        return logits[0] if len(columns) == read.shape[1] else logits[0, columns]

    def _read_branches_in_rows(
        self, texts: Sequence[Sequence[int]], *, context: SegmentTable, cache: StateCache
    ) -> Tensor:
        """Read several texts, each behind a copy of what the one row of a cache holds: logits [T, V]."""
        device = context.kind.device
        own = [torch.tensor(text, device=device) for text in texts if len(text)]
        padded = nn.utils.rnn.pad_sequence(own, batch_first=True)  # [N, Q]
        is_real = torch.arange(padded.shape[1], device=device) < torch.tensor(
            [[len(text)] for text in own], device=device
        )
        copies = cache.select(torch.zeros(len(own), dtype=torch.long, device=device))
        table = append_segment(context, is_real, kind=TEXT)
        self._check_length(table)
        logits, _ = self._decode(self.get_input_embeddings()(padded), table, copies, 0)  # [N, Q, V]
        return logits[is_real]

    def read_rows(self, input_ids: Tensor, *, unplaced: Sequence[int], cache: SlotCache | StateSlots) -> Tensor:
        """Read a text of its own length behind each of the rows that a slot cache is set to read; see `SlotCache`.

        Args:
            input_ids: [B, Q] long, each row's text, at least one id, and then pads of any id.
            unplaced: image tokens of each row that take no position (`first_layer` of prefix_injection.py).
            cache: inside its `reading`; it is written to.

        Returns:
            Logits [B, V] of each row's last id.
        """
        if isinstance(cache, StateSlots):
            table, states = cache.begin(num_new=input_ids.shape[1])
            logits, _ = self._decode(self.get_input_embeddings()(input_ids), table, states, 1)  # [B, 1, V]
            cache.end(table, states)
            return logits[:, 0]
        reading, device, num_new = cache.present, input_ids.device, input_ids.shape[1]
        starts, counts, shift = (torch.tensor(e, device=device) for e in (reading.starts, reading.counts, unplaced))
        table = rows_going_on(starts, counts=counts, num_new=num_new, num_columns=reading.num_columns)
        embeds = self.get_input_embeddings()(input_ids)  # [B, Q, D_lm]
        arguments = self.attention_spec.arguments(
            table,
            dtype=embeds.dtype,
            num_queries=num_new,
            cache=cache,
            positions=table.position[:, -num_new:] - shift[:, None],
        )
        with gathered_head(self.language, (torch.arange(len(counts), device=device), counts - 1)):
            output = self.attention_spec.call(self.language, embeds, arguments, cache=cache)
        row_logits: Tensor = output.logits[0]
        return row_logits
