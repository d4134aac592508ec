"""Show every answer to the same words equally often, so that no question can be answered without looking.

In:  the texts of a source: what each says, its prompt and its answer as numbers. Out: which of them come in an epoch.

    prompt "Is it red?"   yes yes yes yes yes yes no no      8 texts, 2 answers: 4 texts each
    an epoch              yes yes yes yes         no no no no
    the next one          other four of "yes"     no no no no

    balance = read_balance(samples, length=len(samples), fingerprint=None)
    picked = balance.epoch(3, seed=0)          # samples, dialogs, and of what comes more than once which copy it is
    balance.words_alone()                      # how often the commonest answer of its words is right, before and after

The unit is the dialog: its prompts are all that is asked in it, its answer all that is answered. An epoch has as many
texts as before. What comes is a pure function of seed and epoch, and what is left out of one epoch comes in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.mixing import Indices, epoch_order
from visgraft.data.sample import Source, Turn
from visgraft.disk_cache import keep_arrays
from visgraft.errors import BadSampleError, ConfigError

Keys = NDArray[np.uint64]

_GOLDEN = 0.6180339887498949  # multiples of it are spread evenly over 0 to 1
_VERSION = 1  # of the keys


class Picked(NamedTuple):
    """Texts of an epoch: of which sample each is, which of its dialogs, and how often it came before in that epoch."""

    samples: Indices
    dialogs: Indices
    copies: Indices


class WordsAlone(NamedTuple):
    """How many answers the words alone give away.

    Attributes:
        asked_again: texts whose prompt comes at least twice.
        right: of these, how many have the commonest answer of their prompt.
        right_balanced: how many would have it if every answer of a prompt came equally often.
        texts: all texts.
    """

    asked_again: int
    right: int
    right_balanced: float
    texts: int

    @property
    def share(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / self.asked_again if self.asked_again else 0.0

    @property
    def share_balanced(self) -> float:
        """The same of balanced answers."""
        return self.right_balanced / self.asked_again if self.asked_again else 0.0


def text_keys(dialog: Sequence[Turn]) -> tuple[int, int]:
    """Return what stands for the prompts of a dialog and for its answers: 8 bytes each, equal where they are equal."""
    prompts, answers = [turn.request for turn in dialog], [turn.answer.strip() for turn in dialog]
    return text_key(*prompts), text_key(*answers)


def text_key(*texts: str) -> int:
    """Return 8 bytes as a number that equal texts share."""
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(joined, digest_size=8).digest())


def refuse_unfit_balance(entries: Sequence[SourceSettings], *, key: str, settings: DataSettings) -> None:
    """Raise ConfigError where answers cannot be balanced: where nothing is learned, and of what several sources share.

    key: what messages call the list.
    """
    for number, entry in enumerate(entries):
        if entry.balance is None:
            continue
        if not key.endswith("train"):
            raise ConfigError(
                f"{key}.{number}.balance: got {entry.balance}, which changes what is learned from; what is measured on "
                "stays as it is: leave it out here"
            )
        if settings.group_across_sources and len(entries) > 1:
            raise ConfigError(
                f"{key}.{number}.balance: got {entry.balance}, but data.group_across_sources is true, and texts that "
                "are gathered from several sources have no balance of their own: leave one of them out"
            )


class AnswerBalance:
    """Texts sorted by prompt and answer; `samples`, `dialogs` say where each of them is."""

    def __init__(self, prompts: Keys, answers: Keys, *, samples: Indices, dialogs: Indices) -> None:
        self.samples, self.dialogs = samples, dialogs
        in_order = np.lexsort((answers, prompts))
        is_prompt = np.diff(prompts[in_order], prepend=np.uint64(0)) != 0
        is_prompt[:1] = True
        is_class = (np.diff(answers[in_order], prepend=np.uint64(0)) != 0) | is_prompt
        self._class = np.empty(len(in_order), np.int64)  # of each text: a prompt with one of its answers
        self._class[in_order] = np.cumsum(is_class) - 1
        self.texts = np.bincount(self._class).astype(np.int64)  # of each class
        self._prompt = np.cumsum(is_prompt[is_class]) - 1  # of each class
        self.answers = np.bincount(self._prompt).astype(np.int64)  # of each prompt
        self._asked = np.bincount(self._prompt, weights=self.texts).astype(np.int64)
        self._begin = np.cumsum(self.texts) - self.texts

    def __len__(self) -> int:
        return len(self._class)

    @property
    def weights(self) -> NDArray[np.float64]:
        """How often each text comes in an epoch, on average."""
        per_answer = self._asked / self.answers
        of_class: NDArray[np.float64] = per_answer[self._prompt] / self.texts
        return of_class[self._class]

    def words_alone(self) -> WordsAlone:
        """Count how often the commonest answer of its words is right, before and after balancing."""
        again = self._asked > 1
        commonest = np.zeros(len(self.answers), np.int64)
        np.maximum.at(commonest, self._prompt, self.texts)
        balanced = (self._asked / self.answers)[again].sum() if again.any() else 0.0
        return WordsAlone(
            int(self._asked[again].sum()), int(commonest[again].sum()), float(balanced), int(self._asked.sum())
        )

    def epoch(self, epoch: int, *, seed: int, weight: float = 1.0) -> Picked:
        """Pick the texts of an epoch; with a weight, so many times as many.

        Of a prompt with n texts and k answers, answer number a has had floor((e n + a) / k) texts before epoch e: so
        each has n / k of them in the long run, all k together n in every epoch, and each goes through its texts in
        turn.
        """
        in_order, rank, phase = self._drawn(seed)
        shift = 0.0 if float(weight).is_integer() else phase
        before = np.floor(epoch * weight * self._asked + shift).astype(np.int64)
        after = np.floor((epoch + 1) * weight * self._asked + shift).astype(np.int64)
        first = (before[self._prompt] + rank) // self.answers[self._prompt]
        number = (after[self._prompt] + rank) // self.answers[self._prompt] - first
        of_class = np.repeat(np.arange(len(number)), number)
        turn = np.arange(len(of_class)) - np.repeat(np.cumsum(number) - number, number)
        texts = self.texts[of_class]
        chosen = in_order[self._begin[of_class] + (first[of_class] + turn) % texts]
        return Picked(self.samples[chosen], self.dialogs[chosen], turn // texts)

    def _drawn(self, seed: int) -> tuple[Indices, Indices, NDArray[np.float64]]:
        """Draw the order of texts in their class and of the answers of a prompt, and where prompts begin."""
        in_order = np.lexsort((epoch_order(len(self), seed=seed, epoch=0), self._class))
        drawn = epoch_order(len(self.texts), seed=seed, epoch=0)
        by_prompt = np.lexsort((drawn, self._prompt))
        begin = np.cumsum(self.answers) - self.answers
        rank = np.empty(len(self.texts), np.int64)
        rank[by_prompt] = np.arange(len(by_prompt)) - np.repeat(begin, self.answers)
        phase = (epoch_order(len(self.answers), seed=seed, epoch=0) * _GOLDEN % 1.0).astype(np.float64)
        return in_order.astype(np.int64), rank, phase


def read_balance(samples: Source, *, length: int, fingerprint: str | None) -> AnswerBalance:
    """Read the texts of the first so many samples once; what took long is kept under a fingerprint."""
    name = None if fingerprint is None else repr(("prompts and answers", _VERSION, fingerprint))
    arrays = keep_arrays(partial(_scan, samples, length), fingerprint=name)
    return AnswerBalance(arrays["prompts"], arrays["answers"], samples=arrays["samples"], dialogs=arrays["dialogs"])


def _scan(samples: Source, length: int) -> dict[str, NDArray[Any]]:
    found: list[tuple[int, int, int, int]] = []
    for index in range(length):
        try:
            dialogs = samples[index].dialogs
        except BadSampleError:
            continue  # asking for it gives the reason
        found += [(*text_keys(dialog), index, number) for number, dialog in enumerate(dialogs)]
    table = np.array(found, dtype=np.uint64).reshape(-1, 4)
    places = table[:, 2:].astype(np.int64)
    return {"prompts": table[:, 0], "answers": table[:, 1], "samples": places[:, 0], "dialogs": places[:, 1]}
