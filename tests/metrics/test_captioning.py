import math

import numpy as np
import pytest

from visgraft.metrics.captioning import cider, tokenize_caption

CAPTIONS = [
    ["a man rides a brown horse on the beach", "a person on a horse near the sea", "man riding a horse"],
    ["a cat sleeps on a red sofa", "the cat is sleeping on the couch", "a cat on a sofa"],
    ["two dogs play with a ball in the grass", "dogs playing with a red ball", "two dogs on a lawn"],
    ["a plate of food on a table", "food on a plate on the table", "a table with a plate of food"],
]
GUESSES = ["a man rides a horse on the beach", "a cat on a red sofa on a sofa", "two dogs", "a truck"]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a horse.", ["a", "man", "riding", "a", "horse"]),
        ("the dog's ball isn't red", ["the", "dog", "'s", "ball", "is", "n't", "red"]),
        ("a well-lit 3.5 m room", ["a", "well-lit", "3.5", "m", "room"]),
        ('"stop" (sign) - here...', ["stop", "sign", "here"]),
        ("they\u2019re café owners", ["they", "'re", "café", "owners"]),
        ("", []),
    ],
)
def test_captions_become_lower_case_words_without_punctuation(caption, words):
    assert tokenize_caption(caption) == words


def test_cider_of_a_case_small_enough_for_paper():
    # Two samples. "x" and "y" are in one of the two: weight log 2; "a" is in both: weight log 1 = 0. Then the vectors
    # of "a x" and "a x" agree for n = 1 (x alone counts) and n = 2; there is no longer n-gram. 10 * (1 + 1) / 4 = 5.
    assert cider(["a x", "a y"], references=[["a x"], ["a y"]]).value == pytest.approx(5.0)
    # "x x" against "x": weights 2 log 2 and log 2, clipped to log 2: cosine 1/2 for n = 1; the prediction is a word
    # pair longer: exp(-1 / 72). 10 * 1/2 / 4.
    scores = cider(["x x", "y"], references=[["x"], ["y"]])
    assert scores.per_sample[0] == pytest.approx(1.25 * math.exp(-1 / 72))


def dense_cider(predictions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D again, over dense vectors with one column an n-gram."""
    total = np.zeros(len(predictions))
    for size in range(1, 5):

        def ngrams(text: str, size: int = size) -> list[str]:
            words = text.split()
            return [" ".join(words[i : i + size]) for i in range(len(words) - size + 1)]

        everything = [*predictions, *(text for texts in references for text in texts)]
        columns = {ngram: index for index, ngram in enumerate(sorted({n for text in everything for n in ngrams(text)}))}
        document_frequency = np.zeros(len(columns))
        for texts in references:
            document_frequency[[columns[n] for n in {n for text in texts for n in ngrams(text)}]] += 1
        idf = np.log(len(references)) - np.log(np.maximum(document_frequency, 1))

        def vector(text: str, columns=columns, idf=idf, ngrams=ngrams) -> np.ndarray:
            counts = np.zeros(len(columns))
            np.add.at(counts, [columns[n] for n in ngrams(text)], 1)
            return counts * idf

        for index, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
            for text in texts:
                ours, theirs = vector(prediction), vector(text)
                norm = np.linalg.norm(ours) * np.linalg.norm(theirs)
                cosine = np.minimum(ours, theirs) @ theirs / norm if norm > 0 else 0.0
                gap = len(prediction.split()) - len(text.split())
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


def test_an_empty_caption_scores_zero():
    assert cider(["", "a cat on a sofa"], references=CAPTIONS[:2]).per_sample[0] == 0.0
