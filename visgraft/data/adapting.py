"""Adapt a reader's samples to what a recipe says of a source: dialogs, videos, web images, shares held out.

In:  a Source and settings. Out: a Source.

    source = Adapted(source, dialogs="conversation", num_frames=8, frame_spacing_s=None, allow_remote_images=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.grouping import Grouped, sample_key
from visgraft.data.images.opening import is_web_address
from visgraft.data.images.remote import RemoteImage
from visgraft.data.images.video import frames_of
from visgraft.data.mixing import hold_out
from visgraft.data.sample import ImageRef, Sample, Source, Turn
from visgraft.errors import BadSampleError

DialogMode = Literal["as_given", "independent", "conversation"]


def known_counts(source: Source) -> NDArray[np.int64] | None:
    """Return the dialogs of each sample where the source knows them (0: a bad sample); None: it must be read."""
    counts: NDArray[np.int64] | None = getattr(source, "num_dialogs", None)
    return counts


class Adapted:
    """Give a source's samples the form that a recipe asks for; see Source."""

    def __init__(
        self,
        source: Source,
        *,
        dialogs: DialogMode = "as_given",
        num_frames: int = 8,
        frame_spacing_s: float | None = None,
        allow_remote_images: bool = False,
    ) -> None:
        self.source = source
        self._mode = dialogs
        self._num_frames = num_frames
        self._frame_spacing_s = frame_spacing_s
        self._allow_remote_images = allow_remote_images

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
        """The dialogs of each sample, where they are known without reading."""
        counts = known_counts(self.source)
        if counts is None or self._mode == "independent":
            return None
        return np.minimum(counts, 1) if self._mode == "conversation" else counts

    def _adapt(self, image: ImageRef) -> list[ImageRef]:
        if is_web_address(image):
            return [RemoteImage(str(image))] if self._allow_remote_images else [image]
        return frames_of(image, num_frames=self._num_frames, spacing_s=self._frame_spacing_s)


def adapt(source: Source, *, entry: SourceSettings, settings: DataSettings) -> Adapted:
    """Adapt a source to its entry in a recipe, and to what the recipe says of all."""
    return Adapted(
        source,
        dialogs=entry.dialogs,
        num_frames=entry.num_frames,
        frame_spacing_s=entry.frame_spacing_s,
        allow_remote_images=settings.allow_remote_images,
    )


def _arrange(dialogs: Sequence[Sequence[Turn]], *, mode: DialogMode) -> list[Sequence[Turn]]:
    if mode == "conversation":
        return [[turn for dialog in dialogs for turn in dialog]]
    if mode == "independent":
        return [[turn] for dialog in dialogs for turn in dialog]
    return list(dialogs)


class Apart:
    """Give every dialog of a source that comes gathered by image a sample of its own; see Source."""

    def __init__(self, source: Source, counts: NDArray[np.int64]) -> None:
        self.source = source
        times = np.maximum(counts, 1)  # a bad sample stays one
        self._samples = np.repeat(np.arange(len(counts)), times)
        self._dialogs = np.arange(len(self._samples)) - np.repeat(np.cumsum(times) - times, times)
        self.num_dialogs = np.minimum(counts, 1)[self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample, number = self.source[int(self._samples[index])], int(self._dialogs[index])
        name = sample.id if sample.id is None or len(sample.dialogs) < 2 else f"{sample.id}#{number}"
        return replace(sample, dialogs=sample.dialogs[number : number + 1], id=name)

    def where(self, index: int) -> str:
        """Say what the source says of all the rows about the image."""
        return self.source.where(int(self._samples[index]))


class Part:
    """Hold some samples of a source; see Source."""

    def __init__(self, source: Source, indices: NDArray[np.int64]) -> None:
        self.source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self._indices[index])]

    def where(self, index: int) -> str:
        """Say what the source says."""
        return self.source.where(int(self._indices[index]))

    @property
    def num_dialogs(self) -> NDArray[np.int64] | None:
        """The dialogs of each sample, where they are known without reading."""
        counts = known_counts(self.source)
        return None if counts is None else counts[self._indices]


def divide(source: Source, *, share: float, held_out: bool) -> Part:
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
    chosen[np.array(good, dtype=np.int64)] = hold_out(keys, share=share)
    return Part(source, np.flatnonzero(chosen == held_out).astype(np.int64))
