"""LoRA on disk is peft's own, and one that does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict

from tests.model.folders import edit_tensors, same_weights
from tests.tiny import bare_language, fresh, random_ids
from visgraft.config import LoraSettings
from visgraft.errors import CheckpointError
from visgraft.model.lora import adapters_of
from visgraft.model.storage import adapters
from visgraft.model.storage.adapters import adapter_folder, load_adapter, save_adapter
from visgraft.model.trainable import set_trainable

PartFolder = Callable[[str], Path]


def with_lora(language: str = "llama", *, r: int = 2, model: torch.nn.Module | None = None) -> torch.nn.Module:
    """Give a model with LoRA of some value on its language model."""
    model = fresh(language) if model is None else model
    set_trainable(model, modes={"language": "lora"}, lora={"language": LoraSettings(r=r)})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    return model


@pytest.mark.parametrize("language", ["llama", "gpt2", "opt", "falcon"])
def test_peft_itself_puts_an_adapter_on_the_bare_language_model(tmp_path: Path, language: str) -> None:
    model = with_lora(language)
    ids = random_ids(2, 6)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.save_pretrained(tmp_path)
        peft = PeftModel.from_pretrained(bare_language(language), tmp_path / "language_lora").eval()
        assert torch.equal(peft(input_ids=ids).logits, expected)


def test_an_adapter_names_the_base_that_it_belongs_on(tmp_path: Path) -> None:
    language = with_lora().language
    save_adapter(language, "default", folder=tmp_path / "lora", name="me/llama")
    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (values["base_model_name_or_path"], values["r"]) == ("me/llama", 2)
    assert language.peft_config["default"].base_model_name_or_path != "me/llama"  # memory is left alone


def test_an_adapter_is_written_alike_in_every_process(tmp_path: Path) -> None:
    language = with_lora().language
    names = [f"layers.{n}.self_attn.{kind}_proj" for n in range(40) for kind in "qkvo"]
    language.peft_config["default"].target_modules = set(names)  # whose order Python draws anew in each process
    save_adapter(language, "default", folder=tmp_path / "lora", name=None)
    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert values["target_modules"] == sorted(names)
    assert language.peft_config["default"].target_modules == set(names)


def test_adapters_are_put_on_one_after_the_other_and_all_take_effect(tmp_path: Path) -> None:
    model = with_lora(r=3, model=with_lora())
    for index, adapter in enumerate(adapters_of(model.language)):
        save_adapter(model.language, adapter, folder=tmp_path / adapter_folder("language", index), name=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language_lora", "language_lora_2"]
    language = bare_language("llama")
    load_adapter(language, tmp_path / "language_lora", adapter="default")
    load_adapter(language, tmp_path / "language_lora_2", adapter="stage_2")
    assert same_weights(model.language, language)
    ids = random_ids(1, 4)
    with torch.no_grad():
        assert torch.equal(model.language(ids).logits, language(ids).logits)
    assert {name for name, weight in language.named_parameters() if weight.requires_grad} == {
        name for name in dict(language.named_parameters()) if ".stage_2." in name
    }


def test_weights_keep_their_names_whatever_peft_would_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renaming = pytest.importorskip("peft.utils.transformers_weight_conversion", reason="an older peft renames nothing")

    def rename(*_: object, adapter_state_dict: dict[str, torch.Tensor], **__: object) -> dict[str, torch.Tensor]:
        return {name.replace("q_proj", "other_proj"): tensor for name, tensor in adapter_state_dict.items()}

    monkeypatch.setattr(renaming, "convert_peft_adapter_state_dict_for_transformers", rename)
    saved, language = with_lora().language, bare_language("llama")
    save_adapter(saved, "default", folder=tmp_path / "lora", name=None)
    load_adapter(language, tmp_path / "lora", adapter="default")
    assert same_weights(saved, language)
    assert renaming.convert_peft_adapter_state_dict_for_transformers is rename


def test_a_weight_for_which_peft_finds_no_place_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(module: torch.nn.Module, state: dict[str, torch.Tensor], *, adapter_name: str) -> object:
        renamed = {name.replace("q_proj", "other_proj"): tensor for name, tensor in state.items()}
        return set_peft_model_state_dict(module, renamed, adapter_name=adapter_name)

    monkeypatch.setattr(adapters, "set_peft_model_state_dict", lose)
    with pytest.raises(CheckpointError, match=r"peft found no place in LlamaForCausalLM for 4 weights of the LoRA"):
        load_adapter(bare_language("llama"), folder, adapter="default")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(with_lora().language, "default", folder=tmp_path / "lora", name=None)
    return tmp_path / "lora"


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("change", [
    {"without": NAME}, {NAME: torch.zeros(3, 32)}, {NAME.replace("q_proj", "r_proj"): torch.zeros(2, 32)}
], ids=["missing", "misshapen", "added"])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(folder: Path, change: dict[str, object]) -> None:
    edit_tensors(folder, **change)
    with pytest.raises(
        CheckpointError, match=r"lora: LoRA weights that do not fit LlamaForCausalLM: model.layers.0.self"
    ):
        load_adapter(bare_language("llama"), folder, adapter="default")


def test_an_adapter_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="lora: the LoRA does not fit GPT2LMHeadModel: "):
        load_adapter(bare_language("gpt2"), folder, adapter="default")


def test_an_adapter_without_its_config_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"lora has no adapter_config.json that can be read"):
        load_adapter(bare_language("llama"), folder, adapter="default")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lora has no adapter_config.json that can be read"):
        load_adapter(bare_language("llama"), folder, adapter="default")
