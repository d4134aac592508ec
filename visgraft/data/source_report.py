"""What one source holds, counted sample by sample in little memory, however many there are.

In:  records of its samples. Out: counts, lengths, and tables of numbers in which findings look.

    report = SourceReport("coco", "train", epochs=1.0)
    report.add(record, where=lambda: "captions.json image 42")

Tables hold 8 bytes for a text or an image. Past two million rows they are thinned: what is kept is every second,
fourth, ... of the values (by the value itself, so that equal ones stay together), and shares become estimates.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visgraft.data.balance import AnswerBalance, Keys
from visgraft.data.quarantine import Part
from visgraft.data.records import LONG_TEXT, TINY_SIDE, SampleRecord, TextRecord, mix

MOST_ROWS = 2_000_000  # of a table
MOST_ANSWERS = 50_000  # different ones that are counted by name
MOST_THINGS, OTHERS = 1000, "others"  # different reasons, say, that are counted by name
NUM_EXAMPLES = 3  # places named of each thing


class Table:
    """Rows of numbers, thinned by the first of each row once they are too many."""

    def __init__(self, width: int, *, most: int = MOST_ROWS) -> None:
        self._columns = [array("Q") for _ in range(width)]
        self._most = most
        self.thinned = 0  # how often half of the values were left out

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, *row: int) -> None:
        """Add a row."""
        if row[0] & ((1 << self.thinned) - 1):
            return
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        if len(self) > self._most:
            self._thin()

    def columns(self, *, thinned: int | None = None) -> list[Keys]:
        """Return the columns; thinned as often as another table, if that is more."""
        columns = [np.array(column, dtype=np.uint64) for column in self._columns]
        mask = np.uint64((1 << max(self.thinned, thinned or 0)) - 1)
        kept = (columns[0] & mask) == 0
        return [column[kept] for column in columns]

    def _thin(self) -> None:
        self.thinned += 1
        self._columns = [array("Q", column.tobytes()) for column in self.columns()]


class Answers:
    """How often each answer comes; of very many different ones those are kept that come often."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.shown: dict[int, str] = {}
        self.total = 0

    def add(self, text: TextRecord) -> None:
        """Count an answer."""
        self.total += 1
        self.counts[text.answer] += 1
        self.shown.setdefault(text.answer, text.shown_answer)
        if len(self.counts) > MOST_ANSWERS:
            self.counts = Counter(dict(self.counts.most_common(MOST_ANSWERS // 2)))
            self.shown = {key: self.shown[key] for key in self.counts}

    def top(self, number: int) -> list[tuple[str, int]]:
        """List the commonest answers, each with how often it comes."""
        return [(self.shown[key], count) for key, count in self.counts.most_common(number)]


@dataclass
class SourceReport:
    """What one source holds.

    Attributes:
        source: its name, unique in its part.
        part: train, validation or test.
        samples: all of them, bad ones included; a sample is one image (or list of images) with its texts.
        epochs: how often it comes in an epoch of the whole, its weight after the mixing temperature.
        budget: bad samples allowed in its part.
        lost: the bad ones of which nothing can be used; of the others, only some of the texts are bad.
        is_balanced: the answers of a prompt come equally often.
        notes: what the reader has to say.
        unused_columns: that look like images.
        looks: what its first row looks like, of a source without a good sample.
        images, texts: of the good samples; a text is one dialog.
        lengths: how many texts have so many tokens, prompt and answer.
        reasons, examples: of the bad samples, how many, and where the first ones are.
        marks, marked: of texts, how many have which mark, and where the first ones are; marks are named as in records,
            with the token behind a blank.
        blank, tiny: of images, how many, and in `marked` where the first ones are.
        answers: the commonest.
        image_keys: of images: [key].
        text_keys: of texts: [key, is it about an image, is it long].
        rows: of texts: [key with its images].
        pairs: of texts: [prompt, answer].
        names: of samples with an id of their own: [id, images].
    """

    source: str
    part: Part
    epochs: float = 1.0
    samples: int = 0
    budget: int = 0
    lost: int = 0
    is_balanced: bool = False
    notes: Sequence[str] = ()
    unused_columns: Sequence[str] = ()
    looks: str | None = None
    images: int = 0
    texts: int = 0
    supervised: int = 0
    truncated: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    marks: Counter[str] = field(default_factory=Counter)
    marked: dict[str, list[str]] = field(default_factory=dict)
    answers: Answers = field(default_factory=Answers)
    image_keys: Table = field(default_factory=lambda: Table(1))
    text_keys: Table = field(default_factory=lambda: Table(3))
    rows: Table = field(default_factory=lambda: Table(1))
    pairs: Table = field(default_factory=lambda: Table(2))
    names: Table = field(default_factory=lambda: Table(2))

    @property
    def bad(self) -> int:
        """The number of bad samples."""
        return sum(self.reasons.values())

    @property
    def texts_per_image(self) -> float:
        """How many texts share an image prefix, on average."""
        good = self.samples - self.lost
        return self.texts / good if good else 0.0

    def percentile(self, part: float) -> int:
        """Return the length in tokens that so many percent of the texts do not exceed."""
        if not self.lengths:
            return 0
        lengths = np.array(sorted(self.lengths))
        reached = np.cumsum([self.lengths[length] for length in lengths.tolist()])
        return int(lengths[np.searchsorted(reached, part / 100 * reached[-1])])

    def add(self, record: SampleRecord, *, where: Callable[[], str]) -> None:
        """Count a sample; where says where it is found."""
        if record.reason is not None:
            _note(self.reasons, self.examples, record.reason, where)
        self.lost += not record.texts
        self.images += len(record.images)
        self.texts += len(record.texts)
        self.supervised += record.num_supervised
        self.truncated += record.num_truncated
        self.lengths.update(record.num_tokens)
        about = record.image_key
        if record.name is not None and about:
            self.names.add(record.name, about)
        for image in record.images:
            self.image_keys.add(image.key)
            if image.is_blank:
                _note(self.marks, self.marked, "blank", where)
            if 0 < min(image.width, image.height) < TINY_SIDE:
                _note(self.marks, self.marked, "tiny", where)
        for _ in range(record.num_truncated):
            _note(self.marks, self.marked, "cut", where)
        for text in record.texts:
            self.add_text(text, about=about, where=where)

    def add_text(self, text: TextRecord, *, about: int, where: Callable[[], str]) -> None:
        """Count a text; about is a number that stands for its images, 0 for none."""
        self.answers.add(text)
        self.text_keys.add(text.key, int(about != 0), int(text.num_answer_characters >= LONG_TEXT))
        self.rows.add(mix(text.key, about))
        self.pairs.add(text.prompt, text.answer)
        for mark, token in text.marks:
            _note(self.marks, self.marked, f"{mark} {token}".strip(), lambda: _quoted(text, where()))

    def balance(self) -> AnswerBalance:
        """Return prompts and answers as balancing sees them."""
        prompts, answers = self.pairs.columns()
        places: NDArray[np.int64] = np.arange(len(prompts), dtype=np.int64)
        return AnswerBalance(prompts, answers, samples=places, dialogs=places)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        balance = self.balance()
        alone = balance.words_alone()
        weights = answer_weights(self, balance)
        return {
            "source": self.source,
            "part": self.part,
            "samples": self.samples,
            "images": self.images,
            "texts": self.texts,
            "texts_per_image": round(self.texts_per_image, 3),
            "tokens": {"median": self.percentile(50), "p95": self.percentile(95), "max": self.percentile(100)},
            "supervised_tokens": self.supervised,
            "truncated": self.truncated,
            "epochs": self.epochs,
            "bad": self.bad,
            "bad_allowed": self.budget,
            "reasons": dict(self.reasons.most_common()),
            "examples": self.examples,
            "notes": list(self.notes),
            "unused_image_columns": list(self.unused_columns),
            "marks": {mark: {"count": number, "examples": self.marked[mark]} for mark, number in self.marks.items()},
            "answers": [{"answer": answer, "texts": number} for answer, number in self.answers.top(20)],
            "words_alone": {
                "texts": alone.texts,
                "asked_again": alone.asked_again,
                "share": round(alone.share, 4),
                "share_balanced": round(alone.share_balanced, 4),
                "is_estimate": bool(self.pairs.thinned),
            },
            "balance": {"is_on": self.is_balanced, "answers": weights},
        }


def answer_weights(report: SourceReport, balance: AnswerBalance, *, number: int = 20) -> list[dict[str, Any]]:
    """Say of the commonest answers how often their texts come in an epoch once answers are balanced, on average."""
    _, answers = report.pairs.columns()
    weights, found = balance.weights, []
    for key, count in report.answers.counts.most_common(number):
        inside = weights[answers == np.uint64(key)]
        weight = float(inside.mean()) if len(inside) else 1.0
        found.append({"answer": report.answers.shown[key], "texts": count, "weight": round(weight, 4)})
    return found


def _note(counts: Counter[str], places: dict[str, list[str]], what: str, where: Callable[[], str]) -> None:
    if what not in counts and len(counts) >= MOST_THINGS:
        what = OTHERS
    counts[what] += 1
    named = places.setdefault(what, [])
    if len(named) < NUM_EXAMPLES and where() not in named:
        named.append(where())


def _quoted(text: TextRecord, where: str) -> str:
    """Name a text by the rows about its images, one of which it is, and by what it says."""
    first, *others = where.split(", ")
    place = f"{first} ... {others[-1]}" if others else first
    return f"{place}: {text.shown_prompt!r} -> {text.shown_answer!r}"
