from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from visgraft.estimate.values import KnownValues

COUNTS, LENGTHS, ZEROS, ONES = (
    torch.tensor([3, 1, 2]),
    torch.tensor([[2], [4]]),
    torch.zeros(4, dtype=torch.long),
    torch.ones(3),
)


@contextmanager
def without_numbers(real: Tensor) -> Iterator[Tensor]:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, KnownValues(fake) as values:
        yield values.make(real)


def test_what_is_read_off_whole_numbers_is_their_value() -> None:
    with without_numbers(COUNTS) as counts:
        assert int((counts * 2).max()) == 6
        assert torch.equal(counts, counts.clone())
        assert not torch.equal(counts, counts.flip(0))
        assert bool((counts > 0).all())
        assert (counts > 1).nonzero().shape == (2, 1)


def test_a_mask_picks_as_many_rows_as_it_has_true_values() -> None:
    with without_numbers(LENGTHS) as lengths:
        mask = torch.arange(5)[None] < lengths
        states = torch.zeros(2, 5, 8, requires_grad=True)
        picked = states[mask]
        assert picked.shape == (6, 8)
        picked.sum().backward()
        assert states.grad is not None
        assert torch.zeros(2, 5, 8).index_put((mask,), picked.detach()).shape == (2, 5, 8)


def test_values_follow_changes_in_place_and_views() -> None:
    with without_numbers(ZEROS.clone()) as numbers:
        numbers[1:3] = 7
        assert int(numbers.sum()) == 14
        numbers += 1
        assert int(numbers[0]) == 1


def test_numbers_of_the_model_are_not_known() -> None:
    with without_numbers(ONES) as states:
        with pytest.raises(DataDependentOutputException):
            float(states.sum())
        with pytest.raises(DynamicOutputShapeException):
            (states > 0).nonzero()
