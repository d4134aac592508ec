"""FlexAttention computes what the dense kernels compute, and devices choose."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations import flex_attention as library_flex

from tests.tiny import WINDOWED, assert_close, assert_same_gradients, bare_language, batch, fresh, gradients, sample
from visgraft.errors import ConfigError, MaskSizeError
from visgraft.model import language as language_module
from visgraft.model.attention_kernel import FLEX, choose_attention, dense_attention, set_attention
from visgraft.model.language import read_attention_spec
from visgraft.model.sequence import SegmentTable
from visgraft.model.vlm import VisionLanguageModel

FAMILIES = ["llama", "gpt_neox", "opt", "qwen3", "phi3", "olmo2", "granite", *WINDOWED]
OF = [sample(6, 3, 5, images=2), sample(4, images=1), sample(5, 7, images=0), sample(8, 2, images=1)]
FILLED = [[0, 2], [3, 1]]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run FlexAttention's own reference on the CPU, backward too: torch refuses that only in front of its kernels."""

    def reference(query: Tensor, key: Tensor, value: Tensor, *, training: bool = False, **arguments: Any) -> Any:
        return torch_flex.flex_attention(query, key, value, **arguments)

    monkeypatch.setattr(library_flex, "compile_friendly_flex_attention", reference)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    yield


def flexible(name: str) -> VisionLanguageModel:
    model = fresh(name)
    set_attention(model, FLEX)
    return model


def table_of(made: Any) -> SegmentTable:
    return SegmentTable(made.kind, made.group, made.segment, made.position, made.sees)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("uncompiled")
def test_flex_attention_equals_the_dense_kernel_in_loss_and_every_gradient(name: str) -> None:
    plain, flex = fresh(name), flexible(name)
    assert flex.attention_spec.blocks
    filled = batch(OF, rows=FILLED)
    masks = flex.attention_spec.arguments(table_of(filled), dtype=torch.float32)["attention_mask"]
    assert all(isinstance(m, BlockMask) for m in (masks.values() if isinstance(masks, dict) else [masks]))
    first, second = plain.loss(filled), flex.loss(filled)
    assert_close(second.target_losses, first.target_losses)
    assert_same_gradients(gradients(plain, first.loss), gradients(flex, second.loss))


def test_generation_decodes_with_dense_masks_and_training_goes_on_with_blocks() -> None:
    model, plain = flexible("gemma3"), fresh("gemma3")
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    with dense_attention(model):
        assert model.language.config._attn_implementation == "sdpa"
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(ids, plain.generate(**inputs, max_new_tokens=6, do_sample=False))
    assert model.attention_spec.blocks
    assert model.language.config._attn_implementation == FLEX
    with dense_attention(plain):
        assert plain.language.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma3", "mistral"])
def test_the_kernel_can_be_changed_and_computes_the_same(name: str) -> None:
    plain, eager = fresh(name), fresh(name)
    set_attention(eager, "eager")
    assert eager.attention_spec == read_attention_spec(eager.language)
    filled = batch(OF, rows=FILLED)
    first, second = plain.loss(filled), eager.loss(filled)
    assert_close(second.target_losses, first.target_losses)
    assert_same_gradients(gradients(plain, first.loss), gradients(eager, second.loss))


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_gpu"),
    [
        ("qwen3", "eager", None),  # heads of 8, smaller than the kernel's smallest
        ("llama", "eager", None),
        ("mpt", None, None),  # ALiBi: its bias is in the mask
        ("bloom", None, None),
        ("falcon_alibi", None, None),
        ("gemma2", None, None),  # its own choice
        ("opt", "eager", None),
    ],
)
def test_a_device_chooses_what_the_family_can_do(name: str, on_cpu: str | None, on_gpu: str | None) -> None:
    language = bare_language(name)
    assert choose_attention(language, device=CPU) == on_cpu
    assert choose_attention(language, device=GPU) == on_gpu
    assert choose_attention(language, device=GPU, asked="sdpa") == "sdpa"


def test_a_gpu_chooses_block_masks_for_heads_that_are_large_enough() -> None:
    language = bare_language("llama")
    language.config.head_dim = 64
    assert choose_attention(language, device=GPU) == FLEX
    language.config.attention_dropout = 0.1
    assert choose_attention(language, device=GPU) is None


def test_flex_attention_is_refused_where_it_cannot_train() -> None:
    with pytest.raises(ConfigError, match=r"model\.attention: got flex_attention, which has no backward pass on .*cpu"):
        choose_attention(bare_language("llama"), device=CPU, asked=FLEX)


def test_a_kernel_that_a_family_lacks_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.attention: got sdpas, which llama lacks"):
        set_attention(fresh("llama"), "sdpas")


@pytest.mark.parametrize(("name", "mega"), [("llama", 1), ("llama_eager", 4), ("bloom", 16)])
def test_a_dense_mask_that_is_too_large_is_refused(name: str, mega: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attention_spec, table = read_attention_spec(bare_language(name)), table_of(batch(OF, rows=FILLED))
    size = table.kind.numel() * table.length * mega
    monkeypatch.setattr(language_module, "MAX_MASK_BYTES", size)
    attention_spec.arguments(table, dtype=torch.float32)
    monkeypatch.setattr(language_module, "MAX_MASK_BYTES", size - 1)
    with pytest.raises(
        MaskSizeError, match=r"a dense attention mask of 2 rows of .* allowed is .*train\.row_positions"
    ):
        attention_spec.arguments(table, dtype=torch.float32)
