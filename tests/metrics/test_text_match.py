import pytest

from visgraft.errors import ConfigError
from visgraft.metrics.text_match import anls, exact_match, gqa, levenshtein, normalize_words, relaxed_accuracy


def test_exact_match_compares_whole_stripped_strings_with_every_reference():
    scores = exact_match([" red\n", "Red", "red.", "blue"], references=[["red"], ["red"], ["red"], ["red", "blue"]])
    assert scores.per_sample == (1.0, 0.0, 0.0, 1.0)
    assert scores.value == 0.5


def test_exact_match_can_forgive_case_or_compare_words():
    references = [["red"], ["two dogs"]]
    assert exact_match(["Red", "2 dogs."], references=references, normalization="casefold").per_sample == (1.0, 0.0)
    assert exact_match(["Red", "2 dogs."], references=references, normalization="words").per_sample == (1.0, 1.0)
    with pytest.raises(ConfigError, match="normalization: got 'upper', need one of strip, casefold, words"):
        exact_match(["a"], references=[["a"]], normalization="upper")


@pytest.mark.parametrize("normalization", ["strip", "casefold", "words"])
def test_an_article_alone_is_an_answer_and_equals_no_empty_one(normalization):
    scores = exact_match(["A", "A", "", "the"], references=[["A"], [""], ["A"], ["a"]], normalization=normalization)
    assert scores.per_sample == (1.0, 0.0, 0.0, 0.0)


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
        ("The", "the"),
        ("A", "a"),
        ("a the", "a the"),
    ],
)
def test_words_are_compared_without_case_punctuation_and_articles(answer, normalized):
    assert normalize_words(answer) == normalized
    assert normalize_words(normalized) == normalized


def test_gqa_compares_letter_for_letter_in_the_form_of_its_answers():
    answers = ["yes", "Yes", "Yes.", " yes\n", "no", "yes, it is", "a dog", "t-shirt"]
    references = [["yes"], ["yes"], ["yes"], ["yes"], ["yes", "no"], ["yes"], ["dog"], ["t shirt"]]
    assert gqa(answers, references=references).per_sample == (1, 1, 1, 1, 1, 0, 0, 0)


def test_anls_is_the_best_similarity_and_zero_unless_above_one_half():
    scores = anls(
        ["kitten", "ab", "abc", "  Red   Car ", "x", "", ""],
        references=[["sitting", "kittens"], ["ax"], ["abx"], ["red car"], ["y"], [""], ["a"]],
    )
    # one edit of seven letters; one of two is exactly one half; one of three
    assert scores.per_sample == pytest.approx((6 / 7, 0, 2 / 3, 1, 0, 1, 0))


def plain_levenshtein(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for place, character in enumerate(left):
        above, row = row, [place + 1]
        for other, over, before in zip(right, above[1:], above, strict=False):
            row.append(min(before + (character != other), over + 1, row[-1] + 1))
    return row[-1]


def test_edits_counted_in_bits_equal_the_table():
    import random

    random_ = random.Random(0)
    for _ in range(500):
        left, right = ("".join(random_.choices("abc ", k=random_.randint(0, 80))) for _ in range(2))
        assert levenshtein(left, right) == plain_levenshtein(left, right)


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("10.4", "10", 1),
        ("10.5", "10", 1),  # 5 % itself
        ("10.6", "10", 0),
        ("-10.4", "-10", 1),
        ("52%", "0.5", 1),
        ("52", "50%", 0),
        ("Yes", "yes", 1),
        ("yes ", "yes", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # nothing is within 5 % of 0: letter for letter
        ("1,000", "1000", 0),
        ("1000 ", "1000", 1),  # still a number
        ("two", "2", 0),
        ("nan", "5", 0),
    ],
)
def test_relaxed_accuracy_allows_five_percent_of_a_number(answer, reference, value):
    assert relaxed_accuracy([answer], references=[[reference]]).value == value
    assert relaxed_accuracy([answer], references=[["never", reference]]).value == value
