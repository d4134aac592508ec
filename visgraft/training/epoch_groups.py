"""The groups of an epoch in their order: numbers alone, a pure function of the seed and the epoch.

In: sources and how many chunks the dialogs of each sample make. Out: arrays of samples and chunks, one entry a group.

    groups = order_groups(sources, num_chunks, seed=0, epoch=3, max_dialogs=8, shuffle=True)
    groups.samples[17], groups.chunks[17]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from visgraft.data.dealing import deal_balanced
from visgraft.data.mixing import epoch_order
from visgraft.data.sources import Sources
from visgraft.training.text_counts import Indices


class EpochGroups(NamedTuple):
    """The groups of an epoch in their order.

    Attributes:
        samples, chunks: [G] int32, for of ten million samples every number counts.
        dialogs: where answers are balanced, the dialogs of all groups, one behind the other.
        begins, ends: [G], where in `dialogs` those of each group are; nowhere where its chunk is dealt at random. None
            where no answers are balanced.
    """

    samples: NDArray[Any]
    chunks: NDArray[Any]
    dialogs: Indices
    begins: Indices | None = None
    ends: Indices | None = None


def order_groups(
    sources: Sources, num_chunks: NDArray[Any], *, seed: int, epoch: int, max_dialogs: int, shuffle: bool
) -> EpochGroups:
    """Put the groups of an epoch in their order.

    Args:
        sources: their samples.
        num_chunks: of each sample, how many groups its dialogs make; 0 of a bad one.
        seed, epoch: what the order depends on.
        max_dialogs: of a group.
        shuffle: False: sample after sample.
    """
    samples: NDArray[Any] = np.arange(len(sources), dtype=np.int32)
    if shuffle:
        samples = sources.order(seed=seed, epoch=epoch, balanced=False).astype(np.int32)
    counts = num_chunks[samples]
    if (counts == 1).all():
        chunks = np.zeros(len(samples), np.int32)
    else:
        firsts = np.repeat(np.cumsum(counts, dtype=np.int32) - counts, counts)
        chunks = np.arange(len(firsts), dtype=np.int32) - firsts
        samples = np.repeat(samples, counts)
    picked = sources.balanced_texts(seed=seed, epoch=epoch) if shuffle else None
    dialogs, begins, ends = np.zeros(0, np.int64), None, None
    if picked is not None:
        dealt = deal_balanced(picked, max_dialogs=max_dialogs, seed=seed, epoch=epoch)
        nowhere = np.zeros(len(samples), np.int64)
        samples = np.concatenate([samples, dealt.samples.astype(np.int32)])
        chunks = np.concatenate([chunks, dealt.chunks.astype(np.int32)])
        dialogs = dealt.dialogs
        begins, ends = (np.concatenate([nowhere, part]) for part in (dealt.starts[:-1], dealt.starts[1:]))
    if not shuffle:
        return EpochGroups(samples, chunks, dialogs, begins, ends)
    mixed = epoch_order(len(samples), seed=seed, epoch=epoch)  # again, or the chunks of one image would come together
    stages = [1 if source.entry is None else source.entry.stage for source in sources.opened]
    if len(set(stages)) > 1:
        of_samples = np.repeat(stages, [source.length for source in sources.opened])
        mixed = mixed[np.argsort(of_samples[samples[mixed]], kind="stable")]
    if begins is not None and ends is not None:
        begins, ends = begins[mixed], ends[mixed]
    return EpochGroups(samples[mixed], chunks[mixed], dialogs, begins, ends)
