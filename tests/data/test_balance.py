"""Within one prompt every answer comes equally often, an epoch has as many texts as before, and nothing is chance."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visgraft.config import DataSettings, SourceSettings, load_recipe
from visgraft.data.balance import AnswerBalance, text_keys
from visgraft.data.dealing import deal_balanced
from visgraft.data.sample import Turn
from visgraft.data.sources import Sources, open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import ConfigError


def rows_of(*counts: tuple[str, str, int], per_image: int = 1) -> list[dict[str, Any]]:
    """Make so many rows of each question and answer, the questions about an image each or several."""
    pairs = [(prompt, answer) for prompt, answer, number in counts for _ in range(number)]
    return [{"image": f"{n // per_image}.png", "question": q, "answer": a} for n, (q, a) in enumerate(pairs)]


def opened(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Sources:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_sources([SourceSettings("parquet", path=str(path), balance="answers", **settings)])


def texts_of(sources: Sources, *, epoch: int, seed: int = 0) -> list[tuple[int, int]]:
    picked = sources.balanced_texts(seed=seed, epoch=epoch)
    assert picked is not None
    return list(zip(picked.samples.tolist(), picked.dialogs.tolist(), strict=True))


def answers_of(sources: Sources, *, epoch: int) -> Counter[tuple[str, str]]:
    turns = [sources[sample].dialogs[dialog][0] for sample, dialog in texts_of(sources, epoch=epoch)]
    return Counter((turn.prompt, turn.answer) for turn in turns)


UNEVEN = [
    ("Is it red?", "yes", 40),
    ("Is it red?", "no", 9),
    ("What?", "cat", 1),
    ("What?", "dog", 6),
    ("", "x", 3),
]


def test_every_answer_of_a_prompt_comes_equally_often_and_an_epoch_keeps_its_texts(tmp_path: Path) -> None:
    sources = opened(tmp_path, rows_of(*UNEVEN))
    total: Counter[tuple[str, str]] = Counter()
    for epoch in range(6):
        found = answers_of(sources, epoch=epoch)
        asked = Counter[str]()
        for (prompt, _), number in found.items():
            asked[prompt] += number
        assert asked == {"Is it red?": 49, "What?": 7, "": 3}
        assert abs(found["Is it red?", "yes"] - found["Is it red?", "no"]) == 1
        assert abs(found["What?", "cat"] - found["What?", "dog"]) == 1
        total += found
    assert total["Is it red?", "yes"] == total["Is it red?", "no"] and total["What?", "cat"] == total["What?", "dog"]


def test_what_is_left_out_of_an_epoch_comes_in_the_next_and_repeats_are_spread_evenly(tmp_path: Path) -> None:
    sources = opened(tmp_path, rows_of(("Is it red?", "yes", 90), ("Is it red?", "no", 10)))
    seen = [Counter(texts_of(sources, epoch=epoch)) for epoch in range(9)]
    assert all(sum(epoch.values()) == 100 for epoch in seen)
    whole = sum(seen, Counter[tuple[int, int]]())
    numbers = {sources[sample].dialogs[dialog][0].answer: set[int]() for sample, dialog in whole}
    for (sample, dialog), number in whole.items():
        numbers[sources[sample].dialogs[dialog][0].answer].add(number)
    assert numbers == {"yes": {5}, "no": {45}}  # 9 epochs x 50 texts, over 90 and over 10


def test_it_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    rows = rows_of(*UNEVEN)
    first, second = opened(tmp_path, rows), opened(tmp_path, rows)
    assert texts_of(first, epoch=3, seed=1) == texts_of(second, epoch=3, seed=1)
    assert sorted(texts_of(first, epoch=3, seed=1)) != sorted(texts_of(first, epoch=4, seed=1))
    assert sorted(texts_of(first, epoch=3, seed=1)) != sorted(texts_of(first, epoch=3, seed=2))


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0, 2.5])
def test_it_goes_with_a_weight(tmp_path: Path, weight: float) -> None:
    many = [(f"Is it {n}?", answer, number) for n in range(60) for answer, number in (("yes", 3), ("no", 1))]
    sources = opened(tmp_path, rows_of(*many), weight=weight)
    numbers = [len(texts_of(sources, epoch=epoch)) for epoch in range(4)]
    assert all(abs(number - 240 * weight) <= 4 for number in numbers)
    found = sum((answers_of(sources, epoch=epoch) for epoch in range(4)), Counter[tuple[str, str]]())
    assert {answer: sum(n for (_, a), n in found.items() if a == answer) for answer in ("yes", "no")} == pytest.approx(
        {"yes": 480 * weight, "no": 480 * weight}, abs=20 * weight
    )


def test_limit_and_a_share_held_out_come_first(tmp_path: Path) -> None:
    rows = rows_of(("Is it red?", "yes", 40), ("Is it red?", "no", 10))
    assert len(texts_of(opened(tmp_path, rows, limit=20), epoch=0)) == 20
    held_out = opened(tmp_path, rows, split={"validation": 0.2})
    assert len(texts_of(held_out, epoch=0)) == len(held_out) == 40


def test_a_share_held_out_validates_as_it_is() -> None:
    entry = SourceSettings("parquet", path="x", split={"validation": 0.2}, balance="answers")
    assert [each.balance for each in DataSettings(train=(entry,)).validation] == [None]


def test_the_unit_is_the_dialog() -> None:
    one = text_keys([Turn("Is it red?", "yes"), Turn("Sure?", "no")])
    assert one == text_keys([Turn(" Is it red?", "yes "), Turn("Sure?", "no")])
    assert one[0] == text_keys([Turn("Is it red?", "no"), Turn("Sure?", "no")])[0]
    assert one[1] != text_keys([Turn("Is it red?", "no"), Turn("Sure?", "no")])[1]
    assert text_keys([Turn("a", "x"), Turn("b", "y")]) != text_keys([Turn("ab", "x"), Turn("", "y")])
    assert text_keys([Turn("Where?", "x", instruction="Answer.")])[0] != text_keys([Turn("Where?", "x")])[0]


def test_texts_of_an_image_stay_behind_it_and_a_copy_comes_apart(tmp_path: Path) -> None:
    sources = opened(tmp_path, rows_of(("Is it red?", "yes", 12), ("Is it red?", "no", 2), per_image=7))
    picked = sources.balanced_texts(seed=0, epoch=0)
    assert picked is not None
    dealt = deal_balanced(picked, max_dialogs=4, seed=0, epoch=0)
    groups = [dealt.dialogs[a:b].tolist() for a, b in zip(dealt.starts, dealt.starts[1:], strict=False)]
    assert sum(map(len, groups)) == 14 and max(map(len, groups)) <= 4
    assert all(len(set(group)) == len(group) for group in groups)  # never the same text twice behind one image
    assert len(groups) <= 7
    pairs = list(zip(dealt.samples.tolist(), dealt.chunks.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) and pairs == sorted(pairs)
    flat = [(s, d) for s, group in zip(dealt.samples.tolist(), groups, strict=True) for d in group]
    assert Counter(flat) == Counter(texts_of(sources, epoch=0))


def balance_of(*counts: tuple[int, int, int]) -> AnswerBalance:
    table = np.array([(p, a) for p, a, n in counts for _ in range(n)], dtype=np.uint64).reshape(-1, 2)
    places = np.arange(len(table))
    return AnswerBalance(table[:, 0], table[:, 1], samples=places, dialogs=np.zeros_like(places))


def test_what_the_words_alone_give_away_is_counted_before_and_after() -> None:
    balance = balance_of((1, 1, 8), (1, 2, 2), (2, 1, 3), (2, 2, 3), (2, 3, 3), (3, 9, 1))
    alone = balance.words_alone()
    assert (alone.asked_again, alone.right, alone.right_balanced, alone.texts) == (19, 11, 8.0, 20)
    assert balance.weights.tolist() == [5 / 8] * 8 + [5 / 2] * 2 + [1.0] * 10
    assert balance_of((3, 9, 1)).words_alone().share == balance_of().words_alone().share_balanced == 0.0


def test_an_epoch_of_nothing_is_nothing() -> None:
    picked = balance_of().epoch(0, seed=0)
    assert len(picked.samples) == 0 and len(deal_balanced(picked, max_dialogs=2, seed=0, epoch=0).samples) == 0


def test_where_answers_cannot_be_balanced_is_said(tmp_path: Path) -> None:
    entry = {"source": "parquet", "path": str(tmp_path), "balance": "answers"}
    with pytest.raises(ConfigError, match=r"data\.validation\.0\.balance: got answers, which changes what is learned"):
        open_sources([SourceSettings(**entry)], key="data.validation")
    both = DataSettings(group_across_sources=True)
    with pytest.raises(ConfigError, match=r"data\.train\.1\.balance: got answers, but data\.group_across_sources is"):
        open_sources([SourceSettings("parquet"), SourceSettings(**entry)], settings=both)
    with pytest.raises(ConfigError, match=r"data\.train\.0\.balance: got answers, which a stream cannot have"):
        stream = SourceSettings("webdataset", path="x", balance="answers", options={"streaming": True})
        open_streams([stream], key="data.train", settings=DataSettings())
    with pytest.raises(ConfigError, match=r"data\.train\.0\.balance: got 'answer'"):
        load_recipe({"data": {"train": [{"source": "easy_vqa", "balance": "answer"}]}})
