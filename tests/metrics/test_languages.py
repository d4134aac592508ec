import pytest

from visgraft.metrics.languages import language_without_spaces, words_for_scores


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["a cat on a sofa", "café"], None),
        (["猫がソファで寝ている"], "ja"),
        (["一只猫睡在沙发上", "两只狗"], "zh"),
        (["แมวนอนบนโซฟา"], "th"),
        (["猫 cat"], "zh"),
        (["a sign with the word 猫 on it near a wall"], None),
        (["고양이가 소파에서 자고 있다"], None),  # Korean sets spaces
        (["", "12"], None),
        ([], None),
    ],
)
def test_the_script_says_whether_words_have_spaces_between_them(texts, language):
    assert language_without_spaces(texts) == language


def test_a_language_without_spaces_is_split_by_character():
    assert words_for_scores("猫が 寝る。\u3000A", language="ja") == ("猫", "が", "寝", "る", "。", "A")
    assert words_for_scores("A cat.", language=None) == ("a", "cat")
