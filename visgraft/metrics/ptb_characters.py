"""Which characters are letters, marks and symbols to the Penn Treebank tokenizer of CoreNLP 3.4.1.

It reads Unicode 6, sixteen bits a character: what is newer, or beyond the basic plane (most emoji), is no character to
it and vanishes. Found by giving the program each character alone, between letters and between digits.

In: a text. Out: its shape, in which one letter stands for all that are not ASCII, and one mark for all marks.
Usage: `shape_of("a caf\u00e9")` gives itself; of "\u732b" the letter \u00e9
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

# letters and digits of today that are none to the program
_NEWER = (
    "0de6-0def a9f0-a9f9 "
    "037f 0528-052f 0560 0588 05ef 0860-086a 0870-0887 0889-088e 08a1 08ad-08c9 0978 0980 09fc 0af9 0c34 0c5a 0c5d "
    "0c80 0cdd 0d04 0d54-0d56 0d5f 0e86 0e89 0e8c 0e8e-0e93 0e98 0ea0 0ea8-0ea9 0eac 13f5 13f8-13fd 16f1-16f8 170d "
    "171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1c88 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f "
    "31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7ca a7d0-a7d1 a7d3 a7d5-a7d9 a7f2-a7f7 a8fd-a8fe "
    "a9e0-a9e4 a9e6-a9ef a9fa-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69 ab70-abbf"
)
_MORE_LETTERS = (0x1885, 0x1886)
# marks continue a word, and begin one
_MARKS = (
    "02c2-02c5 02d2-02df 02e5-02eb 02ed 02ef-036f 0375 0378-0379 0384-0385 03f6 0483-0487 055a-055f 0591-05bd 05bf "
    "05c1-05c2 05c4-05c5 05c7 0615-061a 064b-065e 0670 06d6-06e4 06e7-06ed 06fd-06fe 070f 0711 0730-074c 07a6-07b0 "
    "07eb-07f3 0900-0903 093c 093e-094e 0951-0955 0962-0963 0981-0983 09bc 09be-09c4 09c7-09c8 09cb-09cd 09d7 "
    "09e2-09e3 0a01-0a03 0a3c 0a3e-0a4f 0a81-0a83 0abc 0abe-0acf 0b82 0bbe-0bc2 0bc6-0bc8 0bca-0bcd 0c01-0c03 "
    "0c3e-0c56 0d3e-0d44 0d46-0d48 0e31 0e34-0e3a 0e47-0e4e 0eb1 0eb4-0ebc 0ec8-0ecd"
)
# each is a token of its own; those of ASCII have rules of their own
_SYMBOLS = (
    "00a1 00a5-00a9 00ac 00ae-00b4 00b6-00b9 00bf 00d7 00f7 037e 0387 0589 05be 05c0 05c3 05c6 05f3-05f4 0600-0603 "
    "0606-060c 0614 061b 061e-061f 066a 066d 06d4 0700-070d 07f6-07f8 0964-0965 0e3f 0e4f 1fbd 2016-2017 201a "
    "201e-2023 2030-2038 203b 203e-2042 2070 2074-207e 2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 "
    "211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2155-215e 2190-2bff 3001-3002 3012 30fb "
    "ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)


LETTER, MARK, NOTHING = "\u00e9", "\u0301", "\x7f"  # what stands for all of a kind in a shape


def _places(text: str) -> Iterator[tuple[int, int]]:
    for part in text.split():
        first, _, last = part.partition("-")
        yield int(first, 16), int(last or first, 16)


def _all_of(text: str) -> frozenset[int]:
    return frozenset(place for first, last in _places(text) for place in range(first, last + 1))


class _Shapes(dict[int, int]):
    """What stands for a character in a shape; filled as characters come."""

    def __missing__(self, place: int) -> int:
        self[place] = ord(_kind(place) or chr(place))
        return self[place]


def _kind(place: int, newer: frozenset[int] = _all_of(_NEWER), marks: frozenset[int] = _all_of(_MARKS)) -> str | None:
    category = unicodedata.category(chr(place))
    if place in newer or (category == "Nd" and place > 0xFFFF):
        return NOTHING
    if place in marks:
        return MARK
    return LETTER if 0x7F < place <= 0xFFFF and (category[0] == "L" or place in _MORE_LETTERS) else None


_SHAPES = _Shapes()
#: the inside of a character class
SYMBOLS = "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in _places(_SYMBOLS))


def shape_of(text: str) -> str:
    """Replace letters that are not ASCII, marks, and letters and digits that the program does not know; same length."""
    return text if text.isascii() else text.translate(_SHAPES)
