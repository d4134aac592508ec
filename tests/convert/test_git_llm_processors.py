"""An import takes the tokenizer and the image processor along and answers with the prompts that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import CLIPImageProcessor

import visgraft
from tests.convert.made_checkpoints import make, write
from tests.data.made_tokenizers import TOKENIZERS
from visgraft import Processor, Turn, VisionLanguageModel

IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))


def source_with(tmp_path: Path, model_type: str, *, side: int = 16) -> Path:
    values, state = make(model_type)
    source = write(tmp_path / "src", values, state)
    TOKENIZERS["opt, llama 3"]().save_pretrained(source)
    size = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size).save_pretrained(source)
    return source


@pytest.mark.parametrize(
    ("model_type", "prompt"),
    [
        ("git_llama", "##Instruction: Look. ##Question: What is it? ##Answer:"),
        ("git_gpt_neox", "##human: Look. What is it?\n##gpt:"),
    ],
)
def test_the_processor_comes_along_with_the_prompts_of_its_authors(
    model_type: str, prompt: str, tmp_path: Path
) -> None:
    report = visgraft.import_git_llm(source_with(tmp_path, model_type), tmp_path / "dst")
    assert report.notes == ()
    processor = Processor.from_pretrained(tmp_path / "dst")
    ids = processor.prompt([Turn("What is it?", "", instruction="Look.")])
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert (processor.num_image_tokens, processor.image_size) == (5, 16)


def test_an_import_answers_about_a_picture(tmp_path: Path) -> None:
    source = source_with(tmp_path, "git_opt")
    visgraft.import_git_llm(source, tmp_path / "dst", template="Q: {prompt} A:")
    model = VisionLanguageModel.from_pretrained(tmp_path / "dst")
    inputs: Any = Processor.from_pretrained(tmp_path / "dst")(images=IMAGE, text="What is it?")
    inputs["input_ids"] = inputs["input_ids"] % 61  # the made-up tokenizer knows more tokens than the made-up model
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 3


def test_an_image_processor_of_another_size_is_noted(tmp_path: Path) -> None:
    report = visgraft.import_git_llm(source_with(tmp_path, "git_mpt", side=24), tmp_path / "dst")
    assert report.notes == ("the image processor makes images of 24 pixels, the encoder takes 16",)


def test_files_that_cannot_be_read_leave_a_model_alone(tmp_path: Path) -> None:
    source = source_with(tmp_path, "git_llama")
    (source / "preprocessor_config.json").write_text('{"image_processor_type": "NobodysImageProcessor"}')
    (note,) = visgraft.import_git_llm(source, tmp_path / "dst").notes
    assert note.startswith("imported as a model alone, as the processor of the source cannot be used: ")
    (source / "preprocessor_config.json").unlink()
    (note,) = visgraft.import_git_llm(source, tmp_path / "again").notes
    assert note.startswith("the source has no image processor (preprocessor_config.json): imported as a model alone")
