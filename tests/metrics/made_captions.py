"""Captions made up by rule, for the comparison with COCO's program: such as people write, and such as nobody should.

In: how many, a seed. Out: captions, the same for the same seed.
Usage: `realistic_captions(1000, seed=0)`
"""

from __future__ import annotations

import random

_WHO = (
    "a man|a woman|two dogs|the cat|three people|a little girl|a young boy|a group of people|"
    "an old couple|a baseball player|several cows|a black-and-white dog|a 2-year-old|a woman's hand|"
    "the man's dog|somebody|a person|2 zebras|an elephant|a skateboarder|a U.S. Navy officer|Mr. Smith|"
    "a T-shirt|a double-decker bus|a stop sign|a red/white bus"
)
_DOES = (
    "is sitting on|are standing in|sits on|holding|rides|is riding|playing with|looks at|doesn't look at|"
    "isn't near|can't see|walks past|that's next to|jumps over|has just caught|flies|is about to eat|"
    "cannot reach|eating|wearing"
)
_WHAT = (
    "a couch|the beach|a frisbee|a red, wooden bench|some grass|a bowl of soup|an ice-cream cone|"
    'a well-lit room|the corner of 5th and Main St.|a sign that says "STOP"|a clock that reads 10:30|'
    "a plate with 1/2 of a pizza|a $5 bill|a half-eaten sandwich|a 10-foot wave|the number 24|"
    "a laptop & a mouse|an old '57 Chevy|a 1990's TV|a pair of skis|a building at 7 p.m.|a bus no. 12|"
    "a bottle of Coca-Cola|a B&W photo|a kitchen w/ white cabinets|jeans and a T-shirt|"
    "a sign (in Spanish)|a baby's toy|the dogs' bowls|two-story houses|the letter B|"
    "a jet airliner's wing|50% of a cake"
)
_WHERE = (
    "|in the background|on a sunny day|near the ocean|in front of a house|while others watch|at night|"
    "in the snow|and smiling|; it's raining|- a nice day|, and a cat|... again|at 3:45 pm|in New York|"
    "by Dr. King's church|next to it"
)
_ENDS = [".", ".", ".", ".", "", "", " .", "!", "...", ".  ", '."', "?", "!!", ". ", " ..", ".\n"]


def realistic_captions(number: int, *, seed: int) -> list[str]:
    """Make captions such as people write: one sentence, at times two."""
    random_ = random.Random(seed)
    return [
        " ".join(_sentence(random_) for _ in range(1 + (random_.random() < 0.1))).replace(" ,", ",")
        for _ in range(number)
    ]


def _sentence(random_: random.Random) -> str:
    words = " ".join(random_.choice(parts.split("|")) for parts in (_WHO, _DOES, _WHAT, _WHERE)).strip()
    if random_.random() < 0.7:
        words = words[0].upper() + words[1:]
    if random_.random() < 0.05:
        words = random_.choice([words.upper(), words.title(), words.replace("'", "\u2019"), words.replace(" ", "  ")])
    return words + random_.choice(_ENDS)


