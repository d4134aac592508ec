"""Answers a second of an evaluation beside one `generate` a question, and its memory over many questions.

    python bench/evaluate.py                           # writes bench/results/evaluate.json
    python bench/evaluate.py --cpu-seconds             # on a machine that others use
    python bench/evaluate.py --rounds 1 --tiny
    python bench/evaluate.py --lmms-python .venv-lmms-eval/bin/python      # of `make test-lmms-eval`

The starter pair (EfficientNet-Lite2, SmolLM2-135M), joined and not trained, is asked about images of easy-VQA's test
split, about 9.6 questions each, 5 tokens an answer at most. Each round answers all of them twice:

    grouped    as `visgraft evaluate` does: by image, in batches, every answer written down as it comes
    each       one `model.generate` a question, as evaluation loops of the field do: image and prompt read every time

With `--lmms-python` lmms-eval's own loop is timed on the same model and questions too, right behind, in its own
environment: one `generate` a request as its own classes do it, and with our class in it (bench/lmms_loop.py). The
seconds are those of its loop; starting it and loading the model count on neither side.

How many answers are the same is written down: frozen weights in bf16 may round another way in a batch. The memory is
that of this process (resident) while a tiny pair answers 20,000 questions, looked at every 2,000.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleave, machine, positive, ratio, write
from lmms_loop import write_task
from PIL import Image

from visgraft.data.images.opening import open_image
from visgraft.data.readers import easy_vqa
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource, Sources
from visgraft.evaluation.answer_log import AnswerLog
from visgraft.evaluation.asking import Loaded, ask_questions
from visgraft.evaluation.questions import QuestionSet, questions_of
from visgraft.inference import GREEDY
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.limits import stop_token_ids, text_of
from visgraft.model.precision import computing_dtype
from visgraft.model.trainable import set_trainable
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.starter import easy_vqa_folder, starter_pair

MAX_NEW_TOKENS = 5
LOOK_EVERY = 2_000  # questions


class Drawn:
    """So many pictures of noise with ten questions each, made when they are asked for."""

    def __init__(self, length: int) -> None:
        self.num_dialogs = np.full(length, 10)

    def __len__(self) -> int:
        return len(self.num_dialogs)

    def __getitem__(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        dialogs = [[Turn(f"Question {number}?", "yes")] for number in range(10)]
        return Sample([Image.fromarray(pixels)], dialogs, id=str(index))

    def where(self, index: int) -> str:
        """Say which it is."""
        return f"picture {index}"


def load_pair(*, tiny: bool) -> Loaded:
    """Join the starter pair, or a tiny one."""
    if tiny:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.training.tiny import save_parts

        parts: Any = save_parts(Path(tempfile.mkdtemp()))
    else:
        pair = starter_pair(say=lambda text: None)
        parts = (pair.vision, pair.language)
    torch.manual_seed(0)
    model = VisionLanguageModel.from_parts(*parts)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    set_trainable(model, modes={}, frozen_dtype=computing_dtype("auto", device=device))
    return Loaded("pair", model.to(device).eval(), Processor.from_parts(*parts))  # type: ignore[arg-type]


def questions_about(*, images: int, tiny: bool) -> QuestionSet:
    """Take the questions about some images."""
    source = Drawn(images) if tiny else easy_vqa.read(easy_vqa_folder(say=lambda text: None), split="test")
    return questions_of(Sources([OpenSource("asked", source, length=images)]), name="asked")


def ask_grouped(loaded: Loaded, questions: QuestionSet) -> list[str]:
    """Answer as an evaluation does, nothing known before."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VISGRAFT_CACHE"] = folder
        with AnswerLog(Path(folder) / "answers.jsonl", tag="bench") as log:
            said = ask_questions(loaded, questions, log=log, max_new_tokens=MAX_NEW_TOKENS)
    return [each.answer for each in said]


def ask_each(loaded: Loaded, questions: QuestionSet) -> list[str]:
    """Answer one question after the other, with nothing kept between them."""
    model, processor = loaded.model, loaded.processor
    stop = stop_token_ids(model, processor)
    texts = []
    with eval_mode(model):
        for question in questions.all:
            sample = questions.sample(question)
            [[turn]] = sample.dialogs
            inputs = processor(images=sample.images[0], text=turn.prompt).to(model.device)
            settings = {**GREEDY, "eos_token_id": stop, "pad_token_id": processor.tokenizer.pad_token_id}
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **settings)
            texts.append(text_of(processor, ids[0, inputs["input_ids"].shape[1] :].tolist(), stop))
    return texts


