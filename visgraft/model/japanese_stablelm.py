"""Japanese StableLM alpha: the one language model of GIT-LLM and its siblings that transformers does not have.

In: a configuration of `model_type` japanese_stablelm_alpha. Out: a causal LM like any other, known to the Auto classes.

    language = AutoModelForCausalLM.from_config(JapaneseStableLMConfig(hidden_size=64, num_attention_heads=4))

As GPT-NeoX (fused qkv laid out per head, rotary on the first channels of a head, attention and MLP in parallel) except:
rotary scaled by position (xPos, Sun et al. 2022, arXiv:2212.10554, section 4), a first LayerNorm without parameters, no
biases in the linears, and a gated MLP (SwiGLU, Shazeer 2020, arXiv:2002.05202). No GPT-NeoX setting equals it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from visgraft.errors import names_needed_for
from visgraft.model.cache import CACHE_NAME, as_argument

MLP_MULTIPLE = 256  # the MLP's inner size is 8/3 of the hidden size, rounded up to a multiple of this


class JapaneseStableLMConfig(PreTrainedConfig):
    """Configuration of Japanese StableLM alpha; the names are the original's."""

    model_type = "japanese_stablelm_alpha"

    def __init__(
        self,
        vocab_size: int = 65536,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        intermediate_size: int | None = None,
        rotary_pct: float = 0.25,
        rotary_emb_base: float = 10000,
        rotary_scale_base: float = 512,
        max_position_embeddings: int = 2048,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = 3,
        eos_token_id: int | None = 3,
        **kwargs: Any,
    ) -> None:
        """Take the sizes; `intermediate_size` None = 8/3 of the hidden size, rounded up."""
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = (
            -(-(8 * hidden_size // 3) // MLP_MULTIPLE) * MLP_MULTIPLE
            if intermediate_size is None
            else intermediate_size
        )
        self.rotary_pct = rotary_pct
        self.rotary_emb_base = rotary_emb_base
        self.rotary_scale_base = rotary_scale_base
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.use_cache = True
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)


def rotary_factors(config: JapaneseStableLMConfig, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what queries and keys are rotated and scaled by.

    Args:
        config: `rotary_pct` of a head's channels are rotated, r of them.
        position: [B, S] long.

    Returns:
        cos and sin [B, 1, S, r], and the scale [B, 1, S, r] that queries are multiplied and keys divided by; fp32.
    """
    size = int(config.hidden_size // config.num_attention_heads * config.rotary_pct)
    channel = torch.arange(0, size, 2, device=position.device, dtype=torch.float32)
    place = position.float()[:, None, :, None]
    angle = place * config.rotary_emb_base ** (-channel / size)
    power = (place - config.max_position_embeddings // 2) / config.rotary_scale_base
    scale = ((channel + 0.4 * size) / (1.4 * size)) ** power
    cos, sin, scale = (torch.cat([half, half], -1) for half in (angle.cos(), angle.sin(), scale))
    return cos, sin, scale


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, scale: Tensor) -> Tensor:
    """Rotate and scale the first r channels of [B, H, S, d]; channel i is paired with channel i + r/2."""
    turned, kept = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.float().chunk(2, dim=-1)
    turned = (turned * cos + torch.cat([-second, first], -1) * sin) * scale
    return torch.cat([turned.to(states.dtype), kept], -1)


class JapaneseStableLMAttention(nn.Module):
    """Multi-head attention through SDPA."""

    def __init__(self, config: JapaneseStableLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.num_heads, self.layer_idx = config.num_attention_heads, layer_idx
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden: Tensor, *, mask: Tensor | None, rotary: tuple[Tensor, Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        """Attend; [B, S, D] to [B, S, D]."""
        per_head = self.query_key_value(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = per_head.chunk(3, dim=-1)
        cos, sin, scale = rotary
        query, key = _rotate(query, cos, sin, scale), _rotate(key, cos, sin, 1 / scale)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        is_causal = mask is None and query.shape[2] > 1
        states = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.dense(states.transpose(1, 2).flatten(2))


class JapaneseStableLMMLP(nn.Module):
    """A gated MLP whose two input projections are packed into one."""

    def __init__(self, config: JapaneseStableLMConfig) -> None:
        super().__init__()
        self.packed_input_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the MLP."""
        linear, gate = self.packed_input_proj(hidden).chunk(2, dim=-1)
        return self.out_proj(linear * nn.functional.silu(gate))


class JapaneseStableLMLayer(GradientCheckpointingLayer):
    """Attention and MLP in parallel, each behind a LayerNorm of its own."""

    def __init__(self, config: JapaneseStableLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = JapaneseStableLMAttention(config, layer_idx)
        self.mlp = JapaneseStableLMMLP(config)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor, Tensor], cache: Cache | None
    ) -> Tensor:
        """Run the layer; [B, S, D] to [B, S, D]."""
        attended = self.attention(self.input_layernorm(hidden), mask=mask, rotary=rotary, cache=cache)
        return hidden + attended + self.mlp(self.post_attention_layernorm(hidden))


class JapaneseStableLMPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the family."""

    config: JapaneseStableLMConfig
    config_class = JapaneseStableLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JapaneseStableLMLayer"]  # noqa: RUF012 (the base class's form)
    _supports_sdpa = True
    _can_compile_fullgraph = True


class JapaneseStableLMModel(JapaneseStableLMPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: JapaneseStableLMConfig) -> None:
        super().__init__(config)
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(JapaneseStableLMLayer(config, index) for index in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embeddings."""
        return self.embed_in

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Set the token embeddings."""
        self.embed_in = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers on ids or embeddings, with a 2-D or a ready 4-D mask."""
        hidden = self.embed_in(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            num_cached = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None] + num_cached
        with names_needed_for("japanese_stablelm_alpha"):
            from transformers.masking_utils import create_causal_mask
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **as_argument(cache),
        )
        rotary = rotary_factors(self.config, position_ids)
        for layer in self.layers:
            hidden = layer(hidden, mask, rotary, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.final_layer_norm(hidden), **as_argument(cache))


class JapaneseStableLMForCausalLM(JapaneseStableLMPreTrainedModel, GenerationMixin):
    """The decoder with its head."""

    _tied_weights_keys = {"embed_out.weight": "transformer.embed_in.weight"}  # noqa: RUF012 (the base class's form)

    def __init__(self, config: JapaneseStableLMConfig) -> None:
        super().__init__(config)
        self.transformer = JapaneseStableLMModel(config)
        self.embed_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Give the head."""
        return self.embed_out

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Set the head."""
        self.embed_out = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Give logits [B, S, V], or those of the last `logits_to_keep` positions."""
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state
        logits = self.embed_out(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return CausalLMOutputWithPast(logits=logits, **as_argument(output.get(CACHE_NAME)))


AutoConfig.register(JapaneseStableLMConfig.model_type, JapaneseStableLMConfig, exist_ok=True)
AutoModelForCausalLM.register(JapaneseStableLMConfig, JapaneseStableLMForCausalLM, exist_ok=True)
