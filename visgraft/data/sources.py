"""Open the sources of a recipe and put them one behind the other, in an order of nothing but seed and epoch.

In:  the entries of a recipe's `data.train`, `data.validation` or `data.test`. Each is read, gathered by image, divided
     where a share is held out, and adapted: dialogs, videos, web images.
Out: Sources: samples by number, ids unique; the order of an epoch; chunks of a sample's dialogs.

    sources = open_sources(recipe.data.train, key="data.train", settings=recipe.data)
    for index in sources.order(seed=0, epoch=0): sample = sources[index]
"""

from __future__ import annotations

import inspect
import pkgutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from visgraft.config import AugmentSettings, DataSettings, SourceSettings, Strict, unknown_key
from visgraft.data.balance import AnswerBalance, Picked, read_balance, refuse_unfit_balance
from visgraft.data.fingerprint import Fingerprint, describe_images
from visgraft.data.grouping import Grouped, RowSource, sample_key
from visgraft.data.images.opening import is_web_address, short_digest
from visgraft.data.images.remote import RemoteImage
from visgraft.data.images.video import frames_of
from visgraft.data.mixing import epoch_order as epoch_order
from visgraft.data.mixing import is_held_out, mixed_order, temper
from visgraft.data.processes import ALONE, Processes
from visgraft.data.quarantine import BadSample as BadSample
from visgraft.data.quarantine import Part as Part
from visgraft.data.quarantine import Quarantine as Quarantine
from visgraft.data.row_streams import SampleStream
from visgraft.data.sample import ImageRef, Sample, Source, Turn
from visgraft.data.subsets import Subset, Ungrouped, known_counts
from visgraft.errors import BadSampleError, ConfigError, DataError

DialogMode = Literal["as_given", "independent", "conversation"]

# The one table of readers: a function each, whose module is loaded when a recipe asks for it.
READERS = {
    "coco": "visgraft.data.readers.coco:read",
    "easy_vqa": "visgraft.data.readers.easy_vqa:read",
    "folder": "visgraft.data.readers.folder:read",
    "gqa": "visgraft.data.readers.gqa:read",
    "hf": "visgraft.data.readers.hf:read",
    "karpathy": "visgraft.data.readers.karpathy:read",
    "llava": "visgraft.data.readers.parquet:read_one_format",
    "m3it": "visgraft.data.readers.m3it:read",
    "messages": "visgraft.data.readers.parquet:read_one_format",
    "parquet": "visgraft.data.readers.parquet:read",
    "prompt_completion": "visgraft.data.readers.parquet:read_one_format",
    "texts": "visgraft.data.readers.parquet:read_one_format",
    "webdataset": "visgraft.data.readers.webdataset:read",
}


def open_sources(
    entries: Sequence[SourceSettings],
    *,
    key: str = "data.train",
    settings: DataSettings | None = None,
    processes: Processes = ALONE,
) -> Sources:
    """Open every source of a list; key is what messages call the list, settings are what holds for all of them.

    With several processes, all of them open the list at the same moment, and each reads its part of what must be read.

    Raises ConfigError for an empty list, a source or an option that does not exist, and what the readers raise.
    """
    settings = settings or DataSettings()
    if not entries:
        raise ConfigError(f"{key}: names no data; give it a source ({{source: folder, path: ...}}), or `visgraft init`")
    readers = [reader_of(entry, key=f"{key}.{number}", processes=processes) for number, entry in enumerate(entries)]
    part = part_of(key)
    refuse_unfit_balance(entries, key=key, settings=settings)
    opened: list[OpenSource] = []
    for name, entry, read in zip(name_sources(entries), entries, readers, strict=True):
        samples, notes = _open(entry, read, settings=settings, is_training=part == "train", processes=processes)
        length = len(samples) if entry.limit is None else min(entry.limit, len(samples))
        opened.append(OpenSource(name, samples, length=length, weight=entry.weight, notes=notes, entry=entry))
    temperature = settings.mixing_temperature if part == "train" else 1.0
    if settings.group_across_sources and len(opened) > 1:
        opened = [_gather_all(opened, temperature=temperature, processes=processes)]
    return Sources(opened, settings=settings, part=part, processes=processes)


def part_of(key: str) -> Part:
    """Return which list of a recipe a key names: `data.validation` is that of validation."""
    return next((part for part in get_args(Part) if part == key.rpartition(".")[2]), "train")


def name_sources(entries: Sequence[SourceSettings]) -> list[str]:
    """Name every source of a list after its reader; the second of a kind is `coco-2`."""
    names: Counter[str] = Counter()
    named = []
    for entry in entries:
        names[entry.source] += 1
        named.append(entry.source if names[entry.source] == 1 else f"{entry.source}-{names[entry.source]}")
    return named


