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
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from visgraft.errors import MaskSizeError, UnsupportedModelError, names_needed_for
from visgraft.model.cache import CACHE_NAME, cache_argument
from visgraft.model.sequence import SegmentTable, attention_mask, block_mask

MAX_MASK_BYTES = 2**30  # of one dense mask; a row of 32,768 positions, or 4,096 rows of 512

# Kinds of layers in `config.layer_types` that look back only so far: name -> (windowed, chunked).
SHORT_SIGHTED = {
    "sliding_attention": (True, False),
    "hybrid_sliding": (True, False),
    "chunked_attention": (False, True),
}
INDEXED = "indexed_attention"  # looks at so many keys that it finds best:
INDEX_BUDGETS = ("index_topk", "indexer_budget")
NOTHING_CARRIED = ("moe", "mlp", "dummy")  # layers that see no other position

Sharing = Literal["mask", "state", "rows"]
BehindCache = Literal["several", "single", "nothing"]


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
        config: the LM's own; which kernel it computes with is read there at every call, as it may change at any time.
        reaches: kind of layer -> reach, and the index of the first such layer in the cache.
        takes_positions: forward has `position_ids`.
        alibi: logical positions [B, S] -> ALiBi bias of each head [B, H, S], scaled as the scores after 1/sqrt(d).
        zero_positions: positions are given as 0, which makes the family's rotary embedding the identity.
        max_positions: the LM's longest row, None = unlimited.
        why_max: what sets that limit, where it is not the number of positions.
        takes_mask: forward has `attention_mask`, and some layer looks at it.
        unmasked: kinds of layers that no mask governs.
        one_mask: every layer is given the same mask, though there are several kinds.
        cache_name: the argument by which forward takes a cache; None = it takes none.
        sharing: how several texts read one image: behind it in one row, kept apart by the mask; from copies of its
            states; or each with the image in a row of its own. Found by trying (checks/compatibility.py).
        behind_cache: what the LM reads rightly behind a cache: several tokens at once, single ones, or nothing.
        position_offset: added to positions.
        wide_states: its layers take float32 states between narrower weights under autocast.
        mixed_precision: it can be computed under autocast at all.
        image_is_causal: what it reads of an image from left to right whatever the mask says: nothing, some layers, all.
    """

    name: str
    config: PreTrainedConfig = field(repr=False, compare=False)
    reaches: Mapping[str, tuple[Reach, int]]
    takes_positions: bool
    max_positions: int | None
    alibi: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    zero_positions: bool = False
    why_max: str | None = None
    takes_mask: bool = True
    unmasked: tuple[str, ...] = ()
    one_mask: bool = False
    cache_name: str | None = CACHE_NAME
    sharing: Sharing = "mask"
    behind_cache: BehindCache = "several"
    position_offset: int = 0
    wide_states: bool = True
    mixed_precision: bool = True
    image_is_causal: Literal["nothing", "some", "all"] = "nothing"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how this LM reads images and texts; nothing where the mask alone decides."""
        if self.sharing == "mask":
            return ()
        said = {
            "state": "texts read on from copies of their image's states",
            "rows": "each text reads its image in a row of its own, in the layout shared too",
            "some": "images are read from left to right (causal) in its recurrent layers",
            "all": "images are read from left to right (causal) in all its layers",
            "single": "behind a cache, prompts are read token by token",
            "nothing": "nothing is read rightly behind a cache: for each new token all is read anew",
        }
        causal = () if self.image_is_causal == "nothing" else (self.image_is_causal,)
        cached = () if self.behind_cache == "several" else (self.behind_cache,)
        return tuple(said[key] for key in (self.sharing, *causal, *cached))

    def call(
        self, language: PreTrainedModel, embeds: Tensor, arguments: Mapping[str, Any], *, cache: Cache | None = None
    ) -> Any:
        """Run the LM on embeddings [B, Q, D_lm] with what `arguments` made for them; the cache is written to.

        Raises:
            UnsupportedModelError: under autocast, which this family's layers do not bear.
        """
        if not self.mixed_precision and torch.is_autocast_enabled(embeds.device.type):
            raise UnsupportedModelError(
                f"{self.name} mixes number formats in its layers and cannot be computed in bf16 or fp16: set "
                "train.precision: fp32"
            )
        caching = {} if cache is None or self.cache_name is None else {self.cache_name: cache}
        return language(inputs_embeds=embeds, use_cache=cache is not None, **caching, **arguments)

    @property
    def additive(self) -> bool:
        """Whether the kernel adds the mask to the scores (eager) instead of taking a boolean one (SDPA)."""
        return self.alibi is not None or self.config._attn_implementation != "sdpa"

    @property
    def blocks(self) -> bool:
        """Whether whole rows are given a block mask (FlexAttention), and no dense mask is made."""
        return self.config._attn_implementation == "flex_attention"

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
            UnsupportedModelError: the LM was set to a kernel that takes no mask.
        """
        kernel = self.config._attn_implementation or ""
        if "flash" in kernel:
            raise UnsupportedModelError(
                f"{self.name} is set to compute with {kernel}, which takes no mask of who sees whom: set "
                'model.attention, or `model.set_attn_implementation("sdpa")`'
            )
        num_queries = table.length if num_queries is None else num_queries
        masks: dict[str, Any] = {}
        for kind, (reach, layer_index) in self.reaches.items() if self.takes_mask else ():
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
        arguments: dict[str, Any] = {}
        if masks:
            first = next(iter(masks.values()))
            is_single = self.one_mask or (len(masks) == 1 and not self.unmasked)
            # Layers of two natures take their mask under the one name or the other.
            names = {"full_attention": first, "sliding_attention": masks.get("hybrid_sliding", first)}
            by_kind = {**names, "linear_attention": None, **dict.fromkeys(self.unmasked), **masks}
            has_two_natures = bool(self.unmasked) or any("hybrid" in kind for kind in masks)
            arguments["attention_mask"] = first if is_single else by_kind if has_two_natures else masks
        if self.takes_positions:
            position = (table.position if positions is None else positions)[:, -num_queries:]  # [B, Q]
            position = position + self.position_offset if self.position_offset else position
            arguments["position_ids"] = torch.zeros_like(position) if self.zero_positions else position
        return arguments

    def _check_size(self, table: SegmentTable, num_queries: int, num_keys: int, dtype: torch.dtype) -> None:
        num_rows = table.kind.shape[0]
        heads = 1 if self.alibi is None else self.alibi(table.position[:1, :1]).shape[1]
        width = dtype.itemsize if self.additive else 1
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
        if not self.additive:
            return mask
        lowest = torch.finfo(dtype if dtype == torch.float16 else torch.bfloat16).min  # finite in every kernel's dtype
        bias = torch.zeros((), dtype=dtype, device=mask.device)
        if self.alibi is not None:
            ramp = self.alibi(table.position)  # [B, H, S]
            key_ramp = ramp if keys is None else ramp[..., keys]
            key_ramp = nn.functional.pad(key_ramp, (0, mask.shape[-1] - key_ramp.shape[-1]))  # [B, H, K]
            # Only the key's term matters to the softmax; the query's is subtracted to keep the numbers small.
            bias = (key_ramp[:, :, None, :] - ramp[:, :, -num_queries:, None]).to(dtype)  # [B, H, Q, K]
        return torch.where(mask, bias, lowest)  # [B, 1 or H, Q, K]


def read_attention_spec(language: PreTrainedModel) -> AttentionSpec:
    """Read how a language model takes masks and positions, and install its family's quirk where it has one.

    Raises:
        UnsupportedModelError: a forward that takes no inputs_embeds.
    """
    config = language.config.get_text_config(decoder=True)
    parameters = inspect.signature(language.forward).parameters
    if "inputs_embeds" not in parameters:
        raise UnsupportedModelError(
            f"{config.model_type} ({type(language).__name__}) takes no inputs_embeds: image tokens cannot stand among "
            "its text. Choose another causal LM"
        )
    reaches, unmasked = _reaches(config)
    why, limit = _position_limit(config)
    attention_spec = AttentionSpec(
        name=config.model_type,
        config=config,
        reaches=reaches or {"full_attention": (Reach(), 0)},
        takes_positions="position_ids" in parameters,
        max_positions=limit,
        why_max=why if INDEXED in why else None,
        takes_mask="attention_mask" in parameters and bool(reaches),
        unmasked=unmasked,
        cache_name=cache_argument(language.forward),
    )
    quirk = QUIRKS.get(config.model_type)
    return quirk.install(language, attention_spec) if quirk is not None and quirk.applies(config) else attention_spec


def _layer_kinds(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())


def _reaches(config: PreTrainedConfig) -> tuple[dict[str, tuple[Reach, int]], tuple[str, ...]]:
    """Give the reach of every kind of layer that is given a mask, and the kinds that are given none."""
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = _layer_kinds(config)
    if not kinds:
        return {"full_attention": (Reach(window=window), 0)}, ()
    reaches, unmasked = {}, []
    for kind in dict.fromkeys(kinds):
        if kind in NOTHING_CARRIED or kind == "linear_attention" or not ("attention" in kind or "hybrid" in kind):
            unmasked.append(kind)
            continue
        windowed, chunked = SHORT_SIGHTED.get(kind, (False, False))
        reaches[kind] = (
            Reach(window=window if windowed else None, chunk=chunk if chunked else None),
            kinds.index(kind),
        )
    return reaches, tuple(unmasked)


def max_positions_of(config: PreTrainedConfig) -> int | None:
    """Return the longest row that a language model of this configuration takes; None = no limit is known."""
    return _position_limit(config.get_text_config(decoder=True))[1]


def _position_limit(config: PreTrainedConfig) -> tuple[str, int | None]:
    """Return why no row may be longer, and than how much."""
    names = ("max_position_embeddings", "max_seq_len")
    values = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    limits = [("the number of its positions", value) for value in values[:1]]
    for name in INDEX_BUDGETS if INDEXED in _layer_kinds(config) else ():
        if isinstance(best := getattr(config, name, None), int):
            limits.append((f"its {INDEXED} looks at its {name} best keys alone", best))
    return min(limits, key=lambda pair: pair[1], default=("", None))


def _mask_sizes(cache: Cache, num_queries: int, layer_index: int, table: SegmentTable) -> tuple[int, int]:
    """Ask a layer's cache how many keys it will hand out, and from which column on."""
    if type(cache).get_mask_sizes is Cache.get_mask_sizes and layer_index >= len(cache.layers):  # lazy, and still empty
        return table.length, 0
    length, offset = cache.get_mask_sizes(num_queries, layer_index)
    return int(length), int(offset)


