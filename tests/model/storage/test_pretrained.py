"""Parts come from names, folders and modules; a checkpoint that is not one is refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.model.folders import copied, edit_config, edit_tensors, logits, same_weights
from tests.tiny import SQUARE, V, bare_language, bare_vision
from visgraft import VisionLanguageModel
from visgraft.errors import CheckpointError, ConfigError
from visgraft.model.storage import pretrained as loading
from visgraft.model.storage.pretrained import load_config, load_language, load_vision

PartFolder = Callable[[str], Path]
TEXT_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": V,
}


def two_towers(kind: str) -> Any:
    torch.manual_seed(0)
    config = {"clip": hf.CLIPConfig, "siglip": hf.SiglipConfig}[kind]
    return hf.AutoModel.from_config(config(text_config=TEXT_TOWER, vision_config=SQUARE, projection_dim=16)).eval()


# --- Where a part may come from


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_checkpoint_with_two_towers_gives_its_vision_tower(
    part_folder: PartFolder, tmp_path: Path, kind: str
) -> None:
    whole = two_towers(kind)
    whole.save_pretrained(tmp_path / "both")
    vision, origin = load_vision(tmp_path / "both")
    assert origin == {"name": str(tmp_path / "both"), "revision": None}
    assert same_weights(whole.vision_model, vision)
    assert same_weights(vision, load_vision(whole)[0])
    model = VisionLanguageModel.from_parts(tmp_path / "both", part_folder("llama"))
    with torch.no_grad():
        model.vision.encoder.layers[1].mlp.fc1.weight.add_(0.1)
    model.save_pretrained(tmp_path / "slim")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "slim")
    assert same_weights(model, loaded)
    assert torch.equal(logits(model), logits(loaded))
    model.save_pretrained(tmp_path / "full", full=True)
    assert same_weights(model, VisionLanguageModel.from_pretrained(tmp_path / "full"))


def test_a_part_may_be_a_string_a_path_or_a_module(part_folder: PartFolder) -> None:
    for part, load in (("clip", load_vision), ("llama", load_language)):
        folder = part_folder(part)
        by_path, by_string = load(folder)[0], load(str(folder))[0]
        assert same_weights(by_path, by_string)
        module, origin = load(by_path)
        assert module is by_path
        assert origin == {"name": None, "revision": None}


def test_a_relative_folder_is_remembered_where_it_is(part_folder: PartFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = part_folder("llama")
    monkeypatch.chdir(folder.parent)
    assert load_language("llama")[1]["name"] == str(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_language("~/llama")[1]["name"] == str(folder)


def test_of_a_name_on_the_hub_the_commit_is_remembered(
    part_folder: PartFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--me--llama"
    copied(part_folder("llama"), repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    language, origin = load_language("me/llama")
    assert origin == {"name": "me/llama", "revision": commit}
    assert same_weights(bare_language("llama"), language)


def test_weights_load_in_float32_unless_asked(tmp_path: Path) -> None:
    bare_language("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_language(tmp_path)[0].parameters()} == {torch.float32}
    half = load_language(tmp_path, dtype=torch.bfloat16)[0]
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_a_language_model_may_start_from_nothing_but_its_config(part_folder: PartFolder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((part_folder("llama") / "config.json").read_bytes())
    language, origin = load_language(tmp_path, init="random")
    assert not language.training
    assert origin["name"] is None
    assert not same_weights(bare_language("llama"), language)


def test_how_a_language_model_starts_is_checked(part_folder: PartFolder) -> None:
    with pytest.raises(ConfigError, match="language_init: got 'zero', allowed are pretrained, random"):
        load_language(part_folder("llama"), init="zero")
    with pytest.raises(ConfigError, match="language_init='random': only a language model given by its name or folder"):
        load_language(bare_language("llama"), init="random")
    with pytest.raises(
        ConfigError, match="device_map: only a language model given by its name or folder is loaded with"
    ):
        load_language(bare_language("llama"), device_map="cpu")


# --- What a checkpoint must hold


def test_an_encoder_may_lack_a_pooler_that_no_feature_depends_on(part_folder: PartFolder, tmp_path: Path) -> None:
    folder = copied(part_folder("vit"), tmp_path / "vit")
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        edit_tensors(folder, without=name)
    vision, _ = load_vision(folder)
    assert torch.equal(vision.pooler.dense.weight, torch.zeros(24, 24))  # and not random, so that it is known again
    assert torch.equal(vision.layernorm.weight, bare_vision("vit").layernorm.weight)


@pytest.mark.parametrize(("part", "weight"), [
    ("vit", "layernorm.weight"),
    ("efficientnet", "encoder.top_bn.running_mean"),
    ("llama", "model.norm.weight"),
    ("llama", "lm_head.weight"),
    ("opt", "model.decoder.embed_tokens.weight"),
])  # fmt: skip
def test_a_weight_that_is_needed_may_not_be_missing(
    part_folder: PartFolder, tmp_path: Path, part: str, weight: str
) -> None:
    folder = copied(part_folder(part), tmp_path / part)
    edit_tensors(folder, without=weight)
    load = load_vision if part in ("vit", "efficientnet") else load_language
    with pytest.raises(
        CheckpointError, match=r"the checkpoint lacks \d weights that the model needs .*Is it the right"
    ):
        load(folder)


def test_weights_of_another_shape_than_the_config_says_are_refused(part_folder: PartFolder, tmp_path: Path) -> None:
    folder = copied(part_folder("llama"), tmp_path / "llama")
    edit_config(folder, {"intermediate_size": 40})
    message = r"weights of another shape than its config.json says: model.layers.0.mlp.down_proj.weight, .*\.\.\."
    with pytest.raises(CheckpointError, match=message):
        load_language(folder)


def test_weights_that_the_language_model_does_not_use_are_told(part_folder: PartFolder, tmp_path: Path) -> None:
    folder = copied(part_folder("llama"), tmp_path / "llama")
    edit_config(folder, {"num_hidden_layers": 1, "layer_types": None})
    with pytest.warns(
        UserWarning, match=r"9 weights of the checkpoint are not used by LlamaForCausalLM: model.layers.1"
    ):
        load_language(folder)


# --- What is not there


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "config.json").write_text("{"), r"cannot load a model from it \(.*is not a valid JSON"),
    (lambda folder: edit_config(folder, {"model_type": "foo"}), r"cannot load a model from it \(.*model type `foo`"),
    (lambda folder: (folder / "config.json").unlink(), r"cannot load a model from it \(Unrecognized model"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"cannot load a model from it \(Error no file named"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"12"), r"its weights are cut short or damaged \("),
], ids=["broken config", "unknown kind", "no config", "no weights", "damaged weights"])  # fmt: skip
@pytest.mark.parametrize("part", ["clip", "llama"])
def test_a_folder_that_is_no_model_is_named_with_the_reason(
    part_folder: PartFolder, tmp_path: Path, part: str, damage: Callable[[Path], None], message: str
) -> None:
    folder = copied(part_folder(part), tmp_path / part)
    damage(folder)
    with pytest.raises(CheckpointError, match=f"{tmp_path}/{part}: .*{message}"):
        (load_vision if part == "clip" else load_language)(folder)


@pytest.mark.parametrize("load", [load_vision, load_language, load_config])
def test_a_name_that_the_hub_does_not_give_is_explained(load: Callable[..., Any]) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"some/model: not found on the Hugging Face Hub, in its local cache or as a folder \(.*\); check the "
        "spelling and the network, run `hf auth login` if it is private, or give a local folder",
    ):
        load("some/model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "one/two/three"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}: no such folder"):
        load_vision(name)


def test_a_gated_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        CheckpointError, match=r"^meta/llama is gated: accept its licence at https://huggingface.co/meta/"
    ):
        load_language("meta/llama")
    with pytest.raises(CheckpointError, match="then run `hf auth login`"):
        load_vision("meta/llama")


def test_a_model_on_the_hub_that_transformers_refuses_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("some/model contains custom code")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"some/model: transformers cannot load a model from it \(.*custom code"):
        load_language("some/model")


@pytest.mark.parametrize("load", [load_vision, load_language])
def test_code_beside_the_weights_is_never_asked_about(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asks whether to run code"))
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "own.Own")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": auto_map}))
    with pytest.raises(CheckpointError, match=r"needs code that lies beside its weights \(auto_map .* never run from"):
        load(tmp_path)
