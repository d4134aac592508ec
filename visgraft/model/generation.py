"""Generation: Hugging Face's own `generate`, with its cache, told about the image prefix.

In: prompts padded on either side, pixels. Out: the given ids untouched, then the new tokens. Rows are packed as
[pads][image][text], so that physical distance in the cache equals logical distance and sliding or static caches hold.

    ids = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=32)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from visgraft.errors import ModelError
from visgraft.model.outputs import VisionLanguageOutput
from visgraft.model.sequence import SegmentTable, branch, read_on
from visgraft.segments import IMAGE, TEXT

PADS_BEHIND_CACHE = "a cache was given: pads may then stand only in front of the whole text"


class PrefixGenerationMixin(GenerationMixin):
    """Hugging Face's generation for a model whose forward takes `image_embeds` and `image_token_mask`."""

    config: Any  # these are the model's own
    device: Any
    prefix_injection: Any
    image_prefix: Any
    get_input_embeddings: Any
    attention_spec: Any
    _decode: Any

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with Hugging Face's `generate`; prompts padded on either side are answered rightly.

        Args:
            input_ids: [B, T] long prompts; None = one start token for each image.
            pixel_values: as in `forward`.
            attention_mask: [B, T], 1 = a real token, wherever the pads are; None = all real (without an image, what
                Hugging Face's `generate` makes of it, which takes the pad id for padding).
            image_mask: as in `forward`.
            kwargs: what Hugging Face's `generate` takes, and what else the encoder takes.

        Returns:
            [B, T + new] long: the given ids untouched, then the new tokens (or Hugging Face's output object).
        """
        vision_inputs = {
            name: kwargs.pop(name) for name in ("pixel_attention_mask", "spatial_shapes") if name in kwargs
        }
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        if input_ids is None or input_ids.shape[1] == 0:
            num_rows = 1 if pixel_values is None else pixel_values.shape[0]
            input_ids = self._start_tokens(num_rows)
            attention_mask = None
        given = input_ids
        if attention_mask is not None:
            order = attention_mask.bool().long().argsort(dim=1, stable=True)  # pads first, whatever side they were on
            if (
                kwargs.get("past_key_values") is not None
                and (order != torch.arange(order.shape[1], device=order.device)).any()
            ):
                raise ModelError(PADS_BEHIND_CACHE)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        if pixel_values is not None and kwargs.get("image_embeds") is None:
            prefix, prefix_mask = self.image_prefix(pixel_values, image_mask=image_mask, **vision_inputs)
            kwargs.update(image_embeds=prefix, image_token_mask=prefix_mask)
            attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output: Any = super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        sequences = output if isinstance(output, Tensor) else output.sequences
        copies = sequences.shape[0] // given.shape[0]
        whole = torch.cat([given.repeat_interleave(copies, 0), sequences[:, given.shape[1] :]], 1)
        if isinstance(output, Tensor):
            return whole
        output.sequences = whole
        return output

    def _start_tokens(self, num_rows: int) -> Tensor:
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self.generation_config, name, None)
            token = getattr(self.config.text_config, name, None) if token is None else token
            if token is not None:
                first = token[0] if isinstance(token, (list, tuple)) else token
                return torch.full((num_rows, 1), first, dtype=torch.long, device=self.device)
        raise ModelError("the language model names no bos_token_id or eos_token_id to start from: give input_ids")

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_mask: Tensor | None = None,
        context: SegmentTable | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        """Choose what one step of `generate` runs: everything at first, then only what is not in the cache."""
        num_cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        num_before = 0 if image_token_mask is None else image_token_mask.shape[1]
        num_before = num_before if context is None else context.length
        return {
            "input_ids": input_ids[:, max(0, num_cached - num_before) :],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "image_embeds": image_embeds if num_cached == 0 else None,
            "image_token_mask": image_token_mask,
            "context": context,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> Any:
        """Make room for the image tokens, which `generate` does not count."""
        mask = model_kwargs.get("image_token_mask")
        length += 0 if mask is None else mask.shape[1]
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        return prepare(generation_config, model_kwargs, generation_mode, batch_size, length)

    # --- Reading on: what was read stands in a cache, and a table says what it is

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
        table = read_on(context, image_token_mask, kind=IMAGE)
        self._check_length(table)
        width = self.get_input_embeddings().weight.shape[1]
        embeds = self.get_input_embeddings().weight.new_zeros(*image_token_mask.shape, width)
        embeds = self.prefix_injection.enter(embeds, image_tokens, image_token_mask)
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
        table = read_on(context, attention_mask.bool(), kind=TEXT)
        self._check_length(table)
        logits, _ = self._decode(self.get_input_embeddings()(input_ids), table, cache, logits_to_keep)
        return VisionLanguageOutput(logits=logits, past_key_values=cache)

    def read_branches(
        self, input_ids: Tensor, *, lengths: Sequence[int], context: SegmentTable, cache: Cache
    ) -> Tensor:
        """Read several texts behind the one row that a cache holds; each sees all of that, and none another.

        Args:
            input_ids: [T] long, the texts one behind the other.
            lengths: of each.
            context: what the cache holds, one row.
            cache: one that drops nothing (`PreallocatedCache`); it is written to, and is of no use but for its context.

        Returns:
            Logits [T, V].

        Raises:
            ModelError: a text ends beyond the language model's positions.
        """
        table = branch(context, lengths=lengths)
        self._check_length(table)
        logits, _ = self._decode(self.get_input_embeddings()(input_ids[None]), table, cache, 0)
        row: Tensor = logits[0]
        return row

    def _check_length(self, table: SegmentTable) -> None:
        limit = self.attention_spec.max_positions
        if limit is None or table.length <= limit:
            return
        length = int(self.prefix_injection.positions(table).max()) + 1
        if length > limit:
            raise ModelError(
                f"a row of {length} positions (image and text tokens) is longer than the {limit} positions of "
                f"{self.attention_spec.name}: shorten the text, or make fewer image tokens (model.image_size, "
                "model.projection.pool)"
            )
