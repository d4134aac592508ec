"""Rows are filled with whole samples at little padding, and micro-batches keep to their limits."""

import random

import numpy as np
import pytest

from visgraft.data.packing import MAX_PADDING, fill_rows, share_out, split_by_positions
from visgraft.errors import ConfigError


def padding(rows, lengths):
    widths = [sum(lengths[index] for index in row) for row in rows]
    return 1 - sum(widths) / (len(widths) * max(widths))


def draws(number):
    """Lists of lengths: near each other, wide apart, a few giants among dwarfs."""
    draw = random.Random(number)
    size = draw.randint(1, 60)
    kinds = [lambda: draw.randint(200, 230), lambda: draw.randint(1, 600), lambda: draw.choice([7, 8, 9, 900])]
    return [draw.choice(kinds[number % 3 : number % 3 + 1])() for _ in range(size)]


@pytest.mark.parametrize("number", range(30))
def test_without_a_budget_rows_have_little_padding_and_every_sample_once(number):
    lengths = draws(number)
    rows = fill_rows(lengths, row_positions=None)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert padding(rows, lengths) <= MAX_PADDING < 0.06
    assert rows == fill_rows(lengths, row_positions=None)


def test_samples_of_one_length_need_no_filling():
    assert fill_rows([50] * 8, row_positions=None) == [[index] for index in range(8)]
    assert fill_rows([50, 49, 48], row_positions=None) == [[0], [1], [2]]


def test_rows_grow_only_as_far_as_padding_asks_for():
    rows = fill_rows([100, 50, 50, 25, 25, 50], row_positions=None)
    assert rows == [[0], [1, 5], [2, 3, 4]]


@pytest.mark.parametrize("number", range(30))
def test_a_budget_is_kept_by_all_rows_but_those_of_one_long_sample(number):
    lengths = draws(number)
    rows = fill_rows(lengths, row_positions=512)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 512 or len(row) == 1 for row in rows)
    assert len(rows) <= 1 + 2 * sum(lengths) / 512  # no two rows would fit into one


def test_a_budget_gives_as_few_and_as_even_rows_as_go():
    assert fill_rows([4, 3, 3, 2], row_positions=12) == [[0, 1, 2, 3]]
    assert fill_rows([4, 3, 3, 2], row_positions=6) == [[0, 3], [1, 2]]
    assert fill_rows([9, 3, 2], row_positions=5) == [[0], [1, 2]]


def test_nothing_fills_no_row():
    assert fill_rows([], row_positions=None) == fill_rows([], row_positions=9) == []


def test_a_row_without_room_is_refused():
    with pytest.raises(ConfigError, match="row_positions: got 0, must be at least 1"):
        fill_rows([3], row_positions=0)


def test_the_plan_takes_the_longest_rows_first_and_counts_padding():
    assert split_by_positions([3, 10, 4, 10], max_cost=20) == [[1, 3], [2, 0]]
    assert split_by_positions([3, 10, 4, 6], max_cost=12) == [[1], [3, 2], [0]]


def test_the_plan_keeps_each_row_once_and_within_its_limits():
    costs = [(7 * index) % 31 + 1 for index in range(40)]
    chunks = split_by_positions(costs, max_cost=64, max_rows=5)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(40))
    assert all(len(chunk) <= 5 and len(chunk) * max(costs[index] for index in chunk) <= 64 for chunk in chunks)


def test_a_row_beyond_the_limit_goes_alone():
    assert split_by_positions([50, 1, 60], max_cost=10) == [[2], [0], [1]]


def test_a_plan_without_limits_is_one_batch_and_nothing_is_no_batch():
    assert split_by_positions([1, 2], max_cost=None) == [[1, 0]]
    assert split_by_positions([1, 2], max_cost=None, max_rows=1) == [[1], [0]]
    assert split_by_positions([], max_cost=4) == []


@pytest.mark.parametrize("limits", [{"max_cost": 0}, {"max_cost": None, "max_rows": 0}])
def test_a_limit_below_one_is_refused(limits):
    with pytest.raises(ConfigError, match="got 0, must be at least 1"):
        split_by_positions([1], **limits)


def test_processes_get_about_as_many_positions_each_and_each_sample_goes_to_one() -> None:
    rng = np.random.default_rng(0)
    for number in (2, 8, 64):
        lengths = 197 + rng.integers(10, 150, size=30 * number)
        owners = share_out(lengths, num_processes=number)
        laden = np.bincount(owners, weights=lengths, minlength=number)
        assert laden.max() < 1.01 * laden.mean()
        in_turn = np.bincount(np.arange(len(lengths)) % number, weights=lengths)
        assert laden.max() < in_turn.max()
        assert owners.tolist() == share_out(lengths, num_processes=number).tolist()


def test_one_process_takes_all_and_of_too_few_samples_the_first_processes_one_each() -> None:
    assert share_out(np.array([3, 9, 1]), num_processes=1).tolist() == [0, 0, 0]
    assert share_out(np.array([3, 9, 1]), num_processes=8).tolist() == [1, 0, 2]
    assert share_out(np.zeros(0, np.int64), num_processes=4).tolist() == []


def test_samples_are_shared_out_as_one_by_one_each_to_the_emptiest() -> None:
    rng = np.random.default_rng(1)
    for number in (2, 5, 33):
        for lengths in (rng.integers(1, 9, 400), rng.integers(1, 2000, 400), np.array([10**6, *[3] * 300, *[1] * 40])):
            laden = [0] * number
            plain = {}
            for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
                plain[index] = laden.index(min(laden))
                laden[plain[index]] += int(lengths[index])
            assert share_out(lengths, num_processes=number).tolist() == [plain[n] for n in range(len(lengths))]
