"""The language part: any `AutoModelForCausalLM`, unmodified, called with our mask and our positions.

In: a causal LM and a segment table. Out: the arguments with which the LM's own forward sees exactly what the table
allows. No code per family: an `AttentionSpec` says how this LM takes masks and positions. Families whose attention
cannot take a mask as it is have one row each in `QUIRKS`.

    attention_spec = read_attention_spec(language)
    output = language(inputs_embeds=embeds, **attention_spec.arguments(table, dtype=embeds.dtype))

Axis letters: B rows, S positions of a row, Q of them that are run, K keys that those look at, H heads, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor as mpt_alibi

from visgraft.errors import MaskSizeError, UnsupportedModelError
from visgraft.model.sequence import SegmentTable, attention_mask, block_mask

MAX_MASK_BYTES = 2**30  # of one dense mask; a row of 32,768 positions, or 4,096 rows of 512

# Layer kinds whose reach a mask can express: name in `config.layer_types` -> (windowed, chunked).
LAYER_KINDS = {
    "full_attention": (False, False),
    "sliding_attention": (True, False),
    "chunked_attention": (False, True),
}


@dataclass(frozen=True)
class Reach:
    """How far back the layers of one kind see, in logical positions; None = everything."""

    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class AttentionSpec:
    """How one language model takes masks and positions.

    Attributes:
        name: `model_type`, for messages.
        reaches: kind of layer -> reach, and the index of the first such layer in the cache.
        additive: the kernel adds the mask to the scores (eager) instead of taking a boolean one (SDPA).
        blocks: whole rows are given a block mask (FlexAttention), and no dense mask is made.
        takes_positions: forward has `position_ids`.
        alibi: logical positions [B, S] -> ALiBi bias of each head [B, H, S], scaled as the scores after 1/sqrt(d).
        zero_positions: positions are given as 0, which makes the family's rotary embedding the identity.
        deliver: hands the additive mask to a family that would not take it as an argument.
        max_positions: the LM's longest row, None = unlimited.
    """

    name: str
    reaches: Mapping[str, tuple[Reach, int]]
    additive: bool
    takes_positions: bool
    max_positions: int | None
    blocks: bool = False
    alibi: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    zero_positions: bool = False
    deliver: Callable[[Tensor], None] | None = field(default=None, compare=False)

    def arguments(
        self,
        table: SegmentTable,
        *,
        dtype: torch.dtype,
        num_queries: int | None = None,
        cache: Cache | None = None,
        causal_image: bool = False,
        positions: Tensor | None = None,
    ) -> dict[str, Any]:
        """Make `attention_mask` (one, or one for each kind of layer) and `position_ids` for the LM's forward.

        A dense mask is [B, 1, Q, K], boolean or additive; with ALiBi it is additive and [B, H, Q, K].

        Args:
            table: all positions so far, cached ones included: [B, S].
            dtype: of the hidden states, in which additive masks are made.
            num_queries: only the last Q positions are run; default all.
            cache: the keys and values of the positions before; a layer kind may have dropped early ones.
            causal_image: image tokens see only earlier image tokens.
            positions: [B, S] long, what `position_ids` are taken from; default the table's.

        Raises:
            MaskSizeError: a dense mask would take more than `MAX_MASK_BYTES`.
        """
        num_queries = table.length if num_queries is None else num_queries
        masks: dict[str, Any] = {}
        for kind, (reach, layer_index) in self.reaches.items():
            rules: dict[str, Any] = {"causal_image": causal_image, "window": reach.window, "chunk": reach.chunk}
            if self.blocks and cache is None:
                masks[kind] = block_mask(table, **rules)
                continue
            keys = None
            if cache is not None:
                length, offset = _mask_sizes(cache, num_queries, layer_index, table)
                keys = slice(offset, offset + length)
            self._check_size(table, num_queries, table.length if keys is None else keys.stop - keys.start, dtype)
            mask = attention_mask(table, num_queries=num_queries, keys=keys, **rules)  # [B, 1, Q, K] bool
            masks[kind] = self._finish(mask, table, num_queries, keys, dtype)
        single = next(iter(masks.values())) if len(masks) == 1 else None
        arguments: dict[str, Any] = {"attention_mask": masks if single is None else single}
        if self.takes_positions:
            position = (table.position if positions is None else positions)[:, -num_queries:]  # [B, Q]
            arguments["position_ids"] = torch.zeros_like(position) if self.zero_positions else position
        return arguments

    def _check_size(self, table: SegmentTable, num_queries: int, num_keys: int, dtype: torch.dtype) -> None:
        num_rows = table.kind.shape[0]
        heads = 1 if self.alibi is None else self.alibi(table.position[:1, :1]).shape[1]
        width = 1 if not self.additive and self.alibi is None else dtype.itemsize
        size_bytes = num_rows * heads * num_queries * num_keys * width
        if size_bytes > MAX_MASK_BYTES:
            raise MaskSizeError(
                f"a dense attention mask of {num_rows} rows of {num_queries} x {num_keys} positions would take "
                f"{size_bytes / 2**30:.1f} GiB, allowed is {MAX_MASK_BYTES / 2**30:.0f}: compute less at once "
                "(train.micro_batch_positions), fill shorter rows (train.row_positions), or on a GPU set "
                "model.attention: flex_attention, which makes no dense mask"
            )

    def _finish(
        self, mask: Tensor, table: SegmentTable, num_queries: int, keys: slice | None, dtype: torch.dtype
    ) -> Tensor:
        """Give a boolean mask [B, 1, Q, K] the form that the LM's kernel takes, with its ALiBi bias."""
        if not self.additive and self.alibi is None:
            return mask
        lowest = torch.finfo(dtype if dtype == torch.float16 else torch.bfloat16).min  # finite in every kernel's dtype
        bias = torch.zeros((), dtype=dtype, device=mask.device)
        if self.alibi is not None:
            ramp = self.alibi(table.position)  # [B, H, S]
            key_ramp = ramp if keys is None else ramp[..., keys]
            key_ramp = nn.functional.pad(key_ramp, (0, mask.shape[-1] - key_ramp.shape[-1]))  # [B, H, K]
            # Only the key's term matters to the softmax; the query's is subtracted to keep the numbers small.
            bias = (key_ramp[:, :, None, :] - ramp[:, :, -num_queries:, None]).to(dtype)  # [B, H, Q, K]
        additive = torch.where(mask, bias, lowest)  # [B, 1 or H, Q, K]
        if self.deliver is not None:
            self.deliver(additive)
            return mask
        return additive


