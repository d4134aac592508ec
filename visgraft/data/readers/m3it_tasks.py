"""The tasks of M3IT: category, and how many rows the dataset's card counts in each split.

In:  nothing. Out: TASKS, NAMED_SETS, and what a set means. Source: the card of MMInstruction/M3IT (arXiv 2306.04387).

    tasks = tasks_of("git-llm")

Where the counts come from: the card's table was seen in print for captioning and classification (coco to mocheg;
iqa follows by subtraction), and docvqa's training rows in code that counts them. The other rows were compared with the
card's totals alone: every category sums to its total exactly in all three splits (vqa 177,633 / 46,314 / 10,828;
knowledge 39,981 / 11,682 / 5,477; reasoning 99,372 / 11,500 / 10,000; generation 145,000 / 11,315 / 17,350). None: not
known.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple

from visgraft.data.readers.splits import usual_name
from visgraft.errors import ConfigError


class Task(NamedTuple):
    """One dataset inside M3IT; rows in the train, validation and test split by the card (None: not known)."""

    category: str
    train: int | None
    validation: int | None
    test: int | None

    def expected(self, split: str) -> int | None:
        """Return the rows that the card counts in a split."""
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return counts.get(usual_name(split))


CAPTIONING, CLASSIFICATION, VQA = "captioning", "classification", "vqa"
KNOWLEDGE, REASONING, GENERATION, CHINESE, VIDEO = "knowledge", "reasoning", "generation", "chinese", "video"

TASKS = {
    "coco": Task(CAPTIONING, 566_747, 25_010, 25_010),
    "textcap": Task(CAPTIONING, 97_765, 13_965, 0),
    "image-paragraph-captioning": Task(CAPTIONING, 14_575, 2_487, 2_489),
    "coco-goi": Task(CLASSIFICATION, 30_000, 2_000, 0),
    "coco-text": Task(CLASSIFICATION, 118_312, 27_550, 0),
    "imagenet": Task(CLASSIFICATION, 30_000, 50_000, 0),
    "coco-itm": Task(CLASSIFICATION, 30_000, 5_000, 5_000),
    "snli-ve": Task(CLASSIFICATION, 20_000, 14_339, 14_740),
    "mocheg": Task(CLASSIFICATION, 4_991, 180, 466),
    "iqa": Task(CLASSIFICATION, 5_000, 1_000, 1_000),
    "vqa-v2": Task(VQA, 30_000, 30_000, 0),
    "shapes": Task(VQA, 13_568, 1_024, 1_024),
    "docvqa": Task(VQA, 39_463, 5_349, 0),
    "ocr-vqa": Task(VQA, 11_414, 4_940, 0),
    "st-vqa": Task(VQA, 26_074, 0, 4_070),
    "text-vqa": Task(VQA, 27_113, 0, 5_734),
    "gqa": Task(VQA, 30_001, 5_001, 0),
    "okvqa": Task(KNOWLEDGE, 9_009, 5_046, 0),
    "a-okvqa": Task(KNOWLEDGE, 17_056, 1_145, 0),
    "science-qa": Task(KNOWLEDGE, 12_726, 4_241, 4_241),
    "viquae": Task(KNOWLEDGE, 1_190, 1_250, 1_236),
    "clevr": Task(REASONING, 30_000, 2_000, 0),
    "nlvr": Task(REASONING, 29_372, 2_000, 0),
    "vcr": Task(REASONING, 25_000, 5_000, 5_000),
    "visual-mrc": Task(REASONING, 15_000, 2_500, 5_000),
    "winoground": Task(REASONING, 0, 0, None),
    "vist": Task(GENERATION, 5_000, 4_315, 4_350),
    "visual-dialog": Task(GENERATION, 50_000, 1_000, 1_000),
    "multi30k": Task(GENERATION, 90_000, 6_000, 12_000),
    "fm-iqa": Task(CHINESE, None, None, None),
    "coco-cn": Task(CHINESE, None, None, None),
    "flickr8k-cn": Task(CHINESE, None, None, None),
    "chinese-food": Task(CHINESE, None, None, None),
    "mmchat": Task(CHINESE, None, None, None),
    "ss": Task(VIDEO, None, None, None),
    "ivqa": Task(VIDEO, None, None, None),
    "msvd-qa": Task(VIDEO, None, None, None),
    "activitynet-qa": Task(VIDEO, None, None, None),
    "msrvtt": Task(VIDEO, None, None, None),
    "msrvtt-qa": Task(VIDEO, None, None, None),
}

# What GIT-LLM's recipe names. The card counts 1,332,278 rows in them; its author's text says 1,361,650, which is that
# and nlvr (29,372) to the row, though the recipe does not name nlvr: that is the set `article`.
_GIT_LLM = (
    *("coco", "textcap", "image-paragraph-captioning", "coco-goi", "coco-text", "imagenet", "coco-itm", "snli-ve"),
    *("mocheg", "iqa", "vqa-v2", "shapes", "docvqa", "ocr-vqa", "st-vqa", "text-vqa", "gqa", "okvqa", "a-okvqa"),
    *("viquae", "clevr", "vcr", "visual-mrc", "visual-dialog", "multi30k"),
)
NAMED_SETS: dict[str, tuple[str, ...]] = {
    "all-english-images": tuple(name for name, task in TASKS.items() if task.category not in (CHINESE, VIDEO)),
    "git-llm": _GIT_LLM,
    "article": (*_GIT_LLM, "nlvr"),
}


def expected_in(name: str, split: str) -> int | None:
    """Return the rows of a split that the card counts in a set together; None where it does not know all of them."""
    counts = [TASKS[task].expected(split) for task in NAMED_SETS[name]]
    return None if None in counts else sum(count for count in counts if count is not None)


def tasks_of(tasks: str | Sequence[str]) -> list[str]:
    """Return the tasks that a set, a task or a list of both names; raises ConfigError for a name that is neither."""
    chosen: list[str] = []
    for name in [tasks] if isinstance(tasks, str) else tasks:
        base = name.removesuffix("-rephrased").removesuffix("-open-ended")
        if name not in NAMED_SETS and base not in TASKS and name not in _UNCOUNTED:
            near = get_close_matches(name, [*NAMED_SETS, *TASKS], n=1)
            hint = f"did you mean {near[0]}?" if near else f"sets are {', '.join(NAMED_SETS)}; tasks {', '.join(TASKS)}"
            raise ConfigError(f"m3it: tasks: got {name!r}; {hint}")
        chosen += NAMED_SETS.get(name, (name,))
    return list(dict.fromkeys(chosen))


_UNCOUNTED = ("refcoco", "vsr")  # on the Hub, but not in the card's table
