"""What a careful colleague would ask about is found, counted and told with what to do; what is fine is left alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import save_parts
from visgraft.config import DataSettings, SourceSettings
from visgraft.data.check import check_sources
from visgraft.data.findings import FINDINGS, Finding, find
from visgraft.data.records import Looker, SampleRecord, TextRecord
from visgraft.data.sample import Turn
from visgraft.data.source_report import Answers, SourceReport, Table
from visgraft.data.sources import open_sources
from visgraft.processor import Processor


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.from_parts(*save_parts(tmp_path_factory.mktemp("parts")), template="git-llm", max_text_tokens=100)


def picture(path: Path, *, seed: int = 0, side: int = 40, colour: Any = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    (Image.new("RGB", (side, side), colour) if colour else Image.fromarray(pixels)).save(path)
    return str(path)


def row(image: str | None, answer: str, question: str = "What is it?", **more: Any) -> dict[str, Any]:
    return {**({} if image is None else {"image": image}), "question": question, "answer": answer, **more}


def write(path: Path, rows: list[dict[str, Any]], **settings: Any) -> SourceSettings:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return SourceSettings("parquet", path=str(path), **settings)


def findings_of(
    processor: Processor,
    train: list[SourceSettings],
    validation: list[SourceSettings] | None = None,
    *,
    with_images: bool = True,
    **settings: Any,
) -> dict[str, Finding]:
    """Check data, and give the findings by name."""
    data = DataSettings(max_text_tokens=100, **settings)
    reports = []
    for part, entries in (("train", train), ("validation", validation or [])):
        if not entries:
            continue
        sources = open_sources(entries, key=f"data.{part}", settings=data)
        reports += check_sources(sources, processor, with_images=with_images)
    found = find(reports, settings=data)
    assert [f.level for f in found] == sorted((f.level for f in found), key=["error", "warning", "note"].index)
    assert all(json.dumps(finding.as_json()) for finding in found)
    return {finding.name: finding for finding in found}


def good_rows(folder: Path, *, number: int = 6, first: int = 0) -> list[dict[str, Any]]:
    return [
        row(picture(folder / f"{n}.png", seed=n), f"thing {n}", f"What is number {n}?")
        for n in range(first, first + number)
    ]


def test_good_data_are_left_in_peace(tmp_path: Path, processor: Processor) -> None:
    train = write(tmp_path / "t.jsonl", good_rows(tmp_path / "t", number=30))
    validation = write(tmp_path / "v.jsonl", good_rows(tmp_path / "v", first=100))
    assert findings_of(processor, [train], [validation]) == {}


# --- On both sides


def test_an_image_on_both_sides_is_found_by_what_it_shows_under_any_name(tmp_path: Path, processor: Processor) -> None:
    train = write(tmp_path / "t.jsonl", good_rows(tmp_path / "t", number=20))
    rows = good_rows(tmp_path / "v", number=8, first=100)
    with Image.open(tmp_path / "t" / "3.png") as image:
        image.save(tmp_path / "v" / "copy.bmp")  # other bytes, the same pixels
    rows += [row(str(tmp_path / "v" / "copy.bmp"), "else"), row(picture(tmp_path / "v" / "same.png", seed=4), "else")]
    validation = write(tmp_path / "v.jsonl", rows)
    finding = findings_of(processor, [train], [validation])["overlapping_images"]
    assert (finding.level, finding.count, finding.of, finding.part) == ("error", 2, 10, "validation")
    assert finding.text == "2 of 10 validation images (20.0%) stand in training too."
    assert "data.max_overlap_fraction: 0.2" in finding.advice
    allowed = findings_of(processor, [train], [validation], max_overlap_fraction=0.2)["overlapping_images"]
    assert allowed.level == "warning"
    assert findings_of(processor, [train], [validation], with_images=False) == {}  # by their paths they differ


def test_without_opening_images_the_same_file_is_found(tmp_path: Path, processor: Processor) -> None:
    rows = good_rows(tmp_path / "t", number=20)
    train, validation = write(tmp_path / "t.jsonl", rows), write(tmp_path / "v.jsonl", rows[:5])
    finding = findings_of(processor, [train], [validation], with_images=False)["overlapping_images"]
    assert (finding.count, finding.of, finding.level) == (5, 5, "error")


def test_texts_alone_on_both_sides_are_found_and_short_ones_about_other_images_are_not(
    tmp_path: Path, processor: Processor
) -> None:
    train = [row(None, f"answer {n}", f"question {n}") for n in range(20)]
    about = [row(picture(tmp_path / f"t{n}.png", seed=n), "red", "Which colour?") for n in range(5)]
    there = [row(picture(tmp_path / f"v{n}.png", seed=100 + n), "red", "Which colour?") for n in range(5)]
    text = [row(None, "answer 3", "question 3")]
    found = findings_of(
        processor, [write(tmp_path / "t.jsonl", train + about)], [write(tmp_path / "v.jsonl", there + text)]
    )
    assert set(found) == {"overlapping_texts"}
    assert (found["overlapping_texts"].count, found["overlapping_texts"].of) == (1, 2)


def test_long_texts_that_come_again_about_other_images_are_a_warning(tmp_path: Path, processor: Processor) -> None:
    long = "a brown dog sleeps on a green sofa under the window"
    train = write(tmp_path / "t.jsonl", [row(picture(tmp_path / "t.png", seed=1), long)])
    validation = write(tmp_path / "v.jsonl", [row(picture(tmp_path / "v.png", seed=2), long)])
    finding = findings_of(processor, [train], [validation])["repeated_texts"]
    assert finding.level == "warning" and "1 of 1 long validation texts (100.0%)" in finding.text


# --- Sources and samples


def test_a_source_without_a_good_sample_is_an_error_that_shows_its_first_row(
    tmp_path: Path, processor: Processor
) -> None:
    good = write(tmp_path / "t.jsonl", good_rows(tmp_path / "t"))
    lost = write(tmp_path / "lost.jsonl", [{"data": [1, 2], "meta": {"a": 1}}, {"data": []}])
    finding = findings_of(processor, [good, lost])["no_good_sample"]
    assert (finding.level, finding.source, finding.count, finding.of) == ("error", "parquet-2", 2, 2)
    assert "Its first row holds {data: a list of 2, the first 1, meta: an object of a}" in finding.text
    broken = tmp_path / "broken.jsonl"
    broken.write_text("id;text\n1;a cat\n")
    finding = findings_of(processor, [good, SourceSettings("parquet", path=str(broken))])["no_good_sample"]
    assert "Its file begins with 'id;text\\n1;a cat\\n'" in finding.text


def test_too_many_bad_samples_are_an_error_and_each_reason_is_told(tmp_path: Path, processor: Processor) -> None:
    rows = [*good_rows(tmp_path / "t"), *[row(str(tmp_path / f"gone{n}.png"), "x") for n in range(6)]]
    found = findings_of(processor, [write(tmp_path / "t.jsonl", rows)])
    assert found["too_many_bad"].level == "error" and "6 of 12 samples are bad, 5 are" in found["too_many_bad"].text
    assert found["bad_samples"].text == "6 bad: image file is missing (t.jsonl line 7)."


def test_an_id_that_stands_for_several_images_is_told_and_several_rows_about_one_are_not(
    tmp_path: Path, processor: Processor
) -> None:
    rows = [{**each, "id": n // 2} for n, each in enumerate(good_rows(tmp_path / "t", number=4))]
    rows += [{**rows[0], "question": "And?"}]
    finding = findings_of(processor, [write(tmp_path / "t.jsonl", rows)])["same_id"]
    assert (finding.level, finding.count, finding.of) == ("note", 2, 2)


def test_a_column_that_looks_like_images_beside_the_one_that_is_used_is_told(
    tmp_path: Path, processor: Processor
) -> None:
    rows = [{**each, "overlay": "x.png", "note": "see a.png and b"} for each in good_rows(tmp_path / "t")]
    finding = findings_of(processor, [write(tmp_path / "t.jsonl", rows)])["unused_image_columns"]
    assert finding.text == "A column of its rows may hold images that are not used: overlay."
    assert finding.advice == "If those are meant, say columns: {image: overlay} in this source of the recipe."


def test_blank_and_tiny_images_are_found(tmp_path: Path, processor: Processor) -> None:
    rows = good_rows(tmp_path / "t")
    rows.append(row(picture(tmp_path / "white.jpg", colour="white"), "nothing"))
    rows.append(row(picture(tmp_path / "small.png", side=12), "little"))
    found = findings_of(processor, [write(tmp_path / "t.jsonl", rows)])
    assert found["blank_images"].text == "1 of 8 images is of one colour alone (t.jsonl line 7)."
    assert found["tiny_images"].text == "1 of 8 images is less than 32 pixels on a side (t.jsonl line 8)."


# --- Texts


def told(processor: Processor, folder: Path, *texts: tuple[str, str]) -> dict[str, Finding]:
    image = picture(folder / "x.png", seed=9)
    rows = [row(image, answer, question) for question, answer in texts]
    return findings_of(processor, [write(folder / "texts.jsonl", rows)])


@pytest.mark.parametrize(
    ("question", "answer", "name", "level"),
    [
        ("What is it?", "ok <s>old</s> price", "control_tokens", "warning"),
        ("What is it? </s>", "a cat", "control_tokens", "warning"),
        ("Say it. ##Answer: no", "a cat", "control_tokens", "warning"),  # of the template
        ("What is it?", "Caf\ufffd", "replaced_characters", "warning"),
        ("O\u00c3\u00b9 est-il ?", "l\u00c3\u00a0", "misread_characters", "warning"),
        ("What is it?", "It\u00e2\u20ac\u2122s a cat", "misread_characters", "warning"),
        ("What is it? It is a cat.", "A cat", "answer_in_prompt", "warning"),
        ("Repeat: a brown dog on a sofa. And?", "A brown dog on a sofa.", "answer_in_prompt", "warning"),
        ("Is it a dog or a cat?", "a cat", "answer_offered", "note"),
        ("Answer with yes or no", "no", "answer_offered", "note"),
        ("Options: cat, dog, bird", "bird", "answer_offered", "note"),
        ("What is it?", "word " * 200, "cut_texts", "warning"),
    ],
)
def test_what_is_odd_about_a_text_is_told(
    tmp_path: Path, processor: Processor, question: str, answer: str, name: str, level: str
) -> None:
    found = told(processor, tmp_path, ("Which?", "this"), (question, answer))
    assert {key: finding.level for key, finding in found.items()} == {name: level}
    assert (found[name].count, found[name].of) == (2 if answer.startswith("ok") else 1, 2)
    assert found[name].examples[0].startswith("texts.jsonl line 1")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a catalogue?", "cat"),  # no word of its own
        ("A or B?", "A"),  # a single letter
        ("How do I use <b> and [x]?", "With care: 5 < 6."),
        ("S\u00e3o Paulo, \u00c2ngela, \u00c3", "\u00c9t\u00e9"),
    ],
)
def test_what_only_looks_odd_is_left_in_peace(tmp_path: Path, processor: Processor, question: str, answer: str) -> None:
    assert told(processor, tmp_path, (question, answer)) == {}


def test_an_added_token_that_is_not_special_is_counted_and_stays(tmp_path: Path) -> None:
    vision, language = save_parts(tmp_path)
    processor = Processor.from_parts(vision, language, max_text_tokens=100)
    processor.tokenizer.add_tokens(["<think>"])
    finding = told(processor, tmp_path, ("Why?", "<think> hm <think> so"))["added_tokens"]
    assert finding.level == "note" and finding.advice == "" and "<think> in 1" in finding.text


def test_rows_that_come_twice_are_counted_wherever_their_image_lies(tmp_path: Path, processor: Processor) -> None:
    rows = good_rows(tmp_path / "t")
    again = [rows[0], {**rows[1], "image": picture(tmp_path / "copy.png", seed=1)}, {**rows[2], "answer": "else"}]
    finding = findings_of(processor, [write(tmp_path / "t.jsonl", rows + again)])["duplicated_rows"]
    assert (finding.count, finding.of, finding.source) == (2, 9, "parquet")


def yes_no(folder: Path, *, yes: int, no: int) -> list[dict[str, Any]]:
    image = picture(folder / "x.png")
    return [row(image, "yes" if n < yes else "no", f"Is it {n % 2}?") for n in range(yes + no)]


def test_answers_that_are_nearly_always_the_same_are_told_with_their_shares(
    tmp_path: Path, processor: Processor
) -> None:
    found = findings_of(processor, [write(tmp_path / "t.jsonl", yes_no(tmp_path, yes=45, no=5))])
    assert found["same_answers"].text == "The answers are nearly always the same: 'yes' 90.0%, 'no' 10.0% of 50."
    found = findings_of(processor, [write(tmp_path / "u.jsonl", yes_no(tmp_path, yes=25, no=25))])
    assert "same_answers" not in found and "'no' 50.0%" in found["common_answers"].text


def test_what_the_words_alone_give_away_is_told_before_and_after_balancing(
    tmp_path: Path, processor: Processor
) -> None:
    rows = yes_no(tmp_path, yes=40, no=10)
    found = findings_of(processor, [write(tmp_path / "t.jsonl", rows)])["words_alone"]
    assert found.level == "warning" and "give away 80.0% of 50 answers" in found.text
    assert found.advice == "balance: answers, in this source of the recipe, makes it 50.0%."
    found = findings_of(processor, [write(tmp_path / "t.jsonl", rows, balance="answers")])["words_alone"]
    assert found.level == "note" and "80.0% of 50" in found.text and "Balanced, it is 50.0%" in found.text
    assert "'yes' 0.62 times, 'no' 2.50 times" in found.text


# --- In little memory


def test_a_table_is_thinned_by_value_so_that_shares_stay_what_they_are() -> None:
    table = Table(2, most=1000)
    values = np.random.default_rng(0).integers(0, 2**63, 20_000).tolist()
    for value in values + values[:5000]:
        table.add(value, 7)
    keys, others = table.columns()
    assert 400 < len(table) <= 1000 and table.thinned == 5 and set(others.tolist()) == {7}
    assert len(keys) / len(np.unique(keys)) == pytest.approx(1.25, abs=0.04)
    assert len(table.columns(thinned=6)[0]) < len(keys)


def test_tables_thinned_unlike_are_compared_alike() -> None:
    train, validation = SourceReport("a", "train"), SourceReport("b", "validation")
    train.image_keys = Table(1, most=500)
    values = np.random.default_rng(0).integers(0, 2**63, 4000).tolist()
    for value in values:
        train.image_keys.add(value)
    for value in [*values[:300], *range(1, 2001, 2)]:
        validation.image_keys.add(value)
    assert train.image_keys.thinned > 0 == validation.image_keys.thinned
    train.samples = validation.samples = train.budget = 9
    [finding] = find([train, validation], settings=DataSettings())
    assert finding.name == "overlapping_images" and finding.share > 0.9  # the odd numbers are thinned out, too


def test_answers_that_come_often_are_kept_of_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visgraft.data.source_report.MOST_ANSWERS", 100)
    answers = Answers()
    for number in range(5000):
        for shown, key in (("yes", 1), (f"rare {number}", number + 2)):
            answers.add(TextRecord(0, key, "", shown, 3, ()))
    assert answers.top(1) == [("yes", 5000)] and len(answers.counts) <= 100 and answers.total == 10_000


def test_reasons_of_every_wording_are_counted_within_bounds() -> None:
    report = SourceReport("a", "train", samples=5000)
    for number in range(5000):
        report.add(SampleRecord(number, f"reason {number}"), where=lambda: "here")
    assert len(report.reasons) == len(report.examples) == 1001 and report.reasons["others"] == 4000
    assert report.bad == 5000


def test_a_finding_is_one_row_of_the_table() -> None:
    assert len(set(FINDINGS)) == len(FINDINGS) >= 12


def test_a_long_text_is_shown_by_its_beginning(processor: Processor) -> None:
    looker = Looker(processor, settings=DataSettings())
    record = looker.look_at_text([Turn("Why?", "because " * 20), Turn("And?", "so")])
    assert len(record.shown_answer) == 48 and record.shown_answer.endswith("...")
    assert record.shown_prompt == "Why? / And?"
