"""BLEU, ROUGE-L and CIDEr-D: by hand, by a second implementation, and what the official program does in odd cases."""

import math

import numpy as np
import pytest

from visgraft.errors import ConfigError
from visgraft.metrics.captioning import bleu, cider, rouge_l

CAPTIONS = [
    ["a man rides a brown horse on the beach", "a person on a horse near the sea", "man riding a horse"],
    ["a cat sleeps on a red sofa", "the cat is sleeping on the couch", "a cat on a sofa"],
    ["two dogs play with a ball in the grass", "dogs playing with a red ball", "two dogs on a lawn"],
    ["a plate of food on a table", "food on a plate on the table", "a table with a plate of food"],
]
GUESSES = ["a man rides a horse on the beach", "a cat on a red sofa on a sofa", "two dogs", "a truck"]
JAPANESE = ["赤いソファの上で猫が眠っている", "犬が二匹走っている"]
ALMOST = [["赤いソファの上で猫が寝ている"], ["二匹の犬が走っている"]]


# ---- BLEU


def test_bleu_of_a_case_small_enough_for_paper():
    # "the the cat" against "the cat sat": matches the, cat; then "the cat"; lengths 3 and 3
    scores = bleu(["the the cat"], references=[["the cat sat"]])
    assert scores["bleu_1"].value == pytest.approx(2 / 3)
    assert scores["bleu_2"].value == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    assert scores["bleu_3"].value == pytest.approx(0, abs=1e-4)
    # too short: 2 words, the references have 4 and 8, the closest counts
    short = bleu(["a cat"], references=[["a cat on sofas", "a cat a cat a cat a cat"]])
    assert short["bleu_1"].value == pytest.approx(math.exp(1 - 4 / 2))


def test_bleu_takes_the_shorter_of_two_references_equally_near():
    assert bleu(["a b c"], references=[["a b", "a b c d"]])["bleu_1"].value == pytest.approx(1)
    assert bleu(["a b c"], references=[["a b c d"]])["bleu_1"].value == pytest.approx(math.exp(1 - 4 / 3))


def test_bleu_adds_counts_up_over_the_set():
    scores = bleu(["a b c d", "x"], references=[["a b c d"], ["y"]])["bleu_1"]
    assert scores.value == pytest.approx(4 / 5)
    assert scores.per_sample == pytest.approx((1, 0))


def test_an_empty_caption_scores_zero_everywhere():
    assert all(score.per_sample[0] == 0 for score in bleu(["", "a"], references=[["a cat"], ["a"]]).values())
    assert rouge_l([""], references=[["a cat"]]).value == 0
    assert cider(["", "a cat on a sofa"], references=CAPTIONS[:2]).per_sample[0] == 0


# ---- ROUGE-L


def test_rouge_takes_the_best_precision_and_recall_from_different_references():
    beta = 1.2**2
    scores = rouge_l(["a cat sits"], references=[["a cat"]])
    precision, recall = 2 / 3, 1.0
    assert scores.value == pytest.approx((1 + beta) * precision * recall / (recall + beta * precision))
    both = rouge_l(["a cat sits"], references=[["a cat", "big a cat sits down"]])
    assert both.value == pytest.approx(1.0)  # recall 1 from the first, precision 1 from the second


def test_rouge_counts_an_empty_text_as_one_empty_word_and_a_no_break_space_as_no_end_of_a_word():
    assert rouge_l(["."], references=[["!"]]).value == 1.0  # nothing is left of either
    # "2 1/2" is one token for ROUGE; for BLEU two
    one = rouge_l(["2 1/2"], references=[["2 dogs"]])
    assert one.value == 0
    assert bleu(["2 1/2"], references=[["2 dogs"]])["bleu_1"].value == pytest.approx(1 / 2)


def longest_common_subsequence(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        above, row = row, [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[-1]))
    return row[-1]


def test_the_common_subsequence_in_bits_equals_the_table():
    generator = np.random.default_rng(0)
    for _ in range(300):
        left, right = (list(generator.choice([*"abcd"], size=generator.integers(1, 90))) for _ in range(2))
        ours = rouge_l([" ".join(left)], references=[[" ".join(right)]]).value
        common = longest_common_subsequence(left, right)
        precision, recall = common / len(left), common / len(right)
        assert ours == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision) if common else 0)


