"""Merged models say what they said with their adapters, or are not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import visgraft
from tests.convert.made_checkpoints import make, write
from tests.tiny import bare_language, bare_vision, fresh, random_ids, random_pixels
from visgraft import VisionLanguageModel
from visgraft.config import LoraSettings
from visgraft.convert import merge
from visgraft.convert.llava import export_llava
from visgraft.convert.merge import MergeRefusedError, fold_lora, merge_model
from visgraft.convert.portable import export_full
from visgraft.errors import CheckpointError
from visgraft.model.lora import add_lora, find_lora_targets, lora_layers

INPUTS: dict[str, Any] = {"input_ids": random_ids(2, 6), "pixel_values": random_pixels(2)}


def with_lora(*parts: Any, stages: int = 1) -> VisionLanguageModel:
    model = fresh("llama", "clip")
    for part in parts:
        module = getattr(model, part)
        for _ in range(stages):
            add_lora(module, LoraSettings(r=4), targets=find_lora_targets(module, part=part))
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("stages", [1, 2])
def test_a_merged_model_computes_the_same_without_lora(stages: int, tmp_path: Path) -> None:
    model = with_lora("vision", "language", stages=stages)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("kept")
    report = merge_model(tmp_path / "model", tmp_path / "merged")
    merged = VisionLanguageModel.from_pretrained(report)
    assert not any(list(lora_layers(getattr(merged, part))) for part in ("vision", "language"))
    torch.testing.assert_close(merged(**INPUTS).logits, model(**INPUTS).logits, atol=1e-4, rtol=0)
    assert report.merged == {"vision": 8, "language": 8}
    assert report.change <= report.allowed == 1e-4
    assert (tmp_path / "merged" / "notes.txt").read_text() == "kept"
    assert not list(tmp_path.glob(".*"))


def test_an_imported_model_is_merged_in_the_format_it_is_kept_in(tmp_path: Path) -> None:
    values, state = make("git_llama", lora=True)
    source = write(tmp_path / "src", values, {name: tensor.half() for name, tensor in state.items()})
    visgraft.import_git_llm(source, tmp_path / "imported")
    merge_model(tmp_path / "imported", tmp_path / "half")
    report = merge_model(tmp_path / "imported", tmp_path / "whole", dtype="float32")
    formats = {
        name: {one.dtype for one in load_file(tmp_path / name / "language" / "model.safetensors").values()}
        for name in ("half", "whole")
    }
    assert formats == {"half": {torch.float16}, "whole": {torch.float32}}
    assert report.change < 1e-5


def test_a_slim_model_is_merged_whole(tmp_path: Path) -> None:
    for part, module in (("vision", bare_vision("clip")), ("language", bare_language("llama"))):
        module.save_pretrained(tmp_path / part)
    model = VisionLanguageModel.from_parts(tmp_path / "vision", tmp_path / "language")
    add_lora(model.language, LoraSettings(), targets=find_lora_targets(model.language, part="language"))
    model.save_pretrained(tmp_path / "model")
    merge_model(tmp_path / "model", tmp_path / "merged")
    assert (tmp_path / "merged" / "vision" / "model.safetensors").is_file()


def test_a_merge_that_changes_what_the_model_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_lora("language").save_pretrained(tmp_path / "model")

    def fold_half(part: torch.nn.Module) -> None:
        for _, layer in lora_layers(part):
            layer.scale_layer(0.5)
        fold_lora(part)

    monkeypatch.setattr(merge, "fold_lora", fold_half)
    message = r"moves its logits by .* of the largest, torch.float32 explains 1e-04; nothing was written. Keep the"
    with pytest.raises(MergeRefusedError, match=message):
        merge_model(tmp_path / "model", tmp_path / "merged")
    with pytest.raises(MergeRefusedError, match="Merge in float32"):
        merge_model(tmp_path / "model", tmp_path / "merged", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_is_there_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    with_lora("language").save_pretrained(tmp_path / "model")
    fresh("llama", "clip").save_pretrained(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()}
    for export in (merge_model, export_full, export_llava, visgraft.import_git_llm):
        with pytest.raises(CheckpointError, match="a model is there already; give another folder, or say --force"):
            export(tmp_path / "model", tmp_path / "mine")
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()} == before
    merge_model(tmp_path / "model", tmp_path / "mine", replace=True)
    assert list(lora_layers(VisionLanguageModel.from_pretrained(tmp_path / "mine").language)) == []


def test_what_cannot_be_merged_is_said(tmp_path: Path) -> None:
    fresh("llama", "clip").save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no LoRA: nothing to merge"):
        merge_model(tmp_path / "plain", tmp_path / "merged")
    with pytest.raises(CheckpointError, match="is the model itself"):
        merge_model(tmp_path / "plain", tmp_path / "plain")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("")
    with pytest.raises(CheckpointError, match="holds something that is no model; give a new folder"):
        merge_model(tmp_path / "plain", tmp_path / "else")
    with_lora("language").save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="dtype: got 'int8', allowed are float32, bfloat16 and float16"):
        merge_model(tmp_path / "model", tmp_path / "merged", dtype="int8")
