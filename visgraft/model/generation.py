"""Generation: what Hugging Face's own `generate` needs to know of an image prefix.

In: prompts padded on either side, pixels. Out: the given ids untouched, then the new tokens. Rows are packed as
[pads][image][text], so that physical distance in the cache equals logical distance and sliding or static caches hold.
Where an answer ends is decided by who asks: see `stop_token_ids` of inference/limits.py.

    ids = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, max_new_tokens=32)
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from visgraft.errors import ModelError
from visgraft.model.cache import CACHE_NAME, NAMES
from visgraft.model.joined import JoinedModel
from visgraft.model.layer_outputs import Selection
from visgraft.model.sequence import SegmentTable
from visgraft.model.state_cache import StateCache
from visgraft.model.vision_inputs import check_rows, is_vision_input

PADS_BEHIND_CACHE = "a cache was given: pads may then stand only in front of the whole text"


class PrefixGenerationMixin(JoinedModel, GenerationMixin):
    """Hugging Face's generation for a model whose forward takes `image_embeds` and `image_token_mask`."""

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
            kwargs: what Hugging Face's `generate` takes, and what else the encoder takes; `inputs_embeds` [B, T, D_lm]
                in place of `input_ids`. `output_hidden_states` and `output_attentions` give for each new token what
                `VisionLanguageOutput` says, of rows in the order [image][pads][text].

        Returns:
            [B, T + new] long: the given ids untouched, then the new tokens (or Hugging Face's output object). Behind
            `inputs_embeds` the new tokens alone.

        Raises:
            ModelError: pads stand behind a cache, or the prompt is to be read in chunks.
        """
        self._check_chunks(kwargs)
        vision_inputs = {name: kwargs.pop(name) for name in list(kwargs) if is_vision_input(name)}
        vision_inputs = {name: value for name, value in vision_inputs.items() if value is not None}
        input_ids = kwargs.pop("inputs", None) if input_ids is None else input_ids
        embeds: Tensor | None = kwargs.get("inputs_embeds")
        if embeds is None and (input_ids is None or input_ids.shape[1] == 0):
            num_rows = 1 if pixel_values is None else pixel_values.shape[0]
            input_ids = self._start_tokens(num_rows)
            attention_mask = None
        for name in NAMES:  # whatever it is called, it goes on by the name that `generate` knows
            if (cache := kwargs.pop(name, None)) is not None:
                kwargs[CACHE_NAME] = cache
                break
        given = input_ids
        if attention_mask is not None:
            order = attention_mask.bool().long().argsort(dim=1, stable=True)  # pads first, whatever side they were on
            if (
                kwargs.get(CACHE_NAME) is not None
                and (order != torch.arange(order.shape[1], device=order.device)).any()
            ):
                raise ModelError(PADS_BEHIND_CACHE)
            attention_mask = attention_mask.gather(1, order)
            if embeds is not None:
                embeds = kwargs["inputs_embeds"] = embeds.gather(1, order[..., None].expand_as(embeds))
            else:
                input_ids = input_ids.gather(1, order)
        rows = input_ids if embeds is None else embeds
        assert rows is not None
        check_rows(pixel_values if kwargs.get("image_embeds") is None else kwargs["image_embeds"], rows)
        if pixel_values is not None and kwargs.get("image_embeds") is None:
            prefix, prefix_mask = self.image_prefix(pixel_values, image_mask=image_mask, **vision_inputs)
            kwargs.update(image_embeds=prefix, image_token_mask=prefix_mask)
            if attention_mask is None:
                attention_mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        prompts = input_ids if embeds is None else None
        output: Any = super().generate(input_ids=prompts, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        if given is None:
            return output
        sequences = output if isinstance(output, Tensor) else output.sequences
        copies = sequences.shape[0] // given.shape[0]
        new = sequences if prompts is None else sequences[:, given.shape[1] :]
        whole = torch.cat([given.repeat_interleave(copies, 0), new], 1)
        if isinstance(output, Tensor):
            return whole
        output.sequences = whole
        return output

    def _check_chunks(self, settings: dict[str, Any]) -> None:
        asked = settings.get("generation_config") or self.generation_config
        size = settings.get("prefill_chunk_size", getattr(asked, "prefill_chunk_size", None))
        if size is not None:
            raise ModelError(
                f"prefill_chunk_size: got {size}, but a prompt is read at once behind its image; leave it out"
            )

    def stop_also_at(self, token_id: int) -> None:
        """Let `generate` end answers at a token too, here and wherever the model is saved to.

        Whoever knows the prompt template calls it with the token behind every answer (`end_token_id` of
        data/prompt.py), which the language model's own settings need not name. Its own copy of these stays as it is.
        """
        own = self.generation_config.eos_token_id
        stops = [] if own is None else [own] if isinstance(own, int) else list(own)
        if token_id not in stops:
            self.generation_config = copy.deepcopy(self.generation_config)
            self.generation_config.eos_token_id = [*stops, token_id] if stops else token_id

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
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_token_mask: Tensor | None = None,
        context: SegmentTable | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: Selection = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Choose what one step of `generate` runs: everything at first, then only what is not in the cache."""
        cache = past_key_values if cache is None else cache
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        num_before = 0 if image_token_mask is None else image_token_mask.shape[1]
        num_before = num_before if context is None else context.length
        num_read = max(0, num_cached - num_before)  # tokens that no id stands for, as of a prompt tuning, come on top
        text: dict[str, Any] = {"input_ids": input_ids[:, min(num_read, max(0, input_ids.shape[1] - 1)) :]}
        if inputs_embeds is not None and num_read == 0:
            own = self.get_input_embeddings()(input_ids)  # [B, new, D_lm], where there is no cache
            text = {"inputs_embeds": torch.cat([inputs_embeds, own], 1)}
        return {
            **text,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            CACHE_NAME: cache,
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
        """Make the cache that the language model takes, with room for the image tokens, which `generate` ignores.

        Raises:
            ModelError: another kind of cache is asked for than the one that holds this language model's states.
        """
        spec = self.attention_spec
        if spec.sharing != "mask" and model_kwargs.get(CACHE_NAME) is None:
            if generation_config.cache_implementation is not None:
                raise ModelError(
                    f"cache_implementation: got {generation_config.cache_implementation!r}, but {spec.name} carries "
                    "states, which visgraft's own cache holds; leave it out"
                )
            if generation_config.use_cache:
                model_kwargs[CACHE_NAME] = StateCache()
            return None
        mask = model_kwargs.get("image_token_mask")
        length += 0 if mask is None else mask.shape[1]
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        return prepare(generation_config, model_kwargs, generation_mode, batch_size, length)
