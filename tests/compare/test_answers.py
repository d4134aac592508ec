"""SamplePrompt images: found again, answers beside the truth, over training."""

import json
import shutil
from pathlib import Path

from PIL import Image

from tests.compare.made_runs import PROBES, save_experiment
from visgraft.compare.answers import gather, text_quality
from visgraft.compare.collect import collect


def test_each_question_has_its_image_its_truth_and_every_variants_answer(tmp_path: Path) -> None:
    comparison = collect([save_experiment(tmp_path / "modules", num_variants=8, num_steps=20)])
    questions = gather(comparison.variants)
    assert [(question.prompt, list(question.expected)) for question in questions] == [(p, e) for p, e in PROBES]
    for number, question in enumerate(questions):
        assert question.image is not None
        with Image.open(tmp_path / "modules-images" / f"{number}.png") as image:
            assert question.image.tobytes() == image.tobytes()
        assert [given.text for given in question.final("projection")] == ["a dog & <b>"] * 2
        assert [given.is_right for given in question.final("language-vision")] == [True] * 2
        assert [given.text for given in question.history("language-vision")] == [
            "a cat a cat a cat a cat a cat", "a dog & <b>", PROBES[number][1][0],
        ]  # fmt: skip
    found = text_quality(questions, comparison.variants)
    assert found["projection"].num_answers == 6
    assert found["projection"].never_stopped == 0


def test_an_image_that_the_run_kept_is_taken_from_there(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=1, seeds=1, num_steps=20)
    run = folder / "projection-seed0"
    (run / "sample_prompts").mkdir()
    Image.new("RGB", (7, 5)).save(run / "sample_prompts" / "0.jpg")
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    kept = [{**line, "image": "0.jpg" if line["id"].endswith("0.png") else None} for line in lines]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    first, second, _ = gather(collect([folder]).variants)
    assert first.image is not None
    assert first.image.size == (7, 5)
    assert second.image is None
    assert second.missing == "this question has no image"


def test_data_that_is_gone_is_said_where_the_picture_would_be(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=1, seeds=1, num_steps=20)
    images = tmp_path / "modules-images"
    lines = (images / "metadata.jsonl").read_text().splitlines(keepends=True)
    (images / "metadata.jsonl").write_text("".join(lines[:2]))
    [*_, last] = gather(collect([folder]).variants)
    assert last.missing == "the data of the run no longer holds this sample"
    shutil.rmtree(images)
    questions = gather(collect([folder]).variants)
    assert all("the data of the run cannot be read any more" in question.missing for question in questions)


def test_runs_without_answers_have_no_questions(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=1, seeds=1, num_steps=20)
    (folder / "projection-seed0" / "samples.jsonl").unlink()
    assert gather(collect([folder]).variants) == []
