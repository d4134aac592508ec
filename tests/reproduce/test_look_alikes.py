"""What a rehearsal runs on has the form of what it stands for: families, tokenizer rules, rows."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from visgraft.errors import DataError
from visgraft.reproduce.article import MODELS, NEEDED
from visgraft.reproduce.conditions import count_rows
from visgraft.reproduce.look_alikes import ROWS, make_models, make_rows

TEXTS = ("a red cat", "naïve café, 日本", "  two spaces\nand a line")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("look_alikes"))


def test_each_model_is_of_the_family_that_it_stands_for(models: dict[str, str]) -> None:
    kinds = [AutoConfig.from_pretrained(models[name]).model_type for name in MODELS]
    assert kinds == ["clip_vision_model", "opt", "opt", "llama", "mpt"]
    small, large = (AutoConfig.from_pretrained(models[name]) for name in MODELS[1:3])
    assert (small.word_embed_proj_dim, small.do_layer_norm_before) == (16, False)  # as OPT-350m alone has it
    assert (large.word_embed_proj_dim, large.do_layer_norm_before) == (32, True)


@pytest.mark.parametrize(("number", "before"), [(1, "</s>"), (2, "</s>"), (3, "<s>"), (4, None)])
def test_each_tokenizer_begins_a_text_as_that_of_its_family_and_loses_nothing(
    models: dict[str, str], number: int, before: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models[MODELS[number]])
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        first = [] if before is None else [tokenizer.convert_tokens_to_ids(before)]
        assert ids[: len(first)] == first
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_models_are_made_once(models: dict[str, str]) -> None:
    folder = Path(models[MODELS[0]])
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_models(folder.parent) == models
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_rows_are_counted_beside_what_the_card_counts(tmp_path: Path) -> None:
    counts = count_rows(make_rows(tmp_path))
    assert counts["coco"] == {
        "train": {"found": ROWS["train"], "card": 566_747},
        "validation": {"found": ROWS["validation"], "card": 25_010},
        "test": {"found": ROWS["test"], "card": 25_010},
    }
    assert {task: tuple(of) for task, of in counts.items()} == NEEDED


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data .*none: no such folder; export M3IT as docs/data.md says"):
        count_rows(tmp_path / "none")


def test_all_that_a_folder_lacks_is_named_at_once(tmp_path: Path) -> None:
    folder = make_rows(tmp_path)
    (folder / "coco" / "test.jsonl").unlink()
    (folder / "nlvr" / "train.jsonl").rename(folder / "nlvr" / "validation.jsonl")
    (folder / "gqa" / "train.jsonl").write_text('{"question": "What?", "answer": "A cat."}\n')
    with pytest.raises(DataError, match="is not M3IT as the article used it: ") as caught:
        count_rows(folder)
    message = str(caught.value)
    assert "coco/test, gqa/train, nlvr/train cannot be read; the first: m3it: no rows of split 'test'" in message
    assert "It needs TASK/SPLIT.jsonl for 26 tasks, which docs/export_m3it.py writes (docs/data.md)" in message


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    with pytest.raises(
        DataError, match=r"textcap/train, .* and 24 more cannot be read; the first: .* has no folder coco"
    ):
        count_rows(tmp_path)


def test_a_mirror_whose_rows_do_not_name_their_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000.parquet").touch()
    with pytest.raises(DataError, match=r"the rows of a mirror do not say of which task they are"):
        count_rows(tmp_path)
