"""The language models of GIT-LLM and heron: one row an architecture, with what its checkpoints mean.

In: the values of a checkpoint's `config.json` and its language model's tensors. Out: the configuration of the plain
language model, its sizes read from the tensors (a stored configuration can be wrong).

    architecture = find_architecture("git_opt")
    config = architecture.text_config(values, tensors)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GPTNeoXConfig, LlamaConfig, MptConfig, OPTConfig, PreTrainedConfig

from visgraft.errors import CheckpointError
from visgraft.model.japanese_stablelm import JapaneseStableLMConfig
from visgraft.model.prefix_injection import PrefixPlace

Values = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """What the checkpoints of an architecture mean.

    Attributes:
        root: what its keys start with.
        text_config: makes the plain language model's configuration.
        image_attention: the mask inside an image that its checkpoints were trained with.
        prefix_at: where the prefix enters.
        template: the prompt template of whoever trained its published checkpoints.
        embedding: the key of its input embeddings.
        head: the key of its output embeddings.
        is_tied: whether the two are one, where `config.json` does not say.
        moved: keys that are called otherwise in the plain model, which replace what is stored there.
        dead: patterns of keys that are stored and never used.
    """

    root: str
    text_config: Callable[[Values, Tensors], PreTrainedConfig]
    embedding: str
    head: str
    is_tied: bool = False
    image_attention: str = "bidirectional"
    prefix_at: PrefixPlace = "embeddings"
    template: str = "git-llm"
    moved: tuple[tuple[str, str], ...] = ()
    dead: tuple[str, ...] = ()


def find_architecture(model_type: object) -> Architecture:
    """Give the row of a checkpoint's `model_type`.

    Raises:
        CheckpointError: it is none of theirs.
    """
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: got model_type {model_type!r}, which is no GIT-LLM or heron model; "
            f"allowed are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]


def _opt(values: Values, tensors: Tensors) -> PreTrainedConfig:
    decoder = "model.decoder."
    has_final_norm = f"{decoder}final_layer_norm.weight" in tensors
    is_pre_norm = bool(values.get("do_layer_norm_before", True))
    rows, hidden_size = tensors[f"{decoder}embed_positions.weight"].shape
    return OPTConfig(
        **_tokens(values, tensors, key=f"{decoder}embed_tokens.weight"),
        **_chosen(
            values,
            "activation_function dropout attention_dropout layerdrop init_std enable_bias "
            "layer_norm_elementwise_affine num_attention_heads",
        ),
        hidden_size=hidden_size,
        word_embed_proj_dim=tensors[f"{decoder}embed_tokens.weight"].shape[1],
        ffn_dim=tensors[f"{decoder}layers.0.fc1.weight"].shape[0],
        num_hidden_layers=_count(tensors, f"{decoder}layers."),
        max_position_embeddings=rows - 2,  # the first two rows are for pads, as in fairseq
        do_layer_norm_before=is_pre_norm,
        _remove_final_layer_norm=is_pre_norm and not has_final_norm,
    )


def _llama(values: Values, tensors: Tensors) -> PreTrainedConfig:
    heads = _require(values, "num_attention_heads")
    embedding = tensors["model.embed_tokens.weight"]
    head_dim = tensors["model.layers.0.self_attn.q_proj.weight"].shape[0] // heads
    config: Any = LlamaConfig  # its signature hides the names that older checkpoints use
    return config(
        **_tokens(values, tensors, key="model.embed_tokens.weight"),
        **_chosen(
            values,
            "hidden_act initializer_range rms_norm_eps rope_scaling attention_dropout max_position_embeddings",
        ),
        hidden_size=embedding.shape[1],
        intermediate_size=tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=_count(tensors, "model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=tensors["model.layers.0.self_attn.k_proj.weight"].shape[0] // head_dim,
        rope_theta=values.get("rope_theta", 10000.0),
        attention_bias="model.layers.0.self_attn.q_proj.bias" in tensors,
        mlp_bias="model.layers.0.mlp.up_proj.bias" in tensors,
    )


def _mpt(values: Values, tensors: Tensors) -> PreTrainedConfig:
    attention = dict(values.get("attn_config") or {})
    # The MPT of GIT-LLM's day ignored clip_qkv, qk_ln, logit_scale and alibi_bias_max (8 for all), so they do not
    # come along: a library that honours them would compute something else.
    return MptConfig(
        **_tokens(values, tensors, key="transformer.wte.weight"),
        **_chosen(values, "n_heads max_seq_len layer_norm_epsilon resid_pdrop emb_pdrop"),
        d_model=tensors["transformer.wte.weight"].shape[1],
        n_layers=_count(tensors, "transformer.blocks."),
        attn_config=_chosen(attention, "attn_pdrop softmax_scale"),
    )


def _gpt_neox(values: Values, tensors: Tensors) -> PreTrainedConfig:
    layer = "gpt_neox.layers.0."
    config: Any = GPTNeoXConfig
    return config(
        **_tokens(values, tensors, key="gpt_neox.embed_in.weight"),
        **_chosen(
            values,
            "num_attention_heads hidden_act max_position_embeddings initializer_range layer_norm_eps "
            "attention_dropout hidden_dropout use_parallel_residual rope_scaling",
        ),
        hidden_size=tensors["gpt_neox.embed_in.weight"].shape[1],
        intermediate_size=tensors[f"{layer}mlp.dense_h_to_4h.weight"].shape[0],
        num_hidden_layers=_count(tensors, "gpt_neox.layers."),
        rotary_pct=values.get("rotary_pct", 0.25),
        rotary_emb_base=values.get("rotary_emb_base", 10000),
        attention_bias=f"{layer}attention.query_key_value.bias" in tensors,
    )


def _japanese_stablelm(values: Values, tensors: Tensors) -> PreTrainedConfig:
    return JapaneseStableLMConfig(
        **_tokens(values, tensors, key="transformer.embed_in.weight"),
        **_chosen(
            values,
            "num_attention_heads rotary_pct rotary_emb_base rotary_scale_base layer_norm_eps "
            "max_position_embeddings initializer_range",
        ),
        hidden_size=tensors["transformer.embed_in.weight"].shape[1],
        intermediate_size=tensors["transformer.layers.0.mlp.out_proj.weight"].shape[1],
        num_hidden_layers=_count(tensors, "transformer.layers."),
    )


def _tokens(values: Values, tensors: Tensors, *, key: str) -> dict[str, Any]:
    """Give the vocabulary and its special tokens."""
    size = tensors[key].shape[0]
    pad = values.get("pad_token_id")
    return {
        **_chosen(values, "bos_token_id eos_token_id"),
        "vocab_size": size,
        # heron adds a pad token without an embedding of its own; pads are masked, so none is needed
        "pad_token_id": pad if pad is not None and pad < size else None,
    }


def _chosen(values: Values, names: str) -> dict[str, Any]:
    return {name: values[name] for name in names.split() if name in values}


def _require(values: Values, name: str) -> Any:
    if name not in values:
        raise CheckpointError(f"config.json: {name} is missing, and no tensor tells it")
    return values[name]


def _count(tensors: Tensors, prefix: str) -> int:
    """Count the layers whose keys start with a prefix and a number."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in tensors if key.startswith(prefix)}
    return len(numbers)


