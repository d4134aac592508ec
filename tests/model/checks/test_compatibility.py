"""What cannot be joined exactly is refused by name, with the reason; all others are read as is right for them."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from tests.tiny import (
    ALIBI,
    LANGUAGE_CONFIGS,
    LLAMA_LIKE,
    TOKENS,
    V,
    bare,
    bare_language,
    bare_vision,
    random_ids,
    random_pixels,
)
from tests.versions import since
from visgraft.errors import UnsupportedModelError
from visgraft.model import language
from visgraft.model.checks import compatibility
from visgraft.model.checks.compatibility import check_language
from visgraft.model.checks.tiny_twin import TEXT_ONLY
from visgraft.model.vlm import VisionLanguageModel


@pytest.fixture
def nothing_passed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "_found", {})


def from_config(config: Any) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", LANGUAGE_CONFIGS)
@pytest.mark.usefixtures("nothing_passed_before")
def test_every_family_of_the_cross_passes(name: str) -> None:
    check_language(bare_language(name))


# --- Refusals

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT_NEO = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]
}  # fmt: skip


def test_gpt_neo_is_refused_for_its_causal_mask_of_its_own() -> None:
    with pytest.raises(UnsupportedModelError, match=r"gpt_neo cannot be joined exactly: position \d+ must .*the mask"):
        check_language(from_config(hf.GPTNeoConfig(**GPT_NEO, **TOKENS)))


def test_gpt_neo_is_joined_with_causal_images() -> None:
    assert check_language(from_config(hf.GPTNeoConfig(**GPT_NEO, **TOKENS)), causal_image=True).sharing == "mask"
    with pytest.raises(UnsupportedModelError, match=r"With model\.image_attention: causal it may be joined"):
        check_language(from_config(hf.GPTNeoConfig(**GPT_NEO, **TOKENS)))


def test_a_refusal_comes_from_from_parts() -> None:
    with pytest.raises(UnsupportedModelError, match="gpt_neo cannot be joined exactly"):
        VisionLanguageModel.from_parts(bare_vision("clip"), from_config(hf.GPTNeoConfig(**GPT_NEO, **TOKENS)))


@pytest.mark.parametrize("name", ALIBI)
@pytest.mark.usefixtures("nothing_passed_before")
def test_an_alibi_family_is_not_joined_by_the_mask_without_its_quirk(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "QUIRKS", {})
    found = check_language(bare_language(name))  # each text then reads on from a cache, or has a row of its own
    assert found.sharing != "mask"
    assert found.takes_mask == (name == "mpt")


def test_positions_that_count_on_from_that_of_pads_are_found() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.RobertaConfig(**sizes, intermediate_size=48, is_decoder=True, pad_token_id=1)
    found = check_language(from_config(config))
    assert (found.sharing, found.position_offset) == ("mask", 2)


@since("transformers", "5.19", "doge lets positions see later ones")
def test_layers_that_cannot_take_float32_states_between_narrow_weights_are_found() -> None:
    config = hf.DogeConfig(**{**LLAMA_LIKE, "vocab_size": 64}, head_dim=8)
    assert not check_language(from_config(config)).wide_states
    assert check_language(bare_language("llama")).wide_states


def test_layers_that_bear_no_mixed_precision_are_found_and_said_when_it_is_asked_for() -> None:
    config = hf.XmodConfig(
        **{**SMALL, "vocab_size": V}, intermediate_size=48, is_decoder=True, default_language="en_XX"
    )
    model = VisionLanguageModel.from_parts(bare_vision("clip"), from_config(config))
    ids, pixels = random_ids(1, 4), random_pixels(1)
    with torch.no_grad():
        model(input_ids=ids, pixel_values=pixels)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            pytest.raises(UnsupportedModelError, match=r"xmod mixes number formats .*: set train\.precision: fp32"),
        ):
            model(input_ids=ids, pixel_values=pixels)


def test_a_family_that_reads_token_ids_in_every_layer_is_refused() -> None:
    config = hf.Gemma3nTextConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=48, head_dim=8, vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8, num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"gemma3n_text cannot .*: without an image it does not compute"):
        check_language(from_config(config))  # in which a scale of 0 hides it


@pytest.mark.usefixtures("nothing_passed_before")
def test_a_model_that_does_not_run_on_token_ids_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModelError, match=r"llama .*: it does not run on token ids alone \(ValueError: help"):
        check_language(led_astray("helpless", monkeypatch))


@pytest.mark.usefixtures("nothing_passed_before")
def test_a_model_whose_text_part_alone_was_made_tiny_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = led_astray("helpless", monkeypatch)
    monkeypatch.setattr(compatibility, "tiny_like", lambda _: bare_language("llama"))
    with pytest.raises(UnsupportedModelError, match="does not run on token ids alone"):
        check_language(model)


def test_embeddings_that_are_no_table_of_tokens_are_refused() -> None:
    config = hf.MusicgenDecoderConfig(**SMALL, ffn_dim=48, num_codebooks=2)
    with pytest.raises(UnsupportedModelError, match=r"musicgen_decoder .* \(ModuleList\) are not one table with a row"):
        VisionLanguageModel.from_parts(bare_vision("clip"), hf.MusicgenForCausalLM(config))


def test_what_could_not_be_loaded_again_is_refused_at_the_join() -> None:
    config = hf.Emu3TextConfig(**SMALL, **TOKENS, num_key_value_heads=2, intermediate_size=48)
    with pytest.raises(UnsupportedModelError, match=r"emu3_text_model .* does not know Emu3TextConfig\. Register it"):
        VisionLanguageModel.from_parts(bare_vision("clip"), hf.Emu3ForCausalLM(config))


class Reading(hf.LlamaForCausalLM):
    """A Llama that is led astray in one way."""

    astray = ""

    def forward(
        self,
        input_ids: Any = None,
        inputs_embeds: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        **kwargs: Any,
    ) -> Any:  # type: ignore[override]
        if self.astray == "helpless" and inputs_embeds is None:
            raise ValueError("help")
        if self.astray == "mask" and attention_mask is not None:
            attention_mask = attention_mask | torch.ones_like(attention_mask).tril()
        if self.astray == "ahead" and attention_mask is not None and attention_mask.shape[-1] != TEXT_ONLY:
            attention_mask = torch.ones_like(attention_mask)
        if self.astray == "blind" and attention_mask is not None and (attention_mask != attention_mask.tril()).any():
            attention_mask = torch.eye(attention_mask.shape[-1]).bool().expand_as(attention_mask)
        if self.astray == "positions":
            position_ids = None
        if self.astray == "text" and position_ids is not None:
            position_ids = position_ids * 2
        return super().forward(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)


@pytest.mark.usefixtures("nothing_passed_before")
@pytest.mark.parametrize(
    ("astray", "message"),
    [
        ("ahead", r"llama cannot .*: its state flows past any mask, and in a row position \d+ sees the later position"),
        (
            "blind",
            r"llama cannot .*: position \d+ must see position \d+ and does not: it ignores the mask",
        ),
        ("text", r"llama cannot be joined exactly: without an image it does not compute what the bare model computes"),
    ],
)
def test_a_model_that_goes_astray_is_refused_with_what_it_did(
    astray: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        check_language(led_astray(astray, monkeypatch))


@pytest.mark.usefixtures("nothing_passed_before")
@pytest.mark.parametrize("astray", ["mask", "positions"])
def test_a_model_that_is_right_in_rows_of_its_own_alone_is_read_so(
    astray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check_language(led_astray(astray, monkeypatch))
    assert found.sharing == "rows"
    assert found.behind_cache == {"mask": "nothing", "positions": "nothing"}[astray]


def led_astray(astray: str, monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.setattr(Reading, "astray", astray)
    model = Reading(bare("llama").config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    # Its class is not the library's, so the tiny twin would go right: the model itself is tried.
    monkeypatch.setattr(compatibility, "tiny_like", lambda _: None)
    return model.eval()


# --- Manners


def test_the_check_leaves_the_random_state_and_the_model_as_they_were(nothing_passed_before: None) -> None:
    model = bare_language("gpt2").train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    check_language(model)
    drawn = torch.randn(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(3))
    assert model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_configuration_is_tried_once(nothing_passed_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_language(bare_language("llama"))
    monkeypatch.setattr(compatibility, "_find", lambda *_, **__: pytest.fail("tried again"))
    check_language(bare_language("llama"))


def test_another_class_of_the_same_configuration_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_language(bare_language("llama"))
    monkeypatch.setattr(compatibility, "_find", lambda *_, **__: {"sharing": "rows"})
    assert check_language(Reading(bare("llama").config)).sharing == "rows"
    monkeypatch.setattr(compatibility, "_found", {})


def test_another_kernel_is_tried_again(nothing_passed_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_language(bare_language("llama"))
    tried: list[str] = []

    def find(model: Any, **_: Any) -> dict[str, Any]:
        tried.append(model.config._attn_implementation)
        return {}

    monkeypatch.setattr(compatibility, "_find", find)
    check_language(bare_language("llama_eager"))
    assert tried == ["eager"]


def test_a_large_model_is_checked_on_a_small_one(nothing_passed_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = hf.LlamaConfig(hidden_size=4096, num_hidden_layers=32, vocab_size=32000)
    checked: list[int] = []

    def find(model: Any, **_: Any) -> dict[str, Any]:
        checked.append(model.num_parameters())
        return {}

    monkeypatch.setattr(compatibility, "_find", find)
    with torch.device("meta"):
        check_language(hf.LlamaForCausalLM(config))
    assert checked[0] < 100_000
