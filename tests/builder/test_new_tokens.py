"""`model.language.new_tokens`: the tokenizer learns them, their rows train and no others, and the run is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import visgraft
from tests.training.tiny import save_parts, tiny_recipe
from visgraft import Processor, VisionLanguageModel, load_recipe
from visgraft.builder.build import build, build_processor
from visgraft.builder.describe import describe_recipe
from visgraft.errors import ConfigError

NEW = ["<loc1>", "<loc2>"]


def recipe_with(folder: Path, *, head: str = "frozen", **train: Any) -> dict[str, Any]:
    values = tiny_recipe(folder, num_images=4, max_steps=3, head=head, **train)
    values["model"]["language"] = {"name": values["model"]["language"], "new_tokens": NEW}
    return values


@pytest.mark.slow
@pytest.mark.parametrize("language", ["lora", "frozen"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_their_rows_train_and_no_others(language: str, precision: str, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_with(tmp_path, language=language, precision=precision))
    lines = (tmp_path / "train" / "metadata.jsonl").read_text().replace('"answer": "', '"answer": "<loc1> ')
    (tmp_path / "train" / "metadata.jsonl").write_text(lines)
    before, processor = build(recipe)
    ids = processor.tokenizer.convert_tokens_to_ids(NEW)
    assert processor.tokenizer("<loc1>", add_special_tokens=False)["input_ids"] == ids[:1]
    run = visgraft.train(recipe)
    after = VisionLanguageModel.from_pretrained(run)
    assert Processor.from_pretrained(Path(str(run)) / "model").tokenizer.convert_tokens_to_ids(NEW) == ids
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, get)().weight, getattr(after, get)().weight
        kept = [row for row in range(old.shape[0]) if row not in ids]
        assert torch.equal(old[kept].to(torch.bfloat16), new[kept].to(torch.bfloat16)), f"{get}: another row has moved"
        assert not torch.equal(old[ids[0]], new[ids[0]]), f"{get}: the row has not trained"


def test_show_says_what_trains(tmp_path: Path) -> None:
    described = describe_recipe(load_recipe(recipe_with(tmp_path)), name="recipe")
    notes = {row.part: " ".join(row.notes) for row in described.rows}
    assert "the rows of 2 new tokens train" in notes["language"]
    assert "the rows of 2 new tokens train" in notes["head"]


def test_a_token_that_is_there_already_is_refused(tmp_path: Path) -> None:
    values = recipe_with(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(values["model"]["language"]["name"])
    values["model"]["language"]["new_tokens"] = [next(iter(tokenizer.get_vocab()))]
    with pytest.raises(ConfigError, match=r"the tokenizer has .* already"):
        build_processor(load_recipe(values))
    values["model"]["language"]["new_tokens"] = ["<a>", "<a>"]
    with pytest.raises(ConfigError, match="need different texts"):
        load_recipe(values)


def test_a_tokenizer_with_more_tokens_than_the_embeddings_have_rows_is_refused_before_weights_are_read(
    tmp_path: Path,
) -> None:
    vision, language = save_parts(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(language)
    tokenizer.add_tokens([f"<more{n}>" for n in range(1000)])
    tokenizer.save_pretrained(language)
    (Path(language) / "model.safetensors").write_bytes(b"")  # whoever reads it fails
    values = {"model": {"vision": vision, "language": language}, "data": {"train": []}}
    with pytest.raises(ConfigError, match=r"tokens of its tokenizer have no row in its embeddings.*'<more"):
        build_processor(load_recipe({**values, "data": {"train": [{"source": "folder", "path": str(tmp_path)}]}}))
