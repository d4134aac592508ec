"""Asking and captioning: what is printed, what is JSON, what becomes of files that are no images."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from tests.warm_python import warm_python
from visgraft.data.sample import Sample, Turn
from visgraft.inference import answer, load, score_candidates
from visgraft.reporting.progress import visible


def expected(folder: Path, prompt: str, *names: str) -> list[str]:
    samples = [Sample(images=[folder / "photos" / name], dialogs=[[Turn(prompt, "")]]) for name in names]
    return answer(*load(str(folder / "run"), device="cpu", precision="fp32"), samples, max_new_tokens=6)


SHORT = ("--max-new-tokens", 6, "--device", "cpu", "--precision", "fp32")


def test_a_run_and_its_model_folder_give_the_answer(visgraft: Visgraft, folder: Path) -> None:
    [text] = expected(folder, "What is it?", "1.png")
    image = folder / "photos" / "1.png"
    for model in (folder / "run", folder / "run" / "model"):
        outcome = visgraft("ask", model, image, "What is it?", *SHORT)
        assert (outcome.status, outcome.out, outcome.err) == (0, f"{text}\n", "")


@pytest.mark.slow
def test_an_answer_as_json_is_alone_on_standard_output(folder: Path) -> None:
    image = folder / "photos" / "1.png"
    args = ["ask", folder / "run", image, "What is it?", "--json", *SHORT]
    result = subprocess.run(
        [*warm_python(), "-m", "visgraft", *map(str, args)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.stderr == ""
    [text] = expected(folder, "What is it?", "1.png")
    assert json.loads(result.stdout) == {"image": str(image), "question": "What is it?", "answer": text}


def test_the_likeliest_of_given_choices_is_the_answer(visgraft: Visgraft, folder: Path) -> None:
    image = folder / "photos" / "1.png"
    sample = Sample(images=[image], dialogs=[[Turn("Which colour?", "")]])
    model, processor = load(str(folder / "run"), device="cpu", precision="fp32")
    scores = score_candidates(model, processor, sample, ["red", "a grey cat", "blue"])
    best = ["red", "a grey cat", "blue"][scores.index(max(scores))]
    args = ("ask", folder / "run", image, "Which colour?", "--choices", "red, a grey cat,blue,red", *SHORT)
    outcome = visgraft(*args)
    assert (outcome.status, outcome.out, outcome.err) == (0, f"{best}\n", "")
    told = json.loads(visgraft(*args, "--json").out)
    assert (told["image"], told["question"], told["answer"]) == (str(image), "Which colour?", best)
    assert [choice["answer"] for choice in told["choices"]] == ["red", "a grey cat", "blue"]
    assert [choice["log_likelihood"] for choice in told["choices"]] == pytest.approx(scores, abs=1e-5)
    assert sum(choice["share"] for choice in told["choices"]) == pytest.approx(1)


def test_one_choice_is_no_choice(visgraft: Visgraft, folder: Path) -> None:
    outcome = visgraft("ask", folder / "run", folder / "photos" / "1.png", "Which?", "--choices", " red,,red ")
    assert outcome.status == 2
    assert "--choices: got ' red,,red ', need two answers or more, such as red,blue" in outcome.err


def test_captions_come_in_the_order_of_the_images(visgraft: Visgraft, folder: Path) -> None:
    names = ["2.png", "0.png", "1.png"]
    texts = expected(folder, "", *names)
    paths = [folder / "photos" / name for name in names]
    outcome = visgraft("caption", folder / "run", *paths, *SHORT)
    assert outcome.status == 0
    assert outcome.out == "".join(f"{path}: {visible(text)}\n" for path, text in zip(paths, texts, strict=True))
    assert visgraft("caption", folder / "run", paths[0], *SHORT).out == f"{visible(texts[0])}\n"
    outcome = visgraft("caption", folder / "run", *paths, "--json", "--batch-size", 2, *SHORT)
    assert json.loads(outcome.out) == [
        {"image": str(path), "caption": text} for path, text in zip(paths, texts, strict=True)
    ]


def test_a_caption_can_have_a_prompt(visgraft: Visgraft, folder: Path) -> None:
    [text] = expected(folder, "Which colour?", "0.png")
    outcome = visgraft("caption", folder / "run", folder / "photos" / "0.png", "--prompt", "Which colour?", *SHORT)
    assert outcome.out == f"{text}\n"


def test_a_file_that_is_no_image_is_reported_and_the_others_are_captioned(visgraft: Visgraft, folder: Path) -> None:
    good, bad = folder / "photos" / "0.png", folder / "photos" / "metadata.jsonl"
    [text] = expected(folder, "", "0.png")
    outcome = visgraft("caption", folder / "run", bad, good, *SHORT)
    assert (outcome.status, outcome.out, outcome.err) == (2, f"{good}: {text}\n", f"error: {bad}: not an image\n")
    outcome = visgraft("caption", folder / "run", bad, good, "--json", *SHORT)
    assert json.loads(outcome.out) == [
        {"image": str(bad), "error": f"{bad}: not an image"},
        {"image": str(good), "caption": text},
    ]
    assert outcome.status == 2


@pytest.mark.parametrize(
    ("image", "reason"),
    [("nowhere.png", "image file is missing"), ("metadata.jsonl", "not an image"), ("", "image path is no file")],
)
def test_an_image_that_cannot_be_read_is_said_before_the_model_is_loaded(
    visgraft: Visgraft, folder: Path, monkeypatch: pytest.MonkeyPatch, image: str, reason: str
) -> None:
    monkeypatch.delattr("visgraft.inference.load")
    path = folder / "photos" / image
    commands = [["ask", folder / "run", path, "Why?"], ["caption", folder / "run", path, path]]
    for args in commands[: 2 if image else 1]:  # a folder may be captioned
        outcome = visgraft(*args)
        assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {path}: {reason}\n")


def test_what_is_no_model_is_said(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    image = folder / "photos" / "0.png"

    def error(model: object) -> str:
        outcome = visgraft("ask", model, image, "Why?")
        assert (outcome.status, outcome.out) == (2, "")
        return outcome.err

    assert error(tmp_path) == (
        f"error: {tmp_path} holds no config.json: give a run folder, a model folder or a Hub name\n"
    )
    assert "/no/such does not exist: give a run folder, a model folder or a Hub name" in error("/no/such")
    assert "holds a clip_vision_model model and no model of visgraft" in error(folder / "tiny-clip")
    assert "someone/nothing: not found on the Hugging Face Hub, in its local cache or as a folder" in error(
        "someone/nothing"
    )
    (tmp_path / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    assert "this run has no model yet; finish it with `visgraft train --resume" in error(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    (tmp_path / "config.json").write_text('{"parts": []}')
    assert f"{tmp_path} holds a nameless model and no model of visgraft" in error(tmp_path)


def test_a_prompt_that_is_too_long_is_said(visgraft: Visgraft, folder: Path) -> None:
    outcome = visgraft("ask", folder / "run", folder / "photos" / "0.png", "cat " * 200, *SHORT)
    assert outcome.status == 2
    assert "the 128 positions of llama leave no room for an answer; shorten the prompt" in outcome.err


def test_a_device_that_is_not_there_is_said(visgraft: Visgraft, folder: Path) -> None:
    outcome = visgraft("ask", folder / "run", folder / "photos" / "0.png", "Why?", "--device", "teapot")
    assert outcome.status == 2
    assert "device: got teapot, which this machine and this torch do not have; here are cpu" in outcome.err


def test_an_answer_is_shown_as_it_is_said(visgraft: Visgraft, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr("visgraft.cli.ask.print_piece", pieces.append)
    [text] = expected(folder, "What is it?", "1.png")
    visgraft("ask", folder / "run", folder / "photos" / "1.png", "What is it?", *SHORT)
    assert "".join(pieces) == text and len(pieces) > 1