_PIECES = (
    "li'l ev'ry nat'l s'mores cap'n c'est dunkin' somethin' &apos;s caf&eacute; pty. Ltd pte. mfg. Ark. Ill. "
    "a the cat dog man woman's dogs' it's don't can't two-year-old red-haired 3 10 2.5 1,000 7:30 "
    "12:30pm 7pm 90s 1980s '90s U.S. U.S.A. a.m. p.m. Mr. Mrs. Dr. St. etc. e.g. i.e. No. no. vs. Jan. "
    "Inc. Ave. cannot gonna wanna gotta lemme gimme dunno 'tis 'twas 'em 'n' 'cause y'all o'clock "
    "O'Neill AT&T R&D and/or he/she w/ 24/7 1/2 3/4 half $5 $1,000 US$5 5$ \u00a35 \u20ac5 5\u20ac \u00a5 "
    "\u00a2 #5 #tag @user "
    "a@b.com www.a.com http://a.com/b?c=d a.com foo.org caf\u00e9 na\u00efve \u732b \U0001f431 "
    "\u2764\ufe0f \u2605 \u263a \u2122 \u00b0 90\u00b0F \u00bd \u00b2 m\u00b2 word.Word "
    "C++ C# F# A+ <b> </b> <br/> <3 &amp; &lt; &gt; &quot; 555-1212 (555) 555.555.1212 :) :-) ;) :D :P "
    "^_^ T-shirt x-ray mid-1990s O' d'Or he'd've I'm you're they'll we've let's ma'am file.jpg "
    "index.html foo_bar 5x5 6'2\" 5' 3\" 2nd 10% No.5 B. B x i I 's n't 'll cont'd ol' c'mon qu'il j'ai 5C "
    "+5 -5 .5 10/12/2010 2010-10-12 10am-5pm goin' isn\u2019t it\u2019s \u201990s \u2019em \u2018hi\u2019 "
    "\u201chi\u201d \u00abhi\u00bb pre- anti- pro- "
    "S&P Jr. Ph.D. Feb May Sun. Sat. km/h ice-cream The A He 3.x Tex. don`t <safe_name> fig. pp. Ms. Mr."
)
_SIGNS = [
    *".,!?;:-'\"()[]{}/\\&*%$#@+=<>|~^_`",
    *("...", "--", "---", "-----", "\u2026", "\u2013", "\u2014", "\u2018", "\u2019", "\u201c", "\u201d", "!!", "?!"),
    *(". . .", "``", "''", "\u00a0", " ", "  ", "\u2022", "\u00b7", "\u00d7", "&#39;", "&nbsp;", "&mdash;", "\u200b"),
    *("\ufe0f", "\u00a9", "\u00b0", "\u00bd", "\u00b2", "\u00a3", "\u20ac", "\u00a2", "\u00a5", "\u201e", "\u2039"),
]
_LETTERS = (
    "abdemnorstvyxABDMNOSTU0123589.,!?;:-'\"()[]{}/\\&*%$#@+=<>|~^_` \u2019\u201c\u00e9\u732b\u00bd\u00a3\u2026 \u00a0"
)


def torture_captions(number: int, *, seed: int) -> list[str]:
    """Make texts of every kind of token side by side, with and without spaces, and of signs and letters at random."""
    random_ = random.Random(seed)
    kinds = (_spaced, _touching, _letters, _any_script, _any_case)
    return [kinds[index % len(kinds)](random_) for index in range(number)]


def _spaced(random_: random.Random) -> str:
    words = []
    for _ in range(random_.randint(2, 8)):
        word = _piece(random_)
        if random_.random() < 0.25:
            word += random_.choice(_SIGNS)
        if random_.random() < 0.1:
            word = random_.choice(_SIGNS) + word
        if random_.random() < 0.1:
            word += random_.choice(_SIGNS) + _piece(random_)
        words.append(word)
    return " ".join(words)


def _touching(random_: random.Random) -> str:
    pieces = []
    for _ in range(random_.randint(1, 5)):
        pieces.append(_piece(random_) if random_.random() < 0.5 else random_.choice(_SIGNS))
        pieces.append(" " if random_.random() < 0.25 else "")
    return "".join(pieces)


def _piece(random_: random.Random) -> str:
    return random_.choice(_PIECES.split(" "))


def _letters(random_: random.Random) -> str:
    return "".join(random_.choice(_LETTERS) for _ in range(random_.randint(1, 12)))


def _any_script(random_: random.Random) -> str:
    """Mix characters of any script: Latin, signs, all up to Hangul, emoji."""
    places = [(0x20, 0x7E), (0xA0, 0x17F), (0x2000, 0x2027), (0x2030, 0x2C00), (0x300, 0xD7FF), (0x1F300, 0x1F9FF)]
    characters = [chr(random_.randint(*random_.choice(places))) for _ in range(random_.randint(1, 8))]
    return "".join([*characters, random_.choice([" ", ""]), _piece(random_)])


def _any_case(random_: random.Random) -> str:
    """Mix capitals in: the program knows most of its words in any case, some not."""
    text = random_.choice([_spaced, _touching])(random_)
    return "".join(character.swapcase() if random_.random() < 0.3 else character for character in text)
