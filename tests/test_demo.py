"""The demo: which questions, what counts as right, what the page shows. The run itself is tried by a smoke run."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.reporting.page_tree import read_page
from visgraft import demo
from visgraft.config import load_recipe
from visgraft.demo import DemoQuestion, DemoResult

COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder in easy-VQA's layout with two training images and one test image."""
    for split, colors in (("train", ["red", "red", "blue"]), ("test", ["blue"])):
        folder = tmp_path / "easy_vqa" / split
        (folder / "images").mkdir(parents=True)
        questions = []
        for index, color in enumerate(colors):
            Image.new("RGB", (64, 64), COLORS[color]).save(folder / "images" / f"{index}.png")
            questions.append(["what color is it?", color, index])
            questions.append(["is it red?", "yes" if color == "red" else "no", index])
        (folder / "questions.json").write_text(json.dumps(questions))
    return tmp_path / "easy_vqa"


def test_the_same_questions_are_picked_every_time(data):
    assert demo.pick_questions(data, number=1) == demo.pick_questions(data, number=1)
    assert len(demo.pick_questions(data, number=None)) == 2


def test_blind_answers_are_the_most_frequent_of_training(data):
    questions = demo.pick_questions(data, number=None)
    assert dict(zip([q.prompt for q in questions], demo.blind_answers(data, questions), strict=True)) == {
        "what color is it?": "red",
        "is it red?": "yes",
    }


def test_an_answer_is_right_only_as_a_whole():
    def question(answer: str) -> DemoQuestion:
        return DemoQuestion(Path("x.png"), "what color is it?", "red", answer)

    assert question("red").is_right
    assert not question("red circle").is_right
    assert not question("").is_right


def test_scores_tell_what_from_yes_and_no():
    questions = [
        DemoQuestion(Path("x.png"), "what?", "red", "red"),
        DemoQuestion(Path("x.png"), "is it?", "yes", "no"),
        DemoQuestion(Path("x.png"), "is it?", "no", "no"),
        DemoQuestion(Path("x.png"), "is it?", "no", "no"),
    ]
    assert demo.score(questions) == {"all": 0.75, "what": 1.0, "yes/no": pytest.approx(2 / 3)}


def test_the_report_marks_wrong_answers_and_needs_no_network(data, tmp_path):
    questions = [
        DemoQuestion(question.image, question.prompt, question.truth, answer)
        for question, answer in zip(demo.pick_questions(data, number=None), ["<red>", "no"], strict=True)
    ]
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps({"date": "2026-01-02"}))
    scores = demo.score(questions)
    result = DemoResult(run, scores, baseline=scores, counts=dict.fromkeys(scores, 1), train_seconds=90.0)
    steps = [{"step": 1, "loss": 2.0, "samples": 8}, {"step": 2, "loss": 1.0, "samples": 8}]
    page = read_page(demo.write_report(result, questions=questions, steps=steps))
    cards = {card.one("b").text: card for card in page.all("div", "card")}
    assert {answer: "wrong" in card.classes for answer, card in cards.items()} == {"<red>": True, "no": False}
    assert "truth: blue" in cards["<red>"].text
    assert "truth" not in cards["no"].text
    assert all(card.one("img")["src"].startswith("data:image/png") for card in cards.values())
    assert page.section("Right answers").table[1] == ["all", "1", "50.0%", "50.0%"]
    assert "1.5 min of training" in page.one("div", "numbers").text
    [chart] = page.charts
    points = chart["data"]["values"]
    each, smooth = ([(p["samples"], p["loss"]) for p in points if p["line"] == line] for line in demo.LINES)
    assert each == smooth == [(8, 2.0), (16, 1.0)]
    assert not page.all("code")
    assert page.addresses == []


def test_the_smooth_curve_lies_among_the_steps_wherever_they_fall():
    losses = [6.0 * 0.9**step for step in range(60)]
    values = demo.loss_chart([{"samples": 1, "loss": loss} for loss in losses]).to_dict()["data"]["values"]
    smooth = [point["loss"] for point in values if point["line"] == demo.LINES[1]]
    assert smooth == pytest.approx(losses)  # a straight line on the logarithmic axis stays where it is
    noisy = [loss * (2.0 if step % 2 else 0.5) for step, loss in enumerate(losses)]
    values = demo.loss_chart([{"samples": 1, "loss": loss} for loss in noisy]).to_dict()["data"]["values"]
    smooth = [point["loss"] for point in values if point["line"] == demo.LINES[1]]
    assert smooth[5:-5] == pytest.approx(losses[5:-5], rel=0.2)


def test_the_report_of_a_quick_run_says_that_it_is_one(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps({"date": "2026-01-02"}))
    scores = {"all": 0.5, "what": 0.5, "yes/no": 0.5}
    result = DemoResult(run, scores, baseline=scores, counts=dict.fromkeys(scores, 1), train_seconds=1.0)
    steps = [{"step": 1, "loss": 2.0, "samples": 8}]
    questions = demo.pick_questions(data, number=None)
    page = read_page(demo.write_report(result, questions=questions, steps=steps, is_quick=True))
    assert page.one("h1").text == "A quick run, which shows that it runs"
    assert "This was a quick run of 1 training step : it shows that everything works" in page.text


def test_the_demo_trains_as_the_shipped_recipe_does():
    shipped = load_recipe("easy_vqa")
    ours = demo.demo_recipe()
    assert ours.model == shipped.model
    assert ours.train.lora_of("language") == shipped.train.lora_of("language")
    assert ours.train.learning_rate == shipped.train.learning_rate
    assert (ours.train.schedule, ours.train.warmup_steps) == (shipped.train.schedule, shipped.train.warmup_steps)
    assert ours.train.text_tokens_per_step == shipped.train.text_tokens_per_step
    assert ours.data.max_dialogs_per_prefix == shipped.data.max_dialogs_per_prefix
    assert {source.split for source in ours.data.train} == {"train+validation"}
    mixes = [[(source.options, source.weight) for source in recipe.data.train] for recipe in (ours, shipped)]
    assert mixes[0] == mixes[1]


@pytest.mark.slow
@pytest.mark.starter
def test_a_quick_demo_runs_from_weights_to_report(tmp_path):
    from visgraft.training.progress import make_progress

    result = demo.run_demo(progress=make_progress(show=False), quick=True, folder=tmp_path / "run")
    assert (result.folder / "report.html").is_file()
    assert (result.folder / "model" / "config.json").is_file()
    assert result.counts["all"] == 64
    assert 0.0 <= result.scores["all"] <= 1.0
    assert json.loads((result.folder / "demo.json").read_text())["scores"] == result.scores
