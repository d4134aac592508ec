"""Texts that begin alike become a tree: every text is the way to one of its ends, and nothing stands in it twice."""

import random

from visgraft.branches import Branch, Grown, grow


def texts_of(grown: Grown, texts: list[list[int]]) -> list[list[int]]:
    parts = [texts[branch.text][branch.start : branch.end] for branch in grown.branches]
    return [[token for number in path for token in parts[number]] for path in grown.paths]


def test_what_two_texts_begin_with_is_one_branch_and_a_third_stays_where_it_was() -> None:
    grown = grow([[5, 6, 7, 8], [4], [5, 6, 7, 9]], min_saved=3)
    assert grown.branches == (Branch(0, 0, 3, -1), Branch(0, 3, 4, 0), Branch(1, 0, 1, -1), Branch(2, 3, 4, 0))
    assert grown.paths == ((0, 1), (2,), (0, 3))
    assert grown.num_tokens == 6


def test_where_too_little_is_shared_the_texts_stand_as_they_are_in_their_order() -> None:
    texts = [[1, 2, 3], [9], [1, 2, 4], [1, 2, 3]]
    grown = grow(texts, min_saved=7)
    assert grown.branches == tuple(Branch(index, 0, len(text), -1) for index, text in enumerate(texts))
    assert grown.paths == ((0,), (1,), (2,), (3,))


def test_a_text_may_end_where_others_go_on_and_like_texts_are_one() -> None:
    whole, longer = list(range(9)), list(range(12))
    grown = grow([longer, whole, whole], min_saved=8)
    assert grown.branches == (Branch(0, 0, 9, -1), Branch(0, 9, 12, 0))
    assert grown.paths == ((0, 1), (0,), (0,))


def test_some_share_more_than_all_do() -> None:
    a, b, c = [1, *range(10, 20), 3], [1, *range(10, 20), 4], [1, 7]
    assert grow([a, b, c], min_saved=8).branches == (
        Branch(0, 0, 11, -1),  # the 1 that all begin with is worth no branch of its own
        Branch(0, 11, 12, 0),
        Branch(1, 11, 12, 0),
        Branch(2, 0, 2, -1),
    )


def test_every_text_is_the_way_to_its_end_and_a_tree_of_any_depth_is_found() -> None:
    rng = random.Random(0)
    for _ in range(200):
        texts = [[rng.randrange(2) for _ in range(rng.randrange(1, 9))] for _ in range(rng.randrange(1, 9))]
        grown = grow(texts, min_saved=1)
        assert texts_of(grown, texts) == texts
        prefixes = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
        assert grown.num_tokens == len(prefixes)  # each beginning once, which is the least there can be
        assert all(branch.stem < index for index, branch in enumerate(grown.branches))
    chain = [[0] * length for length in range(1, 1100)]
    assert grow(chain, min_saved=1).num_tokens == 1099
