"""Whether a language model can be joined exactly, found by trying, not by a list of names.

In: a language model. Out: nothing, or an `UnsupportedModelError` that names the model and the reason. A tiny random
model of the same class and configuration is asked three things: does it compute what the bare LM computes without an
image; does a change at one position move exactly the positions that the mask lets see it; do two texts behind one
prefix compute what each computes alone. A model whose class cannot be made tiny is tried itself.
(Before that, `read_attention_spec` refuses what takes no mask at all; later, `supervised_loss` what makes its logits
elsewhere than in its output embeddings.)

    check_language(language)
"""

from __future__ import annotations

import contextlib
import copy
import json
from typing import NoReturn

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from visgraft.errors import UnsupportedModelError
from visgraft.model.language import AttentionSpec, read_attention_spec
from visgraft.model.sequence import SegmentTable, attention_mask, image_then_text, shared_prefix

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "word_embed_proj_dim": 32,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "max_seq_len": 64,
    "sliding_window": 5,
    "attention_chunk_size": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_kv_heads": 2,
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NUM_IMAGE, TEXT_LENGTHS, TEXT_ONLY = 4, (3, 3), 12
# What a model raises that cannot run as it is asked to.
_FAILURES = (ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError)
_passed: set[str] = set()


def check_language(language: PreTrainedModel) -> None:
    """Refuse a language model that does not follow the mask and the positions it is given.

    Raises:
        UnsupportedModelError: with the model type and what it did.
    """
    config = language.config.get_text_config(decoder=True)
    key = json.dumps([config.to_dict(), config._attn_implementation], sort_keys=True, default=str)
    if key in _passed:
        return
    tiny = _tiny_like(language)
    subject = language if tiny is None else tiny
    was_training = subject.training
    subject.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _check(subject, exact=subject is not language)
    subject.train(was_training)
    _passed.add(key)


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Copy a config with every size made tiny and one layer of each kind, at least two."""
    tiny = copy.deepcopy(config)
    heads = getattr(config, "num_attention_heads", None)
    grouped = getattr(config, "num_key_value_heads", None) not in (None, heads)
    for name, value in TINY.items():
        if getattr(config, name, None) is None:
            continue
        if name == "num_key_value_heads" and not grouped:
            value = TINY["num_attention_heads"]
        with contextlib.suppress(AttributeError):  # a size derived from others has no setter
            setattr(tiny, name, value)
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        kinds = list(dict.fromkeys(layer_types))
        with contextlib.suppress(AttributeError):
            tiny.layer_types = kinds if len(kinds) > 1 else kinds * 2
    tiny.num_hidden_layers = max(2, len(set(layer_types or ())))
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type", "default") != "default":  # factors are as long as the old head
        tiny.rope_parameters = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 1e4)}
        partial = rope.get("partial_rotary_factor")
        if partial is not None:
            tiny.rope_parameters["partial_rotary_factor"] = partial
    return tiny


def _tiny_like(language: PreTrainedModel) -> PreTrainedModel | None:
    """Make a tiny random model of the same class, or None where its config does not shrink."""
    config = language.config.get_text_config(decoder=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # A class of one's own is tried as it is; of a model with more than one part, the text part.
            make = AutoModelForCausalLM.from_config if config is not language.config else type(language)._from_config
            tiny = make(shrink(config), attn_implementation=config._attn_implementation, dtype=torch.float32)
            for parameter in tiny.parameters():
                if parameter.ndim > 1:  # the library's initial weights are so small that effects vanish
                    torch.nn.init.normal_(parameter, std=0.2)
            ids = torch.zeros(1, 4, dtype=torch.long)
            tiny.eval()(input_ids=ids)
            return tiny
    except _FAILURES:
        return None


def _check(language: PreTrainedModel, *, exact: bool) -> None:
    device, embeddings = language.device, language.get_input_embeddings()
    ids = torch.randint(3, 60, (1, TEXT_ONLY), device=device)
    bare = language(input_ids=ids, use_cache=False).logits.float()  # before a quirk changes anything
    spec = read_attention_spec(language)
    tolerance = (1e-4 if exact else 3e-2) * float(bare.abs().max())

    none, real = torch.zeros(1, 0, dtype=torch.bool, device=device), torch.ones_like(ids, dtype=torch.bool)
    ours = _logits(language, spec, embeddings(ids), image_then_text(none, real))
    if not _close(ours, bare, tolerance):
        _refuse(spec, "without an image it does not compute what the bare model computes")

    table = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=TEXT_LENGTHS).to(device)
    inputs = embeddings(torch.randint(3, 60, (1, table.length), device=device))
    logits = _logits(language, spec, inputs, table)
    _check_perturbation(language, spec, inputs, table, logits, tolerance)

    start = NUM_IMAGE
    for length in TEXT_LENGTHS:
        columns = [*range(NUM_IMAGE), *range(start, start + length)]
        alone = _logits(
            language,
            spec,
            inputs[:, columns],
            shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=[length]).to(device),
        )
        if not _close(alone, logits[:, columns], tolerance):
            _refuse(
                spec,
                "it takes positions from the row and not from position_ids, so texts cannot share a prefix",
            )
        start += length


def _check_perturbation(
    language: PreTrainedModel,
    spec: AttentionSpec,
    inputs: Tensor,
    table: SegmentTable,
    logits: Tensor,
    tolerance: float,
) -> None:
    """Change one position at a time along a random direction; exactly its readers must move."""
    size = table.length
    direction = torch.randn(size, inputs.shape[-1], device=inputs.device, dtype=inputs.dtype)
    changed = inputs.repeat(size, 1, 1)
    index = torch.arange(size, device=inputs.device)
    changed[index, index] += direction * inputs.float().std().to(inputs.dtype) * 3
    wide = SegmentTable(
        *(
            getattr(table, name).expand(size, *[-1] * (getattr(table, name).ndim - 1))
            for name in ("kind", "group", "segment", "position", "sees")
        )
    )
    moved = (_logits(language, spec, changed, wide) - logits).abs().amax(-1)  # [changed, reader]
    direct, reach = _reachable(spec, table)
    for source in range(size):
        for reader in range(size):
            if moved[source, reader] > tolerance and not reach[reader, source]:
                _refuse(spec, f"position {reader} must not see position {source} and does: it ignores the mask")
            if moved[source, reader] == 0 and direct[reader, source]:
                _refuse(spec, f"position {reader} must see position {source} and does not: it ignores the mask")


def _reachable(spec: AttentionSpec, table: SegmentTable) -> tuple[Tensor, Tensor]:
    """Give who sees whom in every layer kind at once, and through any number of layers."""
    masks = [attention_mask(table, window=reach.window, chunk=reach.chunk)[0, 0] for reach, _ in spec.reaches.values()]
    direct = torch.stack(masks).all(0)
    reach = torch.stack(masks).any(0)
    for _ in range(table.length):
        reach = (reach.float() @ reach.float()) > 0
    return direct, reach


def _logits(language: PreTrainedModel, spec: AttentionSpec, inputs: Tensor, table: SegmentTable) -> Tensor:
    arguments = spec.arguments(table, dtype=inputs.dtype)
    try:
        return language(inputs_embeds=inputs, use_cache=False, **arguments).logits.float()
    except _FAILURES as error:
        _refuse(spec, f"it cannot take a mask of who sees whom ({type(error).__name__}: {error})")


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool(((first - second).abs().max() <= tolerance).item())


def _refuse(spec: AttentionSpec, reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"{spec.name} cannot be joined exactly: {reason}. Choose another language model; most causal LMs work"
    )
