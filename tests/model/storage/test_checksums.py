"""A checksum distinguishes training from a cast, and one changed bit from none."""

import math

import pytest
import torch
from torch import Tensor

from visgraft.model.storage.checksums import (
    HALF_FORMATS,
    changed_names,
    checksum_of,
    combine,
    read_checksums,
    with_rounding,
)

SHAPES = [(), (0,), (1,), (3,), (5, 7), (2**21 + 3,), (2, 2**21)]
FORMATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def is_changed(now: Tensor, before: Tensor) -> bool:
    return changed_names({"w": now}, read_checksums({"w": now}), before=read_checksums({"w": before})) == ["w"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_single_element_shows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = (random(*shape) * 10).to(dtype)
    assert checksum_of(tensor) == checksum_of(tensor.clone())
    size = math.prod(shape)
    for index in {0, size // 2, size - 1} if size else set():
        changed = tensor.clone()
        changed.view(-1)[index] = ~changed.view(-1)[index] if dtype == torch.bool else changed.view(-1)[index] + 1
        assert checksum_of(changed).sums[dtype] != checksum_of(tensor).sums[dtype]


def test_the_order_of_elements_shows() -> None:
    tensor = random(2, 2**21)
    assert checksum_of(tensor) != checksum_of(tensor.flip(0))
    assert checksum_of(tensor) != checksum_of(tensor.flip(1))


def test_the_checksum_is_the_sum_of_64_bit_words_times_fixed_odd_numbers() -> None:
    tensor = torch.tensor([1, -2, 3], dtype=torch.int64)
    factors = [checksum_of(torch.tensor(unit)).sums[torch.int64] for unit in ([1, 0, 0], [0, 1, 0], [0, 0, 1])]
    assert all(factor % 2 for factor in factors)
    assert checksum_of(tensor).sums[torch.int64] == (factors[0] - 2 * factors[1] + 3 * factors[2]) % 2**64


def test_how_a_tensor_lies_in_memory_is_no_matter() -> None:
    tensor = random(6, 8)
    assert checksum_of(tensor.T.contiguous()) == checksum_of(tensor.T)
    assert checksum_of(tensor[1:]) == checksum_of(tensor[1:].clone())
    assert checksum_of(tensor.view(-1)[3:]) == checksum_of(tensor.view(-1)[3:].clone())


@pytest.mark.parametrize("dtype", HALF_FORMATS)
def test_a_cast_alone_is_no_change(dtype: torch.dtype) -> None:
    tensor = random(64)
    assert not is_changed(tensor.to(dtype), tensor)  # frozen in a lower format
    assert not is_changed(tensor.to(dtype).float(), tensor.to(dtype))  # loaded in it, trained in float32
    assert not is_changed(tensor.bfloat16().to(dtype), tensor.bfloat16())
    assert is_changed(tensor.to(dtype).float(), tensor)  # there and back takes something away


@pytest.mark.parametrize("dtype", HALF_FORMATS)
def test_a_change_too_fine_for_a_lower_format_shows_in_a_wider_one(dtype: torch.dtype) -> None:
    tensor = torch.ones(64)
    finer = tensor * (1 + 2**-20)
    assert is_changed(finer, tensor)
    assert is_changed(finer, tensor.to(dtype))
    assert not is_changed(finer.to(dtype), tensor)  # nothing of it is left


def test_a_weight_that_was_not_there_is_a_change() -> None:
    weights = {"old": random(3), "new": random(3)}
    checksums = read_checksums(weights)
    assert changed_names(weights, checksums, before={"old": checksums["old"]}) == ["new"]


def test_a_combined_checksum_outlives_rounding_names_and_order_but_no_change() -> None:
    weights = {"a": random(8), "b": random(8, seed=1), "steps": torch.tensor(3)}
    together = combine(read_checksums(weights).values())
    half = {name: weight.bfloat16() if weight.is_floating_point() else weight for name, weight in weights.items()}
    assert combine(read_checksums(half).values()) == together
    assert combine(checksum_of(weights[name]) for name in ("steps", "b", "a")) == together
    assert combine(read_checksums({**weights, "b": random(8, seed=2)}).values()) != together
    assert combine(read_checksums({**weights, "steps": torch.tensor(4)}).values()) != together


def test_a_combined_checksum_is_the_same_on_every_machine() -> None:
    weights = {"a": torch.arange(1000) / 7, "b": torch.arange(9)}
    assert combine(read_checksums(weights).values()) == "4058eb7f8e366621be55c38bec078cfc"


def test_formats_that_take_something_away_are_remembered_in_order() -> None:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    assert with_rounding((), fp32) == ()
    assert with_rounding((), bf16) == (bf16,)
    assert with_rounding((bf16,), bf16) == (bf16,)
    assert with_rounding((bf16,), fp32) == (bf16,)
    assert with_rounding((bf16,), fp16) == (bf16, fp16)
    assert checksum_of(random(2).half(), rounded=(bf16,)).rounded == (bf16, fp16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_marks() -> None:
    for dtype in FORMATS:
        tensor = (random(2, 2**21 + 5) * 10).to(dtype)
        assert checksum_of(tensor) == checksum_of(tensor.cuda())
