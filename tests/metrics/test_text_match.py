import pytest

from visgraft.errors import ConfigError
from visgraft.metrics.text_match import exact_match, normalize_vqa_answer, vqa_accuracy


def test_exact_match_compares_whole_stripped_strings_with_every_reference():
    scores = exact_match([" red\n", "Red", "red.", "blue"], references=[["red"], ["red"], ["red"], ["red", "blue"]])
    assert scores.per_sample == (1.0, 0.0, 0.0, 1.0)
    assert scores.value == 0.5


def test_exact_match_can_forgive_case_or_normalise_as_vqa():
    references = [["red"], ["two dogs"]]
    assert exact_match(["Red", "2 dogs."], references=references, normalization="casefold").per_sample == (1.0, 0.0)
    assert exact_match(["Red", "2 dogs."], references=references, normalization="vqa").per_sample == (1.0, 1.0)
    with pytest.raises(ConfigError, match="normalization: got 'upper', need one of strip, casefold, vqa"):
        exact_match(["a"], references=[["a"]], normalization="upper")


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes", "yes"),
        ("  the\tred  car\n", "red car"),
        ("A dog and the cat", "dog and cat"),
        ("two", "2"),
        ("None", "0"),
        ("twenty two", "twenty 2"),
        ("yes.", "yes"),
        ("3.5 m", "3.5 m"),
        ("U.S.A.", "usa"),
        ("100,978", "100978"),
        ("red,white", "red white"),
        ("yes, it is!", "yes it is"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("dont know", "don't know"),
        ("It isnt", "it isn't"),
        ("oclock", "o'clock"),
        ("its well", "its well"),  # words of their own: not "it's", not "we'll"
        ("50%", "50%"),
        ("", ""),
        ("The", ""),
    ],
)
def test_vqa_answers_are_normalised_as_the_challenge_describes(answer, normalized):
    assert normalize_vqa_answer(answer) == normalized
    assert normalize_vqa_answer(normalized) == normalized


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_averages_over_leaving_one_person_out(agreeing, expected):
    references = ["two dogs"] * agreeing + [f"other {index}" for index in range(10 - agreeing)]
    assert vqa_accuracy(["2 dogs."], references=[references]).value == pytest.approx(expected)


def test_vqa_accuracy_with_too_few_references_to_agree_takes_any():
    scores = vqa_accuracy(["Two", "red", "red"], references=[["2"], ["blue", "red"], ["blue", "green", "black"]])
    assert scores.per_sample == (1.0, 1.0, 0.0)
