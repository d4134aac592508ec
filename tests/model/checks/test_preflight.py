"""The preflight passes what is right and names what is wrong."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from visgraft.data.batch import Batch, EncodedSample, collate
from visgraft.data.prompt import EncodedDialog
from visgraft.errors import PreflightError
from visgraft.model.checks.preflight import preflight
from visgraft.model.sequence import SegmentTable
from visgraft.model.vlm import VisionLanguageModel

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
LANGUAGES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, intermediate_size=40),
    "opt": OPTConfig(**SIZES, ffn_dim=40, max_position_embeddings=64, word_embed_proj_dim=32),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64),
    "gemma3 with a short window": Gemma3TextConfig(
        **SIZES, intermediate_size=40, num_key_value_heads=2, head_dim=8, sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention"],
    ),
}  # fmt: skip
CLIP = CLIPVisionConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, image_size=32, patch_size=16
)


def make_model(family: str = "llama", **settings: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    language = AutoModelForCausalLM.from_config(LANGUAGES[family])
    return VisionLanguageModel.from_parts(AutoModel.from_config(CLIP), language, **settings)


def dialog(*ids: int, prompt: int = 2) -> EncodedDialog:
    supervised = tuple(index >= prompt for index in range(len(ids)))
    return EncodedDialog(ids, supervised, num_answer_characters=4, truncated=False)


def make_batch(*, layout: Any = "shared", with_images: bool = True) -> Batch:
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    samples = [
        EncodedSample(
            dialogs=(dialog(5, 6, 7, 8, 9), dialog(10, 11, 12, 13)) if number else (dialog(20, 21, 22),),
            vision_inputs={"pixel_values": pixels[number]} if with_images else {},
            num_image_tokens=(5,) if with_images else (),
            id=f"photo-{number}",
        )
        for number in range(2)
    ]
    return collate(samples, layout=layout, pad_token_id=0)


@pytest.mark.parametrize("family", LANGUAGES)
@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_a_sound_model_passes_and_is_left_as_it_was(family: str, layout: str) -> None:
    model = make_model(family).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    report = preflight(model, make_batch(layout=layout))
    assert report.num_supervised == 3 + 2 + 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("image_attention", ["bidirectional", "causal"])
def test_it_passes_in_bfloat16_and_with_causal_images(image_attention: str) -> None:
    model = make_model(image_attention=image_attention).to(torch.bfloat16)
    model.projection.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert preflight(model, make_batch()).num_supervised == 6


class Told:
    """A contract with a language model that says some things wrong."""

    def __init__(self, contract: Any, **wrong: Any) -> None:
        self.__dict__.update(contract=contract, **wrong)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["contract"], name)


def test_text_that_sees_its_neighbour_is_found() -> None:
    model = make_model()
    arguments = model.attention_spec.arguments

    def all_causal(table: SegmentTable, **settings: Any) -> dict[str, Any]:
        mask = torch.ones(table.length, table.length, dtype=torch.bool).tril()
        return {**arguments(table, **settings), "attention_mask": mask.expand(len(table.kind), 1, -1, -1)}

    model.attention_spec = Told(model.attention_spec, arguments=all_causal)
    message = r"changing a text token of sample photo-1 moves tokens that must not see it \(samples photo-1\)"
    with pytest.raises(PreflightError, match=message):
        preflight(model, make_batch())


def test_an_image_that_is_ignored_is_found() -> None:
    model = make_model()
    with torch.no_grad():
        model.projection.norm.weight.zero_()  # type: ignore[union-attr]
    with pytest.raises(PreflightError, match=r"changing the image of sample photo-1 moves no token that sees it"):
        preflight(model, make_batch())


def test_rows_that_depend_on_each_other_are_found() -> None:
    model = make_model()
    model.projection.register_forward_hook(lambda _, __, out: out + out.mean(0, keepdim=True))
    message = r"changing the image of sample photo-1 moves tokens that must not see it \(samples photo-0\)"
    with pytest.raises(PreflightError, match=message):
        preflight(model, make_batch())


def test_a_batch_without_supervised_tokens_is_refused() -> None:
    batch = make_batch()
    batch.update(target=batch.target[:0], source=batch.source[:0])
    with pytest.raises(PreflightError, match=r"none of the 12 text tokens of the first batch carries loss"):
        preflight(make_model(), batch)


def test_a_loss_that_is_not_finite_names_its_samples() -> None:
    model, batch = make_model(), make_batch()
    batch.vision_inputs["pixel_values"][1] = torch.nan
    with pytest.raises(PreflightError, match=r"the loss is not finite before training; samples: photo-1$"):
        preflight(model, batch)


def test_a_batch_without_images_says_that_only_its_text_was_checked() -> None:
    report = preflight(make_model(), make_batch(with_images=False))
    assert report.notes == ("the first batch has no image: only its text was checked",)


def test_dropout_is_reported_where_it_is_on() -> None:
    model = make_model("opt")
    model.language.config.dropout = 0.1
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert preflight(model.train(), make_batch()).notes == ()
    model.language.requires_grad_(True)
    notes = preflight(model.train(), make_batch()).notes
    assert notes == ("language: dropout 0.1 is on, so shared and single rows agree on average only",)


def test_a_window_limits_what_must_move_and_not_what_may() -> None:
    model = make_model("gemma3 with a short window")
    assert [reach.window for reach, _ in model.attention_spec.reaches.values()] == [4]
    wrong = {kind: (replace(reach, window=1), at) for kind, (reach, at) in model.attention_spec.reaches.items()}
    told = Told(model.attention_spec, reaches=wrong)
    model.attention_spec = told  # the model sees 4 positions back, the check believes in 1
    with pytest.raises(PreflightError, match="moves tokens that must not see it"):
        preflight(model, make_batch())