def read_attention_spec(language: PreTrainedModel) -> AttentionSpec:
    """Read how a language model takes masks and positions, and install its family's quirk where it has one.

    Raises:
        UnsupportedModelError: layers that no mask can govern (recurrent, linear, convolutional), or a forward that
            takes no attention_mask or no inputs_embeds.
    """
    config = language.config.get_text_config(decoder=True)
    parameters = inspect.signature(language.forward).parameters
    if "attention_mask" not in parameters or "inputs_embeds" not in parameters:
        raise UnsupportedModelError(
            f"{config.model_type} ({type(language).__name__}) takes no attention_mask or no inputs_embeds: "
            "visgraft cannot set which tokens see each other. Choose a causal LM whose layers are all attention"
        )
    reaches = _reaches(config)
    attention_spec = AttentionSpec(
        name=config.model_type,
        reaches=reaches,
        additive=config._attn_implementation not in ("sdpa",),
        takes_positions="position_ids" in parameters,
        max_positions=max_positions_of(config),
        blocks=config._attn_implementation == "flex_attention",
    )
    quirk = QUIRKS.get(config.model_type)
    return quirk.install(language, attention_spec) if quirk is not None and quirk.applies(config) else attention_spec


def _reaches(config: PreTrainedConfig) -> dict[str, tuple[Reach, int]]:
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    layer_types = list(getattr(config, "layer_types", None) or ())
    if not layer_types:
        return {"full_attention": (Reach(window=window), 0)}
    unknown = sorted(set(layer_types) - set(LAYER_KINDS))
    if unknown:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of kind {', '.join(unknown)}, whose state flows past any mask: text would "
            "leak into other texts of the same image. Choose a causal LM whose layers are all attention"
        )
    reaches = {}
    for kind in dict.fromkeys(layer_types):
        windowed, chunked = LAYER_KINDS[kind]
        reach = Reach(window=window if windowed else None, chunk=chunk if chunked else None)
        reaches[kind] = (reach, layer_types.index(kind))
    return reaches


def max_positions_of(config: PreTrainedConfig) -> int | None:
    """Return the longest row that a language model of this configuration takes; None = no limit is known."""
    config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _mask_sizes(cache: Cache, num_queries: int, layer_index: int, table: SegmentTable) -> tuple[int, int]:
    """Ask a layer's cache how many keys it will hand out, and from which column on."""
    if not cache.layers or layer_index >= len(cache.layers):  # a lazy cache, still empty
        return table.length, 0
    length, offset = cache.get_mask_sizes(num_queries, layer_index)
    return int(length), int(offset)