def _open(
    entry: SourceSettings,
    read: Callable[..., Source],
    *,
    settings: DataSettings,
    is_training: bool,
    processes: Processes,
) -> tuple[Source, Sequence[str]]:
    """Open one source: read, gather by image, divide, adapt; return it and what its reader has to say."""
    path = None if entry.path is None else Path(entry.path).expanduser()
    samples = read(path, split=entry.split if isinstance(entry.split, str) else "train")
    if isinstance(samples, SampleStream):
        raise ConfigError(
            f"{entry.source}: streaming: true, but this needs samples that can be read by number, in any order; leave "
            "streaming out (hf: or add take: N)"
        )
    notes: Sequence[str] = getattr(samples, "notes", ())
    if entry.group in ("path", "content") or (entry.group == "auto" and isinstance(samples, RowSource)):
        samples = Grouped(samples, by_content=entry.group == "content", processes=processes)
    elif entry.group == "none" and isinstance(samples, RowSource):
        samples = Grouped(samples, by_content=False, alone=True, processes=processes)
    elif entry.group == "none" and (counts := known_counts(samples)) is not None:
        samples = Ungrouped(samples, counts)
    if entry.held_out:
        samples = _hold_out(samples, share=entry.held_out, held_out=not is_training)
        if not len(samples):
            raise DataError(
                f"{entry.source}: split: {entry.held_out:.2%} held out of {entry.path or 'it'} leaves nothing on one "
                "side, as there are not two images; give it more data or another split"
            )
    return adapt(samples, entry=entry, settings=settings), notes


def _gather_all(opened: list[OpenSource], *, temperature: float, processes: Processes) -> OpenSource:
    if any(entry.weight != 1.0 for entry in opened) or temperature != 1.0:
        raise ConfigError(
            "data.group_across_sources: is true, but sources have weights or mixing_temperature is set; texts that "
            "share an image come equally often, so leave weights and mixing_temperature at 1"
        )
    samples = Grouped(Sources(opened), by_content=False, processes=processes)
    return OpenSource(name="all", samples=samples, length=len(samples))


def reader_of(entry: SourceSettings, *, key: str, processes: Processes = ALONE) -> Callable[..., Source]:
    """Return the entry's reader with its options, once every one of them is known to exist and fit."""
    if entry.source not in READERS:
        near = get_close_matches(entry.source, READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(READERS))}"
        raise ConfigError(f"{key}.source: no reader is named {entry.source!r}; {hint}")
    read = pkgutil.resolve_name(READERS[entry.source])
    hints = get_type_hints(read, include_extras=True)
    parameters = inspect.signature(read).parameters
    ours = {"split": None, "reader": entry.source, "processes": processes}  # not the recipe's
    options = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in ours]
    for name in entry.options:
        if name not in options:
            settings = [field.name for field in fields(SourceSettings) if field.name != "options"]
            raise unknown_key(name, allowed=[*options, *settings], path=key)
    strict = Strict(SourceSettings)
    given = {name: strict.convert(value, hints[name], f"{key}.{name}") for name, value in entry.options.items()}
    return partial(read, **given, **{name: ours[name] for name in ("reader", "processes") if name in parameters})


# --- One source, seen as its entry says


