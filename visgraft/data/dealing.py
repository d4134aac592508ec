"""Deal the texts about an image over the prefixes that they stand behind.

In:  how many texts may share a prefix; the dialogs of a sample, or the texts of an epoch whose answers are balanced.
Out: samples with some of the dialogs each; groups, each the dialogs of one sample.

    chunks = chunk_dialogs(sample, max_dialogs=8, rng=Random("0 0 17"))
    dealt = deal_balanced(picked, max_dialogs=8, seed=0, epoch=3)
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from random import Random
from typing import NamedTuple

import numpy as np

from visgraft.data.balance import Picked
from visgraft.data.mixing import Indices, epoch_order
from visgraft.data.sample import Sample


def chunk_dialogs(sample: Sample, *, max_dialogs: int, rng: Random) -> list[Sample]:
    """Deal a sample's dialogs at random into as few samples of at most max_dialogs as will do, evenly filled."""
    dealt = deal_dialogs(len(sample.dialogs), max_dialogs=max_dialogs, rng=rng)
    if len(dealt) == 1:
        return [sample]
    return [replace(sample, dialogs=[sample.dialogs[number] for number in numbers]) for numbers in dealt]


def deal_dialogs(num_dialogs: int, *, max_dialogs: int, rng: Random) -> list[list[int]]:
    """Say which dialogs of a sample with so many `chunk_dialogs` puts together, in their order."""
    num_chunks = ceil(num_dialogs / max_dialogs)
    if num_chunks <= 1:
        return [list(range(num_dialogs))]
    numbers = rng.sample(range(num_dialogs), num_dialogs)
    return [numbers[first::num_chunks] for first in range(num_chunks)]


class Dealt(NamedTuple):
    """Texts of an epoch put together behind their images.

    Attributes:
        samples: of each group.
        chunks: number of the group among those of its sample.
        starts: [G + 1], where the dialogs of each group begin in `dialogs`.
        dialogs: numbers of the dialogs, group by group.
    """

    samples: Indices
    chunks: Indices
    starts: Indices
    dialogs: Indices


def deal_balanced(picked: Picked, *, max_dialogs: int, seed: int, epoch: int) -> Dealt:
    """Put the texts of an epoch behind their images: those of a sample together, at random, at most so many.

    What comes a second time in an epoch comes in another group, that is at another moment.
    """
    samples, dialogs, copies = picked
    by_image = np.lexsort((epoch_order(len(samples), seed=seed, epoch=epoch), copies, samples))
    starts = _starts(samples[by_image], copies[by_image])
    sizes = np.diff(starts)
    place = np.arange(len(samples)) - np.repeat(starts[:-1], sizes)
    part = np.empty(len(samples), np.int64)
    part[by_image] = place % np.repeat(-(-sizes // max_dialogs), sizes)
    in_order = np.lexsort((dialogs, part, copies, samples))
    starts = _starts(samples[in_order], copies[in_order], part[in_order])
    of_groups = samples[in_order][starts[:-1]]
    firsts = _starts(of_groups)
    chunks = np.arange(len(of_groups)) - np.repeat(firsts[:-1], np.diff(firsts))
    return Dealt(of_groups, chunks, starts, dialogs[in_order])


def _starts(*keys: Indices) -> Indices:
    """Say where stretches of equal keys begin, and at last where the end is."""
    is_new = np.zeros(len(keys[0]), np.bool_)
    for key in keys:
        is_new |= np.diff(key, prepend=-1) != 0
    return np.append(np.flatnonzero(is_new), len(is_new))
