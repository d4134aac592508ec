"""The official VQA script and EvalAI's rules, on what METRICS of other harnesses get wrong."""

import random
from fractions import Fraction
from itertools import combinations

import pytest

from visgraft.metrics import METRICS
from visgraft.metrics.vqa import evalai_answer, vqa_answer, vqa_evalai, vqa_v2
from visgraft.metrics.vqa_contractions import CONTRACTIONS


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_an_answer_counts_by_how_many_of_ten_people_gave_it(agreeing, expected):
    references = ["two dogs"] * agreeing + [f"other {index}" for index in range(10 - agreeing)]
    assert vqa_v2(["2 dogs."], references=[references]).value == pytest.approx(expected if agreeing < 10 else 0)
    assert vqa_evalai(["2 dogs."], references=[references]).value == pytest.approx(expected)


def test_nothing_is_normalised_where_all_people_said_the_same():
    assert vqa_v2(["Yes"], references=[["yes"] * 10]).value == 0
    assert vqa_v2([" yes\n"], references=[["yes", " yes"] * 5]).value == 1  # white space around it aside
    assert vqa_v2(["Yes"], references=[["yes"] * 9 + ["no"]]).value == 1
    assert vqa_evalai(["Yes"], references=[["yes"] * 10]).value == 1


def test_equal_answers_of_different_people_are_left_out_one_at_a_time():
    assert vqa_v2(["a"], references=[["the", "a"] + ["b"] * 8]).value == pytest.approx(0.6)  # both become ""


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("Yes", "yes"),
        ("A dog and the cat", "dog and cat"),
        ("two", "2"),
        ("none", "0"),
        ("n/a", "n"),  # "n a", and "a" is an article
        ("A", ""),
        # a comma between digits: all signs go
        ("1,000 red-hot", "1000 redhot"),
        # else a sign goes where it touches a space anywhere, and is a space where not
        ("red-hot", "red hot"),
        ("red-hot -cold", "redhot cold"),
        ("black/white", "black white"),
        ("yes, it is!", "yes it is"),
        ("it's 5:30 & 50% $5 #1 \u201cx\u201d", "it's 5:30 & 50% $5 #1 \u201cx\u201d"),
        ("3.5 m.", "3.5 m"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("." * 40 + "x", "." * 8 + "x"),  # at most 32 periods go
        ("dont know", "don't know"),
        ("Im", "im"),  # keys with capitals never match: the answer is in lower case by then
        ("somebody'd", "somebodyd"),
        ("oclock", "o'clock"),
        ("line\nbreak\ttab", "line break tab"),
    ],
)
def test_answers_are_compared_as_by_the_official_script(answer, compared):
    assert vqa_answer(answer) == compared


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("what's", "what 's"),
        ("1,000 red-hot", "1000 red hot"),  # commas go first, so that the rule of digits never fires
        ("really?yes", "reallyyes"),
        ("A", ""),
        ("Dont", "don't"),
    ],
)
def test_evalai_compares_after_steps_of_its_own(answer, compared):
    assert evalai_answer(answer) == compared


def test_the_table_of_contractions_is_the_scripts_own():
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["let's"] == "let's"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert all(found.replace("'", "") == written.replace("'", "") for found, written in CONTRACTIONS.items())


@pytest.mark.parametrize("metric", [vqa_v2, vqa_evalai])
def test_with_few_people_the_rules_stay_the_same(metric):
    assert metric(["b"], references=[["b"]]).value == 0  # there are no others
    # two of three gave x: 1/3, 1/3 and 2/3 of an answer, over three people
    assert metric(["x"], references=[["x", "x", "y"]]).value == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def averaged_over_all_nine_of_ten(answer: str, people: list[str]) -> Fraction:
    """The paper's words (Antol et al. 2015, footnote 3): min(matches / 3, 1), averaged over all sets of nine people."""
    sets = list(combinations(people, len(people) - 1))
    return sum((min(Fraction(nine.count(answer), 3), Fraction(1)) for nine in sets), Fraction(0)) / len(sets)


def test_leaving_each_person_out_once_is_the_average_over_all_sets_of_the_others() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(500):
        said = rng.sample(["red", "2 dogs", "left", "n", "tree"], k=rng.randint(2, 5))
        people = rng.choices(said, k=rng.choice([10, 10, 10, 2, 3, 5]))
        answer = rng.choice(said)
        expected = averaged_over_all_nine_of_ten(answer, people)
        seen.add(expected)
        for metric in (vqa_v2, vqa_evalai):
            assert metric([answer], references=[people]).value == pytest.approx(float(expected), abs=1e-15)
    assert {Fraction(0), Fraction(3, 10), Fraction(6, 10), Fraction(9, 10), Fraction(1)} <= seen


@pytest.mark.parametrize("name", ["vqa_v2", "vqa_evalai"])
def test_few_people_are_warned_about(name):
    warning = METRICS[name].warn_of([["a"], ["a"] * 3, ["a"] * 4])
    assert warning is not None
    assert warning.startswith("2 of 3 samples have fewer than 4 references; an answer counts by how many other people")
    assert METRICS[name].warn_of([["a"] * 10]) is None
    assert METRICS["exact_match"].warn_of([["a"]]) is None
