"""What a model folder holds, and that it gives back the model it was saved from, bit by bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, MixtralConfig, Qwen3MoeConfig
from transformers import AutoModelForCausalLM as CausalLM

from tests.model.folders import copied, files, logits, nudge, parts, same_weights, stored
from tests.tiny import LLAMA_LIKE, TOKENS, fresh
from visgraft import VisionLanguageModel
from visgraft.config import LoraSettings
from visgraft.errors import CheckpointError
from visgraft.model.configuration import VisionLanguageConfig
from visgraft.model.storage.weights import own_weights
from visgraft.model.trainable import set_trainable

PartFolder = Callable[[str], Path]
ROOT_FILES = {"config.json", "generation_config.json", "model.safetensors"}
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def joined(part_folder: PartFolder) -> Callable[..., VisionLanguageModel]:
    def join(language: str = "llama", vision: str = "clip", **settings: Any) -> VisionLanguageModel:
        return VisionLanguageModel.from_parts(part_folder(vision), part_folder(language), **settings)

    return join


def saved(model: VisionLanguageModel, folder: Path, **settings: Any) -> VisionLanguageModel:
    model.save_pretrained(folder, **settings)
    return VisionLanguageModel.from_pretrained(folder)


def train_lora(model: VisionLanguageModel, *parts: Any, r: int = 2) -> None:
    """Put LoRA on parts and give it values, as training would."""
    set_trainable(model, modes=dict.fromkeys(parts, "lora"), lora={part: LoraSettings(r=r) for part in parts})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(r))


# --- What is stored


def test_a_slim_folder_of_a_trained_projection_holds_the_projection_alone(joined: Any, tmp_path: Path) -> None:
    model = joined()
    nudge(model.projection)
    loaded = saved(model, tmp_path)
    assert files(tmp_path) == ROOT_FILES
    assert set(stored(tmp_path)) == {f"projection.{name}" for name in model.projection.state_dict()}
    assert same_weights(model, loaded)
    assert torch.equal(logits(model), logits(loaded))


def test_a_full_folder_needs_nothing_else(part_folder: PartFolder, tmp_path: Path) -> None:
    vision = copied(part_folder("clip"), tmp_path / "vision")
    language = copied(part_folder("llama"), tmp_path / "language")
    model = VisionLanguageModel.from_parts(vision, language)
    model.save_pretrained(tmp_path / "full", full=True)
    for folder in (vision, language):
        (folder / "model.safetensors").unlink()
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "full")
    assert same_weights(model, loaded)
    assert str(tmp_path) not in (tmp_path / "full" / "config.json").read_text()  # no path of this machine


def test_only_the_weights_that_changed_are_stored(joined: Any, tmp_path: Path) -> None:
    model = joined()
    trained = [name for name in own_weights(model.language) if name.startswith("model.layers.1.")]
    nudge(model.language, *trained)
    nudge(model.vision, "post_layernorm.bias")
    loaded = saved(model, tmp_path)
    assert set(stored(tmp_path / "language")) == set(trained)
    assert list(stored(tmp_path / "vision")) == ["post_layernorm.bias"]
    assert same_weights(model, loaded)


def test_a_part_of_which_all_changed_is_stored_whole(joined: Any, tmp_path: Path) -> None:
    model = joined()
    nudge(model.language)
    loaded = saved(model, tmp_path)
    assert (parts(tmp_path)["language"]["stored"], parts(tmp_path)["vision"]["stored"]) == ("all", "none")
    assert same_weights(model, loaded)


@pytest.mark.parametrize("language", ["opt", "gpt2", "bloom", "falcon"])
def test_a_head_untied_and_trained_alone_is_all_that_is_stored_of_its_language_model(
    joined: Any, tmp_path: Path, language: str
) -> None:
    model = joined(language)
    set_trainable(model, modes={"head": "full"}, frozen_dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(0.1)
    loaded = saved(model, tmp_path)
    assert list(stored(tmp_path / "language")) == ["lm_head.weight"]
    assert same_weights(model, loaded)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight


@pytest.mark.parametrize("language", ["opt", "gpt2", "gemma3"])
def test_tied_embeddings_that_train_are_stored_once(joined: Any, tmp_path: Path, language: str) -> None:
    model = joined(language)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    loaded = saved(model, tmp_path)
    assert len(stored(tmp_path / "language")) == 1
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits(model), logits(loaded))


def test_a_language_model_that_starts_from_nothing_is_stored_whole(part_folder: PartFolder, tmp_path: Path) -> None:
    model = VisionLanguageModel.from_parts(part_folder("clip"), part_folder("llama"), language_init="random")
    loaded = saved(model, tmp_path)
    assert parts(tmp_path)["language"] == {"name": None, "revision": None, "stored": "all", "adapters": 0}
    assert same_weights(model, loaded)


def test_parts_given_as_modules_are_stored_whole(tmp_path: Path) -> None:
    model = fresh()
    loaded = saved(model, tmp_path)
    assert {part["stored"] for part in parts(tmp_path).values()} == {"all"}
    assert same_weights(model, loaded)
    assert torch.equal(logits(model), logits(loaded))


@pytest.mark.parametrize(("config", "renamed"), [(MixtralConfig, True), (Qwen3MoeConfig, False)])
def test_weights_that_a_checkpoint_holds_cut_up_are_stored_with_their_whole_part(
    part_folder: PartFolder, tmp_path: Path, config: Any, renamed: bool
) -> None:
    sizes = {**LLAMA_LIKE, **TOKENS, "num_experts_per_tok": 2, "head_dim": 8}
    experts = {"num_local_experts": 4} if renamed else {"num_experts": 4, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    CausalLM.from_config(config(**sizes, **experts)).save_pretrained(tmp_path / "moe")
    model = VisionLanguageModel.from_parts(part_folder("clip"), tmp_path / "moe")
    nudge(model.language, "model.layers.1.mlp.gate.weight")  # only called otherwise in the checkpoint
    assert same_weights(model, saved(model, tmp_path / "router"))
    name = "block_sparse_moe" if renamed else "mlp"
    assert list(stored(tmp_path / "router" / "language")) == [f"model.layers.1.{name}.gate.weight"]
    nudge(model.language, "model.layers.1.mlp.experts.down_proj")
    assert same_weights(model, saved(model, tmp_path / "expert"))
    assert parts(tmp_path / "expert")["language"]["stored"] == "all"
    assert f"model.layers.0.{name}.experts.0.{'w1' if renamed else 'gate_proj'}.weight" in stored(
        tmp_path / "expert" / "language"
    )


def test_a_full_folder_is_cut_into_files_as_asked(joined: Any, tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path, full=True)
    loaded = saved(model, tmp_path, full=True, max_shard_size="20KB")  # over the single file of the first
    weights = [name for name in files(tmp_path) if name.startswith("language/") and name.endswith(".safetensors")]
    assert len(weights) > 1
    assert "language/model.safetensors" not in weights
    assert same_weights(model, loaded)
    again = saved(loaded, tmp_path)
    assert [name for name in files(tmp_path) if name.endswith(".safetensors") and "language" in name] == [
        "language/model.safetensors"
    ]
    assert same_weights(model, again)


# --- LoRA


def test_lora_of_both_parts_comes_back(joined: Any, tmp_path: Path) -> None:
    model = joined()
    train_lora(model, "language", "vision")
    loaded = saved(model, tmp_path)
    assert files(tmp_path) == ROOT_FILES | {f"{part}_lora/{name}" for part in parts(tmp_path) for name in ADAPTER_FILES}
    assert same_weights(model, loaded)
    assert torch.equal(logits(model), logits(loaded))


def test_lora_on_lora_comes_back_in_its_order(joined: Any, tmp_path: Path) -> None:
    model = joined()
    train_lora(model, "language", r=2)
    second = saved(model, tmp_path / "first")
    train_lora(second, "language", r=3)
    loaded = saved(second, tmp_path / "second")
    assert list(loaded.language.peft_config) == ["default", "stage_2"]
    assert {"language_lora/adapter_config.json", "language_lora_2/adapter_config.json"} <= files(tmp_path / "second")
    assert same_weights(second, loaded)
    assert torch.equal(logits(second), logits(loaded))
    assert not torch.equal(logits(second), logits(model))


@pytest.mark.parametrize("full", [False, True])
def test_lora_and_weights_of_its_own_live_in_one_part(joined: Any, tmp_path: Path, full: bool) -> None:
    model = joined()
    train_lora(model, "language")
    nudge(model.language, "model.norm.weight", "model.layers.0.self_attn.q_proj.weight")
    loaded = saved(model, tmp_path, full=full)
    names = {"model.norm.weight", "model.layers.0.self_attn.q_proj.weight"}
    assert names <= set(stored(tmp_path / "language"))
    assert full or names == set(stored(tmp_path / "language"))
    assert same_weights(model, loaded)


# --- Formats


@pytest.mark.parametrize("frozen_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("vision", ["clip", "efficientnet"])
def test_parts_that_were_frozen_in_a_lower_format_load_with_the_values_they_had(
    joined: Any, tmp_path: Path, frozen_dtype: torch.dtype, vision: str
) -> None:
    model = joined(vision=vision)
    set_trainable(model, modes={"projection": "full", "language": "lora"}, frozen_dtype=frozen_dtype)
    loaded = saved(model, tmp_path)
    assert files(tmp_path) == ROOT_FILES | {f"language_lora/{name}" for name in ADAPTER_FILES}
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert same_weights(model, loaded)
    model.float()
    assert torch.equal(logits(model, vision=vision), logits(loaded, vision=vision))


@pytest.mark.parametrize(
    "modes",
    [
        {"language": {"last_layers": 1}},  # the head beside it is frozen in the lower format
        {"head": "full"},
        {"language": "full"},
        {"vision": {"last_layers": 1}, "language": "lora"},
    ],
    ids=str,
)
def test_a_part_kept_in_two_formats_loads_with_the_values_it_had(joined: Any, tmp_path: Path, modes: Any) -> None:
    model = joined()
    set_trainable(model, modes=modes, frozen_dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 2**-12)  # invisible in bfloat16
    loaded = saved(model, tmp_path)
    assert same_weights(model, loaded)
    assert same_weights(loaded, saved(loaded, tmp_path / "again"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_folder_loads_in_the_format_asked_for(
    joined: Any, tmp_path: Path, dtype: torch.dtype, frozen_dtype: torch.dtype
) -> None:
    model = joined()
    set_trainable(model, modes={"projection": "full"}, frozen_dtype=frozen_dtype)
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert same_weights(model.to(dtype), loaded)
    assert logits(loaded).dtype == dtype
    named = str(dtype).removeprefix("torch.")
    assert same_weights(loaded, VisionLanguageModel.from_pretrained(tmp_path, torch_dtype=named))


def test_parts_loaded_in_a_lower_format_are_known_again(part_folder: PartFolder, tmp_path: Path) -> None:
    model = VisionLanguageModel.from_parts(part_folder("efficientnet"), part_folder("llama"), dtype=torch.bfloat16)
    loaded = saved(model, tmp_path)
    assert files(tmp_path) == ROOT_FILES
    assert same_weights(model, loaded)


def test_a_change_finer_than_the_format_it_was_loaded_in_is_stored(part_folder: PartFolder, tmp_path: Path) -> None:
    model = VisionLanguageModel.from_parts(part_folder("clip"), part_folder("llama"), dtype=torch.bfloat16)
    set_trainable(model, modes={"language": "full"})
    with torch.no_grad():
        model.language.model.norm.weight.mul_(1 + 2**-12)
    assert same_weights(model, saved(model, tmp_path))
    assert list(stored(tmp_path / "language")) == ["model.norm.weight"]


# --- Again and again


def test_saving_and_loading_again_changes_nothing(joined: Any, tmp_path: Path) -> None:
    model = joined()
    train_lora(model, "language")
    nudge(model.vision, "post_layernorm.weight")
    nudge(model.language, "model.norm.weight")
    first = saved(model, tmp_path / "first")
    second = saved(first, tmp_path / "second")
    assert same_weights(model, second)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    for name in files(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_model_trained_further_stores_what_either_stage_trained(joined: Any, tmp_path: Path) -> None:
    model = joined()
    nudge(model.language, "model.norm.weight")
    second = saved(model, tmp_path / "first")
    nudge(second.language, "lm_head.weight")
    loaded = saved(second, tmp_path / "second")
    assert set(stored(tmp_path / "second" / "language")) == {"model.norm.weight", "lm_head.weight"}
    assert same_weights(second, loaded)


def test_a_model_can_be_saved_into_the_folder_it_was_loaded_from(joined: Any, tmp_path: Path) -> None:
    model = saved(joined(), tmp_path, full=True)
    nudge(model.language, "model.norm.weight")
    assert same_weights(model, saved(model, tmp_path))


def test_saving_changes_nothing_in_memory(joined: Any, tmp_path: Path) -> None:
    model = joined()
    train_lora(model, "language")
    before, text_config = model.config.to_dict(), model.language.config.to_dict()
    model.save_pretrained(tmp_path / "full", full=True)
    assert model.config.to_dict() == before
    assert {key: value for key, value in model.language.config.to_dict().items() if key != "dtype"} == {
        key: value for key, value in text_config.items() if key != "dtype"
    }
    model.save_pretrained(tmp_path / "slim")
    assert parts(tmp_path / "slim")["language"]["stored"] == "none"


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path / "model", is_main_process=False)
    assert not (tmp_path / "model").exists()


# --- Settings, generation, other ways in


def test_the_settings_of_the_join_come_back(joined: Any, tmp_path: Path) -> None:
    model = joined(
        image_attention="causal",
        image_size=64,
        feature_layer=-2,
        keep_class_token=False,
        num_frames=3,
        projection={"type": "mlp", "pool": 2},
    )
    nudge(model.projection, "temporal_embedding")
    loaded = saved(model, tmp_path)
    names = ("image_attention", "image_size", "feature_layer", "keep_class_token", "num_frames", "projection")
    assert [getattr(loaded.config, name) for name in names] == [getattr(model.config, name) for name in names]
    assert same_weights(model, loaded)


def test_generation_settings_come_back_even_such_as_transformers_refuses(joined: Any, tmp_path: Path) -> None:
    model = joined()
    nudge(model.language, "model.norm.weight")
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], temperature=0.5, do_sample=False)
    model.language.generation_config = model.generation_config
    loaded = saved(model, tmp_path, full=True)
    assert loaded.generation_config.eos_token_id == [2, 7]
    assert loaded.generation_config.temperature == 0.5
    assert model.language.generation_config is model.generation_config
    assert GenerationConfig.from_pretrained(tmp_path / "language").eos_token_id == [2, 7]


def test_transformers_own_auto_classes_load_a_folder(joined: Any, tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), VisionLanguageConfig)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(loaded, VisionLanguageModel)
    assert same_weights(model.to(torch.bfloat16), loaded)


def test_a_run_folder_is_as_good_as_the_model_in_it(joined: Any, tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text("model: {}\n")
    assert same_weights(model, VisionLanguageModel.from_pretrained(tmp_path))
    assert same_weights(model, VisionLanguageModel.from_pretrained(str(tmp_path)))


def test_arguments_for_the_language_model_reach_it(joined: Any, tmp_path: Path) -> None:
    joined().save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path, device_map="cpu", attn_implementation="eager")
    assert loaded.language.config._attn_implementation == "eager"
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel'"):
        VisionLanguageModel.from_pretrained(tmp_path, kernel="sdpa")


def test_a_stored_part_is_a_checkpoint_of_its_own(joined: Any, tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path, full=True)
    assert same_weights(model.language, CausalLM.from_pretrained(tmp_path / "language"))
    again = VisionLanguageModel.from_parts(tmp_path / "vision", tmp_path / "language")
    again.projection.load_state_dict(model.projection.state_dict())
    assert torch.equal(logits(model), logits(again))


# --- What is refused


def test_a_folder_that_a_part_is_loaded_from_is_never_written_over(part_folder: PartFolder, tmp_path: Path) -> None:
    vision = copied(part_folder("clip"), tmp_path / "vision")
    model = VisionLanguageModel.from_parts(vision, part_folder("llama"))
    before = (vision / "model.safetensors").read_bytes()
    for folder in (tmp_path, vision):
        with pytest.raises(CheckpointError, match="the vision part is loaded from there; save into another folder"):
            model.save_pretrained(folder, full=True)
    assert (vision / "model.safetensors").read_bytes() == before


def test_an_argument_that_saving_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save_pretrained takes no variant without push_to_hub=True"):
        fresh().save_pretrained(tmp_path, variant="half")


def test_a_trainers_state_dict_is_taken_where_it_is_the_models_own(tmp_path: Path) -> None:
    model = fresh()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert (tmp_path / "config.json").is_file()
    other = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="got a state_dict that is not the model's own; load it first"):
        model.save_pretrained(tmp_path, state_dict=other)


def test_weights_that_are_not_in_memory_are_not_saved(tmp_path: Path) -> None:
    model = fresh()
    model.language.to("meta")
    with pytest.raises(CheckpointError, match="the language part is offloaded, its weights are not in memory"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int8])
def test_a_format_that_is_none_is_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(CheckpointError, match="need a floating-point format such as 'bfloat16'"):
        VisionLanguageModel.from_pretrained(tmp_path, dtype=dtype)


# --- The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stand in for the Hub: a folder."""
    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: Any = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **settings: Any) -> Any:
            seen.update(repo=repo_id, **settings)
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, folder_path: str, **settings: Any) -> Any:
            seen.update(settings, folder=copied(Path(folder_path), tmp_path / "hub"))
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})

    monkeypatch.setattr("visgraft.model.storage.load_and_save.HfApi", Api)
    return seen


