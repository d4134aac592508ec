"""Which images stand in training and in validation, as far as it is known without reading anything.

In:  opened sources of both. Out: how many validation images training has too, of how many.

    shared, of = image_overlap(train, validation)

Images are compared by what gathers texts about them: by path, inlined ones by content. Copies of a file under another
name are found by `visgraft data check`, which opens them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from visgraft.data.grouping import Grouped
from visgraft.data.images.opening import KEY_BYTES, image_key
from visgraft.data.sources import OpenSource, Sources, layers
from visgraft.data.subsets import Subset

Keys = NDArray[np.bytes_]


def image_overlap(train: Sources, validation: Sources) -> tuple[int, int]:
    """Count the different validation images that are known, and those of them that training has too."""
    wanted = np.unique(_known_keys(validation))
    return int(np.isin(wanted, _known_keys(train)).sum()), len(wanted)


def _known_keys(sources: Sources) -> Keys:
    return np.concatenate([np.zeros(0, dtype=f"S{KEY_BYTES + 1}"), *(k for e in sources.opened for k in _keys_of(e))])


def _keys_of(entry: OpenSource) -> Iterator[Keys]:
    """Give the keys of a source's images, if they are known for each of its samples."""
    chosen = np.arange(entry.length)
    for layer in layers(entry.samples):
        if isinstance(layer, Subset):
            chosen = layer.indices[chosen]
        elif isinstance(layer, Grouped):
            if layer.keys is not None:
                keys = layer.keys[chosen]
                yield keys[keys != b""]
            return
        elif hasattr(layer, "image_files"):
            files = layer.image_files
            if len(files) == len(layer):
                named = [image_key(files[index], by_content=False) + b"." for index in chosen.tolist()]
                yield np.array(named, dtype=f"S{KEY_BYTES + 1}")
            return
        elif len(layer) != len(entry.samples):
            return  # its samples are numbered in another way
