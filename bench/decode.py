"""Answers and tokens a second of the decoding loop, beside the three ways in which answers are usually made.

    python bench/decode.py                             # writes bench/results/decode.json
    python bench/decode.py --cpu-seconds               # on a machine that others use
    python bench/decode.py --rounds 1 --tiny

The starter pair (EfficientNet-Lite2, SmolLM2-135M-Instruct) with a random projection, as only speed is measured: every
answer has the length that is set for it, whatever it says, in every way alike. Three kinds of work:

    questions   easy-VQA's questions, grouped by image, with the lengths of their true answers
    captions    one caption an image, with lengths as COCO's (bench/lengths/coco.json)
    long        answers of 8 to 96 tokens, most of them short, about as many images

Captions and long answers are three times as many as there are slots, so that free slots are filled again.

    single      one `generate` a question, its image encoded and read with it; every fourth question, times four
    sorted      `generate` in batches of questions of like length, every image encoded and read in its row
    batches     as `answer_each` was before the loop: images read once and kept, batches sorted by image and length
    loop        the decoding loop; `loop_uncached` keeps no image from one reading to the next
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from caption import make_images, make_pair
from harness import interleave, machine, positive, ratio, write
from torch import Tensor

from visgraft.data.sample import Sample, Turn
from visgraft.errors import ModelError
from visgraft.inference import GREEDY, Decoding, Engine, PrefixCache, Prompt, Reply, prompts_of
from visgraft.inference.answering import ROUNDS_HELD
from visgraft.inference.beams import generate_together
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.requests import ImageSegment
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.starter import resolve

WAYS = ("single", "sorted", "batches", "loop", "loop_uncached")
EVERY = 4  # of how many questions `single` answers one
LENGTHS = Path(__file__).parent / "lengths" / "coco.json"


@dataclass(frozen=True)
class Question:
    """A question about an image, and how many tokens its answer has, its end included."""

    image: Any
    prompt: str
    length: int

    @property
    def sample(self) -> Sample:
        """Give it as a sample."""
        return Sample(images=[self.image], dialogs=[[Turn(self.prompt, "")]])


class SetLengths:
    """Let every answer of a batch end where it is to end, and nowhere else."""

    def __init__(self, lengths: Sequence[int], *, end_id: int) -> None:
        self.lengths, self.end_id, self.said = torch.tensor(lengths), end_id, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the score of the end, for each row."""
        self.said += 1
        is_last = (self.lengths == self.said).to(scores.device)
        scores = scores.clone()
        scores[:, self.end_id] = torch.where(is_last, torch.inf, -torch.inf)
        return scores


def make_questions(kind: str, processor: Processor, *, images: int, folder: Path, tiny: bool) -> list[Question]:
    """Make the questions of one kind of work."""
    draw = random.Random(0)
    if kind == "questions" and not tiny:
        return easy_vqa(processor, images=images)
    paths = make_images(folder, number=images)
    if kind == "questions":
        return [Question(path, text, 1 + draw.randrange(3)) for path in paths for text in ("a cat", "two dogs", "red")]
    if kind == "captions":
        lengths = [length for texts in json.loads(LENGTHS.read_text())["images"] for _, length in texts]
        drawn = draw.choices(lengths, k=len(paths))
        return [Question(path, "", length) for path, length in zip(paths, drawn, strict=True)]
    shortest, longest = (2, 9) if tiny else (8, 96)
    return [
        Question(path, "What can be seen here?", round(shortest * (longest / shortest) ** (draw.random() ** 1.3)))
        for path in paths
    ]


def easy_vqa(processor: Processor, *, images: int) -> list[Question]:
    """Take the test questions about the first images of easy-VQA, with the lengths of their answers."""
    folder = Path(resolve("starter:easy_vqa")) / "test"
    by_image: dict[int, list[Question]] = {}
    for text, answer, image in json.loads((folder / "questions.json").read_text()):
        length = len(processor.tokenizer(" " + answer, add_special_tokens=False)["input_ids"]) + 1
        by_image.setdefault(image, []).append(Question(folder / "images" / f"{image}.png", text, length))
    return [question for image in sorted(by_image)[:images] for question in by_image[image]]


