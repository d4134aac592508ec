"""Image processors and tokenizers: found wherever they are, and missed with a reason."""

import json

import pytest
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
)

from tests.data.made_tokenizers import TOKENIZERS
from visgraft.data import tokenizer_and_image_processor as loading
from visgraft.data.tokenizer_and_image_processor import load_image_processor, load_tokenizer
from visgraft.errors import CheckpointError


class Refuses:
    """AutoImageProcessor as it is in transformers 5.17 where torchvision is missing."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise ImportError("AutoImageProcessor requires the Torchvision library")


@pytest.mark.parametrize(
    "spelling",
    [{}, {"image_processor_type": "CLIPImageProcessorFast"}, {"feature_extractor_type": "CLIPFeatureExtractor"}],
)
@pytest.mark.parametrize("auto_class_refuses", [False, True])
def test_a_saved_image_processor_is_found(spelling, auto_class_refuses, tmp_path, monkeypatch):
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    if "feature_extractor_type" in spelling:  # as the first CLIP checkpoints were saved
        del settings["image_processor_type"]
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    file.write_text(json.dumps({**settings, **spelling}))
    if auto_class_refuses:
        monkeypatch.setattr(loading, "AutoImageProcessor", Refuses)
    found = load_image_processor(tmp_path)
    assert {**found.to_dict(), "feature_extractor_type": ""} == {
        **CLIPImageProcessorPil().to_dict(),
        "feature_extractor_type": "",
    }


def test_a_folder_without_an_image_processor_says_what_to_add(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config.json.*copy that file from the encoder"):
        load_image_processor(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: found no image processor there"):
        load_image_processor(tmp_path / "nowhere")


def test_an_image_processor_that_needs_a_missing_package_says_so(tmp_path, monkeypatch):
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_processor_type": "UnheardOfImageProcessor"}))
    monkeypatch.setattr(loading, "AutoImageProcessor", Refuses)
    with pytest.raises(CheckpointError, match="cannot be loaded: UnheardOfImageProcessor needs torchvision"):
        load_image_processor(tmp_path)


@pytest.fixture(scope="module")
def language() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def test_a_loaded_part_brings_what_stands_in_its_folder(language, tmp_path):
    vision = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    vision.save_pretrained(tmp_path / "vision")
    CLIPImageProcessorPil(do_normalize=False).save_pretrained(tmp_path / "vision")
    language.save_pretrained(tmp_path / "language")
    TOKENIZERS["gpt2"]().save_pretrained(tmp_path / "language")
    assert not load_image_processor(CLIPVisionModel.from_pretrained(tmp_path / "vision")).do_normalize
    found = load_tokenizer(GPT2LMHeadModel.from_pretrained(tmp_path / "language"))
    assert found.get_vocab() == load_tokenizer(tmp_path / "language").get_vocab() == TOKENIZERS["gpt2"]().get_vocab()


def test_a_part_made_in_memory_has_no_tokenizer(language):
    with pytest.raises(CheckpointError, match=r"a GPT2LMHeadModel that was not loaded .* has no tokenizer; give"):
        load_tokenizer(language)


def test_a_tokenizer_is_given_back_as_it_is():
    tokenizer = TOKENIZERS["gpt2"]()
    assert load_tokenizer(tokenizer) is tokenizer


@pytest.mark.parametrize("config", [OPTConfig, GPT2Config, GPTNeoXConfig, Qwen3Config, LlamaConfig])
def test_a_folder_without_a_tokenizer_says_so(config, tmp_path):
    config().save_pretrained(tmp_path)  # transformers makes an empty tokenizer for most of these
    with pytest.raises(CheckpointError, match=r"has no tokenizer that can be loaded.*Copy the tokenizer's files"):
        load_tokenizer(tmp_path)


def test_code_beside_the_files_is_never_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asks whether to run code"))
    TOKENIZERS["opt, llama 3"]().save_pretrained(tmp_path)
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None], "AutoImageProcessor": "own.Own"}}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **own, "tokenizer_class": "Foreign"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**own, "image_processor_type": "Foreign"}))
    for load in (load_tokenizer, load_image_processor):
        with pytest.raises(CheckpointError, match=r"needs code that lies beside its files .* never run from here"):
            load(tmp_path)


def test_a_language_model_that_is_nowhere_is_no_folder_without_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"^nobody/no-model: found no tokenizer there: "):
        load_tokenizer("nobody/no-model")
    with pytest.raises(CheckpointError, match=r"missing: found no tokenizer there: "):
        load_tokenizer(tmp_path / "missing")
