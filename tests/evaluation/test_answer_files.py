"""Answers that exist: read, scored, compared."""

import json
from pathlib import Path

import pytest

from visgraft.errors import ConfigError, DataError
from visgraft.evaluation.comparing import compare_models, not_compared, power_of
from visgraft.evaluation.records import read_answers
from visgraft.evaluation.scoring import score_answers, warn_of_language, warn_of_references


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def line(number: int, answer: str, *references: str, image: int | None = None, **more: object) -> dict[str, object]:
    return {"id": number, "image": image, "answer": answer, "references": list(references) or ["red"], **more}


def test_the_model_is_the_files_name_and_the_last_line_needs_no_end(tmp_path: Path) -> None:
    [(name, answered)] = read_answers(write(tmp_path / "mine.jsonl", line(1, "red"), line(2, "blue"))).items()
    assert name == "mine.jsonl"
    assert [each.answer for each in answered] == ["red", "blue"]


def test_lines_of_several_models_are_several_models(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", line(1, "red", model="one"), line(1, "blue", model="two"))
    assert list(read_answers(path)) == ["one", "two"]


def test_a_mark_of_the_byte_order_in_front_is_no_part_of_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(line(1, "red")), encoding="utf-8-sig")
    assert [each.answer for each in read_answers(tmp_path / "a.jsonl")["a.jsonl"]] == ["red"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.jsonl: holds no answers; a line needs `answer` and `references`"),
        ('{"answer": ', r"a\.jsonl: line 1 is not JSON .*; mend or remove it"),
        ("[1]", "line 1 is no JSON object; need one with `answer` and `references`"),
        ('{"references": ["a"]}', "line 1: answer: got nothing, need a text"),
        ('{"answer": "a", "references": "a"}', "line 1: references: got 'a', need a list of at least one text"),
        ('\n{"answer": "a", "references": []}', r"line 2: references: got \[\], need a list of at least one text"),
        ('{"answer": "a", "references": ["a"], "image": [1]}', r"image: got \[1\], need a text or a number"),
        ('{"answer": "a", "references": ["a"], "image": true}', "image: got True, need a text or a number"),
        ('{"answer": "a", "references": ["a"], "model": 1}', "line 1: model: got 1, need a text"),
        (
            '{"answer": "a", "references": ["a"], "model": "m"}\n{"answer": "a", "references": ["a"]}',
            "line 2: model: some lines name one and some do not; name it in all of them, or in none",
        ),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "a.jsonl")


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        read_answers(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file in UTF-8, need JSON Lines"):
        read_answers(tmp_path / "bytes")


def scored(tmp_path: Path, name: str, *answers: str, kinds: bool = False):
    lines = [
        line(n, answer, image=n // 2, **({"kind": "even" if n % 2 == 0 else "odd"} if kinds else {}))
        for n, answer in enumerate(answers)
    ]
    [(model, answered)] = read_answers(write(tmp_path / name, *lines)).items()
    return score_answers(model, answered, metrics=["exact_match"])


def test_a_score_has_an_interval_over_images_and_one_for_each_kind(tmp_path: Path) -> None:
    found = scored(tmp_path, "a", "red", "red", "blue", "red", "red", "blue", kinds=True)
    interval = found.intervals["exact_match"]
    assert (interval.value, interval.n, interval.images) == (4 / 6, 6, 3)
    assert interval.low < interval.value < interval.high
    assert {kind: scores["exact_match"].value for kind, scores in found.by_kind.items()} == {
        "even": 2 / 3,
        "odd": 2 / 3,
    }


def test_models_that_answer_alike_are_not_distinguishable_and_others_are(tmp_path: Path) -> None:
    first = scored(tmp_path, "first", *["red", "blue"] * 20)
    same = scored(tmp_path, "same", *["blue", "red"] * 20)
    worse = scored(tmp_path, "worse", *["blue", "blue"] * 20)
    alike, apart = compare_models([first, same, worse])
    assert "exact_match: same is not distinguishable from first: +0.0000" in alike.words
    assert "exact_match: worse is worse than first: -0.5000" in apart.words
    assert apart.p == pytest.approx(2 * apart.difference.p)  # two comparisons, Holm


def test_models_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    first = scored(tmp_path, "first", "red", "red")
    [(name, answered)] = read_answers(write(tmp_path / "other", line(77, "red"), line(78, "red"))).items()
    other = score_answers(name, answered, metrics=["exact_match"])
    assert compare_models([first, other]) == []
    assert not_compared([first, other]) == ["other"]


def test_power_says_how_many_images_a_difference_takes(tmp_path: Path) -> None:
    found = scored(tmp_path, "a", *["red", "blue", "red", "red"] * 10)
    [small], [large] = power_of([found], difference=0.02), power_of([found], difference=0.2)
    assert small["images_needed"] > 50 * large["images_needed"] > 50
    assert power_of([scored(tmp_path, "b", "red", "red", "red", "red")], difference=0.1) == []  # all alike


def test_texts_without_spaces_are_warned_about_where_words_are_counted(tmp_path: Path) -> None:
    [answered] = read_answers(write(tmp_path / "a", line(1, "赤い猫", "赤い猫がいる"))).values()
    warning = warn_of_language(answered, metrics=["cider", "exact_match"], language=None)
    assert warning is not None
    assert "(Japanese?)" in warning and "give --language ja" in warning
    assert warn_of_language(answered, metrics=["cider"], language="ja") is None
    assert warn_of_language(answered, metrics=["exact_match"], language=None) is None


def test_few_references_are_warned_about_where_people_are_counted(tmp_path: Path) -> None:
    [answered] = read_answers(write(tmp_path / "a", line(1, "red", "red"))).values()
    [warning] = warn_of_references(answered, metrics=["vqa_v2", "exact_match"])
    assert warning.startswith("vqa_v2: 1 of 1 samples have fewer than 4 references")


def test_an_unknown_language_and_no_metric_are_refused(tmp_path: Path) -> None:
    [answered] = read_answers(write(tmp_path / "a", line(1, "red"))).values()
    with pytest.raises(ConfigError, match="language: got 'fr', need one of ja"):
        score_answers("a", answered, metrics=["exact_match"], language="fr")
    with pytest.raises(ConfigError, match="--metrics: got none, need one or more of bleu"):
        score_answers("a", answered, metrics=[])