# ---- CIDEr-D


def test_cider_of_a_case_small_enough_for_paper():
    # Two samples. "x" and "y" are in one of the two: weight log 2; "a" is in both: weight log 1 = 0. Then the vectors
    # of "a x" and "a x" agree for n = 1 (x alone counts) and n = 2; there is no longer n-gram. 10 * (1 + 1) / 4 = 5.
    assert cider(["a x", "a y"], references=[["a x"], ["a y"]]).value == pytest.approx(5.0)
    # "x x" against "x": weights 2 log 2 and log 2, clipped to log 2: cosine 1/2 for n = 1; the caption is a word
    # pair longer: exp(-1 / 72). 10 * 1/2 / 4.
    scores = cider(["x x", "y"], references=[["x"], ["y"]])
    assert scores.per_sample[0] == pytest.approx(1.25 * math.exp(-1 / 72))


def dense_cider(answers: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D again, over dense vectors with one column an n-gram."""
    total = np.zeros(len(answers))
    for size in range(1, 5):

        def ngrams(text: str, size: int = size) -> list[str]:
            words = text.split()
            return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]

        everything = [*answers, *(text for texts in references for text in texts)]
        columns = {ngram: index for index, ngram in enumerate(sorted({n for text in everything for n in ngrams(text)}))}
        document_frequency = np.zeros(len(columns))
        for texts in references:
            document_frequency[[columns[n] for n in {n for text in texts for n in ngrams(text)}]] += 1
        idf = np.log(len(references)) - np.log(np.maximum(document_frequency, 1))

        def vector(text: str, columns=columns, idf=idf, ngrams=ngrams) -> np.ndarray:
            counts = np.zeros(len(columns))
            np.add.at(counts, [columns[n] for n in ngrams(text)], 1)
            return counts * idf

        for index, (answer, texts) in enumerate(zip(answers, references, strict=True)):
            for text in texts:
                ours, theirs = vector(answer), vector(text)
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                cosine = np.minimum(ours, theirs) @ theirs / norm if norm > 0 else 0.0
                gap = len(answer.split()) - len(text.split())
                total[index] += 10 * cosine * np.exp(-(gap**2) / 72) / 4 / len(texts)
    return total.tolist()


def test_cider_equals_a_second_implementation_over_dense_vectors():
    ours = cider(GUESSES, references=CAPTIONS)
    assert ours.per_sample == pytest.approx(dense_cider(GUESSES, CAPTIONS), abs=1e-12)
    assert ours.per_sample[0] > 1 > ours.per_sample[3]


def test_cider_does_not_depend_on_case_or_punctuation():
    loud = cider([guess.title() + "." for guess in GUESSES], references=CAPTIONS)
    assert loud.per_sample == cider(GUESSES, references=CAPTIONS).per_sample


def test_cider_of_one_sample_is_zero_because_nothing_is_rare():
    assert cider(["a cat"], references=[["a cat"]]).value == 0.0


def test_cider_counts_the_same_reference_as_often_as_it_is_there():
    twice = cider(["a cat", "y"], references=[["a cat", "a cat", "two dogs"], ["y"]]).per_sample[0]
    once = cider(["a cat", "y"], references=[["a cat", "two dogs"], ["y"]]).per_sample[0]
    assert twice / once == pytest.approx((2 / 3) / (1 / 2))


# ---- languages


def test_captions_without_spaces_are_near_only_when_split_by_character():
    assert cider(JAPANESE, references=ALMOST).value == 0  # each is one word
    assert cider(JAPANESE, references=ALMOST, language="ja").value > 3
    spaced = [" ".join(text) for text in JAPANESE]
    assert (
        cider(spaced, references=ALMOST, language="ja").value == cider(JAPANESE, references=ALMOST, language="ja").value
    )
    assert rouge_l(JAPANESE, references=ALMOST, language="zh").value > 0.7
    assert bleu(JAPANESE, references=ALMOST, language="th")["bleu_1"].value > 0.8


def test_a_language_that_is_none_of_those_is_refused():
    with pytest.raises(ConfigError, match=r"language: got 'jp', need one of ja \(Japanese\), zh \(Chinese\), th"):
        cider(["a"], references=[["a"]], language="jp")