# --- The ways


def by_generate(
    model: VisionLanguageModel, processor: Processor, questions: Sequence[Question], *, batch_size: int
) -> list[list[int]]:
    """Answer in batches of like length, each question with its own image."""
    end_id = processor.tokenizer.eos_token_id
    order = sorted(range(len(questions)), key=lambda index: len(processor.prompt(questions[index].sample.dialogs[0])))
    answers: list[list[int]] = [[] for _ in questions]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        asked = [questions[index] for index in batch]
        with eval_mode(model):
            inputs = processor(images=[q.image for q in asked], text=[q.prompt for q in asked]).to(model.device)
            lengths = [question.length for question in asked]
            settings = {**GREEDY, "eos_token_id": end_id, "pad_token_id": processor.tokenizer.pad_token_id}
            forced = [SetLengths(lengths, end_id=end_id)]
            ids = model.generate(**inputs, **settings, max_new_tokens=max(lengths), logits_processor=forced)
        new = ids[:, inputs["input_ids"].shape[1] :].tolist()
        for index, row in zip(batch, new, strict=True):
            answers[index] = row[: questions[index].length]
    return answers


def by_batches(
    model: VisionLanguageModel, processor: Processor, questions: Sequence[Question], *, batch_size: int
) -> list[list[int]]:
    """Answer as `answer_each` did: four batches are opened, sorted by image and length, and answered in turn."""
    cache, end_id, answers = PrefixCache(), processor.tokenizer.eos_token_id, [[0]] * len(questions)
    for first in range(0, len(questions), 4 * batch_size):
        numbers = range(first, min(first + 4 * batch_size, len(questions)))
        opened = dict(zip(numbers, shared_prompts(processor, [questions[number] for number in numbers]), strict=True))
        order = sorted(numbers, key=lambda number: (str(questions[number].image), len(opened[number].text_ids)))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = [questions[number].length for number in batch]
            with eval_mode(model):
                new = generate_together(
                    model,
                    processor,
                    [opened[number] for number in batch],
                    cache=cache,
                    max_new_tokens=max(lengths),
                    settings={"eos_token_id": end_id, "logits_processor": [SetLengths(lengths, end_id=end_id)]},
                )
            for number, row, length in zip(batch, new, lengths, strict=True):
                assert not isinstance(row, ModelError)
                answers[number] = row[:length]
    return answers


def by_loop(
    model: VisionLanguageModel,
    processor: Processor,
    questions: Sequence[Question],
    *,
    batch_size: int,
    is_cached: bool = True,
) -> list[list[int]]:
    """Answer with the decoding loop, fed as `answer_each` feeds it."""
    cache = PrefixCache() if is_cached else PrefixCache(max_bytes=0)
    engine = Engine(model, processor, num_slots=batch_size, prefix_cache=cache)
    prompts: Iterator[Prompt] = iter(
        shared_prompts(processor, questions) if is_cached else [prompts_of(processor, q.sample)[0] for q in questions]
    )
    replies: list[Reply] = []
    num_given = 0  # answers that are given out, in the order of the questions
    with eval_mode(model):
        while num_given < len(questions):
            while len(replies) < min(len(questions), num_given + ROUNDS_HELD * batch_size):
                asked = Decoding.of(max_new_tokens=questions[len(replies)].length, eos_token_id=None)
                replies.append(engine.submit(next(prompts), asked))
            engine.step()
            while num_given < len(replies) and replies[num_given].is_done:
                num_given += 1
    return [[*reply.answer().token_ids] for reply in replies]


