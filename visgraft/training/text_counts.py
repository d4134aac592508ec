"""How many tokens each text becomes, found out once: steps are planned from these counts, and no text is read for it.

In: sources, a processor, and which of the processes this is. Out: the tokens of dialogs; what is not known yet is read
and encoded when a plan gets there, by one process for all of them.

    counts = TextCounts(sources, processor)
    found = counts.look_up(places, sizes=sizes)      # of many groups at once: tokens, whether known, whether one is bad
    counts.note(told)                                # what a process has read of some groups

A place is that of a dialog among the dialogs of all samples. Counts are kept in the cache on disk under a name of all
they depend on: files and options of the sources, tokenizer, template, longest text. Of sources that do not tell whether
they changed they are kept for the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray

from visgraft.data.processes import Processes
from visgraft.data.prompt import EncodedDialog
from visgraft.data.sample import Sample
from visgraft.data.sources import Sources
from visgraft.data.tokenizer_and_image_processor import vocabulary_of
from visgraft.disk_cache import Arrays, is_worth_keeping, read_arrays, write_arrays
from visgraft.errors import DiskError
from visgraft.processor import Processor

UNKNOWN = -1  # below it: -2 - n is a bad text, for the n-th of the reasons
_VERSION = 4  # of what is counted; another one wherever prompts are put together in another way
_LARGEST_SHARE = 0.05  # of the time, that writing down what was counted takes

Indices = NDArray[np.int64]


class CountedText(NamedTuple):
    """What came of reading and encoding dialogs of a sample.

    Attributes:
        outcomes: of each dialog, its ids or why it is bad.
        unread: why none of them could be read, which may be otherwise the next time.
        sample: as it was read; None: another process read it.
    """

    outcomes: tuple[EncodedDialog | str, ...]
    unread: str | None = None
    sample: Sample | None = None

    @property
    def reason(self) -> str | None:
        """Why it is bad, by its first dialog that is; None: it is not."""
        return self.unread or next((outcome for outcome in self.outcomes if isinstance(outcome, str)), None)

    @property
    def dialogs(self) -> tuple[EncodedDialog, ...]:
        """Its dialogs that are good."""
        return tuple(outcome for outcome in self.outcomes if not isinstance(outcome, str))

    @property
    def num_tokens(self) -> int:
        """The tokens of these together."""
        return sum(len(dialog.input_ids) for dialog in self.dialogs)


class Lengths(NamedTuple):
    """What is known of some groups of dialogs.

    Attributes:
        tokens: [G], of those dialogs that are good, together.
        is_known: [G], of all its dialogs.
        is_bad: [G], one of its dialogs is.
    """

    tokens: Indices
    is_known: NDArray[np.bool_]
    is_bad: NDArray[np.bool_]


@dataclass
class Told:
    """What one process tells the others of the groups that it has read.

    Attributes:
        places: of their dialogs, one group behind the other; none of a group that could not be read.
        codes: of each of these: its tokens, or -2 - n for the n-th of `reasons`.
        reasons: why texts are bad.
        samples: of each group.
        tokens: of each group, those of its good dialogs.
        num_images: of each group's sample; UNKNOWN where it was not read.
        bad: group -> why it is bad, or could not be read this time.
        texts: group -> what was read of it, as bytes.
    """

    places: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_images: list[int] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    texts: dict[int, bytes] = field(default_factory=dict)

    def add_known(self, sample: int, *, tokens: int, reason: str | None) -> None:
        """Add a group whose dialogs were counted before."""
        self._add(sample, tokens, UNKNOWN, reason)

    def add_read(self, sample: int, text: CountedText, *, places: Sequence[int]) -> None:
        """Add a group that was read; what could not be read may be there the next time."""
        self._add(sample, text.num_tokens, UNKNOWN if text.sample is None else len(text.sample.images), text.reason)
        if text.unread is None:
            self.places += places
            self.codes += [len(o.input_ids) if isinstance(o, EncodedDialog) else self._code(o) for o in text.outcomes]

    def packed(self) -> Told:
        """Return it with arrays in the place of long lists, which travel faster."""
        arrays: dict[str, Any] = {
            name: np.array(getattr(self, name), np.int64)
            for name in ("places", "codes", "samples", "tokens", "num_images")
        }
        return Told(reasons=self.reasons, bad=self.bad, texts=self.texts, **arrays)

    def _add(self, sample: int, tokens: int, num_images: int, reason: str | None) -> None:
        if reason is not None:
            self.bad[len(self.samples)] = reason
        self.samples.append(sample)
        self.tokens.append(tokens)
        self.num_images.append(num_images)

    def _code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return -2 - self.reasons.index(reason)


@dataclass
class TextCounts:
    """The tokens of the dialogs of every sample of some sources, and the images of each sample."""

    sources: Sources
    processor: Processor
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        """Make room; what is known is looked up when it is first asked for."""
        # of each sample, the place of its first dialog
        self.starts: Indices = np.zeros(len(self.sources) + 1, np.int64)
        np.cumsum(self.sources.num_dialogs, out=self.starts[1:])
        self._counts: NDArray[np.int32] | None = None
        self._images = np.full(0, UNKNOWN, np.int16)
        self._reasons: list[str] = []
        self._fingerprint: str | None = None
        self._unsaved_s, self._save_at_s = 0.0, 0.0
        self._remarks: dict[str, str] = {}

    def num_dialogs(self, index: int) -> int:
        """Count the dialogs of a sample, as they were when the sources were opened."""
        return int(self.starts[index + 1] - self.starts[index])

    def look_up(self, places: Indices, *, sizes: Indices) -> Lengths:
        """Return what is known of some groups.

        Args:
            places: of their dialogs, one group behind the other.
            sizes: [G], how many dialogs each group has.
        """
        found = self._known()[places]
        ends = np.cumsum(sizes)

        def total(values: NDArray[Any]) -> Indices:
            sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
            return sums[ends] - sums[ends - sizes]

        return Lengths(total(np.maximum(found, 0)), total(found == UNKNOWN) == 0, total(found < UNKNOWN) > 0)

    def reason(self, places: Indices) -> str | None:
        """Say why the first dialog that is bad is bad; None: none of them is."""
        bad = [code for code in self._known()[places].tolist() if code < UNKNOWN]
        return self._reasons[-2 - bad[0]] if bad else None

    def num_images(self, samples: NDArray[Any]) -> NDArray[np.int16]:
        """Return how many images each sample has; UNKNOWN of one that was never read."""
        self._known()
        return self._images[samples]

    def note(self, told: Told) -> None:
        """Note what a process has read; all must note the same in the same order."""
        counts = self._known()
        codes = np.asarray(told.codes, np.int64)
        for number, reason in enumerate(told.reasons):
            if reason not in self._reasons:
                self._reasons.append(reason)
            codes = np.where(np.asarray(told.codes) == -2 - number, -2 - self._reasons.index(reason), codes)
        counts[np.asarray(told.places, np.int64)] = codes
        num_images = np.asarray(told.num_images, np.int64)
        is_read = num_images != UNKNOWN
        self._images[np.asarray(told.samples, np.int64)[is_read]] = np.minimum(num_images, 32_767)[is_read]

    def remarks(self) -> dict[str, str]:
        """Return what was said of these texts when they were read; all processes must ask for it at the same moment."""
        self._known()
        return self._remarks

    def took(self, seconds: float, *, remarks: Callable[[], Mapping[str, str]] = dict) -> None:
        """Note how long reading and encoding took; what took long is written down, by the first process.

        remarks: what is to be said of these texts by whoever does not read them.
        """
        self._unsaved_s += seconds
        if self.processes.index or self._fingerprint is None or not is_worth_keeping(self._unsaved_s):
            return
        counts = self._known()
        if self._unsaved_s < self._save_at_s and (counts == UNKNOWN).any():
            return
        started = monotonic()
        try:
            self._remarks |= remarks()
            arrays: Arrays = {"counts": counts, "images": self._images, "reasons": np.array(self._reasons, np.str_)}
            arrays["remarks"] = np.array([*self._remarks.items()], np.str_).reshape(-1, 2)
            write_arrays(arrays, fingerprint=self._fingerprint)
        except (OSError, DiskError):  # a full disk, say: it is counted again in the next run
            self._fingerprint = None
        self._unsaved_s, self._save_at_s = 0.0, (monotonic() - started) / _LARGEST_SHARE

    def _known(self) -> NDArray[np.int32]:
        """Return the counts; the first time, take what the first process finds in its cache."""
        if self._counts is None:
            self._counts = np.full(self.starts[-1], UNKNOWN, np.int32)
            self._images = np.full(len(self.starts) - 1, UNKNOWN, np.int16)
            self._fingerprint = self._name()
            kept: Arrays | None = None
            if self.processes.index == 0 and self._fingerprint is not None:
                kept = read_arrays(self._fingerprint)
            kept = self.processes.first(kept) if self._fingerprint is not None else None
            if kept is not None and kept["counts"].shape == self._counts.shape:
                self._counts, self._images = kept["counts"], kept["images"]
                self._reasons = kept["reasons"].tolist()
                self._remarks = dict(kept["remarks"].tolist())
        return self._counts

    def _name(self) -> str | None:
        """Name all that the counts depend on; None: it cannot be told."""
        of_sources = self.sources.fingerprint
        if of_sources is None:
            return None
        processor, tokenizer = self.processor, self.processor.tokenizer
        of_tokenizer = (
            type(tokenizer).__name__,
            vocabulary_of(tokenizer),
            tokenizer.special_tokens_map,
            tokenizer.chat_template,
            {key: str(value) for key, value in tokenizer.init_kwargs.items() if key.startswith(("add_", "legacy"))},
        )
        names = ("max_text_tokens", "max_positions", "images_take_positions", "num_image_tokens", "image_size")
        limits = [getattr(processor, name) for name in names]
        versions = (_VERSION, tokenizers.__version__, transformers.__version__)
        sums = [blake2b(repr(part).encode("utf-8", "surrogatepass")).hexdigest() for part in (of_tokenizer, of_sources)]
        return repr(("tokens of texts", versions, processor.prompt_template, limits, sums))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_counts": None, "_images": None}  # workers get their samples planned
