"""How many tokens each text becomes, found out once: steps are planned from these counts, and no text is read for it.

In: sources, a processor, and which of the processes this is. Out: the tokens of dialogs; what is not known yet is read
and encoded when a plan gets there, by one process for all of them.

    counts = TextCounts(sources, processor)
    counts.look_up(17, [0, 1])               # 24 tokens, and a reason if one of them is bad; None: nobody has read them
    counts.note(17, [0, 1], text)            # now somebody has

Counts are kept in the cache on disk under a name of all they depend on: files and options of the sources, tokenizer,
template, longest text. Of sources that do not tell whether they changed they are kept for the run.
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
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from visgraft.data.prompt import EncodedDialog
from visgraft.data.sample import Sample
from visgraft.data.sources import Sources
from visgraft.data.tokenizer_and_image_processor import vocabulary_of
from visgraft.disk_cache import Arrays, is_worth_keeping, read_arrays, write_arrays
from visgraft.errors import DiskError
from visgraft.processor import Processor

UNKNOWN = -1  # below it: -2 - n is a bad text, for the n-th of the reasons
_VERSION = 3  # of what is counted; another one wherever prompts are put together in another way
_LARGEST_SHARE = 0.05  # of the time, that writing down what was counted takes


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


class Known(NamedTuple):
    """The tokens of those dialogs that are good, together, and why the first bad one is bad (None: all are good)."""

    num_tokens: int
    reason: str | None


@dataclass(frozen=True)
class Processes:
    """Which of the processes of a run this is; all of them plan the same, at the same moments."""

    index: int = 0
    number: int = 1

    def gather(self, values: list[Any]) -> list[Any]:
        """Return the values of all, one process behind the other."""
        return list(gather_object(values)) if self.number > 1 else values

    def first(self, value: Any) -> Any:
        """Return the value of the first one."""
        values = [value]
        if self.number > 1:
            broadcast_object_list(values)
        return values[0]


@dataclass
class TextCounts:
    """The tokens of the dialogs of every sample of some sources."""

    sources: Sources
    processor: Processor
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        """Make room; what is known is looked up when it is first asked for."""
        ends = np.cumsum(self.sources.num_dialogs)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])
        self._counts: NDArray[np.int32] | None = None
        self._reasons: list[str] = []
        self._fingerprint: str | None = None
        self._unsaved_s, self._save_at_s = 0.0, 0.0
        self._remarks: dict[str, str] = {}

    def num_dialogs(self, index: int) -> int:
        """Count the dialogs of a sample, as they were when the sources were opened."""
        return int(self._starts[index + 1] - self._starts[index])

    def look_up(self, index: int, numbers: Sequence[int] | None = None) -> Known | None:
        """Return what is known of some dialogs of a sample, of all without `numbers`; None: one is not known."""
        found = self._of(index, numbers)
        bad = found[found < 0]
        if (bad == UNKNOWN).any():
            return None
        return Known(int(found[found >= 0].sum()), self._reasons[-2 - int(bad[0])] if len(bad) else None)

    def note(self, index: int, numbers: Sequence[int] | None, text: CountedText) -> None:
        """Note what came of reading dialogs of a sample; what could not be read may be there the next time."""
        if text.unread is not None:
            return
        start, end = self._starts[index : index + 2]
        found = [len(o.input_ids) if isinstance(o, EncodedDialog) else self._code(o) for o in text.outcomes]
        self._known()[start:end][slice(None) if numbers is None else list(numbers)] = found

    def _code(self, reason: str) -> int:
        if reason not in self._reasons:
            self._reasons.append(reason)
        return -2 - self._reasons.index(reason)

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
            arrays = {"counts": counts, "reasons": np.array(self._reasons, np.str_)}
            arrays["remarks"] = np.array([*self._remarks.items()], np.str_).reshape(-1, 2)
            write_arrays(arrays, fingerprint=self._fingerprint)
        except (OSError, DiskError):  # a full disk, say: it is counted again in the next run
            self._fingerprint = None
        self._unsaved_s, self._save_at_s = 0.0, (monotonic() - started) / _LARGEST_SHARE

    def _of(self, index: int, numbers: Sequence[int] | None) -> NDArray[np.int32]:
        start, end = self._starts[index : index + 2]
        counts = self._known()[start:end]
        return counts if numbers is None else counts[list(numbers)]

    def _known(self) -> NDArray[np.int32]:
        """Return the counts; the first time, take what the first process finds in its cache."""
        if self._counts is None:
            self._counts = np.full(self._starts[-1], UNKNOWN, np.int32)
            self._fingerprint = self._name()
            kept: Arrays | None = None
            if self.processes.index == 0 and self._fingerprint is not None:
                kept = read_arrays(self._fingerprint)
            kept = self.processes.first(kept) if self._fingerprint is not None else None
            if kept is not None and kept["counts"].shape == self._counts.shape:
                self._counts, self._reasons = kept["counts"], kept["reasons"].tolist()
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
        return {**self.__dict__, "_counts": None}  # workers get their samples planned
