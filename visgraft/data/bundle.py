"""Carry all tensors of an object in one piece of memory, as between processes each piece is a file descriptor.

In: an object that can be pickled. Out: a `Bundle`; and back, the object, its tensors views of the one buffer.

    bundle = make_bundle(step)          # in the worker
    step = bundle.open()                # in the main process
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes, as torch aligns tensors of their own


class _Place(NamedTuple):
    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True)
class Bundle:
    """An object in two pieces.

    Attributes:
        buffer: [bytes] uint8, all tensors one behind the other.
        places: where in it which tensor lies.
        rest: the object without them, pickled.
    """

    buffer: Tensor
    places: tuple[_Place, ...]
    rest: bytes

    def pin_memory(self) -> Bundle:
        """Return it in page-locked memory, from where copies to a GPU can overlap with work; data loaders call this."""
        return replace(self, buffer=self.buffer.pin_memory())

    def open(self) -> Any:
        """Return the object; its tensors share the buffer."""
        return _Unpickler(self).load()


def make_bundle(value: Any) -> Bundle:
    """Bundle an object; tensors are copied."""
    file = BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    places, end = [], 0
    for tensor in pickler.tensors:
        places.append(_Place(end, tensor.nbytes, tensor.dtype, tensor.shape))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8)
    for place, tensor in zip(places, pickler.tensors, strict=True):
        _view(buffer, place).copy_(tensor)
    return Bundle(buffer, tuple(places), file.getvalue())


def _view(buffer: Tensor, place: _Place) -> Tensor:
    return buffer[place.offset : place.offset + place.num_bytes].view(place.dtype).view(place.shape)


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, bundle: Bundle) -> None:
        super().__init__(BytesIO(bundle.rest))
        self._bundle = bundle

    def persistent_load(self, number: int) -> Tensor:
        return _view(self._bundle.buffer, self._bundle.places[number])
