"""What a careful colleague would say about the data: one function a finding, one row of a table each.

In:  reports of all sources. Out: findings, the worst first; an error is what makes `data check` say no.

    for finding in find(reports, settings=recipe.data): print(finding.level, finding.text, finding.advice)

A finding says what was found, how often, and what to do. What nobody would mend is a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Literal

import numpy as np

from visgraft.config import DataSettings
from visgraft.data.balance import Keys
from visgraft.data.quarantine import Part
from visgraft.data.records import TINY_SIDE
from visgraft.data.source_report import SourceReport, Table, answer_weights

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

HELD_BACK: tuple[Part, ...] = ("validation", "test")  # from training, to measure on
_FEWEST_TEXTS = 20  # below it a share of the texts says nothing
_SAME_ANSWER = 0.6  # of the texts, with which one answer makes the data monotonous
_COMMON_ANSWER, _FEWEST_SAME = 0.05, 10  # of the texts, and texts, from which on it is worth a line
_GIVEN_AWAY = 0.1  # of the questions, that balancing makes harder: worth saying
_NAMED_TOKENS = 4
_LONGEST_PLACE = 120


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about the data.

    Attributes:
        name: stays the same, for programs.
        level: error: training refuses it, or would be worthless; warning: mend it, or know it; note: good to know.
        part: where it is.
        source: the source; None: all of them.
        count, of: how many, of how many.
        text: what was found.
        advice: what to do; empty where nothing need be done.
        examples: where the first ones are.
    """

    name: str
    level: Level
    part: Part
    source: str | None
    count: int
    of: int
    text: str
    advice: str = ""
    examples: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The part of the whole, 0 to 1."""
        return self.count / self.of if self.of else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "share": round(self.share, 6)}

    @property
    def where(self) -> str:
        """Name where it is."""
        return " ".join(word for word in (self.part, self.source) if word)


Finder = Callable[[Sequence[SourceReport], DataSettings], Iterator[Finding]]


def find(reports: Sequence[SourceReport], *, settings: DataSettings) -> list[Finding]:
    """Look at all reports for everything that there is to find, errors first."""
    found = [finding for finder in FINDINGS for finding in finder(reports, settings)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


# --- Bad samples


def _too_many_bad(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for part, inside in _parts(reports).items():
        bad, samples = sum(report.bad for report in inside), sum(report.samples for report in inside)
        if bad > inside[0].budget:
            text = f"{bad:,} of {samples:,} samples are bad, {inside[0].budget:,} are allowed: training would stop."
            advice = "Repair them, or raise data.max_bad_fraction."
            yield Finding("too_many_bad", "error", part, None, bad, samples, text, advice)


def _no_good_sample(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "Repair it, tell the reader how to read it (docs/data.md), or take it out of the recipe."
    for report in reports:
        if report.lost == report.samples:
            text = "It has no good sample: training would stop." if report.samples else "It holds no sample at all."
            looks = f" {report.looks}." if report.looks else ""
            yield _of(report, "no_good_sample", "error", report.bad, report.samples, text + looks, advice)


def _bad_samples(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for report in reports:
        for reason, count in report.reasons.most_common():
            places = report.examples[reason]
            text = f"{count:,} bad: {reason}{_at(places)}."
            yield _of(report, "bad_samples", "warning", count, report.samples, text, examples=places)


# --- What stands on both sides


def _overlapping_images(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    tables = {part: [report.image_keys for report in inside] for part, inside in _parts(reports).items()}
    for part in HELD_BACK:
        both = _shared(tables.get("train", []), tables.get(part, []))
        yield from overlap_finding("overlapping_images", *both, part=part, what="images", settings=settings)


def _overlapping_texts(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    """Texts without an image, which are all that there is of their sample; about images, long ones alone tell much."""
    thinned = max((report.text_keys.thinned for report in reports), default=0)
    tables = {part: [report.text_keys for report in inside] for part, inside in _parts(reports).items()}
    for part in HELD_BACK:
        if not {"train", part} <= tables.keys():
            continue
        here, about, _ = _joined(tables["train"], thinned=thinned)
        there, about_there, long = _joined(tables[part], thinned=thinned)
        alone, _ = _shared_keys(here[about == 0], there[about_there == 0])
        of, what = len(np.unique(there)), "texts, without an image,"
        yield from overlap_finding("overlapping_texts", alone, of, part=part, what=what, settings=settings)
        repeated, of = _shared_keys(here[about != 0], there[(about_there != 0) & (long != 0)])
        if repeated and repeated / of > settings.max_overlap_fraction:
            text = (
                f"{repeated:,} of {of:,} long {part} texts ({repeated / of:.1%}) stand word for word in training, "
                "about images there."
            )
            advice = "Look whether they are about copies of the same images."
            yield Finding("repeated_texts", "warning", part, None, repeated, of, text, advice)


def overlap_finding(
    name: str, shared: int, of: int, *, part: Part, what: str, settings: DataSettings
) -> Iterator[Finding]:
    """Say how much of what is held back stands in training too; too much is an error."""
    if not shared:
        return
    share = shared / of
    text = f"{shared:,} of {of:,} {part} {what} ({_per_cent(share)}) stand in training too."
    if share <= settings.max_overlap_fraction:
        yield Finding(name, "warning", part, None, shared, of, text, "Take them out of one of the two.")
        return
    advice = (
        "What is measured on them says little: take them out of one of the two (split: {validation: 2%} divides by "
        f"image), or allow it with data.max_overlap_fraction: {ceil(100 * share) / 100:g}."
    )
    yield Finding(name, "error", part, None, shared, of, text, advice)


# --- Images


def _poor_images(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "Nothing can be learned from them: look at them with `visgraft data show`, or take them out."
    for report in reports:
        for mark, what in (("blank", "of one colour alone"), ("tiny", f"less than {TINY_SIDE} pixels on a side")):
            count, places = report.marks[mark], report.marked.get(mark, [])
            if count:
                text = f"{_some(count, report.images, 'images', 'is', 'are')} {what}{_at(places)}."
                yield _of(report, f"{mark}_images", "warning", count, report.images, text, advice, places)


def _same_name(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "Training goes by images, not by ids; see whether files were mixed up."
    for report in reports:
        names, images = report.names.columns()
        pairs = np.unique(np.stack([names, images], axis=1), axis=0)
        _, counts = np.unique(pairs[:, 0], return_counts=True)
        several = int((counts > 1).sum())
        if several:
            text = f"{_some(several, len(counts), 'ids', 'stands', 'stand')} for different images."
            yield _of(report, "same_id", "note", several, len(counts), text, advice)


def _unused_columns(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for report in reports:
        if report.unused_columns:
            text, advice = unused_columns_in_words(report.unused_columns)
            number = len(report.unused_columns)
            yield _of(report, "unused_image_columns", "warning", number, number, text, advice)


def unused_columns_in_words(columns: Sequence[str]) -> tuple[str, str]:
    """Say which columns look like images and are not used, and what to do."""
    named = ", ".join(columns[:_NAMED_TOKENS]) + (", ..." if len(columns) > _NAMED_TOKENS else "")
    text = f"{'A column' if len(columns) == 1 else 'Columns'} of its rows may hold images that are not used: {named}."
    return text, f"If those are meant, say columns: {{image: {columns[0]}}} in this source of the recipe."


# --- Texts


def _cut_texts(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "Raise data.max_text_tokens as far as the language model goes, or shorten them."
    for report in reports:
        if report.truncated:
            places, most = report.marked.get("cut", []), settings.max_text_tokens
            cut = _some(report.truncated, report.texts, "texts", "is", "are")
            text = f"{cut} cut at {most:,} tokens, and what is behind never learned{_at(places)}."
            yield _of(report, "cut_texts", "warning", report.truncated, report.texts, text, advice, places)


def _control_tokens(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    left = "They are read as characters, but come from another template: take them out."
    for report in reports:
        for kind, name, what, advice in (
            ("control", "control_tokens", "Control tokens stand in texts", left),
            ("added", "added_tokens", "Added tokens of the tokenizer stand in texts and are kept", ""),
        ):
            found = {mark[len(kind) + 1 :]: n for mark, n in report.marks.most_common() if mark.startswith(f"{kind} ")}
            count = sum(found.values())
            if count:
                named = ", ".join(f"{token} in {n:,}" for token, n in list(found.items())[:_NAMED_TOKENS])
                more = f" and {len(found) - _NAMED_TOKENS} more" if len(found) > _NAMED_TOKENS else ""
                places = report.marked[f"{kind} {next(iter(found))}"]
                text = f"{what}: {named}{more}{_at(places)}."
                level: Level = "warning" if advice else "note"
                yield _of(report, name, level, count, report.texts, text, advice, places)


def _encodings(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "Write the file again from its source, with the encoding that it really has."
    for report in reports:
        for mark, what in (
            ("replaced", "U+FFFD, which stands for a character that was lost"),
            ("misread", "UTF-8 that was read as something else (\u00c3\u00a9 for \u00e9)"),
        ):
            count, places = report.marks[mark], report.marked.get(mark, [])
            if count:
                text = f"{_some(count, report.texts, 'texts', 'holds', 'hold')} {what}{_at(places)}."
                yield _of(report, f"{mark}_characters", "warning", count, report.texts, text, advice, places)


def _given_answers(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "The model learns to copy them, not to look: take the answer out of the prompt."
    for report in reports:
        given, places = report.marks["answer given"], report.marked.get("answer given", [])
        if given:
            text = f"{_some(given, report.texts, 'answers', 'is', 'are')} given in the prompt{_at(places)}."
            yield _of(report, "answer_in_prompt", "warning", given, report.texts, text, advice, places)
        offered, places = report.marks["answer in prompt"], report.marked.get("answer in prompt", [])
        if offered:
            some = _some(offered, report.texts, "answers", "is", "are")
            text = f"{some} among the words of the prompt, as choices are{_at(places)}."
            yield _of(report, "answer_offered", "note", offered, report.texts, text, examples=places)


def _duplicated_rows(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    advice = "They come more often than the others: take them out, unless that is meant."
    for part, inside in _parts(reports).items():
        [keys] = _joined([report.rows for report in inside])
        extra = len(keys) - len(np.unique(keys))
        if extra:
            some = _some(extra, len(keys), "texts", "repeats", "repeat")
            text = f"{some} another word for word, about the same image."
            name = inside[0].source if len(inside) == 1 else None
            yield Finding("duplicated_rows", "warning", part, name, extra, len(keys), text, advice)


def _same_answers(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for report in reports:
        top, total = report.answers.top(3), report.answers.total
        if total < _FEWEST_TEXTS or top[0][1] < max(_FEWEST_SAME, _COMMON_ANSWER * total):
            continue
        named = ", ".join(f"{answer!r} {count / total:.1%}" for answer, count in top)
        if top[0][1] / total >= _SAME_ANSWER:
            text = f"The answers are nearly always the same: {named} of {total:,}."
            advice = "A model that always says so is right as often: add others."
            yield _of(report, "same_answers", "warning", top[0][1], total, text, advice)
        else:
            yield _of(report, "common_answers", "note", top[0][1], total, f"Common answers: {named} of {total:,}.")


def _words_alone(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for report in reports:
        balance = report.balance()
        alone = balance.words_alone()
        if alone.asked_again < _FEWEST_TEXTS:
            continue
        about = "about " if report.pairs.thinned else ""
        text = (
            f"The words alone give away {about}{alone.share:.1%} of {alone.asked_again:,} answers: always the "
            "commonest answer to a question is right so often (questions asked once are not counted)."
        )
        counts = alone.right, alone.asked_again
        if report.is_balanced:
            weights = answer_weights(report, balance, number=3)
            named = ", ".join(f"{each['answer']!r} {each['weight']:.2f} times" for each in weights)
            text += f" Balanced, it is {alone.share_balanced:.1%}: in an epoch come {named}."
            yield _of(report, "words_alone", "note", *counts, text)
        elif report.part == "train" and alone.share - alone.share_balanced >= _GIVEN_AWAY:
            advice = f"balance: answers, in this source of the recipe, makes it {alone.share_balanced:.1%}."
            yield _of(report, "words_alone", "warning", *counts, text, advice)
        else:
            yield _of(report, "words_alone", "note", *counts, text)


def _notes(reports: Sequence[SourceReport], settings: DataSettings) -> Iterator[Finding]:
    for report in reports:
        for note in report.notes:
            yield _of(report, "reader", "note", 0, 0, note)


# The one table: what is looked for, in the order in which findings of one level are told.
FINDINGS: tuple[Finder, ...] = (
    _no_good_sample,
    _too_many_bad,
    _overlapping_images,
    _overlapping_texts,
    _bad_samples,
    _given_answers,
    _duplicated_rows,
    _control_tokens,
    _encodings,
    _cut_texts,
    _unused_columns,
    _poor_images,
    _same_answers,
    _words_alone,
    _same_name,
    _notes,
)


# --- Reading tables


def _parts(reports: Iterable[SourceReport]) -> dict[Part, list[SourceReport]]:
    parts: dict[Part, list[SourceReport]] = {}
    for report in reports:
        parts.setdefault(report.part, []).append(report)
    return parts


def _joined(tables: Sequence[Table], *, thinned: int = 0) -> list[Keys]:
    """Put tables one behind the other, all thinned as the thinnest."""
    most = max([thinned, *(table.thinned for table in tables)])
    columns = [table.columns(thinned=most) for table in tables]
    return [np.concatenate(parts) for parts in zip(*columns, strict=True)]


def _shared(train: Sequence[Table], validation: Sequence[Table]) -> tuple[int, int]:
    """Count the different values of validation, and those of them that train has too."""
    if not train or not validation:
        return 0, 0
    thinned = max(table.thinned for table in (*train, *validation))
    [here], [there] = _joined(train, thinned=thinned), _joined(validation, thinned=thinned)
    return _shared_keys(here, there)


def _shared_keys(train: Keys, validation: Keys) -> tuple[int, int]:
    wanted = np.unique(validation)
    return int(np.isin(wanted, train).sum()), len(wanted)


# --- Words


def _of(
    report: SourceReport,
    name: str,
    level: Level,
    count: int,
    of: int,
    text: str,
    advice: str = "",
    examples: Sequence[str] = (),
) -> Finding:
    return Finding(name, level, report.part, report.source, count, of, text, advice, list(examples))


def _at(places: Sequence[str]) -> str:
    """Name where the first one is."""
    if not places:
        return ""
    first = places[0]
    return f" ({first if len(first) <= _LONGEST_PLACE else f'{first[:_LONGEST_PLACE]}...'})"


def _some(count: int, of: int, nouns: str, singular: str, plural: str) -> str:
    return f"{count:,} of {of:,} {nouns} {singular if count == 1 else plural}"


def _per_cent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2%}"


def count_by_level(findings: Iterable[Finding]) -> Counter[Level]:
    """Count findings of each level."""
    return Counter(finding.level for finding in findings)
