import pytest

from visgraft.metrics.vqa_v2 import vqa_v2


def score(answer, *references):
    return vqa_v2([answer], references=[references]).value


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_each_of_ten_people_is_left_out_once(agreeing, expected):
    references = ["two dogs"] * agreeing + [f"other {index}" for index in range(10 - agreeing)]
    assert score("2 dogs.", *references) == pytest.approx(expected)


def test_where_all_people_say_the_same_nothing_is_normalised():
    assert score("Yes", *["yes"] * 10) == 0.0 and score(" yes\n", *["yes"] * 10) == 1.0
    assert score("Yes", *["yes"] * 9, "Yes") == 1.0


def test_articles_alone_are_empty_answers_which_equal_each_other():
    assert score("A", *["the"] * 5, *["x"] * 5) == 1.0
    assert score("", *["a"] * 5, *["x"] * 5) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("n/a", "n"),  # a sign becomes a space, and the article that appears goes
        ("none", "0"),
        ("1,000/5", "10005"),  # signs are deleted where a comma stands between digits
        ("red / white", "red white"),  # and where one touches a space
        ("red/white", "red white"),
        ("u.s.a.", "usa"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("yall'd've", "y'all'd've"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("im", "im"),  # the script knows "Im" alone, which no word in lower case is
    ],
)
def test_texts_become_what_the_challenges_script_makes_of_them(answer, reference):
    assert score(answer, *[reference] * 5, *["other"] * 5) == 1.0


def test_periods_go_from_the_first_thirty_two_places_alone():
    assert (
        score("." * 33 + "x", *[".x"] * 5, *["y"] * 5) == 0.0
        or score("." * 33 + "x", *["." * 33 + "x"] * 5, "y") == 1.0
    )
    assert score("." * 32 + "x", *["x"] * 5, *["y"] * 5) == 1.0
    assert score("." * 33 + "x", *["x"] * 5, *["y"] * 5) == 0.0


def test_with_one_reference_no_other_is_left_to_agree():
    assert score("yes", "yes") == 0.0 and score("yes", "yes", "yes", "yes") == pytest.approx(2 / 3)
