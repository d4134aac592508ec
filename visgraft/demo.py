"""The first five minutes: train the starter pair on easy-VQA, ask it questions it never saw, show how it went.

In: nothing but a machine. Out: a run folder with `model/`, `answers.jsonl` and `report.html`: the loss curve, the share
of right answers beside what the questions alone give away, and a grid of test images with question, answer and truth.

    result = run_demo(progress=make_progress())

Answers are greedy over the full vocabulary and compared as whole strings; the projection and LoRA start at random.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from statistics import geometric_mean
from typing import Any

import altair
from PIL import Image

from visgraft.atomic import write_json, write_whole
from visgraft.config import Recipe, load_recipe
from visgraft.config.shipped import shipped_recipes
from visgraft.data.readers import easy_vqa
from visgraft.data.sample import Sample, Turn
from visgraft.inference import answer, load
from visgraft.metrics.text_match import exact_match
from visgraft.parsing import parse_json
from visgraft.reporting.charts import figure, loss_scale
from visgraft.reporting.page import (
    EmbeddedImage,
    embed_image,
    make_table,
    write_page,
)
from visgraft.runs import Run
from visgraft.starter import resolve
from visgraft.training.loop import train
from visgraft.training.progress import TrainProgress

NUM_QUESTIONS = 2_000  # of the 9,673 official test questions
NUM_SHOWN = 24
LEAST_LOSS = 1e-6  # that a logarithmic axis can show
CHUNK = 250  # questions between two lines of progress
SMOOTHED_STEPS = 9  # around each
LINES = ("each step", f"mean of the {SMOOTHED_STEPS} steps around it")
QUICK = ("train.max_steps=4", "train.exact_match_samples=0")


@dataclass(frozen=True)
class DemoQuestion:
    """One test question: its image, what was asked, the truth and, later, the answer."""

    image: Path
    prompt: str
    truth: str
    answer: str = ""

    @property
    def kind(self) -> str:
        """`what` or `yes/no`."""
        return "yes/no" if self.truth in ("yes", "no") else "what"

    @property
    def is_right(self) -> bool:
        """Whether the whole answer is the truth."""
        return exact_match([self.answer], references=[[self.truth]]).value == 1.0


@dataclass(frozen=True)
class DemoResult:
    """How the demo went.

    Attributes:
        folder: the run folder, with `report.html` and `model/`.
        scores: kind of question (`all`, `what`, `yes/no`) -> share of right answers.
        baseline: the same of answers that see only the question.
        counts: kind -> number of questions.
        train_seconds: wall time of the training steps.
    """

    folder: Path
    scores: dict[str, float]
    baseline: dict[str, float]
    counts: dict[str, int]
    train_seconds: float


def demo_recipe(*, quick: bool = False, seed: int = 0, overrides: Sequence[str] = ()) -> Recipe:
    """Give the demo's recipe, which is shipped as `demo`; `quick` is a smoke run of a few steps."""
    return load_recipe(
        shipped_recipes()["demo"], overrides=[f"train.seed={seed}", *(QUICK if quick else ()), *overrides]
    )


