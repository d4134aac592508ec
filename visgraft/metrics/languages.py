"""Languages that set no spaces between words, and how their texts are split for scores: by character.

In: texts, perhaps a language. Out: words; or the language that the characters point to.
Usage: `language_without_spaces(["猫が寝ている"])` gives "ja"
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from visgraft.errors import ConfigError
from visgraft.metrics.ptb_tokens import coco_tokens

#: the languages that `language` takes, by their ISO 639-1 codes
LANGUAGES = {"ja": "Japanese", "zh": "Chinese", "th": "Thai"}

_THAI = re.compile("[\u0e00-\u0e7f]")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_SHARE = 0.2  # of the letters, from which on a text counts as one of such a language


def words_for_scores(text: str, *, language: str | None) -> tuple[str, ...]:
    """Split a text as COCO's program does, or, with a language of `LANGUAGES`, into its characters but white space."""
    return coco_tokens(text) if language is None else tuple("".join(text.split()))


def check_language(language: str | None) -> None:
    """Raise ConfigError for a language that is none of `LANGUAGES`; None is English, or any other with spaces."""
    if language is not None and language not in LANGUAGES:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise ConfigError(
            f"language: got {language!r}, need one of {known}; leave it out for languages with spaces between words"
        )


def language_without_spaces(texts: Iterable[str]) -> str | None:
    """Say which of `LANGUAGES` the texts are written in, by their characters; None: words have spaces between them.

    Without the language, COCO's tokens take such a sentence for one word and nearly equal captions score 0.
    """
    text = "".join(texts)
    thai, kana, han = (len(script.findall(text)) for script in (_THAI, _KANA, _HAN))
    if thai + kana + han < _SHARE * sum(map(str.isalpha, text)) or thai + kana + han == 0:
        return None
    if thai > kana + han:
        return "th"
    return "ja" if kana else "zh"
