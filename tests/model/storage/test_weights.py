"""A part's own weights have each one name in memory, one on disk, and one format that outlives a folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from tests.tiny import LLAMA_LIKE, TOKENS, bare_language, bare_vision, fresh
from visgraft.errors import CheckpointError
from visgraft.model.storage.weights import (
    cast_weights,
    describe_formats,
    disk_names,
    own_weights,
    read_tensors,
    round_weights,
)
from visgraft.model.trainable import set_trainable

BF16, FP16 = torch.bfloat16, torch.float16


def test_tied_weights_are_listed_once() -> None:
    names = own_weights(bare_language("opt"))
    assert "model.decoder.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_weight_behind_lora_keeps_its_name_and_lora_is_left_out() -> None:
    model = fresh()
    before = own_weights(model.language)
    set_trainable(model, modes={"language": "lora"})
    after = own_weights(model.language)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_names_on_disk_are_those_that_save_pretrained_writes(tmp_path: Path) -> None:
    config = MixtralConfig(**LLAMA_LIKE, **TOKENS, num_local_experts=4)
    for index, module in enumerate(
        [bare_language("gpt2"), bare_vision("beit"), AutoModelForCausalLM.from_config(config)]
    ):
        module.save_pretrained(tmp_path / str(index))
        written = load_file(tmp_path / str(index) / "model.safetensors")
        names, weights = disk_names(module), own_weights(module)
        for name, on_disk in names.items():
            assert torch.equal(weights[name], written[on_disk])
        assert (set(weights) == set(names)) == (index < 2)
    assert {name.split(".")[-1] for name in set(weights) - set(names)} == {"gate_up_proj", "down_proj"}


def test_tensors_of_all_files_are_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no safetensors file: the model folder is not complete"):
        read_tensors(tmp_path)
    bare_language("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert read_tensors(tmp_path).keys() == own_weights(bare_language("llama")).keys()
    (tmp_path / "model-00002-of-00009.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00009.safetensors is cut short or damaged \("):
        read_tensors(tmp_path)


def test_formats_are_described_in_few_words_with_rounding_as_described() -> None:
    vision = bare_vision("efficientnet")
    norms = [name for name in own_weights(vision) if "bn" in name or "norm" in name]
    rounded = {name: () if name in norms else (BF16,) for name in own_weights(vision)}
    described = describe_formats(vision, rounded)
    assert described == {"dtype": "bfloat16", "other_dtypes": {}}  # BatchNorm and its statistics stay float32
    before = {name: weight.clone() for name, weight in own_weights(vision).items()}
    assert round_weights(vision, **described) == {
        name: steps for name, steps in rounded.items() if before[name].is_floating_point()
    }
    for name, weight in own_weights(vision).items():
        assert torch.equal(weight, before[name] if name in norms else before[name].bfloat16().float())


def test_formats_that_differ_from_the_others_are_named() -> None:
    language = bare_language("llama")
    rounded = dict.fromkeys(own_weights(language), (BF16,))
    rounded |= {"lm_head.weight": (), "model.norm.weight": (BF16, FP16)}
    described = describe_formats(language, rounded)
    others = {"lm_head.weight": "float32", "model.norm.weight": "bfloat16 float16"}
    assert described == {"dtype": "bfloat16", "other_dtypes": others}
    assert round_weights(language, **described) == rounded
    assert describe_formats(language, {}) == {"dtype": "float32", "other_dtypes": {}}


def test_a_cast_leaves_computed_buffers_as_they_are() -> None:
    language = bare_language("llama")
    frequencies = language.model.rotary_emb.inv_freq.clone()
    cast_weights(language, BF16)
    assert {weight.dtype for weight in own_weights(language).values()} == {BF16}
    assert torch.equal(language.model.rotary_emb.inv_freq, frequencies)
