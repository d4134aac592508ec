"""How each family is handed masks and positions, and what the quirks of ALiBi families compute."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from tests.tiny import (
    ALIBI,
    HYBRIDS,
    LANGUAGES,
    WINDOW,
    P,
    assert_close,
    bare,
    bare_language,
    bare_vision,
    fresh,
    joined,
    random_ids,
    random_pixels,
)
from visgraft.errors import UnsupportedModelError
from visgraft.model.language import QUIRKS, Reach, embedding_scale, embedding_width, read_attention_spec
from visgraft.model.sequence import image_then_text, shared_prefix
from visgraft.model.vlm import VisionLanguageModel

PREFIX = shared_prefix(num_image_tokens=3, text_lengths=[2, 2])


def head_slopes(num_heads: int) -> Tensor:
    """Give the slopes of Press et al. 2022 (ALiBi, section 3) for a power of two heads: 2^(-8h/H)."""
    return torch.tensor([2.0 ** (-8 * head / num_heads) for head in range(1, num_heads + 1)])


# --- What the attention_spec reads


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "phi3", "qwen3", "olmo2", "falcon"])
def test_a_family_with_one_kind_of_layer_takes_one_boolean_mask(name: str) -> None:
    arguments = read_attention_spec(bare(name)).arguments(PREFIX, dtype=torch.float32)
    mask = arguments["attention_mask"]
    assert mask.dtype == torch.bool
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0].sum(1).tolist() == [3, 3, 3, 4, 5, 4, 5]
    assert arguments["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4]]


def test_a_family_with_several_kinds_of_layers_takes_a_mask_for_each() -> None:
    attention_spec = read_attention_spec(bare("gemma3"))
    assert attention_spec.reaches == {"sliding_attention": (Reach(window=WINDOW), 0), "full_attention": (Reach(), 1)}
    table = shared_prefix(num_image_tokens=6, text_lengths=[3])
    masks = attention_spec.arguments(table, dtype=torch.float32)["attention_mask"]
    assert list(masks) == ["sliding_attention", "full_attention"]
    assert masks["full_attention"][0, 0, -1].tolist() == [True] * 9
    assert masks["sliding_attention"][0, 0, -1].tolist() == [False] * 5 + [True] * 4
    assert masks["sliding_attention"][0, 0, 5].tolist() == [False] * 2 + [True] * 4 + [False] * 3
    assert masks["sliding_attention"][0, 0, 0].tolist() == [True] * 6 + [False] * 3  # the future of an image is not cut


def test_a_family_with_one_window_has_it_folded_into_its_one_mask() -> None:
    mask = read_attention_spec(bare("mistral")).arguments(PREFIX, dtype=torch.float32)["attention_mask"]
    # The first token of text b stands at position 3 and column 5; its window of 4 reaches the whole image, not text a.
    assert mask[0, 0, 5].tolist() == [True, True, True, False, False, True, False]
    assert mask[0, 0, 6].tolist() == [False, True, True, False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_eager_kernel_takes_an_additive_mask_that_is_finite(dtype: torch.dtype) -> None:
    mask = read_attention_spec(bare("llama_eager")).arguments(PREFIX, dtype=dtype)["attention_mask"]
    assert mask.dtype == dtype
    assert mask.isfinite().all()
    allowed = read_attention_spec(bare("llama")).arguments(PREFIX, dtype=dtype)["attention_mask"]
    assert (mask[allowed] == 0).all()
    assert (mask[~allowed] < -6e4).all()


def test_a_cache_that_dropped_keys_gets_a_mask_over_those_it_kept() -> None:
    model = joined("gemma3")
    cache = DynamicCache(config=model.language.config)
    model(input_ids=random_ids(1, 4), pixel_values=random_pixels(1), past_key_values=cache, use_cache=True)
    table = image_then_text(torch.ones(1, P).bool(), torch.ones(1, 6).bool())
    masks = model.attention_spec.arguments(table, dtype=torch.float32, num_queries=2, cache=cache)["attention_mask"]
    kept = WINDOW - 1
    assert masks["sliding_attention"].shape == (1, 1, 2, kept + 2)
    assert masks["full_attention"].shape == (1, 1, 2, P + 6)
    assert masks["sliding_attention"][0, 0].tolist() == [[True] * 4 + [False], [False] + [True] * 4]


def test_a_static_cache_gets_a_mask_as_long_as_the_cache() -> None:
    model = joined("llama")
    cache = StaticCache(config=model.language.config, max_cache_len=20)
    model(input_ids=random_ids(1, 4), pixel_values=random_pixels(1), past_key_values=cache, use_cache=True)
    table = image_then_text(torch.ones(1, P).bool(), torch.ones(1, 5).bool())
    mask = model.attention_spec.arguments(table, dtype=torch.float32, num_queries=1, cache=cache)["attention_mask"]
    assert mask[0, 0].tolist() == [[True] * (P + 5) + [False] * (20 - P - 5)]


def test_the_longest_row_is_read_from_the_config() -> None:
    assert {
        name: read_attention_spec(bare_language(name)).max_positions for name in ("llama", "gpt2", "mpt", "bloom")
    } == {
        "llama": 64,
        "gpt2": 64,
        "mpt": 64,
        "bloom": None,
    }


# --- Refusals


def test_layers_that_carry_a_state_are_given_no_mask() -> None:
    language = SimpleNamespace(
        config=LlamaConfig(num_hidden_layers=3, layer_types=["full_attention", "linear_attention", "full_attention"]),
        forward=lambda inputs_embeds, attention_mask: None,
    )
    masks = read_attention_spec(language).arguments(PREFIX, dtype=torch.float32)["attention_mask"]  # type: ignore[arg-type]
    assert masks["linear_attention"] is None
    assert masks["full_attention"].shape == (1, 1, 7, 7)


def test_kinds_without_any_state_are_not_taken_for_ones_that_see() -> None:
    spec = read_attention_spec(bare_language("nemotron_h"))
    assert (list(spec.reaches), spec.unmasked) == (["full_attention"], ("linear_attention", "moe", "mlp"))


@pytest.mark.parametrize("name", ["index_topk", "indexer_budget"])
def test_indexed_attention_sets_a_limit_and_says_so(name: str) -> None:
    language = SimpleNamespace(
        config=LlamaConfig(num_hidden_layers=2, layer_types=["full_attention"] * 2), forward=lambda inputs_embeds: None
    )
    language.config.layer_types = ["indexed_attention"] * 2
    setattr(language.config, name, 12)
    spec = read_attention_spec(language)  # type: ignore[arg-type]
    assert spec.max_positions == 12
    assert spec.why_max == f"its indexed_attention looks at its {name} best keys alone"


def test_a_model_that_takes_no_embeddings_is_refused_by_name() -> None:
    class Blind(LlamaForCausalLM):
        def forward(self, input_ids: Tensor) -> None:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(UnsupportedModelError, match=r"llama \(Blind\) takes no inputs_embeds"):
        read_attention_spec(Blind(bare("llama").config))


# --- The kernel is read where it is used


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma3", "phi3", "bloom", "mistral"])
def test_a_kernel_that_is_set_after_the_join_gets_the_masks_that_it_takes(name: str) -> None:
    model, ids, pixels = fresh(name), random_ids(2, 6), random_pixels(2)
    with torch.no_grad():
        before = model(input_ids=ids, pixel_values=pixels).logits
        for kernel in ("eager", "sdpa"):
            model.set_attn_implementation(kernel)
            assert_close(model(input_ids=ids, pixel_values=pixels).logits, before)


def test_a_kernel_without_masks_is_refused_where_it_is_used() -> None:
    model = fresh("llama")
    model.language.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match=r"llama is set to compute with flash_attention_2, which takes no"):
        model(input_ids=random_ids(1, 4))


# --- The quirks


@pytest.mark.parametrize("name", ALIBI)
def test_an_alibi_bias_is_the_slope_times_the_logical_distance(name: str) -> None:
    model = bare_language(name)
    attention_spec = read_attention_spec(model)
    mask = attention_spec.arguments(PREFIX, dtype=torch.float32)["attention_mask"]
    scale = 8**-0.5 if name == "falcon_alibi" else 1.0  # Falcon scales its scores together with the bias
    distance = PREFIX.position[0][None, :] - PREFIX.position[0][:, None]
    expected = head_slopes(4)[:, None, None] * distance * scale
    allowed = mask[0] > -1e6
    assert torch.equal(
        allowed[0], read_attention_spec(bare("llama")).arguments(PREFIX, dtype=torch.float32)["attention_mask"][0, 0]
    )
    assert_close(mask[0][allowed], expected[allowed], tolerance=1e-6)


@pytest.mark.parametrize("name", ALIBI)
def test_every_quirk_says_why(name: str) -> None:
    config = bare(name).config
    quirk = QUIRKS[config.model_type]
    assert quirk.applies(config)
    assert len(quirk.why) > 20


def test_a_rotary_falcon_needs_no_quirk() -> None:
    assert not QUIRKS["falcon"].applies(bare("falcon").config)
    assert read_attention_spec(bare_language("falcon")).alibi is None


@pytest.mark.parametrize("name", ALIBI)
def test_a_quirk_leaves_the_model_fit_to_be_copied(name: str) -> None:
    model, pixels, ids = joined(name), random_pixels(1), random_ids(1, 4)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        nn.init.zeros_(next(iter(twin.language.parameters())))
        first = model(input_ids=ids, pixel_values=pixels).logits
        second = twin(input_ids=ids, pixel_values=pixels).logits
        assert not torch.allclose(first, second)
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, first)


@pytest.mark.parametrize("name", ALIBI)
def test_a_language_model_alone_computes_what_it_did_before_it_was_joined(name: str) -> None:
    language, ids, pixels = bare_language(name), random_ids(2, 6), random_pixels(2)
    padded = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        before = language(input_ids=ids, attention_mask=padded).logits, language.generate(ids, max_new_tokens=4)
        model = VisionLanguageModel.from_parts(bare_vision("clip"), language)
        joined_logits = model(input_ids=ids, pixel_values=pixels).logits
        after = language(input_ids=ids, attention_mask=padded).logits, language.generate(ids, max_new_tokens=4)
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
        assert torch.equal(model(input_ids=ids, pixel_values=pixels).logits, joined_logits)


@pytest.mark.parametrize("name", ["llama", "opt", *ALIBI])
def test_a_joined_model_can_be_pickled(name: str) -> None:
    model, ids, pixels = joined(name), random_ids(1, 4), random_pixels(1)
    with torch.no_grad():
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(
            twin(input_ids=ids, pixel_values=pixels).logits, model(input_ids=ids, pixel_values=pixels).logits
        )
        assert torch.equal(twin.language(input_ids=ids).logits, bare(name)(input_ids=ids).logits)


def test_mpt_keeps_its_own_scale_clipping_and_cache() -> None:
    attention = {"softmax_scale": 0.2, "clip_qkv": 0.6}
    theirs, ours = (bare_language("mpt", attn_config=_mpt_attention(attention)) for _ in range(2))
    ids = random_ids(2, 7)
    attention_spec = read_attention_spec(ours)
    with torch.no_grad():
        bare_logits = theirs(input_ids=ids).logits
        plain = bare("mpt")(input_ids=ids).logits
        table = image_then_text(torch.zeros(2, 0).bool(), torch.ones(2, 7).bool())
        arguments = attention_spec.arguments(table, dtype=torch.float32)
        logits = ours(inputs_embeds=ours.get_input_embeddings()(ids), **arguments).logits
    assert_close(logits, bare_logits)
    assert not torch.allclose(plain, bare_logits, atol=1e-2)


def _mpt_attention(values: dict[str, Any]) -> Any:
    config = copy.deepcopy(bare("mpt").config.attn_config)
    for key, value in values.items():
        setattr(config, key, value)
    return config


def test_mpt_drops_attention_weights_in_training_as_its_config_says() -> None:
    model = bare_language("mpt").train()
    for block in model.transformer.blocks:
        block.attn.attn_dropout_p = 0.5  # what `attn_config.attn_pdrop` sets
    attention_spec, ids = read_attention_spec(model), random_ids(1, 7)
    table = image_then_text(torch.zeros(1, 0).bool(), torch.ones(1, 7).bool())
    embeds = model.get_input_embeddings()(ids)

    def run() -> Tensor:
        return model(inputs_embeds=embeds, **attention_spec.arguments(table, dtype=torch.float32)).logits

    assert not torch.allclose(run(), run())
    model.eval()
    assert torch.equal(run(), run())


# --- Embeddings


def test_the_width_of_image_tokens_is_that_of_the_embeddings() -> None:
    assert [embedding_width(bare(name)) for name in ("opt", "opt_post_norm", "llama")] == [32, 16, 32]


@pytest.mark.parametrize("name", ["llama", "gemma3", "opt_post_norm"])
def test_the_scale_is_the_standard_deviation_of_embeddings_as_they_enter(name: str) -> None:
    embeddings = bare(name).get_input_embeddings()
    table = embeddings.weight.detach().float()
    factor = 32**0.5 if name == "gemma3" else 1.0  # Gemma multiplies inside its embedding module
    assert embedding_scale(bare(name)) == pytest.approx(float(table.std()) * factor, rel=1e-3)


def test_every_quirk_belongs_to_a_family_that_is_tested() -> None:
    assert set(QUIRKS) <= {bare(name).config.model_type for name in [*LANGUAGES, *HYBRIDS]}