def ask_lmms_eval(
    python: str, loaded: Loaded, questions: QuestionSet, *, rounds: int, cpu_seconds: bool
) -> dict[str, Any]:
    """Let lmms-eval ask the same model the same questions, in its own environment; give what lmms_loop.py prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (loaded.model, loaded.processor):
            part.save_pretrained(folder / "model")
        rows = []
        for question in questions.all:
            encoded = BytesIO()
            open_image(questions.images(question)[0]).save(encoded, format="PNG")
            rows.append({"image": encoded.getvalue(), "question": question.prompt, "answer": question.references[0]})
        (folder / "task").mkdir()
        write_task(folder / "task", rows, max_new_tokens=MAX_NEW_TOKENS)
        command = [python, str(Path(__file__).with_name("lmms_loop.py")), "--model", str(folder / "model")]
        command += ["--task", str(folder / "task"), "--rounds", str(rounds)]
        command += ["--cpu-seconds"] if cpu_seconds else []
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_over(loaded: Loaded, *, questions: int) -> Iterator[tuple[int, int]]:
    """Answer many questions; yield after every so many how many they are, and the resident memory in bytes."""
    asked = questions_about(images=questions // 10, tiny=True)
    seen: list[tuple[int, int]] = []
    count = 0

    def advance(number: int) -> None:
        nonlocal count
        count += number
        if number and count % LOOK_EVERY == 0:
            seen.append((count, resident_bytes()))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["VISGRAFT_CACHE"] = folder
        with AnswerLog(Path(folder) / "answers.jsonl", tag="bench") as log:
            ask_questions(loaded, asked, log=log, max_new_tokens=2, advance=advance)
    yield from seen


def resident_bytes() -> int:
    """Give the memory that this process holds now; where only its peak is known, that."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=16)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--questions", type=positive, default=20_000, help="of the memory")
    parser.add_argument("--tiny", action="store_true", help="tiny parts: shows that the script runs")
    parser.add_argument("--cpu-seconds", action="store_true", help="count processor time, with one thread")
    parser.add_argument("--lmms-python", metavar="FILE", help="the python of an environment that holds lmms-eval")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "evaluate.json")
    arguments = parser.parse_args()
    if arguments.cpu_seconds:
        torch.set_num_threads(1)
    loaded = load_pair(tiny=arguments.tiny)
    questions = questions_about(images=arguments.images, tiny=arguments.tiny)
    grouped, each = ask_grouped(loaded, questions), ask_each(loaded, questions)
    same = sum(a == b for a, b in zip(grouped, each, strict=True))
    result = interleave(
        {"each": lambda: ask_each(loaded, questions), "grouped": lambda: ask_grouped(loaded, questions)},
        rounds=arguments.rounds,
        units=len(questions.all),
        unit="answers",
        clock=time.process_time if arguments.cpu_seconds else time.perf_counter,
    )
    of_lmms: dict[str, Any] = {}
    if arguments.lmms_python is not None:
        found = ask_lmms_eval(
            arguments.lmms_python, loaded, questions, rounds=arguments.rounds, cpu_seconds=arguments.cpu_seconds
        )
        taken = {name: statistics.median(of_way["loop"]) for name, of_way in found["seconds"].items()}
        grouped_s = statistics.median(result["grouped"]["seconds"])
        of_lmms = {
            "lmms_eval": {
                "seconds": found["seconds"],
                "same_answers": {
                    name: sum(a == b for a, b in zip(said, grouped, strict=True))
                    for name, said in found["answers"].items()
                },
                "grouped / its loop": round(taken["loop"] / grouped_s, 2),
                "grouped / our class in it": round(taken["engine"] / grouped_s, 2),
            }
        }
    small = load_pair(tiny=True)
    memory = [{"questions": number, "resident_mib": round(size / 2**20, 1)}
              for number, size in memory_over(small, questions=arguments.questions)]  # fmt: skip
    write(
        {
            "images": arguments.images,
            "questions": len(questions.all),
            "max_new_tokens": MAX_NEW_TOKENS,
            "same_answers": same,
            "variants": result,
            "ratios": {"grouped / each": ratio(result, slow="each", fast="grouped")},
            **of_lmms,
            "memory": memory,
            "clock": "processor seconds, one thread" if arguments.cpu_seconds else "wall",
            "machine": machine(),
        },
        path=arguments.output,
    )


if __name__ == "__main__":
    main()
