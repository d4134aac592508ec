"""An object travels with all its tensors in one piece of memory, and comes out as it was."""

from typing import Any

import pytest
import torch

from visgraft.data.batch import Batch
from visgraft.data.bundle import ALIGNMENT, make_bundle

VALUES: dict[str, Any] = {
    "long": torch.arange(7).reshape(7, 1),
    "bool": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5).bfloat16(),
    "number": torch.tensor(2.5),
    "none": torch.zeros(0, 2, dtype=torch.long),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "words": ["a", ("b", 3)],
}


def test_everything_comes_out_as_it_was() -> None:
    bundle = make_bundle(Batch({**VALUES, "vision_inputs": {"pixels": torch.ones(2, 3)}}))
    opened = bundle.open()
    assert isinstance(opened, Batch) and opened["words"] == ["a", ("b", 3)]
    for name, value in VALUES.items():
        if isinstance(value, torch.Tensor):
            assert opened[name].dtype == value.dtype and torch.equal(opened[name], value)
    assert opened.vision_inputs["pixels"].shape == (2, 3)


def test_tensors_are_views_of_the_one_buffer_each_where_one_of_its_own_might_begin() -> None:
    bundle = make_bundle(VALUES)
    begin = bundle.buffer.untyped_storage().data_ptr()
    for value in bundle.open().values():
        if isinstance(value, torch.Tensor) and value.numel():
            assert value.untyped_storage().data_ptr() == begin
            assert (value.data_ptr() - begin) % ALIGNMENT == 0


def test_a_tensor_that_stands_twice_is_there_twice_and_nothing_is_needed_for_no_tensor() -> None:
    one = torch.ones(3)
    assert [value.tolist() for value in make_bundle([one, one]).open()] == [[1.0] * 3] * 2
    assert make_bundle("words").open() == "words" and make_bundle("words").buffer.numel() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_pinned_bundle_holds_pinned_tensors() -> None:
    assert all(v.is_pinned() for v in make_bundle(VALUES).pin_memory().open().values() if isinstance(v, torch.Tensor))
