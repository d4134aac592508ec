"""How one answer is decoded: its length, its seed, where it stops, what it may say.

In: settings, those of Hugging Face's `generate` by their own names. Out: a `Decoding`, checked, for any requests.

    Decoding.of(max_new_tokens=64, do_sample=True, temperature=0.7, top_p=0.9, seed=1)
    Decoding.of(choices=["yes", "no"], log_probabilities=2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from visgraft.errors import ConfigError

# The most probable token, whatever settings for chatting the language model brought along.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
# What of `generate` the decoding loop does; every other name needs `generate` itself.
OF_GENERATE = (
    *GREEDY,
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("min_new_tokens", "min_length", "exponential_decay_length_penalty", "remove_invalid_values"),
    *("renormalize_logits", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoding:
    """The settings of a request.

    Attributes:
        max_new_tokens: longest answer; shorter where the language model's positions end.
        seed: of the draws, where `do_sample` is set: the same request with the same seed has the same answer, alone or
            among others. None = drawn from torch's own generator.
        stop: the answer ends in front of the first of these texts, wherever its tokens end.
        choices: the answer is one of these texts, whichever greedy decoding or sampling comes to.
        frequency_penalty: taken off a token's logit for each time it was said.
        presence_penalty: taken off a token's logit once it was said.
        log_probabilities: of each token of the answer, and of this many likeliest others (0: its own alone), as the
            model gives them, before any setting changes them. None = not asked for.
        deadline_s: seconds from asking on, after which what was said by then is the answer.
        settings: of `generate`, by its own names (`OF_GENERATE`); `logits_processor` and `stopping_criteria` are given
            this request's ids [1, T] and scores [1, V].
    """

    max_new_tokens: int = 32
    seed: int | None = None
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    log_probabilities: int | None = None
    deadline_s: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **settings: Any) -> Decoding:
        """Make one of settings in one row, ours and those of `generate`.

        Raises:
            ConfigError: an unknown name, or a value that cannot be.
        """
        own = {name: settings.pop(name) for name in OWN_SETTINGS & settings.keys()}
        for name in ("stop", "choices"):
            if own.get(name) is not None:
                own[name] = (own[name],) if isinstance(own[name], str) else tuple(own[name])
        return cls(**{name: value for name, value in own.items() if value is not None}, settings=settings)

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: got {self.max_new_tokens}, need 1 or more")
        if self.log_probabilities is not None and self.log_probabilities < 0:
            raise ConfigError(f"log_probabilities: got {self.log_probabilities}, need 0 (the token's own) or more")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s: got {self.deadline_s}, need more than 0 seconds")
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}: got {getattr(self, name)}, need a finite number")
        if not all(self.stop):
            raise ConfigError(f"stop: got {list(self.stop)}, and an empty text is everywhere; leave it out")
        for name in needs_generate(self.settings):
            near = get_close_matches(name, [*OF_GENERATE, *OWN_SETTINGS], n=1)
            raise ConfigError(
                f"{name}: got {self.settings[name]!r}, which the decoding loop does not know"
                + (f"; did you mean {near[0]}?" if near else "; it may be one that model.generate takes")
            )


OWN_SETTINGS = frozenset(each.name for each in fields(Decoding)) - {"settings"}


def needs_generate(settings: Mapping[str, Any]) -> list[str]:
    """List the settings that only Hugging Face's `generate` can follow: beams, other searches, unknown names."""
    return [
        name
        for name, value in settings.items()
        if value is not None and (name not in OF_GENERATE or (name == "num_beams" and value != 1))
    ]
