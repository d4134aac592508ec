"""What trains is what was asked for, in the right number format, and a table says so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    EfficientNetConfig,
    LlamaConfig,
    OPTConfig,
    SwinConfig,
)

from visgraft.config import LoraSettings
from visgraft.errors import ConfigError
from visgraft.model.parts import is_tied, part_parameters, trained_parameters
from visgraft.model.trainable import PartRow, Trainable, find_blocks, freeze_unused, parts_table, set_trainable

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
CLIP = CLIPVisionConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=32, patch_size=16
)
EFFICIENTNET = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, image_size=64)


class Joined(nn.Module):
    """The three parts, joined as simply as can be."""

    def __init__(self, *, tied: bool = False, vision: Any = CLIP) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision = AutoModel.from_config(vision)
        self.projection = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))
        self.language = AutoModelForCausalLM.from_config(
            LlamaConfig(**SIZES, intermediate_size=40, tie_word_embeddings=tied)
        )

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        features = self.vision(pixel_values=pixels).last_hidden_state
        features = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        text = self.language.get_input_embeddings()(ids)
        prefix = self.projection(features).to(text.dtype)
        logits = self.language(inputs_embeds=torch.cat([prefix, text], 1)).logits
        return logits.float().logsumexp(-1).mean() - logits.float()[:, -1, 3].mean()


def loss_of(model: Joined, *, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return model(torch.randn(2, 3, side, side, generator=generator), torch.arange(8).view(2, 4))


def trained_names(model: nn.Module) -> dict[str, list[str]]:
    return {part: list(parameters) for part, parameters in trained_parameters(model).items()}


def test_every_parameter_belongs_to_exactly_one_part() -> None:
    for model in (Joined(), Joined(tied=True)):
        parts = part_parameters(model)
        inside = [id(parameter) for parameters in parts.values() for parameter in parameters.values()]
        assert sorted(inside) == sorted(id(parameter) for parameter in model.parameters())
        assert list(parts["head"]) == ([] if is_tied(model) else ["weight"])


def test_everything_is_frozen_unless_named() -> None:
    model = Joined()
    set_trainable(model, modes={"projection": "full"})
    assert trained_names(model) == {
        "vision": [],
        "projection": ["projection.0.weight", "projection.0.bias", "projection.1.weight", "projection.1.bias"],
        "language": [],
        "head": [],
    }


def test_a_full_language_does_not_train_a_head_of_its_own() -> None:
    model = Joined()
    set_trainable(model, modes={"language": "full"})
    assert not model.language.lm_head.weight.requires_grad
    assert model.language.model.embed_tokens.weight.requires_grad
    set_trainable(model, modes={"head": "full"})
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["language.lm_head.weight"]


def test_a_full_language_trains_its_tied_head_as_embeddings() -> None:
    model = Joined(tied=True)
    report = set_trainable(model, modes={"language": "full", "head": "full"})
    assert is_tied(model)
    assert model.language.lm_head.weight.requires_grad
    assert report.notes["head"] == ("tied to the input embeddings, which train with the language",)


def test_a_tied_head_trained_alone_is_untied_into_a_copy_that_stays_untied_when_saved(tmp_path: Any) -> None:
    model = Joined(tied=True)
    before = model.language.model.embed_tokens.weight.detach().clone()
    report = set_trainable(model, modes={"head": "full"})
    assert report.notes["head"] == ("untied from the input embeddings into a copy of its own",)
    assert not is_tied(model)
    assert torch.equal(model.language.lm_head.weight, before)
    assert not model.language.model.embed_tokens.weight.requires_grad
    with torch.no_grad():
        model.language.lm_head.weight += 1
    model.language.tie_weights()
    model.language.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, before + 1)
    assert torch.equal(again.model.embed_tokens.weight, before)


def test_lora_stays_in_its_part() -> None:
    model = Joined()
    report = set_trainable(
        model, modes={"language": "lora", "projection": "full"}, lora={"language": LoraSettings(r=2)}
    )
    names = trained_names(model)
    assert not names["vision"]
    assert len(names["language"]) == 24
    assert all("lora_" in name and "self_attn" in name for name in names["language"])
    assert len(report.lora_targets["language"]) == 12
    assert not any("lora" in name for name, _ in model.vision.named_parameters())


def test_two_parts_may_have_lora_with_settings_of_their_own() -> None:
    model = Joined()
    settings = {"language": LoraSettings(r=2, target_modules=("q_proj",)), "vision": LoraSettings(r=3)}
    set_trainable(model, modes={"language": "lora", "vision": "lora"}, lora=settings)
    assert model.language.model.layers[0].self_attn.q_proj.r == {"default": 2}
    assert not hasattr(model.language.model.layers[0].self_attn.k_proj, "r")
    assert model.vision.encoder.layers[0].self_attn.k_proj.r == {"default": 3}


def test_training_goes_on_with_an_equal_lora_and_stacks_another() -> None:
    model = Joined()
    modes: Any = {"language": "lora"}
    set_trainable(model, modes=modes, lora={"language": LoraSettings(r=2)})
    report = set_trainable(model, modes=modes, lora={"language": LoraSettings(r=2)})
    assert report.notes["language"] == ("training goes on with its LoRA 'default'",)
    report = set_trainable(model, modes=modes, lora={"language": LoraSettings(r=4)})
    assert report.notes["language"] == ("a new LoRA on top of default, which is frozen",)
    assert all(".stage_2." in name for name in trained_names(model)["language"])
    set_trainable(model, modes={"projection": "full"})
    assert not trained_names(model)["language"]


def test_the_last_layers_of_a_part_train() -> None:
    model = Joined()
    report = set_trainable(model, modes={"language": {"last_layers": 2}, "vision": {"last_layers": 1}})
    names = trained_names(model)
    assert {name.split(".")[3] for name in names["language"]} == {"1", "2"}
    assert all(name.startswith("vision.encoder.layers.1.") for name in names["vision"])
    assert report.modes["language"] == "last 2 layers"


def test_the_layers_of_a_hierarchical_encoder_are_its_stages() -> None:
    encoder = AutoModel.from_config(
        SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 3], num_heads=[2, 2], window_size=4)
    )
    assert list(find_blocks(encoder)) == list(encoder.encoder.layers)
    assert len(find_blocks(Joined().projection)) == 2


@pytest.mark.parametrize("number", [0, 4])
def test_too_many_last_layers_are_an_error(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"train\.language\.last_layers: got {number}, this part has 3 layers"):
        set_trainable(Joined(), modes={"language": {"last_layers": number}})


def test_patterns_choose_parameters_by_name() -> None:
    model = Joined()
    report = set_trainable(model, modes={"vision": {"patterns": ["encoder.layers.1.mlp.*", "*position_embedding*"]}})
    assert trained_names(model)["vision"] == [
        "vision.embeddings.position_embedding.weight",
        "vision.encoder.layers.1.mlp.fc1.weight",
        "vision.encoder.layers.1.mlp.fc1.bias",
        "vision.encoder.layers.1.mlp.fc2.weight",
        "vision.encoder.layers.1.mlp.fc2.bias",
    ]
    assert report.modes["vision"] == "only encoder.layers.1.mlp.*, *position_embedding*"


def test_a_pattern_that_matches_nothing_lists_close_names() -> None:
    message = r"'num_image_with_embedding' matches no parameter of the projection part; its names look like 0\.weight"
    with pytest.raises(ConfigError, match=message):
        set_trainable(Joined(), modes={"projection": {"patterns": ["num_image_with_embedding"]}})


def test_a_pattern_of_the_language_never_reaches_the_head() -> None:
    with pytest.raises(ConfigError, match=r"'lm_head\.\*' matches no parameter of the language part"):
        set_trainable(Joined(), modes={"language": {"patterns": ["lm_head.*"]}})


def test_unknown_parts_and_modes_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"train\.eyes: no such part; the parts are vision, projection"):
        set_trainable(Joined(), modes={"eyes": "full"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"train\.vision: got 'all', allowed are frozen, full, lora"):
        set_trainable(Joined(), modes={"vision": "all"})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"train\.head: got 'lora', allowed are frozen, full"):
        set_trainable(Joined(), modes={"head": "lora"})


def test_frozen_parts_are_cast_and_trained_ones_are_not() -> None:
    model = Joined()
    set_trainable(model, modes={"projection": "full", "language": "lora", "head": "full"}, frozen_dtype=torch.bfloat16)
    parts = part_parameters(model)
    assert {p.dtype for p in parts["vision"].values()} == {torch.bfloat16}
    assert {p.dtype for p in parts["projection"].values()} == {torch.float32}
    assert {p.dtype for n, p in parts["language"].items() if "lora_" not in n} == {torch.bfloat16}
    assert {p.dtype for n, p in parts["language"].items() if "lora_" in n} == {torch.float32}
    assert parts["head"]["weight"].dtype == torch.float32
    assert model.language.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_part_that_trains_in_part_stays_in_full_precision() -> None:
    model = Joined()
    set_trainable(model, modes={"language": {"last_layers": 1}}, frozen_dtype=torch.bfloat16)
    assert {p.dtype for p in part_parameters(model)["language"].values()} == {torch.float32}


def test_a_frozen_projection_stays_in_full_precision() -> None:
    model = Joined()
    set_trainable(model, modes={"head": "full"}, frozen_dtype=torch.bfloat16)
    assert {p.dtype for p in part_parameters(model)["projection"].values()} == {torch.float32}


def test_tied_weights_stay_tied_when_cast() -> None:
    model = Joined(tied=True)
    set_trainable(model, modes={"projection": "full"}, frozen_dtype=torch.bfloat16)
    assert is_tied(model)
    assert model.language.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["lora", "frozen", "full"])
def test_a_cast_model_trains_under_autocast_about_as_an_uncast_one(mode: Any) -> None:
    gradients = []
    for frozen_dtype in (None, torch.bfloat16):
        model = Joined()
        set_trainable(model, modes={"projection": "full", "language": mode}, frozen_dtype=frozen_dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=frozen_dtype is not None):
            loss = loss_of(model)
        loss.backward()
        gradients.append(model.projection[0].weight.grad)
    assert gradients[1].dtype == torch.float32
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_a_frozen_efficientnet_in_bfloat16_keeps_its_batch_norm_and_runs_under_autocast() -> None:
    torch.manual_seed(0)
    model = Joined(vision=EFFICIENTNET)
    pixels = torch.randn(2, 3, 64, 64)
    norms = [module for module in model.vision.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.vision.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.momentum = 1.0  # one pass in training mode then gives statistics that keep activations alive
    model.vision.train()(pixel_values=pixels)
    model.eval()
    expected = model.vision(pixel_values=pixels).last_hidden_state
    set_trainable(model, modes={"projection": "full"}, frozen_dtype=torch.bfloat16)
    assert {tensor.dtype for norm in norms for tensor in (norm.weight, norm.running_var)} == {torch.float32}
    assert model.vision.embeddings.convolution.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        features = model.vision(pixel_values=pixels.bfloat16()).last_hidden_state
    assert (features.float() - expected).norm() < 0.03 * expected.norm()


def test_weights_that_receive_no_gradient_are_frozen_and_named() -> None:
    model = Joined()
    report = set_trainable(model, modes={"vision": "full", "projection": "full"})
    report = freeze_unused(model, report, loss=lambda: loss_of(model))
    assert report.unused == ("vision.post_layernorm.weight", "vision.post_layernorm.bias")
    assert not model.vision.post_layernorm.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_a_run_in_which_nothing_trains_is_an_error() -> None:
    model = Joined()
    report = set_trainable(model, modes={})
    with pytest.raises(ConfigError, match="nothing trains; set one of vision, projection, language, head to frozen"):
        freeze_unused(model, report, loss=lambda: loss_of(model))
    report = set_trainable(model, modes={"vision": {"patterns": ["post_layernorm.*"]}})
    with pytest.raises(ConfigError, match=r"receive no gradient: vision\.post_layernorm\.weight"):
        freeze_unused(model, report, loss=lambda: loss_of(model))


def test_after_three_steps_frozen_weights_are_the_same_and_all_others_have_moved() -> None:
    for modes in (
        {"vision": "full", "projection": "full", "language": "full", "head": "full"},
        {"projection": "full", "language": "lora", "vision": "lora"},
        {"vision": {"last_layers": 1}, "head": "full"},
    ):
        model = Joined().train()
        report = set_trainable(model, modes=modes)  # type: ignore[arg-type]
        freeze_unused(model, report, loss=lambda model=model: loss_of(model))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
        for _ in range(3):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_the_table_names_part_mode_size_format_rate_and_notes() -> None:
    model = Joined(vision=CLIP)
    report = set_trainable(
        model, modes={"vision": {"patterns": ["post_layernorm.weight"]}, "projection": "full", "language": "lora"},
        lora={"language": LoraSettings(r=2)}, frozen_dtype=torch.bfloat16,
    )  # fmt: skip
    report = freeze_unused(model, report, loss=lambda: loss_of(model))
    rows = {row.part: row for row in parts_table(model, report, learning_rate={"projection": 1e-3, "language": 1e-4})}
    assert list(rows) == ["vision", "projection", "language", "head"]
    assert rows["projection"] == PartRow("projection", "full", 1120, 1120, "float32", 1e-3, ())
    assert rows["vision"].num_trainable == 0
    assert rows["vision"].notes == ("unused: vision.post_layernorm.weight",)
    assert rows["language"].dtype == "bfloat16 + float32"
    assert rows["language"].notes == ("LoRA on 12 linears: q_proj, k_proj, v_proj, o_proj",)
    assert rows["language"].num_trainable == 12 * 2 * (32 + 32)
    assert rows["head"] == PartRow("head", "frozen", 2048, 0, "bfloat16", None, ())


def test_the_table_of_a_model_that_no_one_trains_is_all_frozen() -> None:
    model = Joined().requires_grad_(False)
    rows = parts_table(model, Trainable(modes={}, lora_targets={}, notes={}), learning_rate=1e-3)
    assert [(row.mode, row.num_trainable, row.learning_rate) for row in rows] == [("frozen", 0, None)] * 4


def test_an_opt_with_a_narrow_embedding_keeps_its_projections_in_the_language() -> None:
    model = Joined()
    model.language = AutoModelForCausalLM.from_config(OPTConfig(**SIZES, ffn_dim=40, word_embed_proj_dim=16))
    set_trainable(model, modes={"language": "full"})
    assert "language.model.decoder.project_out.weight" in trained_names(model)["language"]
    assert not part_parameters(model)["head"]
