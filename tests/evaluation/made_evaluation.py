"""An evaluation without any model: answers that are right as often as they are told to be.

In: a folder, numbers. Out: an `Evaluation` of two models over drawn pictures, as `evaluate_models` would give it.
Usage: `write_report(made_evaluation(tmp_path, num_images=20), tmp_path / "report.html")`
"""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource, Sources
from visgraft.evaluation.comparing import compare_models
from visgraft.evaluation.controls import measure_control
from visgraft.evaluation.questions import QuestionSet, questions_of
from visgraft.evaluation.records import Answered
from visgraft.evaluation.running import EvaluatedModel, Evaluation, Settings
from visgraft.evaluation.scoring import score_answers
from visgraft.evaluation.task import Task

COLOURS = ("red", "blue", "green", "yellow", "teal")
SHAPES = ("circle", "rectangle", "triangle")


class Drawn(list[Sample]):
    """Samples with a place each."""

    def where(self, index: int) -> str:
        return f"picture {index}"


def drawn(folder: Path, *, num_images: int, seed: int = 0) -> Sources:
    """Draw pictures of one shape each, with three questions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, samples = random.Random(seed), Drawn()
    for number in range(num_images):
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        path = folder / f"{number}.png"
        if not path.exists():
            image = Image.new("RGB", (96, 96), "white")
            x, y = rng.randint(4, 44), rng.randint(4, 44)
            pen = ImageDraw.Draw(image)
            if shape == "circle":
                pen.ellipse((x, y, x + 44, y + 44), fill=colour)
            elif shape == "rectangle":
                pen.rectangle((x, y, x + 48, y + 30), fill=colour)
            else:
                pen.polygon([(x, y + 44), (x + 24, y), (x + 48, y + 44)], fill=colour)
            image.save(path)
        asked = rng.choice(COLOURS)
        dialogs = [
            [Turn("What color is the shape?", colour, kind="what")],
            [Turn("What shape is in the image?", shape, kind="what")],
            [Turn(f"Is there a {asked} shape?", "yes" if asked == colour else "no", kind="yes/no")],
        ]
        samples.append(Sample([path], dialogs, id=str(number)))
    return Sources([OpenSource("drawn", samples, length=len(samples))])


def answers(questions: QuestionSet, *, share: float, seed: int) -> list[Answered]:
    """Answer rightly so often, else with what another question accepts."""
    rng = random.Random(seed)
    said = []
    for each in questions.all:
        pool = ("yes", "no") if each.kind == "yes/no" else COLOURS if "color" in each.prompt else SHAPES
        answer = each.references[0] if rng.random() < share else rng.choice(pool)
        said.append(
            Answered(each.id, each.image, each.prompt, each.references, answer, each.kind, tokens=2, stopped=True)
        )
    return said


def made_evaluation(
    folder: Path, *, num_images: int = 20, models: Sequence[str] = ("runs/lora-r16", "runs/projection-only")
) -> Evaluation:
    """Make it; the second model is a little worse than the first."""
    sources = drawn(folder / "pictures", num_images=num_images)
    questions = questions_of(sources, name="drawn")
    metrics = ["exact_match", "cider"]
    evaluated = []
    for number, name in enumerate(models):
        own = answers(questions, share=0.8 - 0.15 * number, seed=number)
        scored = score_answers(name, own, metrics=metrics)
        some = questions.limited(min(60, len(questions.all)))
        controls = [
            measure_control("no image", own, answers(some, share=0.05, seed=10 + number), metrics=metrics),
            measure_control("another image", own, answers(some, share=0.1, seed=20 + number), metrics=metrics),
        ]
        evaluated.append(EvaluatedModel(name, "checksum", scored, 0, {}, controls))
    task = Task("drawn shapes", questions, metrics)
    compared = compare_models([each.scored for each in evaluated])
    return Evaluation(folder, task, Settings(metrics=metrics), evaluated, compared)
