"""How often each sample of several sources comes in an epoch: weights per text, temperature, shares held out.

In:  numbers of samples and of their dialogs, weights, seed and epoch. Out: indices; pure functions of their arguments.

    order = mixed_order(counts=[...], weights=[1.0, 2.5], seed=0, epoch=3)
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def epoch_order(num_groups: int, *, seed: int, epoch: int) -> Indices:
    """Return a permutation of range(num_groups) that depends on nothing but its arguments, on every platform."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_groups)


def mixed_order(counts: Sequence[Indices], *, weights: Sequence[float], seed: int, epoch: int) -> Indices:
    """Return the samples of an epoch in their order, sources numbered through one behind the other.

    counts: for each source the dialogs of each of its samples. weights: how often the texts of each source come; 2.5
    brings every sample twice and a half of the texts a third time, others each epoch.
    """
    chosen, start = [np.zeros(0, np.int64)], 0
    for dialogs, weight in zip(counts, weights, strict=True):
        chosen.append(start + _times(dialogs, weight, seed=seed, epoch=epoch))
        start += len(dialogs)
    everything = np.concatenate(chosen)
    return everything[epoch_order(len(everything), seed=seed, epoch=epoch)]


def _times(dialogs: Indices, weight: float, *, seed: int, epoch: int) -> Indices:
    """Repeat range(n) weight times; the fraction is a window of texts that wanders over one fixed permutation.

    A sample is in the window where its first text is, so that an epoch is off by less than one sample's texts.
    """
    whole = np.tile(np.arange(len(dialogs)), int(weight))
    rest = round((weight - int(weight)) * int(dialogs.sum()))
    if not rest:
        return whole
    shuffled = epoch_order(len(dialogs), seed=seed, epoch=0)
    total = int(dialogs.sum())
    begin = epoch * rest % total
    first_text = np.cumsum(dialogs[shuffled]) - dialogs[shuffled]
    is_inside = ((first_text - begin) % total < rest) & (dialogs[shuffled] > 0)
    return np.concatenate([whole, shuffled[is_inside]])


def temper(weights: Sequence[float], *, num_texts: Sequence[int], temperature: float) -> list[float]:
    """Return weights that draw sources in proportion to (weight x texts) ** (1 / temperature).

    The texts of an epoch stay as many. At 1 nothing changes; at large temperatures all sources come equally often.
    """
    sizes = [weight * texts for weight, texts in zip(weights, num_texts, strict=True)]
    if temperature == 1.0 or not sum(sizes):
        return list(weights)
    flat = [size ** (1 / temperature) if size else 0.0 for size in sizes]
    scale = sum(sizes) / sum(flat)
    return [scale * part / texts if texts else 0.0 for part, texts in zip(flat, num_texts, strict=True)]


def is_held_out(keys: Sequence[bytes], *, share: float) -> NDArray[np.bool_]:
    """Say of each sample whether it is held out: the share of images whose keys have the lowest hashes.

    Samples of the same image stay on one side, and which side it is does not depend on their order. At least one
    image is held out and at least one is left, where there are two.
    """
    hashes = np.array([int.from_bytes(blake2b(key, digest_size=8).digest()) for key in keys], dtype=np.uint64)
    unique = np.unique(hashes)
    if len(unique) < 2:
        return np.zeros(len(hashes), dtype=np.bool_)
    number = min(max(1, round(share * len(unique))), len(unique) - 1)
    return hashes < unique[number]