def run_demo(
    *,
    progress: TrainProgress,
    quick: bool = False,
    all_questions: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Train, ask and report.

    Args:
        progress: shows what happens.
        quick: a few steps and few questions: shows that everything runs, not how well.
        all_questions: ask all 9,673 official test questions, not a fixed sample of 2,000.
        seed: of the weights and of the order of samples.
        folder: where to make the run folder; None names one by date in `runs`.
        overrides: settings of the recipe, as `--set` takes them.

    Raises:
        MissingAssetError: weights or data cannot be fetched.
    """
    folder = train(demo_recipe(quick=quick, seed=seed, overrides=overrides), folder=folder, progress=progress)
    number = 64 if quick else None if all_questions else NUM_QUESTIONS
    data = Path(resolve("starter:easy_vqa", say=progress.say))
    questions = ask_questions(folder, pick_questions(data, number=number), progress=progress)
    blind = blind_answers(data, questions)
    steps = Run.open(folder).steps()
    result = DemoResult(
        folder=folder,
        scores=score(questions),
        baseline=score([replace(q, answer=text) for q, text in zip(questions, blind, strict=True)]),
        counts={kind: len(chosen) for kind, chosen in by_kind(questions).items()},
        train_seconds=sum(step["seconds"] for step in steps),
    )
    write_report(result, questions=questions, steps=steps, is_quick=quick)
    lines = [
        json.dumps({**vars(question), "image": question.image.name, "right": question.is_right}) + "\n"
        for question in questions
    ]
    write_whole(folder / "answers.jsonl", "".join(lines))
    write_json(folder / "demo.json", {**vars(result), "folder": folder.name})
    return result


def pick_questions(data: Path, *, number: int | None) -> list[DemoQuestion]:
    """Pick official test questions, the same ones every time; None = all."""
    samples = easy_vqa.read(data, split="test")
    questions = [
        DemoQuestion(Path(str(sample.images[0])), turn.prompt, turn.answer)
        for sample in (samples[index] for index in range(len(samples)))
        for [turn] in sample.dialogs
    ]
    if number is None:
        return questions
    chosen = sorted(random.Random(0).sample(range(len(questions)), min(number, len(questions))))
    return [questions[index] for index in chosen]  # in order, so that questions about one image come together


def ask_questions(folder: Path, questions: Sequence[DemoQuestion], *, progress: TrainProgress) -> list[DemoQuestion]:
    """Answer by greedy generation over the full vocabulary."""
    model, processor = load(str(folder))
    answered: list[DemoQuestion] = []
    for start in range(0, len(questions), CHUNK):
        part = questions[start : start + CHUNK]
        samples = [Sample(images=[question.image], dialogs=[[Turn(question.prompt, "")]]) for question in part]
        texts = answer(model, processor, samples, max_new_tokens=5, batch_size=32)
        answered += [replace(question, answer=text) for question, text in zip(part, texts, strict=True)]
        progress.say(f"asked {len(answered)} of {len(questions)} test questions, {score(answered)['all']:.1%} right")
    return answered


def blind_answers(data: Path, questions: Sequence[DemoQuestion]) -> list[str]:
    """Answer without looking: the most frequent answer to the same words in the training questions."""
    samples = easy_vqa.read(data, split="train+validation")
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for index in range(len(samples)):
        for [turn] in samples[index].dialogs:
            seen[turn.prompt][turn.answer] += 1
    return [seen[q.prompt].most_common(1)[0][0] if q.prompt in seen else "yes" for q in questions]


def by_kind(questions: Sequence[DemoQuestion]) -> dict[str, list[DemoQuestion]]:
    """Sort questions into all, what and yes/no."""
    return {
        "all": list(questions),
        "what": [question for question in questions if question.kind == "what"],
        "yes/no": [question for question in questions if question.kind == "yes/no"],
    }


def score(questions: Sequence[DemoQuestion]) -> dict[str, float]:
    """Give the share of right answers of each kind."""
    return {
        kind: sum(question.is_right for question in chosen) / max(1, len(chosen))
        for kind, chosen in by_kind(questions).items()
    }


def write_report(
    result: DemoResult, *, questions: Sequence[DemoQuestion], steps: Sequence[dict[str, Any]], is_quick: bool = False
) -> Path:
    """Write `report.html` into the run folder; that of a quick run says that it is one."""
    environment = parse_json((result.folder / "environment.json").read_bytes())
    rows = [
        [kind, result.counts[kind], f"{result.scores[kind]:.1%}", f"{result.baseline[kind]:.1%}"]
        for kind in ("all", "what", "yes/no")
    ]
    shown = random.Random(1).sample(list(questions), min(NUM_SHOWN, len(questions)))
    return write_page(
        result.folder / "report.html",
        "demo.html",
        title="A quick run, which shows that it runs" if is_quick else "A language model that learned to see",
        subtitle=f"SmolLM2-135M + EfficientNet-Lite2, joined and trained on easy-VQA, {environment['date'][:10]}",
        large_numbers={
            f"of {result.counts['all']:,} test questions right": f"{result.scores['all']:.1%}",
            "by the questions alone, without looking": f"{result.baseline['all']:.1%}",
            "of the “what” questions right": f"{result.scores['what']:.1%}",
            "of training": f"{result.train_seconds / 60:.1f} min",
        },
        quick=f"{len(steps)} training {'step' if len(steps) == 1 else 'steps'}" if is_quick else None,
        loss=figure(loss_chart(steps), alt="training loss over samples"),
        scores=make_table(["questions", "number", "right", "right without looking"], rows),
        cards=[{"question": question, "image": _picture(question)} for question in shown],
        command=f'visgraft ask {quote(str(result.folder))} my-picture.png "What color is the shape?"',
    )


def loss_chart(steps: Sequence[dict[str, Any]]) -> altair.LayerChart:
    """Draw the training loss over samples, of each step and smoothed as it is drawn: its logarithm."""
    points: list[dict[str, float | str]] = []
    samples = 0
    for index, line in enumerate(steps):
        samples += line["samples"]
        reach = min(SMOOTHED_STEPS // 2, index, len(steps) - 1 - index)  # to both sides alike, so that it does not lag
        around = [max(step["loss"], LEAST_LOSS) for step in steps[index - reach : index + reach + 1]]
        for name, value in zip(LINES, (around[reach], geometric_mean(around)), strict=True):
            points.append({"samples": samples, "loss": value, "line": name})
    base = altair.Chart(altair.Data(values=points)).encode(
        x=altair.X(
            "samples:Q",
            title="groups of questions seen, each about one image",
            scale=altair.Scale(nice=False),
            axis=altair.Axis(tickCount=6, tickMinStep=1),
        ),
        y=altair.Y(
            "loss:Q",
            title="loss per supervised token",
            scale=loss_scale(),
            axis=altair.Axis(values=[0.1, 0.2, 0.5, 1, 2, 5, 10]),
        ),
    )
    thick = altair.Legend(symbolType="stroke", symbolSize=400, symbolOpacity=1)
    lines = base.mark_line(clip=True).encode(
        strokeWidth=altair.StrokeWidth("line:N", scale=altair.Scale(domain=LINES, range=[1, 2.5]), legend=thick),
        strokeOpacity=altair.StrokeOpacity("line:N", scale=altair.Scale(domain=LINES, range=[0.55, 1]), legend=thick),
    )
    return altair.LayerChart(layer=[lines], width="container", height=280)


def _picture(question: DemoQuestion) -> EmbeddedImage:
    with Image.open(question.image) as image:
        return embed_image(image, alt=question.prompt)
