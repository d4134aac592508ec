"""Texts that begin alike, as the branches of a tree: what several of them begin with stands there once.

In: the token ids of texts that are read behind the same things. Out: branches, each a run of tokens of one text, and
for each text the branches that it consists of.

    grown = grow([[5, 6, 7, 8], [4], [5, 6, 7, 9]], min_saved=3)
    grown.branches         # tokens 5 6 7, which texts 0 and 2 have; 8; text 1; 9
    grown.paths            # ((0, 1), (2,), (0, 3))

Two dialogs that begin with the same turn q and go on with a or b, behind an image i:

    i i q q q a a b b      a sees i and q, b sees i and q, and neither sees the other

Text is causal, so no state of q depends on what stands behind it: a and b compute what they would compute in rows of
their own, and a loss on q counts once for each text that holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

MIN_SAVED = 8  # positions; less is not worth a branch (all captions of an image begin with the same start token)


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens `start` to `end` of a text, behind those of the branch `stem` (-1: it stands at the beginning)."""

    text: int
    start: int
    end: int
    stem: int


@dataclass(frozen=True, slots=True)
class Grown:
    """A tree of texts.

    Attributes:
        branches: each behind its stem; where nothing is shared, one for each text, in their order.
        paths: of each text the indices of its branches; their tokens, one behind the other, are the text.
    """

    branches: tuple[Branch, ...]
    paths: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """The tokens of all branches together."""
        return sum(branch.end - branch.start for branch in self.branches)


def grow(texts: Sequence[Sequence[int]], *, min_saved: int = MIN_SAVED) -> Grown:
    """Find what texts have in common at their beginning, by their token ids alone.

    Args:
        texts: ids.
        min_saved: the positions that a branch of several texts must save: its length, times the texts that have it less
            one.
    """
    branches: list[Branch] = []
    paths: list[list[int]] = [[] for _ in texts]
    # texts that are alike up to `end`, of which nothing from `start` on is in a branch yet
    waiting = [(list(range(len(texts))), 0, 0, -1)]
    while waiting:
        members, start, end, stem = waiting.pop()
        alone = len(members) == 1
        end = len(texts[members[0]]) if alone else _num_alike([texts[index] for index in members], since=end)
        if (alone and end > start) or (len(members) - 1) * (end - start) >= max(1, min_saved):
            for index in members:
                paths[index].append(len(branches))
            branches.append(Branch(members[0], start, end, stem))
            start, stem = end, len(branches) - 1
        if not alone:
            going_on: dict[int, list[int]] = {}
            for index in members:
                if len(texts[index]) == end:
                    waiting.append(([index], start, end, stem))
                else:
                    going_on.setdefault(texts[index][end], []).append(index)
            waiting += [(group, start, end, stem) for group in going_on.values()]
    return _in_order(branches, paths)


def _num_alike(texts: Sequence[Sequence[int]], *, since: int) -> int:
    """Count the tokens that all of them begin with, which are at least `since`."""
    first, end = texts[0], since
    shortest = min(map(len, texts))
    while end < shortest and all(text[end] == first[end] for text in texts):
        end += 1
    return end


def _in_order(branches: Sequence[Branch], paths: Sequence[Sequence[int]]) -> Grown:
    """Bring branches into the order of the first text that has each."""
    order = sorted(range(len(branches)), key=lambda number: (branches[number].text, branches[number].start))
    place = {-1: -1, **{number: new for new, number in enumerate(order)}}
    sorted_branches = (replace(branches[number], stem=place[branches[number].stem]) for number in order)
    return Grown(tuple(sorted_branches), tuple(tuple(place[number] for number in path) for path in paths))
