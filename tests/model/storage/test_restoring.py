"""A folder that is damaged, incomplete or not what it was is refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.folders import copied, edit_config, edit_tensors, logits, nudge, parts, same_weights
from visgraft import VisionLanguageModel
from visgraft.config import LoraSettings
from visgraft.errors import CheckpointError
from visgraft.model.storage.restoring import find_folder
from visgraft.model.trainable import set_trainable

PartFolder = Callable[[str], Path]
load = VisionLanguageModel.from_pretrained


@pytest.fixture
def slim(part_folder: PartFolder, tmp_path: Path) -> Path:
    """Make a folder with LoRA and one trained weight of the language model, and bases that a test may damage."""
    vision = copied(part_folder("clip"), tmp_path / "bases" / "clip")
    language = copied(part_folder("llama"), tmp_path / "bases" / "llama")
    model = VisionLanguageModel.from_parts(vision, language)
    set_trainable(model, modes={"language": "lora"}, lora={"language": LoraSettings(r=2)})
    nudge(model.language, "model.norm.weight")
    model.save_pretrained(tmp_path / "slim")
    return tmp_path / "slim"


@pytest.fixture
def full(slim: Path, tmp_path: Path) -> Path:
    load(slim).save_pretrained(tmp_path / "full", full=True)
    return tmp_path / "full"


# --- Frozen parts


@pytest.mark.parametrize(("part", "base", "weight"), [
    ("vision", "clip", "embeddings.patch_embedding.weight"),
    ("language", "llama", "model.layers.0.mlp.up_proj.weight"),
])  # fmt: skip
def test_a_frozen_part_that_changed_since_is_refused(slim: Path, part: str, base: str, weight: str) -> None:
    folder = slim.parent / "bases" / base
    changed = dict(load(slim).get_submodule(part).state_dict())[weight].clone()
    changed.view(-1)[0] += 0.5
    edit_tensors(folder, **{weight: changed})
    with pytest.raises(
        CheckpointError, match=f"the {part} part at .*{base} is not the one that .*slim was trained with"
    ):
        load(slim)


@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_named_part_without_a_checksum_is_refused_and_not_taken_unchecked(slim: Path, part: str) -> None:
    described = parts(slim)
    checksum = described[part].pop("checksum")
    edit_config(slim, {"parts": described})
    with pytest.raises(CheckpointError, match=rf"config\.json: parts\.{part} has no checksum .* with full=True"):
        load(slim)
    described[part]["fingerprint"] = checksum  # as older versions wrote it
    edit_config(slim, {"parts": described})
    with pytest.raises(CheckpointError, match=r"the key fingerprint: rename that key to checksum"):
        load(slim)
    described[part]["checksum"] = described[part].pop("fingerprint")
    edit_config(slim, {"parts": described})
    load(slim)


def test_a_trained_weight_that_changed_in_the_base_is_no_matter(slim: Path) -> None:
    before = load(slim)
    edit_tensors(slim.parent / "bases" / "llama", **{"model.norm.weight": torch.zeros(32)})
    assert same_weights(before, load(slim))


def test_a_frozen_part_that_is_gone_is_named(slim: Path) -> None:
    shutil.rmtree(slim.parent / "bases" / "clip")
    with pytest.raises(CheckpointError, match=r"the vision part of .*slim cannot be loaded: .*clip: no such folder"):
        load(slim)


def test_a_base_that_lacks_a_weight_is_refused(slim: Path) -> None:
    edit_tensors(slim.parent / "bases" / "llama", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 weights that the model needs \(model.layers.1.mlp.up_proj"):
        load(slim)


def test_an_encoder_without_the_pooler_that_no_feature_needs_is_known_again(
    part_folder: PartFolder, tmp_path: Path
) -> None:
    vision = copied(part_folder("vit"), tmp_path / "vit")
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        edit_tensors(vision, without=name)
    model = VisionLanguageModel.from_parts(vision, part_folder("llama"))
    model.save_pretrained(tmp_path / "slim")
    assert parts(tmp_path / "slim")["vision"]["stored"] == "none"
    torch.manual_seed(1)
    assert same_weights(model, load(tmp_path / "slim"))
    model.save_pretrained(tmp_path / "full", full=True)
    assert same_weights(model, load(tmp_path / "full"))


# --- Stored weights


def test_a_stored_weight_that_no_part_has_is_refused(slim: Path) -> None:
    edit_tensors(slim / "language", **{"model.norm.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match=r"slim/language: model.norm.bias does not fit LlamaForCausalLM"):
        load(slim)


def test_a_stored_weight_of_another_shape_is_refused(slim: Path) -> None:
    edit_tensors(slim / "language", **{"model.norm.weight": torch.zeros(31)})
    with pytest.raises(CheckpointError, match=r"slim/language: model.norm.weight does not fit LlamaForCausalLM"):
        load(slim)


def test_a_trained_weight_that_is_missing_is_noticed(slim: Path) -> None:
    edit_tensors(slim / "language", without="model.norm.weight", **{"lm_head.weight": torch.zeros(96, 32)})
    with pytest.raises(CheckpointError, match=r"is not the one that .* was trained with"):
        load(slim)


@pytest.mark.parametrize("change", [{"without": "model.norm.weight"}, {"model.more": torch.zeros(1)}], ids=list)
def test_a_full_folder_with_a_key_too_few_or_too_many_is_refused(full: Path, change: Any) -> None:
    edit_tensors(full / "language", **change)
    with pytest.raises(CheckpointError, match=r"full/language: weights missing or of no use: model.(norm.weight|more)"):
        load(full)


def test_a_full_folder_with_a_weight_of_another_shape_is_refused(full: Path) -> None:
    edit_tensors(full / "language", **{"model.norm.weight": torch.zeros(31)})
    with pytest.raises(CheckpointError, match=r"weights of another shape than its config.json says: model.norm.weight"):
        load(full)


@pytest.mark.parametrize("change", [
    {"without": "projection.linear.bias"},
    {"projection.more": torch.zeros(1)},
    {"projection.linear.bias": torch.zeros(31)},
    {"extra": torch.zeros(1)},
], ids=list)  # fmt: skip
def test_a_projection_that_does_not_fit_is_refused(slim: Path, change: Any) -> None:
    edit_tensors(slim, **change)
    with pytest.raises(CheckpointError, match=r"model.safetensors: weights that do not fit: (linear.bias|more|extra)"):
        load(slim)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "language/model.safetensors", "language_lora/adapter_model.safetensors"]
)
def test_a_file_that_is_cut_short_is_named(slim: Path, name: str) -> None:
    content = (slim / name).read_bytes()
    (slim / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"slim/{name} is cut short or damaged"):
        load(slim)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "language/model.safetensors", "language_lora/adapter_model.safetensors"]
)
def test_a_folder_without_its_weights_is_not_complete(slim: Path, name: str) -> None:
    (slim / name).unlink()
    with pytest.raises(CheckpointError, match="has no safetensors file: the model folder is not complete"):
        load(slim)


def test_a_part_cut_short_in_a_full_folder_is_named(full: Path) -> None:
    path = full / "vision" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"full/vision: its weights are cut short or damaged .*: copy or download"
    ):
        load(full)


def test_a_full_folder_without_a_part_is_not_complete(full: Path) -> None:
    shutil.rmtree(full / "vision")
    with pytest.raises(CheckpointError, match=r"full/vision is missing: the model folder is not complete"):
        load(full)


# --- The config


def test_a_folder_without_config_is_not_complete(slim: Path) -> None:
    (slim / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"slim holds no config.json: give a run folder, a model folder or a Hub"):
        load(slim)


def test_a_save_that_was_broken_off_leaves_no_folder_that_loads(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(slim)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("visgraft.model.storage.saving.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(slim)
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        load(slim)


def test_a_config_that_is_no_json_is_named(slim: Path) -> None:
    (slim / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"slim: transformers cannot load a model from it \(.*not a valid JSON"):
        load(slim)


def test_a_model_of_another_kind_is_refused(part_folder: PartFolder, slim: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds a llama model and no model of visgraft: join it with another part"
    ):
        load(part_folder("llama"))
    edit_config(slim, {"parts": None})
    with pytest.raises(CheckpointError, match="holds a visgraft model and no model of visgraft"):
        load(slim)


@pytest.mark.parametrize("name", ["no/such/folder", "/no/folder", "./folder", "~/no-such-folder"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"{name} does not exist: give a run folder, a model folder or a Hub name"
    ):
        load(name)


def test_a_name_that_the_hub_does_not_give_is_explained() -> None:
    with pytest.raises(
        CheckpointError, match=r"some/model: not found on the Hugging Face Hub, .*run `hf auth login` if"
    ):
        load("some/model")


def test_a_home_folder_is_found(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(slim.parent))
    assert find_folder("~/slim") == slim


# --- Where the weights go


def test_weights_that_device_map_offloads_cannot_be_set(slim: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.norm.weight cannot be set where device_map offloads it"):
        load(slim, device_map={"model": "disk", "lm_head": "cpu"}, offload_folder=tmp_path / "offload")


def test_a_frozen_part_may_be_offloaded(part_folder: PartFolder, tmp_path: Path) -> None:
    model = VisionLanguageModel.from_parts(part_folder("clip"), part_folder("llama"))
    model.save_pretrained(tmp_path / "slim")
    device_map = {"model": "cpu", "lm_head": "disk"}
    loaded = load(tmp_path / "slim", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.language.lm_head.weight.device.type == "meta"
    assert torch.equal(logits(model), logits(loaded))


def test_the_config_says_what_the_folder_holds(slim: Path, full: Path) -> None:
    described = parts(slim)
    assert {part: values["stored"] for part, values in described.items()} == {"vision": "none", "language": "some"}
    assert [described[part]["adapters"] for part in ("vision", "language")] == [0, 1]
    assert described["vision"]["name"] == str(slim.parent / "bases" / "clip")
    assert parts(full)["vision"] == {"name": None, "revision": None, "stored": "all", "adapters": 0}
    assert json.loads((full / "language_lora" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
