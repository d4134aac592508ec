"""What the words alone give away: held-out questions that are right when each gets what its words most often have.

    python bench/words_alone.py                  # writes bench/results/words_alone.json

The questions are those on which the shipped experiment easy_vqa_modules measures; the answers are counted over the
official training questions (visgraft.demo.blind_answers). Nothing is trained and no image is opened.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from harness import console, machine, write

from visgraft.config.shipped import shipped_recipes
from visgraft.data.sources import open_sources
from visgraft.demo import DemoQuestion, blind_answers, by_kind, score
from visgraft.experiment import load_experiment
from visgraft.starter import resolve

FILE = shipped_recipes()["experiments/easy_vqa_modules"]


def main() -> None:
    """Ask, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "words_alone.json")
    arguments = parser.parse_args()
    data = resolve(load_experiment(FILE).runs[0].recipe, say=console.print).data
    samples = open_sources(data.validation, key="data.validation", settings=data)
    questions = [
        DemoQuestion(Path(str(sample.images[0])), turn.prompt, turn.answer)
        for sample in (samples[index] for index in range(len(samples)))
        for [turn] in sample.dialogs
    ]
    answers = blind_answers(Path(resolve("starter:easy_vqa")), questions)
    told = [replace(question, answer=answer) for question, answer in zip(questions, answers, strict=True)]
    result = {
        "what": "share of the held-out questions that are right by their words alone",
        "counts": {kind: len(asked) for kind, asked in by_kind(told).items()},
        "scores": score(told),
        "machine": machine(),
    }
    write(result, path=arguments.output)


if __name__ == "__main__":
    main()
