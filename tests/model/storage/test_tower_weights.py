"""Towers inside larger checkpoints: found by their own names, read without the rest, saved and loaded again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tiny import LLAMA_LIKE, SQUARE, bare_language, random_pixels, randomise
from visgraft.errors import CheckpointError
from visgraft.model.hf_logging import quiet_transformers
from visgraft.model.storage import tower_weights
from visgraft.model.storage.pretrained import load_vision
from visgraft.model.storage.tower_weights import find_prefix
from visgraft.model.tower import find_tower
from visgraft.model.vlm import VisionLanguageModel

TEXT = {"text_config": {**LLAMA_LIKE, "model_type": "llama"}}
SMALL_BLIP = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WHOLE: dict[str, Any] = {
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**SQUARE), **TEXT, image_token_index=3)
    ),
    "paligemma": lambda: hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(
            vision_config={**SQUARE, "model_type": "siglip_vision_model"},
            text_config={**LLAMA_LIKE, "model_type": "gemma", "head_dim": 8},
            image_token_index=3,
            projection_dim=32,
        )
    ),
    "clip": lambda: hf.CLIPModel(
        hf.CLIPConfig(vision_config=SQUARE, text_config={**SMALL_BLIP, "vocab_size": 96, "eos_token_id": 2})
    ),
    "blip": lambda: hf.BlipModel(
        hf.BlipConfig(vision_config=SQUARE, text_config={**SMALL_BLIP, "vocab_size": 96, "encoder_hidden_size": 24})
    ),
}


@pytest.fixture(scope="module", params=WHOLE)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    whole = randomise(WHOLE[request.param](), seed=4).eval()
    with quiet_transformers():
        whole.save_pretrained(folder)  # type: ignore[operator]
    return folder, whole


def test_the_tower_of_a_whole_checkpoint_has_its_weights(checkpoint: tuple[Path, Any]) -> None:
    folder, whole = checkpoint
    vision, _ = load_vision(folder)
    pixels = random_pixels(2)
    expected = find_tower(whole)(pixels).last_hidden_state
    assert torch.equal(vision(pixels).last_hidden_state, expected)


def test_only_the_tower_is_read(checkpoint: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole = checkpoint
    read: list[str] = []

    class Watched:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> Any:
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.opened.keys())

        def get_tensor(self, name: str) -> Any:
            read.append(name)
            return self.opened.get_tensor(name)

    monkeypatch.setattr(tower_weights, "safe_open", Watched)
    load_vision(folder)
    assert len(read) == len(find_tower(whole).state_dict()) < len(whole.state_dict())


def test_a_model_of_such_a_tower_is_saved_by_name_and_loaded_again(
    checkpoint: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = checkpoint
    model = VisionLanguageModel.from_parts(folder, bare_language("llama"))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "vision").exists()
    again = VisionLanguageModel.from_pretrained(tmp_path)
    pixels = random_pixels(2)
    assert torch.equal(again.image_prefix(pixels)[0], model.image_prefix(pixels)[0])


def test_weights_that_a_checkpoint_lacks_are_an_error(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    _, whole = checkpoint
    tower = find_tower(whole)
    whole.config.save_pretrained(tmp_path)
    name = next(name for name, module in whole.named_modules() if module is tower)
    weights = {
        key: value for key, value in whole.state_dict().items() if not key.startswith(f"{name}.encoder.layers.1")
    }

    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks \d+ weights that the model needs"):
        load_vision(tmp_path)


def test_a_language_model_with_layers_of_the_same_names_is_not_taken_for_the_tower() -> None:
    in_checkpoint = ["vision_tower.layers.0.weight", "language.layers.0.weight", "language.layers.1.weight"]
    assert find_prefix(in_checkpoint, ["layers.0.weight", "layers.1.weight"]) == "vision_tower."
    assert find_prefix(["layers.0.weight"], ["layers.0.weight"]) == ""
