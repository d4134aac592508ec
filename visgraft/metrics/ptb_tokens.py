r"""The tokens of COCO's caption scores, without Java.

COCO's program sends captions through the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1, in lower case, and drops
most punctuation. These rules give the same tokens; `make test-coco` compares them with the program itself. They were
found by watching it, character by character and abbreviation by abbreviation. As there, the rule that reads furthest
wins, what it only looks at included, and of equals the first. Each caption is read for itself: in the program a
carriage return inside one shifts every later caption to the wrong item.

In: a caption as a person or a model wrote it. Out: its tokens; a phone number or a mixed fraction is one token with a
no-break space inside, as there.
Usage: `coco_tokens("The dog's ball isn't red.")` gives the, dog, 's, ball, is, n't, red
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from visgraft.metrics.ptb_characters import LETTER, MARK, SYMBOLS, shape_of

#: dropped after lower case, so that "-lrb-" and the other brackets stay: the program's list has them in upper case
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# ---- what a caption is mostly made of, read without the rules

_PLAIN = re.compile(r"[A-Za-z]+(?=,? |$)|[A-Za-z]{2,}(?=\.(?: |$))")
_MARK = re.compile(r"[.,](?= [A-Za-z]| *$)")
_SPLIT = frozenset(["cannot", "gonna", "gotta", "gimme", "lemme", "wanna"])  # the only plain words that a rule splits
_SPACES = re.compile(r"(?:[ \t\u00a0\u2000-\u200a\u3000\r\n\v\f\x85\u2028\u2029]|&(?i:nbsp);)+")

# ---- pieces of the patterns, which are matched with the shape of a text

_LETTERS = f"A-Za-z{LETTER}"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_GAP = rf"(?:{_SPACE}|\n)"  # the text ends in a line feed
_A = r"(?:['\u0092\u2019]|&(?i:apos);)"
_B = r"(?:['`\u0091\u0092\u2018\u2019\u201b]|&(?i:apos);)"  # taken for an apostrophe inside a word
_AMP = r"(?:&(?i:amp);|&)"
_L = rf"[{_LETTERS}]"
_N = rf"[{_LETTERS}\d]"
_W = rf"(?:[{_LETTERS}{MARK}\u00ad]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_WORD = rf"{_W}(?:{_W}|\d)*(?:[.!?]{_W}(?:{_W}|\d)*)*"  # "word.Word" is one
_REST = rf"{_A}(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])"  # what is left of is, am, had, are, have, will
_NOT = rf"[nN]{_B}[tT]"
_SIMPLE = rf"(?:[dDoOlL]{_B}{_N})?{_N}+"  # o'clock
_THING = rf"{_SIMPLE}(?:[-_\u058a\u2010\u2011]{_SIMPLE})*"  # T-shirt
_HYPHENED = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9\u00ad]+))+"  # 3.5-inch
_CAPITALS = rf"[A-Z]+(?:(?:\+|{_AMP})[A-Z]+)+"  # AT&T
_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_ATTRIBUTE = rf"""[ ]+{_NAME}(?:[ ]*=[ ]*(?:'[^'\r\n]*'|"[^"\r\n]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z\-][^>\r\n]*|{_NAME}(?:{_ATTRIBUTE})*[ ]*/?|/{_NAME})[ ]*>"
_PATH = r"""/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-]"""
_FILE_ENDINGS = (
    "(?i:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|pptx?|ps|py|sql|tar"
    "|txt|wav|x|xml|zip|wmv)"
)

# ---- abbreviations, found by giving the program 160,000 words with a period behind


def _capitalised(words: str) -> str:
    """Match words that begin with a capital, the rest in any case."""
    return "|".join(f"{word[0].upper()}(?i:{word[1:]})" for word in words.split())


# after these a sentence may end: only two characters more are looked at, so "Jan.x" is two tokens and "Jan.xy" one
_ENDING = (
    "(?:(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|thu|fri"
    "|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
    "|inc|cos?|corp|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys"
    r"|ed\.d|ph\.d|jr|sr|bros|blvd|rd|esq|sq|bldg|est|ext|tel|etc|al|seq)|(?i:pp?t)[ye][sS]?"
    f"|{_capitalised('ark az del ill la mass miss ore pa tex wash')})"  # in lower case they are words
)
_ABBREVIATED = (
    "(?:(?i:mr|mrs|ms|mme|mlle|drs?|profs?|sens?|reps?|attys?|lt|lieut|col|cpl|gen|messrs|govs?|adm|adj|adv|rev|maj"
    "|sgt|sfc|pvt|pfc|spc|capt|brig|co?mdr|ens|det|supts?|asst|assoc|insp|msgr|hon|pres|mt|ste?|ave|ph|dept|invt|elec"
    "|natl|treas|vs|ft|alex|wm|jos|cie|cf)|[mM][ft][gG])"
)
_BEFORE_A_NUMBER = "(?i:art|ca|figs?|nos?|op|pp|prop)"
_SHORTENED = re.compile(rf"(?:{_ENDING}|{_ABBREVIATED}|{_BEFORE_A_NUMBER}|(?i:pt[ye]))\.")
# after a single letter and a period these begin a sentence: "the letter B. The sign"
_STARTERS = _capitalised(
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    r"one other our she since so some such that the their then there these they this we what when while yet you "
    r"mr\. ms\."
)

# ---- how tokens are written


def _as_is(token: str) -> str:
    return token


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\u00ad", "")


def _with_ampersand(token: str) -> str:
    return re.sub("(?i:&amp;)", "&", token)


def _with_brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _always(written: str) -> Callable[[str], str]:
    return lambda _: written


_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u201b\u2039\u0091", "`")
    | dict.fromkeys("\u2019\u203a\u0092", "'")
    | dict.fromkeys("\u201c\u00ab\u0093", "``")
    | dict.fromkeys("\u201d\u00bb\u0094", "''")
)
_REWRITTEN = str.maketrans(
    dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")
    | {"\u00a2": "cents", "\u00a3": "#"}
    | {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
)


def _in_ascii(token: str) -> str:
    return token.replace("&apos;", "'").translate(_QUOTES).translate(_REWRITTEN)


class _Rule(NamedTuple):
    """A kind of token: group 1 of the pattern is the token, the rest of the match is only looked at."""

    pattern: re.Pattern[str]
    write: Callable[[str], str]


_RULES = tuple(
    _Rule(re.compile(pattern), write)
    for pattern, write in (
        # words
        (r"((?i:can))(?i:not)", _as_is),
        (r"((?i:gon|wan))(?i:na)", _as_is),
        (r"((?i:got))(?i:ta)", _as_is),
        (r"((?i:gim|lem))(?i:me)", _as_is),
        (r"('[tT])(?i:is|was)", _as_is),
        (rf"({_TAG})", _as_is),
        (r"(&(?i:md|mdash|ndash);|[\u0096\u0097\u2013-\u2015])", _always("--")),
        (r"(&(?i:amp);)", _with_ampersand),
        (r"(&(?i:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)", _as_is),
        (rf"({_WORD}){_REST}", _without_soft_hyphens),
        (rf"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){_NOT}", _without_soft_hyphens),
        (rf"({_WORD})", _without_soft_hyphens),
        (rf"({_A}[nN]{_A}?|[lLdDjJ]{_A}|(?i:dunkin|somethin|ol){_A}|{_A}(?i:em|[2-9]0s|till?))", _as_is),
        (rf"([A-HJ-XZn]{_B}{_L}{{2,}})", _as_is),  # O'Neill
        (rf"({_L}+[aeiouyAEIOUY]{_B}[aeiouA-Z]{_L}*|{_A}(?i:cause))", _as_is),  # ma'am
        (rf"((?i:cont'd\.?|nor'easter|c{_A}mon|e'er|s'mores|ev'ry|li'l|nat'l|o{_B}o))", _as_is),
        (rf"([yY]{_A}){_L}", _as_is),
        # addresses
        (r"""((?i:https?)://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-])""", _as_is),
        (rf"""((?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:{_PATH})?)""", _as_is),
        (rf"""((?:[^ \t\n\f\r"`'<>|.!?(){{}}$,-_]+\.)+(?i:com|net|org|edu)(?:{_PATH})?)""", _as_is),
        (
            r"""((?:&(?i:lt);|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|()\u00a0{}]*@(?:[^ \t\n\f\r"<>|(){}.\u00a0]+\.)*"""
            r"""[^ \t\n\f\r"<>|(){}.\u00a0]+(?:&(?i:gt);|>)?)""",
            _as_is,
        ),
        (rf"(@[a-zA-Z_][a-zA-Z_0-9]*|\#{_W}+)", _as_is),
        (rf"({_REST}|{_NOT})[^A-Za-z]", _in_ascii),
        # numbers and money
        (r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})", _as_is),
        (r"([-+]?(?:\d*(?:[.:,\u00ad\u066b\u066c]\d+)+|\d+))", _without_soft_hyphens),
        (r"([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))", _as_is),
        (r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})", _as_is),
        (r"([\u00bc-\u00be\u2153-\u215e])", _in_ascii),
        (rf"({_A}[0-9][0-9]){_GAP}", _as_is),  # '98
        (r"([A-Z]*\$|#|[\u0080\u00a2-\u00a5\u20a0\u20ac])", _in_ascii),
        # words with signs inside
        (rf"((?i:-(?:rrb|lrb|rcb|lcb|rsb|lsb)-|c\.d\.s|pro-|anti-|c{_A}est|cap{_A}n|c\+\+|[cf]#))", _as_is),
        (rf"((?i:s{_AMP}p-500|s{_AMP}ls))", _with_ampersand),
        (r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})", _as_is),  # and/or
        # what ends in a period
        (rf"([A-Za-z])\.{_GAP}+(?:{_STARTERS}|{_TAG}){_GAP}", _as_is),
        (r"((?:[A-Za-z]\.)+)", _as_is),  # U.S.
        (rf"({_ENDING}\.)[\s\S]{{2}}", _as_is),
        (rf"({_ENDING}\.|{_ABBREVIATED}\.)", _as_is),
        (rf"((?i:pt[ye])\.){_SPACE}(?i:ltd|lim)", _as_is),
        (rf"({_BEFORE_A_NUMBER}\.){_SPACE}?\d", _as_is),
        (rf"({_N}+(?:\.{_N}+)*\.{_FILE_ENDINGS})(?:{_GAP}|[.?!,])", _as_is),
        (rf"((?:{_WORD}|{_THING}|{_HYPHENED})\.)[,;:\u3001]", _without_soft_hyphens),
        (rf"({_CAPITALS}\.)[,;:\u3001]", _with_ampersand),
        # words with hyphens, telephone numbers, smileys
        (rf"({_THING})", _without_soft_hyphens),
        (rf"({_HYPHENED})", _without_soft_hyphens),
        (rf"({_CAPITALS})", _with_ampersand),
        (
            r"((?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])"
            r"[0-9]{3,4}[- \u00a0]?[0-9]{3,5}|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})",
            _with_brackets,
        ),
        (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _with_brackets),
        (
            r"([\^x=~<>]\.\[\^x=~<>]|[-\^x=~<>']_[-\^x=~<>']|\([-\^x=~<>'][_.]?[-\^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))",
            _with_brackets,
        ),
        # signs
        (r"(&(?i:lt);)", _always("<")),
        (r"(&(?i:gt);)", _always(">")),
        (r'("|&quot;)', _always("''")),
        (r"(&(?i:quot);)", _as_is),
        (r"(')[A-Za-z][^ \t\n\r\u00a0]", _always("`")),
        (rf"({_REST})", _in_ascii),
        (rf"(''|{_A})", _in_ascii),
        (r"([`\u2018-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{1,2})", _in_ascii),
        (r"([()])", _with_brackets),
        (r"(\[)", _always("-lsb-")),
        (r"(\])", _always("-rsb-")),
        (r"(\{)", _always("-lcb-")),
        (r"(\})", _always("-rcb-")),
        (r"(-+)", lambda token: "--" if 2 <= len(token) <= 4 else token),
        (r"(\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\u0085\u2026])", _always("...")),
        (r"(@+|\#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>)", _as_is),
        (rf"([%&~^|\\/*<>=+,;:.\u2044{SYMBOLS}])", _as_is),
    )
)