class Adapted:
    """Arrange a source's dialogs and images as a recipe asks for; see Source."""

    def __init__(
        self,
        source: Source,
        *,
        dialogs: DialogMode = "as_given",
        num_frames: int = 8,
        frame_spacing_s: float | None = None,
        allow_remote_images: bool = False,
        private_hosts: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self._mode = dialogs
        self._num_frames = num_frames
        self._frame_spacing_s = frame_spacing_s
        self._allow_remote_images = allow_remote_images
        self._private_hosts = private_hosts

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        images = [adapted for image in sample.images for adapted in self._adapt(image)]
        return replace(sample, images=images, dialogs=_arrange(sample.dialogs, mode=self._mode))

    def where(self, index: int) -> str:
        """Say what the source says."""
        return self.source.where(index)

    @property
    def num_dialogs(self) -> NDArray[np.int64] | None:
        """The dialogs of each sample; None where they are not known without reading."""
        counts = known_counts(self.source)
        if counts is None or self._mode == "independent":
            return None
        return np.minimum(counts, 1) if self._mode == "conversation" else counts

    def _adapt(self, image: ImageRef) -> list[ImageRef]:
        if is_web_address(image):
            return [RemoteImage(str(image), self._private_hosts)] if self._allow_remote_images else [image]
        return frames_of(image, num_frames=self._num_frames, spacing_s=self._frame_spacing_s)


def adapt(source: Source, *, entry: SourceSettings, settings: DataSettings) -> Adapted:
    """Adapt a source to its entry in a recipe, and to what the recipe says of all."""
    return Adapted(
        source,
        dialogs=entry.dialogs,
        num_frames=entry.num_frames,
        frame_spacing_s=entry.frame_spacing_s,
        allow_remote_images=settings.allow_remote_images,
        private_hosts=settings.allow_private_hosts,
    )


def _arrange(dialogs: Sequence[Sequence[Turn]], *, mode: DialogMode) -> list[Sequence[Turn]]:
    if mode == "conversation":
        return [[turn for dialog in dialogs for turn in dialog]]
    if mode == "independent":
        return [[turn] for dialog in dialogs for turn in dialog]
    return list(dialogs)


def _hold_out(source: Source, *, share: float, held_out: bool) -> Subset:
    """Return the share of a source that is held out, or the rest: by a hash of the images, else of the texts.

    A bad sample belongs to the rest.
    """
    keys, good = [], []
    known = source.keys if isinstance(source, Grouped) else None
    for index in range(len(source)):
        key = None if known is None else bytes(known[index])
        if not key:
            try:
                sample = source[index]
                key = sample_key(sample, by_content=False) or repr(sample.dialogs).encode()
            except BadSampleError:
                continue
        keys.append(key)
        good.append(index)
    chosen = np.zeros(len(source), dtype=np.bool_)
    chosen[np.array(good, dtype=np.int64)] = is_held_out(keys, share=share)
    return Subset(source, np.flatnonzero(chosen == held_out).astype(np.int64))


# --- All of them together


@dataclass(frozen=True)
class OpenSource:
    """Hold one source among others.

    Attributes:
        name: of the source among the others.
        samples: all of them.
        length: how many of them count, the first ones.
        weight: how often they are seen in an epoch.
        notes: what the reader has to say.
        entry: the recipe's; None of what is no entry's.
    """

    name: str
    samples: Source
    length: int
    weight: float = 1.0
    notes: Sequence[str] = ()
    entry: SourceSettings | None = None

    def described(self) -> dict[str, str]:
        """Describe what is read without reading it: its files, its image files, which samples."""
        found = {"samples": f"{self.length:,}"}
        for layer in layers(self.samples):
            if isinstance(getattr(layer, "fingerprint", None), Fingerprint):
                found |= layer.fingerprint.described()
            if isinstance(layer, Subset):
                found["split"] = f"{len(layer):,} samples, sum {short_digest(layer.indices.tobytes()).hex()}"
            images = describe_images(getattr(layer, "image_files", ()))
            if images is not None:
                found["images"] = images
        return found


def layers(source: Any) -> Iterator[Any]:
    """List a source and what it is made of, down to what its reader returned."""
    while source is not None:
        yield source
        source = getattr(source, "source", None)


class Sources:
    """Hold several sources one behind the other: sources[i] is a sample whose id is `source:id`."""

    def __init__(
        self,
        opened: Sequence[OpenSource],
        *,
        settings: DataSettings | None = None,
        part: Part = "train",
        processes: Processes = ALONE,
    ) -> None:
        self.opened = tuple(opened)
        self.settings = settings or DataSettings()
        self.part = part
        self._processes = processes
        self.augment = self.settings.augment if part == "train" else AugmentSettings()
        self._temperature = self.settings.mixing_temperature if part == "train" else 1.0
        self._starts = list(accumulate((entry.length for entry in opened), initial=0))
        self._counts: list[NDArray[Any] | None] = [None] * len(self.opened)
        self._balances: dict[int, AnswerBalance] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """Read a sample; raises BadSampleError where it is bad."""
        entry, inner = self.find(index)
        sample = entry.samples[inner]
        if sample.source is not None:  # it was gathered from several sources and has its name
            return sample
        return replace(sample, id=f"{entry.name}:{inner if sample.id is None else sample.id}", source=entry.name)

    def where(self, index: int) -> str:
        """Say where a user finds that sample."""
        entry, inner = self.find(index)
        return entry.samples.where(inner)

    def bad_sample(self, index: int, reason: str) -> BadSample:
        """Say of a bad sample what its line in quarantine.jsonl says."""
        entry, inner = self.find(index)
        where = entry.samples.where(inner)
        return BadSample(source=entry.name, index=inner, where=where, reason=reason, part=self.part)

    @property
    def num_dialogs(self) -> NDArray[np.int64]:
        """The dialogs of each sample, 0 of a bad one; what no source knows is read, once."""
        return np.concatenate([np.zeros(0, np.int64), *(self._count(number) for number in range(len(self.opened)))])

    @cached_property
    def num_texts(self) -> dict[str, int]:
        """The texts of each source, bad samples apart."""
        return {entry.name: int(self._count(number).sum()) for number, entry in enumerate(self.opened)}

    def described(self) -> dict[str, dict[str, str]]:
        """Describe by name what each source reads, without reading it; those gathered into one come behind it."""
        found: dict[str, dict[str, str]] = {}
        for entry in self.opened:
            found[entry.name] = {**entry.described(), "texts": f"{self.num_texts[entry.name]:,}"}
            for layer in layers(entry.samples):
                if isinstance(layer, Sources):
                    found |= {inner.name: inner.described() for inner in layer.opened}
        return found

    @property
    def fingerprint(self) -> str | None:
        """Name the texts and how they are read: another name wherever a file or an option changed.

        None where that is not known: of a source that tells no files, or is gathered by what its images hold.
        """
        return self._fingerprint(self.opened)

    def _fingerprint(self, opened: Sequence[OpenSource]) -> str | None:
        named: list[object] = []
        for entry in opened:
            below = list(layers(entry.samples))
            known = [layer.fingerprint for layer in below if getattr(layer, "fingerprint", None) is not None]
            if not known or (entry.entry is not None and entry.entry.group == "content"):
                return None
            split = [short_digest(layer.indices.tobytes()).hex() for layer in below if isinstance(layer, Subset)]
            named.append((entry.name, entry.length, entry.entry, known, split))
        return repr(named)

    @property
    def weights(self) -> list[float]:
        """How often each source comes in an epoch, its own epochs, after the mixing temperature."""
        weights = [entry.weight for entry in self.opened]
        if self._temperature == 1.0:
            return weights
        return temper(weights, num_texts=list(self.num_texts.values()), temperature=self._temperature)

    def order(self, *, seed: int, epoch: int, balanced: bool = True) -> NDArray[np.int64]:
        """Return the numbers of the samples in the order of an epoch, the texts of each source weight times.

        A weight of 2.5 brings every sample twice and half of the texts a third time, other ones each epoch. With
        balanced=False sources whose answers are balanced are left out: of those, `balanced_texts` tells.
        """
        weights = [
            weight if balanced or not is_balanced(entry) else 0.0
            for entry, weight in zip(self.opened, self.weights, strict=True)
        ]
        counts = [
            np.ones(entry.length, np.int64) if weight.is_integer() else self._count(number)
            for number, (entry, weight) in enumerate(zip(self.opened, weights, strict=True))
        ]
        return mixed_order(counts, weights=weights, seed=seed, epoch=epoch)

    def balanced_texts(self, *, seed: int, epoch: int) -> Picked | None:
        """Return the texts of an epoch of all sources whose answers are balanced; None: there is no such source."""
        picked = [
            self.balance(number).epoch(epoch, seed=seed, weight=weight)
            for number, (entry, weight) in enumerate(zip(self.opened, self.weights, strict=True))
            if is_balanced(entry)
        ]
        if not picked:
            return None
        starts = [start for start, entry in zip(self._starts, self.opened, strict=False) if is_balanced(entry)]
        samples = np.concatenate([start + each.samples for start, each in zip(starts, picked, strict=True)])
        return Picked(samples, *(np.concatenate(parts) for parts in zip(*(each[1:] for each in picked), strict=True)))

    def balance(self, number: int) -> AnswerBalance:
        """Return prompts and answers of a source, which are read once."""
        if number not in self._balances:
            entry = self.opened[number]
            fingerprint = self._fingerprint([entry])
            self._balances[number] = read_balance(entry.samples, length=entry.length, fingerprint=fingerprint)
        return self._balances[number]

    def find(self, index: int) -> tuple[OpenSource, int]:
        """Return the source of a sample and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self.opened[number], index - self._starts[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_balances": {}}  # workers get their samples planned

    def _count(self, number: int) -> NDArray[Any]:
        entry, counts = self.opened[number], self._counts[number]
        if counts is None:
            known = known_counts(entry.samples)
            counts = _count_by_reading(entry, self._processes) if known is None else known[: entry.length]
            self._counts[number] = counts
        return counts


def is_balanced(entry: OpenSource) -> bool:
    """Say whether each answer of a prompt comes equally often."""
    return entry.entry is not None and entry.entry.balance is not None


def _count_by_reading(entry: OpenSource, processes: Processes) -> NDArray[np.int32]:
    own = processes.share(entry.length)
    counts = np.zeros(len(own), np.int32)
    for place, index in enumerate(own):
        try:
            counts[place] = len(entry.samples[index].dialogs)
        except BadSampleError:
            continue  # asking for it gives the reason
    return np.concatenate(processes.gather([counts]))