_ROTARY = r"\.rotary_emb\.(inv_freq|scale)$"
_CAUSAL_BUFFER = r"\.attention\.(bias|masked_bias)$"
ARCHITECTURES: Mapping[str, Architecture] = {
    "git_opt": Architecture(
        root="model.",
        text_config=_opt,
        embedding="model.decoder.embed_tokens.weight",
        head="lm_head.weight",
        is_tied=True,
        prefix_at="first_layer",
        moved=(("model.embed_positions.weight", "model.decoder.embed_positions.weight"),),
    ),
    "git_llama": Architecture(
        root="model.",
        text_config=_llama,
        embedding="model.embed_tokens.weight",
        head="lm_head.weight",
        dead=(_ROTARY,),
    ),
    "git_mpt": Architecture(
        root="transformer.",
        text_config=_mpt,
        embedding="transformer.wte.weight",
        head="lm_head.weight",
        is_tied=True,
    ),
    "git_gpt_neox": Architecture(
        root="gpt_neox.",
        text_config=_gpt_neox,
        embedding="gpt_neox.embed_in.weight",
        head="embed_out.weight",
        image_attention="causal",
        template="heron",
        dead=(_ROTARY, _CAUSAL_BUFFER),
    ),
    "git_japanese_stablelm_alpha": Architecture(
        root="transformer.",
        text_config=_japanese_stablelm,
        embedding="transformer.embed_in.weight",
        head="embed_out.weight",
        image_attention="causal",
        template="heron",
        dead=(_ROTARY, _CAUSAL_BUFFER),
    ),
}