def embedding_width(language: PreTrainedModel) -> int:
    """Give D_lm, the width of the language model's input embeddings (which need not be its hidden size)."""
    embeddings: Any = language.get_input_embeddings()
    return int(embeddings.weight.shape[1])


def embedding_scale(language: PreTrainedModel) -> float:
    """Give the standard deviation of the language model's token embeddings as they enter its first layer."""
    embeddings: Any = language.get_input_embeddings()
    num_rows = embeddings.weight.shape[0]
    with torch.no_grad():
        ids = torch.arange(0, num_rows, max(1, num_rows // 4096), device=embeddings.weight.device)
        return float(embeddings(ids).float().std())


# --- Families that need a hand. ALiBi: the bias by logical position goes into the additive mask.


@dataclass(frozen=True)
class Quirk:
    """What one family needs beyond a mask: when, how and why."""

    applies: Callable[[PreTrainedConfig], bool]
    install: Callable[[Any, AttentionSpec], AttentionSpec]
    why: str


def _install_bloom(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    def no_alibi(attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(attention_mask.shape[0] * num_heads, 1, 1, dtype=dtype, device=attention_mask.device)

    language.transformer.build_alibi_tensor = no_alibi
    slopes = bloom_alibi(torch.ones(1, 2, dtype=torch.long), language.config.n_head, torch.float32)[:, 0, 1]
    return replace(attention_spec, additive=True, alibi=lambda position: _ramp(slopes, position))


def _install_falcon(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    language.transformer.use_alibi = False
    heads = language.config.num_attention_heads
    slopes = falcon_alibi(torch.ones(1, 2, dtype=torch.long), heads, torch.bfloat16)[:, 0, 1]
    scale = (language.config.hidden_size // heads) ** -0.5

    def alibi(position: Tensor) -> Tensor:  # rounded to bfloat16 as the family rounds it
        return _ramp(slopes, position.to(torch.bfloat16)).float() * scale

    return replace(attention_spec, additive=True, alibi=alibi, zero_positions=True)


def _install_mpt(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    held: dict[str, Tensor] = {}
    model = language.transformer
    model.build_mpt_alibi_tensor = lambda *_, **__: held["mask"]
    for block in model.blocks:
        block.attn.forward = _MptAttentionForward(block.attn)
    slopes = mpt_alibi(language.config.n_heads, 2, alibi_bias_max=8)[:, 0].float().diff()[:, 0]
    return replace(
        attention_spec,
        alibi=lambda position: _ramp(slopes, position),
        deliver=lambda mask: held.update(mask=mask),
    )


def _ramp(slopes: Tensor, position: Tensor) -> Tensor:
    """Multiply slopes [H] by positions [B, S] -> [B, H, S]."""
    return slopes.to(position.device)[None, :, None] * position[:, None, :]


class _MptAttentionForward:
    """MPT's attention through SDPA, with the additive mask that arrives as `position_bias`."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention

    def __call__(
        self, hidden_states: Tensor, position_bias: Tensor, past_key_values: Cache | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        own: Any = self.attention
        mixed = own.Wqkv(hidden_states)  # [B, Q, 3 * D]
        if own.clip_qkv:
            mixed = mixed.clamp(min=-own.clip_qkv, max=own.clip_qkv)
        query, key, value = (
            part.unflatten(-1, (own.n_heads, own.head_dim)).transpose(1, 2) for part in mixed.chunk(3, dim=-1)
        )  # each [B, H, Q, D / H]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, own.layer_idx)
        dropout = own.attn_dropout_p if own.training else 0.0
        mask = position_bias.to(query.dtype)  # [B, H, Q, K]
        states = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=own.softmax_scale
        )  # [B, H, Q, D / H]
        return own.out_proj(states.transpose(1, 2).flatten(2)), None


QUIRKS: Mapping[str, Quirk] = {
    "bloom": Quirk(lambda config: True, _install_bloom, "builds its ALiBi bias from a 2-D mask"),
    "falcon": Quirk(lambda config: bool(config.alibi), _install_falcon, "builds its ALiBi bias from a 2-D mask"),
    "mpt": Quirk(lambda config: True, _install_mpt, "casts every mask to boolean and reads True as hidden"),
}