@lru_cache(maxsize=100_000)  # several scores ask for the same captions, and a training asks again and again
def coco_tokens(caption: str) -> tuple[str, ...]:
    """Split a caption as COCO's program does, and drop what it drops, white space at the end of an address too."""
    tokens = " ".join(ptb_tokens(caption)).rstrip().split(" ")
    return tuple(token for token in tokens if token and token not in _DROPPED)


def ptb_tokens(caption: str) -> list[str]:
    """Split a text into Penn Treebank tokens, in lower case.

    What is no character to the program (newer than Unicode 6, or beyond its sixteen bits) vanishes.
    """
    text, place, tokens = shape_of(caption) + "\n", 0, []
    while place < len(caption):
        plain = _PLAIN.match(text, place) or _MARK.match(text, place)
        if plain and plain[0].lower() not in _SPLIT and not _SHORTENED.match(text, place, plain.end() + 1):
            tokens.append(plain[0].lower())
            place = plain.end()
            continue
        spaces = _SPACES.match(text, place)
        if spaces and text[place] == " ":
            place = spaces.end()
            continue
        best, furthest = None, spaces.end() if spaces else place  # an address may begin with a no-break space
        for rule in _RULES:
            match = rule.pattern.match(text, place)
            if match and match.end() > furthest:
                best, furthest, write = match, match.end(), rule.write
        if best is None:
            place = max(furthest, place + 1)
            continue
        tokens.append(write(caption[slice(*best.span(1))]).replace(" ", "\u00a0").lower())
        place = best.end(1)
    return [token for token in tokens if token]