def test_pushing_refuses_a_part_that_only_this_machine_has(joined: Any, hub: dict[str, Any], tmp_path: Path) -> None:
    model = joined()
    for push in (model.push_to_hub, lambda name: model.save_pretrained(tmp_path / name, push_to_hub=True)):
        with pytest.raises(
            CheckpointError, match=r"vision part is the local folder .*, which no one else has: push with"
        ):
            push("mine")
    assert "repo" not in hub  # nothing was made


def test_pushing_uploads_a_whole_folder(joined: Any, hub: dict[str, Any]) -> None:
    model = joined()
    train_lora(model, "language")
    assert model.push_to_hub("mine", full=True, private=True, token="t") == "https://hub/commit/1"
    assert (hub["repo"], hub["repo_id"], hub["private"], hub["token"]) == ("mine", "me/mine", True, "t")
    assert same_weights(model, VisionLanguageModel.from_pretrained(hub["folder"]))
    local = [
        path for path in hub["folder"].rglob("*.json") if model.config.parts["language"]["name"] in path.read_text()
    ]
    assert local == []


def test_saving_can_push(hub: dict[str, Any], tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="First")
    assert (hub["repo"], hub["commit_message"]) == ("mine", "First")


def test_a_name_on_the_hub_is_fetched_and_loaded(joined: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path)
    asked: list[Any] = []

    def download(name: str, **hub: Any) -> str:
        asked.append((name, hub))
        return str(tmp_path)

    monkeypatch.setattr("visgraft.model.storage.restoring.snapshot_download", download)
    assert same_weights(model, VisionLanguageModel.from_pretrained("me/mine", revision="v2", token="t"))
    assert asked == [("me/mine", {"revision": "v2", "token": "t"})]