def embedding_width(language: PreTrainedModel) -> int:
    """Give D_lm, the width of the language model's input embeddings (which need not be its hidden size).

    Raises:
        UnsupportedModelError: they are no table of tokens.
    """
    embeddings: Any = language.get_input_embeddings()
    if not isinstance(getattr(embeddings, "weight", None), Tensor):
        raise UnsupportedModelError(
            f"{language.config.model_type} ({type(language).__name__}) cannot be joined: its input embeddings "
            f"({type(embeddings).__name__}) are not one table with a row a token. Choose another causal LM"
        )
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
    with names_needed_for("bloom"):
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    if not isinstance(language.transformer.build_alibi_tensor, _BloomBias):
        language.transformer.build_alibi_tensor = _BloomBias(language.transformer)
    slopes = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), language.config.n_head, torch.float32)[:, 0, 1]
    return replace(attention_spec, alibi=_Ramp(slopes))


def _install_falcon(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    with names_needed_for("falcon with alibi"):
        from transformers.models.falcon.modeling_falcon import build_alibi_tensor
    if _switch_falcon_alibi not in language.transformer._forward_pre_hooks.values():
        language.transformer.register_forward_pre_hook(_switch_falcon_alibi, with_kwargs=True)
    heads = language.config.num_attention_heads
    slopes = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.bfloat16)[:, 0, 1]
    scale = (language.config.hidden_size // heads) ** -0.5  # positions are rounded to bfloat16 as the family does
    return replace(attention_spec, alibi=_Ramp(slopes, torch.bfloat16, scale), zero_positions=True)


def _install_mpt(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    with names_needed_for("mpt"):
        from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
    model = language.transformer
    if not isinstance(model.build_mpt_alibi_tensor, _MptBias):
        model.build_mpt_alibi_tensor = _MptBias(model)
        model.register_forward_pre_hook(_deliver_mpt_mask, with_kwargs=True)
        for block in model.blocks:
            block.attn.forward = _MptAttentionForward(block.attn)
    slopes = build_mpt_alibi_tensor(language.config.n_heads, 2, alibi_bias_max=8)[:, 0].float().diff()[:, 0]
    return replace(attention_spec, alibi=_Ramp(slopes))


def _install_rwkv(language: Any, attention_spec: AttentionSpec) -> AttentionSpec:
    model = language.rwkv
    if model.layers_are_rescaled:
        was_training = model.training
        model.train()._rescale_layers()
        model.train(was_training)
    language.config.rescale_every = 0
    return attention_spec


@dataclass(frozen=True)
class _Ramp:
    """The bias of each head by position: slopes [H], positions [B, S] -> [B, H, S]."""

    slopes: Tensor
    rounded_to: torch.dtype = torch.long
    scale: float = 1.0

    def __call__(self, position: Tensor) -> Tensor:
        rounded = position.to(self.rounded_to)[:, None, :]  # [B, 1, S]
        ramp = self.slopes.to(position.device)[None, :, None] * rounded  # [B, H, S]
        return ramp if self.scale == 1.0 else ramp.float() * self.scale


# What is put into a module acts on our calls alone, known by their masks of four axes: the same module computes without
# the join what it computed before, and can be pickled and copied.


class _BloomBias:
    """BLOOM's bias, left out where it is in the mask."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        if attention_mask.ndim == 4:
            return torch.zeros(attention_mask.shape[0] * num_heads, 1, 1, dtype=dtype, device=attention_mask.device)
        bias: Tensor = type(self.model).build_alibi_tensor(self.model, attention_mask, num_heads, dtype)
        return bias


def _switch_falcon_alibi(model: Any, _: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Switch Falcon's own bias off where it is in the mask."""
    mask = named.get("attention_mask")
    model.use_alibi = mask is None or mask.ndim != 4


class _MptBias:
    """MPT's bias, or in its place the additive mask of the call that runs, with the bias in it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.mask: Tensor | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        if self.mask is not None:
            return self.mask
        bias: Tensor = type(self.model).build_mpt_alibi_tensor(self.model, *arguments, **named)
        return bias


def _deliver_mpt_mask(model: Any, _: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Let the mask of this call reach the layers in the place of their bias."""
    mask = named.get("attention_mask")
    model.build_mpt_alibi_tensor.mask = mask if mask is not None and mask.ndim == 4 else None


class _MptAttentionForward:
    """MPT's attention, through SDPA where the additive mask arrives as `position_bias`."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention

    def __call__(self, hidden_states: Tensor, position_bias: Tensor, **named: Any) -> tuple[Tensor, Tensor | None]:
        own: Any = self.attention
        if position_bias.ndim != 4:
            states: tuple[Tensor, Tensor | None] = type(own).forward(own, hidden_states, position_bias, **named)
            return states
        mixed = own.Wqkv(hidden_states)  # [B, Q, 3 * D]
        if own.clip_qkv:
            mixed = mixed.clamp(min=-own.clip_qkv, max=own.clip_qkv)
        query, key, value = (
            part.unflatten(-1, (own.n_heads, own.head_dim)).transpose(1, 2) for part in mixed.chunk(3, dim=-1)
        )  # each [B, H, Q, D / H]
        if (cache := named.get(CACHE_NAME)) is not None:
            key, value = cache.update(key, value, own.layer_idx)
        dropout = own.attn_dropout_p if own.training else 0.0
        mask = position_bias.to(query.dtype)  # [B, H, Q, K]
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=own.softmax_scale
        )  # [B, H, Q, D / H]
        return own.out_proj(mixed.transpose(1, 2).flatten(2)), None


QUIRKS: Mapping[str, Quirk] = {
    "bloom": Quirk(lambda config: True, _install_bloom, "builds its ALiBi bias from a 2-D mask"),
    "falcon": Quirk(lambda config: bool(config.alibi), _install_falcon, "builds its ALiBi bias from a 2-D mask"),
    "rwkv": Quirk(
        lambda config: config.rescale_every > 0,
        _install_rwkv,
        "divides weights in place in eval mode, and saves them so",
    ),
    "mpt": Quirk(lambda config: True, _install_mpt, "casts every mask to boolean and reads True as hidden"),
}
