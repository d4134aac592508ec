"""Made-up checkpoints of every architecture and file format import exactly; what is not accounted for is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import visgraft
from tests.convert import restatement
from tests.convert.made_checkpoints import CLIP, LORA_TARGETS, V, make, write
from visgraft import VisionLanguageModel
from visgraft.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow

VARIANTS: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "git_opt"},
    "opt as 350m": {"model_type": "git_opt", "post_norm": True, "narrow": 16},
    "opt as 350m, video": {"model_type": "git_opt", "post_norm": True, "narrow": 16, "frames": 2},
    "opt, lora": {"model_type": "git_opt", "lora": True},
    "llama, grouped heads": {"model_type": "git_llama", "kv_heads": 2},
    "llama, video, lora": {"model_type": "git_llama", "frames": 3, "lora": True},
    "mpt, video": {"model_type": "git_mpt", "frames": 2},
    "mpt, lora": {"model_type": "git_mpt", "lora": True},
    "neox, sequential": {"model_type": "git_gpt_neox", "parallel": False},
    "neox, video, lora": {"model_type": "git_gpt_neox", "frames": 2, "lora": True},
    "japanese": {"model_type": "git_japanese_stablelm_alpha"},
    "japanese, video, lora": {"model_type": "git_japanese_stablelm_alpha", "frames": 2, "lora": True},
}
IDS = torch.tensor([[2, 5, 9, 33, 21, 7, 2], [2, 8, 8, 40, 1, 1, 1], [2, 17, 6, 52, 11, 3, 9]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7])


def pixels_for(frames: int, *, rows: int = 3) -> Tensor:
    shape = (rows, frames, 3, 16, 16) if frames else (rows, 3, 16, 16)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def imported(tmp_path: Path, values: dict[str, Any], state: dict[str, Tensor], **form: Any) -> VisionLanguageModel:
    source = write(tmp_path / "src", values, state, **form)
    report = visgraft.import_git_llm(source, tmp_path / "dst")
    assert Path(report) == tmp_path / "dst"
    return VisionLanguageModel.from_pretrained(report)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_import_computes_what_the_original_did(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    values, state = make(**variant)
    model = imported(tmp_path, values, state)
    pixels = pixels_for(variant.get("frames", 0))
    for one in state.values():
        one.requires_grad_(True)
    expected = restatement.forward(values, state, IDS, pixels=pixels, mask=MASK)
    for labels in (IDS, IDS.masked_fill(MASK == 0, -100)):
        output = model(input_ids=IDS, pixel_values=pixels, attention_mask=MASK, labels=labels)
        torch.testing.assert_close(output.loss, restatement.loss(expected, labels), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=0)
    assert_same_gradients(model, output.loss, state, restatement.loss(expected, labels), values["model_type"])

    single = pixels_for(0)  # no frame, no temporal embedding
    with torch.no_grad():
        expected = restatement.forward(values, state, IDS, pixels=single, mask=MASK)
        logits = model(input_ids=IDS, pixel_values=single, attention_mask=MASK).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        text_only = restatement.forward(values, state, IDS, mask=MASK)
        logits = model(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(logits[MASK.bool()], text_only[MASK.bool()], atol=1e-4, rtol=0)


def assert_same_gradients(
    model: VisionLanguageModel, loss: Tensor, state: dict[str, Tensor], expected: Tensor, model_type: str
) -> None:
    root = f"{restatement.ROOTS[model_type]}visual_projection.visual_projection."
    pairs = {f"{root}0.weight": model.projection.linear.weight, f"{root}1.bias": model.projection.norm.bias}
    for name, parameter in model.language.named_parameters():
        stored = state.get(name.replace(".base_layer.", "."))
        if stored is not None and ("lora_" in name or "q_proj" in name or "Wqkv" in name or "query" in name):
            pairs[name.replace(".base_layer.", ".")] = parameter.requires_grad_(True)
    assert len(pairs) > 2
    output = model(
        input_ids=IDS,
        pixel_values=pixels_for(model.config.num_frames),
        attention_mask=MASK,
        labels=IDS.masked_fill(MASK == 0, -100),
    )
    ours = torch.autograd.grad(output.loss, list(pairs.values()))
    theirs = torch.autograd.grad(expected, [state[name] for name in pairs])
    for name, own, other in zip(pairs, ours, theirs, strict=True):
        error = float((own - other).abs().max())
        assert error <= 1e-4 * float(other.abs().max()), f"{name}: {error}"


@pytest.mark.parametrize("name", VARIANTS)
def test_an_import_says_what_the_original_said(name: str, tmp_path: Path) -> None:
    values, state = make(**VARIANTS[name])
    model = imported(tmp_path, values, state)
    pixels = pixels_for(VARIANTS[name].get("frames", 0), rows=2)
    ids = torch.tensor([[2, 5, 9, 33, 21], [1, 1, 2, 17, 6]])  # the second row padded on the left
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    alone = [
        restatement.greedy(values, state, ids[row : row + 1, start:], pixels[row : row + 1], steps=5)[0].tolist()
        for row, start in ((0, 0), (1, 2))
    ]
    for use_cache in (True, False):
        tokens = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=mask,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            use_cache=use_cache,
        )
        assert tokens[:, 5:].tolist() == alone


FORMS: dict[str, dict[str, Any]] = {
    "one safetensors file": {},
    "sharded safetensors": {"form": "sharded safetensors"},
    "one pickled file": {"form": "bin"},
    "sharded pickled files": {"form": "sharded bin"},
    "a newer peft": {"base_layer": True, "form": "bin"},
    "heron's wrapper": {"wrapped": "heron", "base_layer": True},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model_type", LORA_TARGETS)
def test_every_form_on_disk_gives_the_same_model(model_type: str, form: str, tmp_path: Path) -> None:
    values, state = make(model_type, lora=True, vision_lora=form == "heron's wrapper")
    model = imported(tmp_path, values, state, **FORMS[form])
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0), mask=MASK)
    logits = model(input_ids=IDS, pixel_values=pixels_for(0), attention_mask=MASK).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    parts = {"language", "vision"} if form == "heron's wrapper" else {"language"}
    assert {part for part in ("vision", "language") if hasattr(getattr(model, part), "peft_config")} == parts


@pytest.mark.parametrize("base_layer", [False, True])
def test_opt_with_lora_and_the_decoder_wrapped_imports(base_layer: bool, tmp_path: Path) -> None:
    values, state = make("git_opt", lora=True)
    model = imported(tmp_path, values, state, form="bin", wrapped="decoder", base_layer=base_layer)
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0))
    torch.testing.assert_close(model(input_ids=IDS, pixel_values=pixels_for(0)).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model_type", ["git_gpt_neox", "git_japanese_stablelm_alpha"])
def test_a_causal_image_is_recorded_and_a_bidirectional_one_can_be_asked_for(model_type: str, tmp_path: Path) -> None:
    values, state = make(model_type)
    source = write(tmp_path / "src", values, state)
    assert visgraft.import_git_llm(source, tmp_path / "a").image_attention == "causal"
    assert json.loads((tmp_path / "a" / "config.json").read_text())["image_attention"] == "causal"
    report = visgraft.import_git_llm(source, tmp_path / "b", image_attention="bidirectional")
    model = VisionLanguageModel.from_pretrained(report)
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0), causal_image=False)
    logits = model(input_ids=IDS, pixel_values=pixels_for(0)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_lora_stays_lora_and_its_scaling_can_be_given(tmp_path: Path) -> None:
    values, state = make("git_llama", lora=True)
    source = write(tmp_path / "src", values, state)
    report = visgraft.import_git_llm(source, tmp_path / "a")
    assert report.lora == {"language": {"r": 8, "lora_alpha": 32.0, "modules": 4}}
    for alpha, told in ((16.0, {}), (24.0, {"lora": {"lora_alpha": 24}})):
        (source / "config.json").write_text(json.dumps({**values, **told}))
        report = visgraft.import_git_llm(source, tmp_path / "b", lora_alpha=None if told else alpha, replace=True)
        model = VisionLanguageModel.from_pretrained(report)
        expected = restatement.forward(values, state, IDS, pixels=pixels_for(0), scaling=alpha / 8)
        logits = model(input_ids=IDS, pixel_values=pixels_for(0)).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_wrong_stored_vision_config_does_not_matter(tmp_path: Path) -> None:
    values, state = make("git_llama")
    wrong = {**values, "vision_config": {**CLIP, "patch_size": 32, "image_size": 224, "num_hidden_layers": 12}}
    model = imported(tmp_path, {**wrong, "num_image_with_embedding": None}, state)
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0))
    logits = model(input_ids=IDS, pixel_values=pixels_for(0)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_number_of_heads_of_another_encoder_is_not_guessed(tmp_path: Path) -> None:
    values, state = make("git_llama")
    source = write(tmp_path / "src", {**values, "vision_config": {}}, state)
    with pytest.raises(CheckpointError, match=r"encoder of width 768, the tensors have 24, and no tensor tells"):
        visgraft.import_git_llm(source, tmp_path / "dst")
    report = visgraft.import_git_llm(source, tmp_path / "dst", vision_heads=CLIP["num_attention_heads"])
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0))
    logits = VisionLanguageModel.from_pretrained(report)(input_ids=IDS, pixel_values=pixels_for(0)).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_report_lists_what_is_dead_and_says_what_is_missing(tmp_path: Path) -> None:
    values, state = make("git_gpt_neox")
    report = visgraft.import_git_llm(write(tmp_path / "src", values, state), tmp_path / "dst")
    assert "gpt_neox.layers.1.attention.masked_bias" in report.dead
    assert "gpt_neox.layers.0.attention.rotary_emb.inv_freq" in report.dead
    assert "gpt_neox.image_encoder.vision_model.post_layernorm.weight" in report.dead
    assert (
        "no image processor (preprocessor_config.json) and no tokenizer: imported as a model alone" in report.notes[0]
    )
    assert json.loads((tmp_path / "dst" / "import.json").read_text())["dead"] == list(report.dead)

    values, state = make("git_opt")
    report = visgraft.import_git_llm(write(tmp_path / "opt", values, state), tmp_path / "dst_opt")
    assert "model.decoder.embed_positions.weight" in report.dead


def test_a_half_precision_checkpoint_stays_half_on_disk(tmp_path: Path) -> None:
    values, state = make("git_llama")
    source = write(tmp_path / "src", values, {name: tensor.half() for name, tensor in state.items()})
    report = visgraft.import_git_llm(source, tmp_path / "dst")
    stored = load_file(Path(report) / "language" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert VisionLanguageModel.from_pretrained(report).dtype == torch.float32


BROKEN: dict[str, tuple[Any, str]] = {
    "another key": (lambda s: s.update({"model.extra.weight": torch.ones(2)}), r"1 tensors of .* are unaccounted for"),
    "a lost key": (lambda s: s.pop("model.norm.weight"), r"tensors of LlamaForCausalLM are missing"),
    "a lost embedding": (lambda s: s.pop("model.embed_tokens.weight"), r"the tensor '?.*embed_tokens.* is missing"),
    "a lost projection": (
        lambda s: s.pop("model.visual_projection.visual_projection.1.bias"),
        r"tensors of visual_projection are missing or too many: \['norm.bias'\]",
    ),
    "a projection of another width": (
        lambda s: s.update({"model.visual_projection.visual_projection.0.bias": torch.ones(7)}),
        r"visual_projection's linear.bias is \[7\], the encoder and the language model need \[32\]",
    ),
    "half a pair": (
        lambda s: s.pop("model.layers.0.self_attn.q_proj.lora_A.default.weight"),
        r"has lora_B alone; need A and B",
    ),
    "LoRA on nothing": (
        lambda s: s.update({f"model.norm.lora_{x}.default.weight": torch.ones(8, 8) for x in "AB"}),
        r"LoRA on model.norm, which is no linear layer",
    ),
    "two adapters": (
        lambda s: s.update({"model.layers.0.self_attn.q_proj.lora_A.other.weight": torch.ones(8, 32)}),
        r"has two LoRA adapters",
    ),
    "LoRA of other ranks": (
        lambda s: s.update({"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 32)}),
        r"LoRA of the language part has ranks \[4, 8\]; need one",
    ),
    "LoRA of another shape": (
        lambda s: s.update({"model.layers.0.self_attn.q_proj.lora_B.default.weight": torch.ones(8, 32)}),
        r"LoRA of model.layers.0.self_attn.q_proj is \[8, 32\], need \[32, 8\]",
    ),
    "a matrix of another shape": (
        lambda s: s.update({"model.layers.1.mlp.down_proj.weight": torch.ones(5, 5)}),
        r"1 tensors of LlamaForCausalLM are of another shape: .*down_proj",
    ),
    "a frame lost": (
        lambda s: s.update({"model.img_temporal_embedding.1": torch.ones(1, 1, 24)}),
        r"img_temporal_embedding has frames \[1\], need all from 0",
    ),
    "a name twice": (
        lambda s: s.update({"base_model.model.model.norm.weight": torch.ones(32)}),
        r"model.norm.weight is stored twice",
    ),
    "an encoder lost": (
        lambda s: s.pop("model.image_encoder.vision_model.embeddings.patch_embedding.weight"),
        r"the encoder's tensor .*patch_embedding.* is missing",
    ),
    "patches of no square": (
        lambda s: s.update(
            {"model.image_encoder.vision_model.embeddings.position_embedding.weight": torch.ones(8, 24)}
        ),
        r"8 image tokens are no square of patches",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_checkpoint_that_cannot_be_accounted_for_is_refused(what: str, tmp_path: Path) -> None:
    breaks, message = BROKEN[what]
    values, state = make("git_llama", lora=True)
    breaks(state)
    source = write(tmp_path / "src", values, state)
    with pytest.raises(CheckpointError, match=message):
        visgraft.import_git_llm(source, tmp_path / "dst")


def test_opt_without_its_own_positions_is_refused(tmp_path: Path) -> None:
    values, state = make("git_opt")
    state.pop("model.embed_positions.weight")
    with pytest.raises(CheckpointError, match=r"model\.embed_positions\.weight is missing, which GIT-LLM computes"):
        visgraft.import_git_llm(write(tmp_path / "src", values, state), tmp_path / "dst")


def test_a_tied_head_that_differs_is_refused_and_a_lost_copy_is_found(tmp_path: Path) -> None:
    values, state = make("git_opt")
    expected = restatement.forward(values, state, IDS, pixels=pixels_for(0))
    broken = {**state, "lm_head.weight": torch.ones(V, 32)}
    with pytest.raises(CheckpointError, match=r"ties lm_head.weight to model.decoder.embed_tokens.weight, but the"):
        visgraft.import_git_llm(write(tmp_path / "a", values, broken), tmp_path / "dst")
    state.pop("model.decoder.embed_tokens.weight")
    model = imported(tmp_path, values, state)
    torch.testing.assert_close(model(input_ids=IDS, pixel_values=pixels_for(0)).logits, expected, atol=1e-4, rtol=0)


def test_folders_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    values, state = make("git_llama")
    source = write(tmp_path / "src", values, state)
    with pytest.raises(CheckpointError, match="is the model itself"):
        visgraft.import_git_llm(source, source)
    with pytest.raises(ConfigError, match="image_attention: got 'both'"):
        visgraft.import_git_llm(source, tmp_path / "dst", image_attention="both")
    with pytest.raises(ConfigError, match="template: got 'nothing'"):
        visgraft.import_git_llm(source, tmp_path / "dst", template="nothing")
    (source / "config.json").write_text(json.dumps({**values, "model_type": "git_gpt2"}))
    with pytest.raises(CheckpointError, match="got model_type 'git_gpt2', which is no GIT-LLM or heron model; allowed"):
        visgraft.import_git_llm(source, tmp_path / "dst")
    (source / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="got list, need a JSON object"):
        visgraft.import_git_llm(source, tmp_path / "dst")
    (source / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        visgraft.import_git_llm(source, tmp_path / "dst")


def test_files_that_are_missing_or_hold_code_are_refused(tmp_path: Path) -> None:
    values, state = make("git_llama")
    sharded = write(tmp_path / "sharded", values, state, form="sharded safetensors")
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"names .*model-00002-of-00002\.safetensors.*, which are not there"):
        visgraft.import_git_llm(sharded, tmp_path / "dst")
    folder = write(tmp_path / "pickled", values, {}, form="bin")
    torch.save({"model.norm.weight": Path("code")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a file that holds code is not run"):
        visgraft.import_git_llm(folder, tmp_path / "dst")
    torch.save({"state": {"model.norm.weight": torch.ones(2)}}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="need a state dict"):
        visgraft.import_git_llm(folder, tmp_path / "dst")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights; need model"):
        visgraft.import_git_llm(folder, tmp_path / "dst")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds a LoRA adapter alone"):
        visgraft.import_git_llm(folder, tmp_path / "dst")
