"""COCO's tokens, as its Java program gave them; `make test-coco` asks the program itself, on many more."""

import re

import pytest

from tests.metrics.made_captions import realistic_captions, torture_captions
from visgraft.metrics import ptb_tokens as module
from visgraft.metrics.ptb_tokens import coco_tokens, ptb_tokens


def split(caption: str) -> str:
    return " ".join(coco_tokens(caption))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, riding a horse.", "a man riding a horse"),
        ('"stop" here... - now', "stop here now"),
        ("", ""),
        # 1. brackets stay as words
        ("a [red] (sign) {x}", "a -lsb- red -rsb- -lrb- sign -rrb- -lcb- x -rcb-"),
        # 2. single marks go, runs and other signs stay
        ("wow!! what??? really?! no! yes? well; so: -", "wow !! what ??? really ?! no yes well so"),
        (
            "a / & * % # $ < > = + @ | \u00b0 \u00ae \u201e \u00a1 \u00bf -----",
            "a / & * % # $ < > = + @ | ° ® „ ¡ ¿ -----",
        ),
        # 3. rewritten
        ("\u00a35 \u20ac5 5\u20ac 5\u00a2 \u00a55 US$5", "# 5 $ 5 5 $ 5 cents ¥ 5 us$ 5"),
        ("#23 50% \u00bd \u00bc \u00be", "# 23 50 % 1/2 1/4 3/4"),
        ("a\u2026b a\u2013b a\u2014b a--b a---b a----b", "a b a b a b a b a b a b"),
        ("you &amp; me &lt; &gt; &quot;x&quot; \u00abx\u00bb \u201cx\u201d", "you & me < > x x x"),
        ("a grey colour", "a grey colour"),
        # 4. contractions
        ("don't can't it's they'll y'all cannot", "do n't ca n't it 's they 'll y' all can not"),
        ("gonna wanna gotta gimme lemme 'twas dunno", "gon na wan na got ta gim me lem me 't was dunno"),
        (
            "'em rock 'n' roll '90s \u2019em \u2019n\u2019 \u201990s",
            "'em rock 'n' roll '90s \u2019em \u2019n\u2019 \u201990s",
        ),
        ("it\u2019s isn\u2019t he\u2019ll I\u2019m", "it 's is n't he 'll i 'm"),
        ("the dogs' bowls", "the dogs bowls"),
        ("the letter B. The sign", "the letter b the sign"),  # a sentence ends behind the letter,
        ("the letter B. Red", "the letter b. red"),  # here it is an initial
        # 5. kept whole
        ("well-lit and/or 1,000 10:30 24/7 7pm 10/12/2010", "well-lit and/or 1,000 10:30 24/7 7pm 10/12/2010"),
        (
            "http://a.com/b?c=d www.a.com a@b.com AT&T #tag @user",
            "http://a.com/b?c=d www.a.com a@b.com at&t #tag @user",
        ),
        ("a.m. U.S. Mr. etc. no. 5 no. word.Word", "a.m. u.s. mr. etc. no. 5 no word.word"),
        ("12:30pm <br/> <a href='x'>", "12:30 pm <br/> <a\u00a0href='x'>"),
        (":) :-( x", ":-rrb- :--lrb- x"),
        # 6. a no-break space inside
        ("2 1/2 cups, (555) 555-1212", "2\u00a01/2 cups -lrb-555-rrb-\u00a0555-1212"),
        # 7. emoji beyond the basic plane vanish
        ("a \U0001f431 cat \u2764\ufe0f \u2665 \u2605", "a cat ❤ ♥ ★"),
        # what looks odd and is so in the program
        ("3.x Tex. tex. Don`t <safe_name>", "3.x tex. tex do n`t <safe_name>"),
        ("O'Neill d'Or c'mon ma'am goin' o'x", "o'neill d'or c'mon ma'am goin o x"),
        # its words count in any case, its classes of characters do not
        ("DUNKIN' Cont'd PRO- &AMP; &QUOT; HTTP://A.B", "dunkin' cont 'd pro- & &quot; http://a.b"),
        ("Pte. x PTE. x PTE. LTD. Ark. x ark. x", "pte. x pte x pte. ltd. ark. x ark x"),
        ("C++ C# A+ fig. 5 fig. a", "c++ c# a + fig. 5 fig a"),
        ("caf\u00e9 soft\u00adhyphen \u732b\u3067\u3059", "café softhyphen 猫です"),
        ('6\'2" 5\'10 5"x7"', "6 2 5 '10 5 x7"),
    ],
)
def test_captions_are_split_as_by_cocos_program(caption, words):
    assert split(caption) == words


@pytest.mark.parametrize("end", ["\r", "\n", "\f", "\v", "\u2028", "\u0085"])
def test_what_ends_a_line_is_a_space_and_shifts_no_other_caption(end):
    assert coco_tokens(f"a cat{end}on a sofa") == ("a", "cat", "on", "a", "sofa")


def test_a_caption_is_split_the_same_whatever_comes_after_it():
    # the program takes "The" on the next line for the beginning of a sentence, and drops the period of "B."
    assert coco_tokens("the letter B.") == ("the", "letter", "b.")


def test_tokens_never_hold_what_splits_tokens_and_lose_nothing_when_split_again_at_spaces():
    for caption in [*realistic_captions(300, seed=7), *torture_captions(2000, seed=7)]:
        tokens = ptb_tokens(caption)
        assert all(token and not set(token) & set(" \t\r\n") for token in tokens), caption
        assert " ".join(tokens).lower() == " ".join(tokens), caption


def test_the_fast_way_through_plain_words_is_the_way_through_the_rules(monkeypatch):
    captions = [*realistic_captions(500, seed=8), *torture_captions(2000, seed=8)]
    fast = [ptb_tokens(caption) for caption in captions]
    monkeypatch.setattr(module, "_PLAIN", re.compile("(?!)"))
    monkeypatch.setattr(module, "_MARK", re.compile("(?!)"))
    assert [ptb_tokens(caption) for caption in captions] == fast
