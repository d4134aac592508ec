"""Repetition, variety, length and stopping, against counts by hand."""

import pytest

from visgraft.metrics.text_quality import text_quality_of, words_of


def test_repeated_4grams_are_counted_inside_each_answer() -> None:
    # a cat a cat | cat a cat a | a cat a cat: two different ones among three
    assert text_quality_of(["a cat a cat a cat"], stopped=[True]).repeated_4grams == pytest.approx(1 / 3)
    same_twice = text_quality_of(["a cat on a sofa", "a cat on a sofa"], stopped=[True, True])
    assert same_twice.repeated_4grams == 0  # two answers may be alike
    assert same_twice.distinct_words == 4 / 10
    assert same_twice.mean_words == 5


def test_answers_too_short_to_repeat_and_none_at_all_count_as_no_repetition() -> None:
    assert text_quality_of(["red"], stopped=[True]).repeated_4grams == 0
    nothing = text_quality_of(["", ""], stopped=[None, None])
    assert (nothing.mean_words, nothing.distinct_words, nothing.never_stopped) == (0, 0, None)
    assert text_quality_of([], stopped=[]).num_answers == 0


def test_those_that_never_stopped_are_a_share_of_those_that_are_known() -> None:
    assert text_quality_of(["a", "b", "c"], stopped=[True, False, None]).never_stopped == 0.5


def test_words_have_no_case_and_no_punctuation_and_characters_are_words_without_spaces() -> None:
    assert words_of("A cat's well-lit sofa, 3.5 m!") == ["a", "cat's", "well-lit", "sofa", "3.5", "m"]
    assert words_of("猫です") == ["猫", "で", "す"]
