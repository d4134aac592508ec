"""Runs that were really trained, compared: two variants of two seeds, one of another tokenizer, one not finished."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.made_tokenizers import TOKENIZERS
from tests.reporting.page_tree import read_page
from tests.training.tiny import COLOURS, tiny_recipe
from visgraft.compare.answers import gather, text_quality
from visgraft.compare.collect import collect
from visgraft.compare.differences import differences
from visgraft.compare.json_and_markdown import as_json
from visgraft.compare.own_images import ask_variants
from visgraft.compare.report import write_report
from visgraft.compare.results_table import best_validation, loss_unit, results
from visgraft.compare.variants import Comparison
from visgraft.errors import BadSampleError, CheckpointError
from visgraft.inference import answer, load
from visgraft.metrics.text_match import exact_match
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.progress import make_progress

pytestmark = pytest.mark.slow


def other_language(folder: Path) -> str:
    """Save the tiny language model again, with another tokenizer."""
    from transformers import AutoModelForCausalLM

    from tests.training.tiny import language_config

    tokenizer = next(make for name, make in TOKENIZERS.items() if name != "opt, llama 3")()
    AutoModelForCausalLM.from_config(language_config("llama", len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    quiet = make_progress(show=False)
    base: dict[str, Any] = {
        "max_steps": 6,
        "validate_every_steps": 3,
        "sample_every_steps": 3,
        "exact_match_samples": 4,
    }
    for name, changes in (("projection", {"language": "frozen"}), ("lora", {})):
        for seed in (0, 1):
            recipe = {**tiny_recipe(folder, **{**base, **changes, "seed": seed}), "name": name}
            train(recipe, folder=folder / "runs" / f"{name}-{seed}", progress=quiet)
    other = {**tiny_recipe(folder, **base), "name": "other"}
    other["model"] = {**other["model"], "language": other_language(folder / "other-language")}
    train(other, folder=folder / "runs" / "other-0", progress=quiet)
    half = {**tiny_recipe(folder, **base, layout="rows"), "name": "half"}
    with pytest.raises(Interrupted):
        train(half, folder=folder / "runs" / "half-0", progress=quiet, stop=lambda step: step == 4)
    return folder / "runs"


@pytest.fixture(scope="module")
def comparison(runs: Path) -> Comparison:
    return collect([runs])


def test_variants_and_their_states_are_read_off_the_folders(comparison: Comparison) -> None:
    assert {v.name: [(run.seed, run.status) for run in v.runs] for v in comparison.variants} == {
        "half": [(0, "unfinished")],
        "lora": [(0, "finished"), (1, "finished")],
        "other": [(0, "finished")],
        "projection": [(0, "finished"), (1, "finished")],
    }
    assert differences(comparison.variants).keys() == {"model.language.name", "train.language", "train.layout"}


def test_losses_are_compared_per_character_where_a_tokenizer_differs(comparison: Comparison) -> None:
    same = [variant for variant in comparison.variants if variant.name != "other"]
    assert loss_unit(same) == "token"
    assert loss_unit(comparison.variants) == "character"
    column = next(column for column in results(comparison.variants) if column.key == "validation_loss")
    for variant in comparison.variants:
        per_character = [
            min(record["validation_loss_per_character"] for record in Run.open(run.folder).read_metrics()
                if "validation_loss" in record)
            for run in variant.counted
        ]  # fmt: skip
        assert column.cells[variant.name].mean == pytest.approx(sum(per_character) / len(per_character))
        assert best_validation(variant.counted[0], "character") == pytest.approx(per_character[0])


def test_the_answers_are_those_of_the_finished_models_and_whether_they_stopped_is_known(
    comparison: Comparison,
) -> None:
    questions = gather(comparison.variants)
    assert len(questions) == 4
    assert all(question.image is not None for question in questions)
    given = [answer for question in questions for answer in question.final("lora")]
    assert all(answer.stopped in (True, False) for answer in given)
    last = {run.seed: run.training.steps[-1] for run in comparison.runs if run.variant == "lora"}
    assert all(answer.step == last[answer.seed] for answer in given)
    for question in questions:
        for said in question.given:
            assert said.is_right == bool(exact_match([said.text], references=[question.expected]).value)
    assert text_quality(questions, comparison.variants)["lora"].never_stopped is not None


def test_images_of_ones_own_are_put_to_every_model_with_every_prompt(comparison: Comparison, tmp_path: Path) -> None:
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    for file in files:
        Image.new("RGB", (32, 32), COLOURS[file.stem]).save(file)
    questions = ask_variants(comparison.variants, files, ["Which colour?", ""], max_new_tokens=6, device="cpu")
    assert [question.prompt for question in questions] == ["Which colour?", "", "Which colour?", ""]
    for variant in comparison.variants:
        number = 0 if variant.name == "half" else len(variant.runs)  # it has no model yet
        assert [len(question.final(variant.name)) for question in questions] == [number] * 4
    [run] = [run for run in comparison.runs if (run.variant, run.seed) == ("lora", 1)]
    from visgraft import Sample, Turn

    sample = Sample(images=[files[1]], dialogs=[[Turn("Which colour?", "")]])
    [text] = answer(*load(str(run.folder), device="cpu"), [sample], max_new_tokens=6)
    assert [given.text for given in questions[2].given if (given.variant, given.seed) == ("lora", 1)] == [text]
    page = write_report(comparison, gather(comparison.variants), tmp_path / "report.html", own=questions)
    own = read_page(page).section("Your own images").all("article", "question")
    assert [card.one("b").text for card in own] == ["Which colour?", "(a caption)"] * 2
    assert [row.one("dd").text for row in own[0].all("div", data_variant="0")] == ["— not asked"]  # half has no model
    assert len(as_json(comparison, questions)["answers"]) == 4


def test_a_file_that_is_no_image_and_runs_without_a_model_are_refused(comparison: Comparison, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(BadSampleError, match=r"no\.png: not an image"):
        ask_variants(comparison.variants, [tmp_path / "no.png"], [""])
    half = [variant for variant in comparison.variants if variant.name == "half"]
    Image.new("RGB", (32, 32)).save(tmp_path / "yes.png")
    with pytest.raises(CheckpointError, match="--image: none of these runs has a model yet"):
        ask_variants(half, [tmp_path / "yes.png"], [""])
