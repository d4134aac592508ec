"""Compare our captions' tokens and scores with COCO's own programs: pycocoevalcap 1.2 and Java.

`make test-coco` runs it in an environment of its own. It prints how many captions are split differently and by how
much scores differ, and ends with 1 where a realistic caption or any score differs.

In: how many captions. Out: counts on the screen, an exit status.
Usage: `python -m tests.metrics.compare_coco --captions 40000 --torture 40000`
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap.tokenizer.ptbtokenizer as program
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from tests.metrics.made_captions import realistic_captions, torture_captions
from visgraft.metrics.captioning import bleu, cider, rouge_l
from visgraft.metrics.meteor import meteor
from visgraft.metrics.ptb_tokens import coco_tokens

# what ends a line to the Java program, and would shift every later caption to the wrong item
_OTHER_LINE_ENDS = re.compile("[\r\n\x0b\x0c\x85\u2028\u2029]")
_BETWEEN = "|"  # a line of its own after each caption: the program looks across lines behind "B."


def write(line: str) -> None:
    """Show a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def java_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Split captions by the Java program, each by itself, and drop what COCO's program drops."""
    lines = [_OTHER_LINE_ENDS.sub(" ", caption) for caption in captions]
    jar = Path(program.__file__).with_name(program.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-encoding", "utf-8", "-preserveLines", "-lowerCase"]
    text = "".join(f"{line}\n{_BETWEEN}\n" for line in lines)
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    split = done.stdout.decode().split("\n")
    assert split[1 : 2 * len(lines) : 2] == [_BETWEEN] * len(lines), "the program lost count of the lines"
    return [
        [token for token in line.rstrip().split(" ") if token and token not in program.PUNCTUATIONS]
        for line in split[0 : 2 * len(lines) : 2]
    ]


def compare_tokens(name: str, captions: Sequence[str], *, show: int = 10) -> int:
    """Count the captions that we split differently, and show some."""
    different = [
        (caption, theirs, ours)
        for caption, theirs in zip(captions, java_tokens(captions), strict=True)
        if (ours := list(coco_tokens(_OTHER_LINE_ENDS.sub(" ", caption)))) != theirs
    ]
    write(f"{name}: {len(different)} of {len(captions)} captions are split differently")
    for caption, theirs, ours in different[:show]:
        write(f"  {caption!r}\n    program {theirs}\n    ours    {ours}")
    return len(different)


def compare_scores(name: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Score by the programs and by ours; give the largest difference of any value, a caption's own included."""
    split = iter(java_tokens([*answers, *(text for texts in references for text in texts)]))
    guesses = {item: [" ".join(next(split))] for item in range(len(answers))}
    truth = {item: [" ".join(next(split)) for _ in texts] for item, texts in enumerate(references)}
    worst = 0.0
    ours = {
        **bleu(answers, references=references),
        "rouge_l": rouge_l(answers, references=references),
        "cider": cider(answers, references=references),
        **meteor(answers, references=references),
    }
    (bleus, each_bleu), meteor_program = Bleu(4).compute_score(truth, guesses, verbose=0), Meteor()
    theirs = {f"bleu_{size}": (bleus[size - 1], each_bleu[size - 1]) for size in range(1, 5)} | {
        "rouge_l": Rouge().compute_score(truth, guesses),
        "cider": Cider().compute_score(truth, guesses),
        "meteor": meteor_program.compute_score(truth, guesses),
    }
    for score, (value, each) in theirs.items():
        pairs = [(value, ours[score].value), *zip(each, ours[score].per_sample, strict=True)]
        difference = max(abs(a - b) for a, b in pairs)
        write(f"{name}: {score} {value:.12f}, largest difference {difference:.1e}")
        worst = max(worst, difference)
    return worst


def main() -> int:
    """Compare; 1 if something differs that must not."""
    arguments = argparse.ArgumentParser(description="compare with COCO's own programs")
    arguments.add_argument("--captions", type=int, default=40_000)
    arguments.add_argument("--torture", type=int, default=40_000)
    arguments.add_argument("--scored", type=int, default=1_000, help="items whose scores are compared")
    asked = arguments.parse_args()
    realistic = compare_tokens("realistic", realistic_captions(asked.captions, seed=1))
    torture = compare_tokens("torture", torture_captions(asked.torture, seed=2))

    made = realistic_captions(6 * asked.scored, seed=3)
    answers, truth = made[: asked.scored], made[asked.scored :]
    references = [truth[5 * item : 5 * item + 5] for item in range(asked.scored)]
    # near ones, equal ones, empty ones, the same reference twice, a number with a no-break space inside
    answers[::3] = [texts[0] for texts in references[::3]]
    answers[1::3] = [texts[1].rpartition(" ")[0] for texts in references[1::3]]
    answers[4], answers[7], references[7][1] = "", "2 1/2 dogs", "a plate of 2 1/2 dogs"
    references[10] = [references[10][0]] * 3
    worst = compare_scores("scores", answers, references)
    worst = max(worst, compare_scores("one item", answers[:1], references[:1]))
    return int(realistic > 0 or torture > asked.torture // 1000 or worst > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
