import pytest

from visgraft.errors import DataError
from visgraft.metrics.choices import choice, choice_letter, first_word, yes_no


def test_yes_no_gives_five_numbers_of_a_case_small_enough_for_paper():
    answers = ["Yes, it is.", "yes", "No.", "no!", "maybe yes", ""]
    references = [["yes"], ["no"], ["no"], ["yes"], ["yes"], ["No"]]
    values = {name: score.value for name, score in yes_no(answers, references=references).items()}
    assert values == pytest.approx(
        {
            "yes_no_accuracy": 2 / 6,  # the first and the third
            "yes_no_precision": 1 / 2,  # of two that say yes
            "yes_no_recall": 1 / 3,  # of three that are
            "yes_no_f1": 2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3),
            "yes_no_yes_ratio": 2 / 6,
        }
    )


def test_without_any_yes_the_ratios_are_zero():
    values = {name: score.value for name, score in yes_no(["no", "x"], references=[["no"], ["no"]]).items()}
    assert values == {
        "yes_no_accuracy": 0.5,
        "yes_no_precision": 0,
        "yes_no_recall": 0,
        "yes_no_f1": 0,
        "yes_no_yes_ratio": 0,
    }


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes, it is", "yes"),
        ("**No**", "no"),
        ("- yes", "yes"),
        ("yes/no", "yesno"),
        ("Yesterday", "yesterday"),
        ("", ""),
        ("?", ""),
    ],
)
def test_the_first_word_has_no_case_and_no_punctuation(answer, word):
    assert first_word(answer) == word


@pytest.mark.parametrize("accepted", [["yes", "no"], ["maybe"], [""]])
def test_references_that_are_neither_yes_nor_no_are_refused(accepted):
    with pytest.raises(DataError, match=r"yes_no: got the references .* for sample 1, need yes, or no"):
        yes_no(["yes", "yes"], references=[["yes"], accepted])


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "B",
            "b",
            "b.",
            "(B)",
            "[B]",
            "B)",
            "B: a cat",
            "B. cat",
            "Option B",
            "The answer is B",
            "Answer: B",
            "**B**",
        ),
        *("B\u3067\u3059", "The correct answer is (B).", "the answer is option B", "\nB\n"),
    ],
)
def test_an_answer_names_the_letter_that_it_begins_with(answer):
    assert choice_letter(answer) == "B"
    assert choice([answer], references=[["(B)"]]).value == 1


@pytest.mark.parametrize("answer", ["Because it is red", "b's", "", "?", "Answer", "\u00e9", "2"])
def test_a_word_that_only_begins_with_a_letter_names_none(answer):
    assert choice_letter(answer) == ""


def test_a_reference_without_a_letter_is_refused():
    with pytest.raises(DataError, match="choice: got the references 'cat' for sample 1, need the letter"):
        choice(["A", "B"], references=[["A"], ["cat"]])
