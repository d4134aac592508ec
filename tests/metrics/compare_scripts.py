"""Compare our short-answer metrics with copies of the field's scripts that lmms-eval 0.7.3 carries.

`make test-scripts` runs it in an environment of its own, without lmms-eval's requirements: only single functions are
taken out of its files. Of the official VQA script it carries the steps (EvalAI's processor has the same two) and the
counting of people, but for one rule: that nothing is normalised where all people said the same. So what it counts is
compared where people differ, and the script's own way, with that rule, is written here over records.

In: how many answers. Out: counts on the screen, an exit status.
Usage: `python -m tests.metrics.compare_scripts --answers 50000`
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from visgraft.metrics.text_match import anls, relaxed_accuracy
from visgraft.metrics.vqa import evalai_answer, vqa_evalai, vqa_v2

_PIECES = (
    "a an the yes no Yes NO none zero two ten Three dont dont' don't cant Im im somebody'd 3.5 3. .5 1,000 1,2 red-hot "
    "black/white (x) [y] it's what's What's U.S.A. @home #1 50% $5 \u201cx\u201d 5:30 n/a , . ? ! ; - _ ` \" = + < > "
    "\\ \n \t x..y ... a.b 2nd mr. A The dogs'"
)
_NUMBERS = "5 5.2 5.25 5% .05 yes Yes 0 nan inf -5 1,000 1000 1e3 5.26 4.75 4.74 % two"
_SHORT = "ab \u00dfX"


def taken_from(file: str, *names: str, **known: Any) -> dict[str, Any]:
    """Run single functions and classes of a file of lmms-eval, without what decorates them, beside what is known."""
    package = find_spec("lmms_eval")
    assert package is not None and package.submodule_search_locations
    tree = ast.parse(Path(package.submodule_search_locations[0], file).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    for node in found:
        node.decorator_list = []
    space: dict[str, Any] = {"re": re, "statistics": statistics, **known}
    exec(compile(ast.Module(found, type_ignores=[]), file, "exec"), space)
    return space


def official_vqa(processor: Any, answer: str, people: list[str]) -> float:
    """Score an answer as vqaEval.py does: normalised where people differ, each person's record left out once."""
    records = [{"answer_id": number, "answer": in_one_line(text)} for number, text in enumerate(people)]
    answer = in_one_line(answer)
    if len({record["answer"] for record in records}) > 1:
        for record in [*records, one := {"answer": answer}]:
            record["answer"] = processor.process_digit_article(processor.process_punctuation(record["answer"]))
        answer = one["answer"]
    accuracies = []
    for record in records:
        matching = [other for other in records if other != record and other["answer"] == answer]
        accuracies.append(min(1, float(len(matching)) / 3))
    return float(sum(accuracies)) / len(accuracies)


def in_one_line(text: str) -> str:
    """Do to a text what the script does first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def count_differences(name: str, number: int, differs: Callable[[random.Random], str | None]) -> int:
    """Try as many times; show how often a difference came out, and the first."""
    random_ = random.Random(name)
    found = [text for text in (differs(random_) for _ in range(number)) if text is not None]
    sys.stdout.write(f"{name}: {len(found)} of {number} differ{': ' + found[0] if found else ''}\n")
    return len(found)


def main() -> int:
    """Compare; 1 if anything differs."""
    parser = argparse.ArgumentParser(description="compare with the field's scripts")
    parser.add_argument("--answers", type=int, default=50_000)
    number = parser.parse_args().answers
    kind = taken_from("tasks/_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor")["EvalAIAnswerProcessor"]
    processor, known = kind(), {"EvalAIAnswerProcessor": kind}
    their_textvqa = taken_from("tasks/textvqa/utils.py", "textvqa_process_results", **known)["textvqa_process_results"]
    their_vqa = taken_from("tasks/vqav2/utils.py", "vqav2_process_results", **known)["vqav2_process_results"]
    their_anls = taken_from("api/metrics.py", "anls", "levenshtein_distance")["anls"]
    their_relaxed = taken_from("tasks/chartqa/utils.py", "relaxed_correctness")["relaxed_correctness"]

    def made_answer(random_: random.Random) -> str:
        pieces = _PIECES.split(" ")
        return "".join(random_.choice(pieces) + random_.choice("   \0") for _ in range(random_.randint(0, 5))).replace(
            "\0", ""
        )

    def evalai(random_: random.Random) -> str | None:
        answer = made_answer(random_)
        return None if processor(answer) == evalai_answer(answer) else repr(answer)

    def vqa(random_: random.Random) -> str | None:
        said = [made_answer(random_) for _ in range(random_.randint(1, 4))]
        people, answer = random_.choices(said, k=10), random_.choice([*said, made_answer(random_)])
        difference = official_vqa(processor, answer, people) - vqa_v2([answer], references=[people]).value
        return None if abs(difference) < 1e-12 else repr((answer, people))

    def people_counted(random_: random.Random) -> str | None:
        said = [made_answer(random_) for _ in range(random_.randint(2, 4))]
        people, answer = random_.choices(said, k=10), random_.choice([*said, made_answer(random_)])
        if len({in_one_line(text) for text in people}) == 1:
            return None
        answers = [{"answer_id": number, "answer": text} for number, text in enumerate(people)]
        theirs = their_vqa({"question_id": 1, "answers": answers}, [answer])["exact_match"]
        ours = vqa_v2([answer], references=[people]).value
        return None if abs(theirs - ours) < 1e-12 else repr((answer, people))

    def people_counted_by_evalai(random_: random.Random) -> str | None:
        said = [made_answer(random_) for _ in range(random_.randint(1, 4))]
        people, answer = random_.choices(said, k=10), random_.choice([*said, made_answer(random_)])
        theirs = their_textvqa({"question_id": 1, "answers": [*people]}, [answer])["exact_match"]
        ours = vqa_evalai([answer], references=[people]).value
        return None if abs(theirs - ours) < 1e-12 else repr((answer, people))

    def similarity(random_: random.Random) -> str | None:
        answer, *accepted = ("".join(random_.choices(_SHORT, k=random_.randint(0, 8))) for _ in range(3))
        theirs, ours = their_anls(accepted, [answer])["anls"], anls([answer], references=[accepted]).value
        # one half itself is 0 here, as in the paper
        return None if abs(theirs - ours) < 1e-12 or (theirs, ours) == (0.5, 0.0) else repr((answer, accepted))

    def relaxed(random_: random.Random) -> str | None:
        answer, accepted = random_.choices(_NUMBERS.split(" "), k=2)
        ours = relaxed_accuracy([answer], references=[[accepted]]).value
        return None if float(their_relaxed(answer, accepted)) == ours else repr((answer, accepted))

    kinds = {
        "vqa_evalai": evalai, "vqa_evalai (counted)": people_counted_by_evalai, "vqa_v2": vqa,
        "vqa_v2 (counted)": people_counted, "anls": similarity, "relaxed_accuracy": relaxed,
    }  # fmt: skip
    return int(sum(count_differences(name, number, differs) for name, differs in kinds.items()) > 0)


if __name__ == "__main__":
    sys.exit(main())
