"""Let whole numbers keep their values where everything else is fake, so that code that reads them runs.

In: fake tensors of which the whole numbers and truth values have real ones beside them (masks, positions, counts). Out:
the same operations, carried out on both; what is read (`torch.equal`, an index by a mask) is read off the real ones.

    with FakeTensorMode() as fake, KnownValues(fake) as values:
        ids = values.make(real_ids)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

MAX_ELEMENTS = 2**27  # of a mask whose values are carried along
READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_aten = torch.ops.aten
BY_INDEX = {_aten.index, _aten._unsafe_index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class KnownValues(TorchDispatchMode):
    """Carry the values of whole numbers along."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake
        self._values = WeakIdKeyDictionary()

    def make(self, real: Tensor) -> Tensor:
        """Make a fake tensor of a real one; whole numbers keep their values."""
        assert not isinstance(real, FakeTensor), "a fake tensor has no values to keep"
        with _disable_current_modes():
            fake = self._fake.from_tensor(real)
        if not real.is_floating_point():
            self._values[fake] = real
        return fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation on what is fake and, where all its inputs are known, on the values."""
        kwargs = dict(kwargs or {})
        is_known = self._is_known(func, args, kwargs)
        if is_known and not READS_VALUES.isdisjoint(func.tags):
            return tree_map(
                lambda leaf: self.make(leaf) if isinstance(leaf, Tensor) else leaf, self._real(func, args, kwargs)
            )
        if func.overloadpacket in BY_INDEX:
            args = (args[0], self._by_place(args[1]), *args[2:])
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        if is_known and made and not any(tensor.is_floating_point() or _is_large(tensor) for tensor in made):
            real = [leaf for leaf in tree_leaves(self._real(func, args, kwargs)) if isinstance(leaf, Tensor)]
            self._values.update(zip(made, real, strict=True))
        elif func._schema.is_mutable:
            for tensor in made:
                self._values.pop(tensor, None)
        return out

    def _is_known(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return func.namespace == "aten" and all(
            leaf in self._values if isinstance(leaf, FakeTensor) else not leaf.is_floating_point() for leaf in leaves
        )

    def _real(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        own = tree_map(lambda leaf: self._values[leaf] if isinstance(leaf, FakeTensor) else leaf, (args, kwargs))
        with _disable_current_modes():
            return func(*own[0], **own[1])

    def _by_place(self, indices: Any) -> list[Any]:
        """Turn masks among the indices of a look-up into the places that they name."""
        places: list[Any] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and index in self._values:
                with _disable_current_modes():
                    found = self._values[index].nonzero(as_tuple=True)
                places += [self.make(place) for place in found]
            else:
                places.append(index)
        return places


def _is_large(tensor: Tensor) -> bool:
    return tensor.numel() > MAX_ELEMENTS