def shared_prompts(processor: Processor, questions: Sequence[Question]) -> list[Prompt]:
    """Open each image once for all questions about it."""
    opened: dict[Any, ImageSegment] = {}
    prompts = []
    for question in questions:
        [prompt] = prompts_of(processor, question.sample, images=opened.get(question.image))
        first = prompt.segments[0]
        assert isinstance(first, ImageSegment)
        opened[question.image] = first
        prompts.append(prompt)
    return prompts


def measure(
    model: VisionLanguageModel, processor: Processor, questions: Sequence[Question], *, args: argparse.Namespace
) -> dict[str, Any]:
    """Time every way on the same questions."""
    answers: dict[str, list[list[int]]] = {}
    batch_size = args.batch_size

    def way(name: str, run: Callable[[], list[list[int]]]) -> Callable[[], None]:
        def timed() -> None:
            answers[name] = run()

        return timed

    ways = {
        "single": lambda: by_generate(model, processor, questions[::EVERY], batch_size=1),
        "sorted": lambda: by_generate(model, processor, questions, batch_size=batch_size),
        "batches": lambda: by_batches(model, processor, questions, batch_size=batch_size),
        "loop": lambda: by_loop(model, processor, questions, batch_size=batch_size),
        "loop_uncached": lambda: by_loop(model, processor, questions, batch_size=batch_size, is_cached=False),
    }
    times = interleave(
        {name: way(name, run) for name, run in ways.items()},
        rounds=args.rounds,
        units=len(questions),
        unit="answers",
        clock=time.process_time if args.cpu_seconds else time.perf_counter,
    )
    few = times["single"]
    few["seconds"] = [round(seconds * len(questions) / len(questions[::EVERY]), 4) for seconds in few["seconds"]]
    few["median_s"], few["best_s"] = round(statistics.median(few["seconds"]), 4), min(few["seconds"])
    few["answers_per_s"] = round(len(questions) / few["median_s"], 3)
    num_tokens = sum(question.length for question in questions)
    for each in times.values():
        each["tokens_per_s"] = round(num_tokens / each["median_s"], 2)
    asked = {name: questions[::EVERY] if name == "single" else questions for name in answers}
    for name, rows in answers.items():
        assert [len(row) for row in rows] == [question.length for question in asked[name]]
    return {
        "batch_size": batch_size,
        "answers": len(questions),
        "images": len({str(question.image) for question in questions}),
        "tokens": num_tokens,
        "times": times,
        **{f"loop / {name}": ratio(times, slow=name, fast="loop") for name in WAYS if name != "loop"},
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=16, help="easy-VQA has ten questions each")
    parser.add_argument("--batch-size", type=positive, default=32, help="of batches, and slots of the loop")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--kinds", nargs="+", default=["questions", "captions", "long"])
    parser.add_argument("--cpu-seconds", action="store_true", help="count the CPU's seconds, with one thread")
    parser.add_argument("--tiny", action="store_true", help="a tiny pair: only shows that the script runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    args = parser.parse_args()
    if args.cpu_seconds:
        torch.set_num_threads(1)
    model, processor = make_pair(tiny=args.tiny)
    set_trainable(model, modes={}, frozen_dtype=computing_dtype("auto", device=model.device))
    load_before = os.getloadavg()
    kinds = {}
    for kind in args.kinds:
        images = args.images if kind == "questions" or args.tiny else 3 * args.batch_size
        with tempfile.TemporaryDirectory() as folder:
            questions = make_questions(kind, processor, images=images, folder=Path(folder), tiny=args.tiny)
            kinds[kind] = measure(model, processor, questions, args=args)
    result = {
        "what": __doc__,
        "machine": machine(),
        "load_of_the_machine": {"before": load_before, "after": os.getloadavg()},
        "weights": str(model.language.dtype).removeprefix("torch."),
        "seconds_are": "of the CPU, one thread" if args.cpu_seconds else "of the clock",
        "image_tokens": processor.num_image_tokens,
        "kinds": kinds,
    }
    write(result, path=args.output)


if __name__ == "__main__":
    main()
