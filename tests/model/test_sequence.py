"""The mask and the positions, against loops over plain lists and against GIT-LLM's own."""

import doctest
import random
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from tests.tiny import batch, sample
from visgraft.data.batch import Batch, RowPlan
from visgraft.model import sequence
from visgraft.model.sequence import (
    SegmentTable,
    attention_mask,
    block_mask,
    draw,
    image_then_text,
    pads_first,
    shared_prefix,
)
from visgraft.segments import IMAGE, PAD, TEXT

# GIT-LLM's mask of a row of 17 image tokens and 11 text tokens, of which the last 4 are pads, as recorded from its
# own run: how many of the first columns each row sees.
GIT_LLM_SEEN = [17] * 17 + [18, 19, 20, 21, 22, 23, 24, 24, 24, 24, 24]


def table_of(rows: list[list[tuple[int, int, int, int]]], sees: list[list[list[bool]]]) -> SegmentTable:
    """Make a table of rows of (kind, group, segment, position)."""
    kind, group, segment, position = torch.tensor(rows).unbind(-1)
    return SegmentTable(kind, group, segment, position, torch.tensor(sees))


def table_of_batch(made: Batch) -> SegmentTable:
    return SegmentTable(*(made[field.name] for field in fields(SegmentTable)))


def random_table(seed: int) -> SegmentTable:
    """Make two rows of two groups, each an image, a text that sees it, and a later image that sees neither."""
    chance = random.Random(seed)
    rows, all_sees = [], []
    for _ in range(2):
        row, segment = [], 0
        sees = [[False] * 8 for _ in range(8)]
        for group in range(2):
            kinds = [IMAGE, TEXT, IMAGE, TEXT]
            for index, kind in enumerate(kinds):
                start = chance.choice([0, 3])
                row += [(kind, group, segment, start + step) for step in range(chance.randint(1, 4))]
                for earlier in range(index):
                    sees[segment][segment - index + earlier] = chance.random() < 0.5
                segment += 1
        row += [(PAD, -1, -1, 0)] * (40 - len(row))
        rows.append(row)
        all_sees.append(sees)
    return table_of(rows, all_sees)


def brute_force(
    table: SegmentTable, *, causal_image: bool = False, window: int | None = None, chunk: int | None = None
) -> Tensor:
    """Say who may attend to whom, one pair at a time, in the words of the design."""
    num_rows, length = table.kind.shape
    mask = torch.zeros(num_rows, length, length, dtype=torch.bool)
    for row in range(num_rows):
        place = [
            tuple(int(getattr(table, name)[row, column]) for name in ("kind", "group", "segment", "position"))
            for column in range(length)
        ]
        for query in range(length):
            for key in range(length):
                kind_q, group_q, segment_q, position_q = place[query]
                kind_k, group_k, segment_k, position_k = place[key]
                if kind_q == PAD or kind_k == PAD:
                    may = query == key
                elif group_q != group_k:
                    may = False
                elif segment_q == segment_k:
                    both_ways = kind_q == IMAGE and not causal_image
                    may = both_ways or position_k <= position_q
                else:
                    may = bool(table.sees[row, segment_q, segment_k])
                if kind_q != PAD and window is not None:
                    may = may and position_k > position_q - window
                if kind_q != PAD and chunk is not None:
                    may = may and position_k // chunk == position_q // chunk
                mask[row, query, key] = may
    return mask


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "settings", [{}, {"causal_image": True}, {"window": 2}, {"chunk": 3}, {"causal_image": True, "window": 3}], ids=str
)
def test_the_mask_is_what_the_rules_say_of_every_pair(seed: int, settings: dict[str, int]) -> None:
    table = random_table(seed)
    assert torch.equal(attention_mask(table, **settings)[:, 0], brute_force(table, **settings))


def test_the_mask_of_a_batch_is_what_the_rules_say_of_every_pair() -> None:
    made = batch([sample(4, 3, images=2), sample(5, images=0), sample(2, 2, 3, images=1)])
    table = table_of_batch(made)
    assert torch.equal(attention_mask(table)[:, 0], brute_force(table))
    assert torch.equal(attention_mask(table, window=3)[:, 0], brute_force(table, window=3))


def test_the_docstrings_drawings_are_printed_by_the_function() -> None:
    result = doctest.testmod(sequence)
    assert (result.attempted, result.failed) == (8, 0)


def test_a_causal_image_is_drawn_as_a_triangle() -> None:
    table = shared_prefix(num_image_tokens=2, text_lengths=[1])
    assert draw(table, names="iia", causal_image=True).splitlines() == ["  i i a", "i 1 . .", "i 1 1 .", "a 1 1 1"]


def test_an_image_in_a_later_turn_is_not_seen_by_earlier_answers() -> None:
    row = [(TEXT, 0, 0, 0), (TEXT, 0, 0, 1), (IMAGE, 0, 1, 2), (IMAGE, 0, 1, 3), (TEXT, 0, 2, 4)]
    table = table_of([row], [[[False] * 3, [True, False, False], [True, True, False]]])
    assert draw(table, names="ttiiu").splitlines()[1:] == [
        "t 1 . . . .",
        "t 1 1 . . .",
        "i 1 1 1 1 .",
        "i 1 1 1 1 .",
        "u 1 1 1 1 1",
    ]


def test_every_text_behind_a_prefix_restarts_its_positions() -> None:
    table = shared_prefix(num_image_tokens=3, text_lengths=[2, 4])
    assert table.position.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 6]]


@pytest.mark.parametrize("pads", ["0001111", "1111000", "1101001", "1111111", "0000001"])
@pytest.mark.parametrize("image", ["", "111", "001", "000"])
def test_a_padded_row_counts_only_real_tokens(pads: str, image: str) -> None:
    image_mask, text_mask = (torch.tensor([[int(sign) for sign in text]]).bool() for text in (image, pads))
    table = image_then_text(image_mask.view(1, len(image)), text_mask)
    real = torch.cat([image_mask.view(1, len(image)), text_mask], 1)[0]
    assert table.position[0][real].tolist() == list(range(int(real.sum())))
    mask = attention_mask(table)[0, 0]
    num_image = int(image_mask.sum())
    plain = attention_mask(shared_prefix(num_image_tokens=num_image, text_lengths=[int(text_mask.sum())]))[0, 0]
    assert torch.equal(mask[real][:, real], plain)
    assert not mask[real][:, ~real].any()


def test_a_row_padded_on_the_right_has_the_mask_of_git_llm() -> None:
    text_mask = torch.tensor([[1] * 7 + [0] * 4]).bool()
    mask = attention_mask(image_then_text(torch.ones(1, 17).bool(), text_mask))[0, 0]
    expected = torch.tensor([[column < seen for column in range(28)] for seen in GIT_LLM_SEEN])
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("reach", [{}, {"window": 2}, {"chunk": 2}], ids=str)
def test_no_position_is_left_with_nothing_to_see(reach: dict[str, int]) -> None:
    image_mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 1, 1]]).bool()
    text_mask = torch.tensor([[1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]).bool()
    table = image_then_text(image_mask, text_mask)
    assert attention_mask(table, **reach).any(-1).all()
    assert attention_mask(pads_first(table)[0], **reach).any(-1).all()


def test_pads_first_moves_pads_to_the_front_and_nothing_else() -> None:
    image_mask = torch.tensor([[1, 1], [0, 1]]).bool()
    text_mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    table = image_then_text(image_mask, text_mask)
    packed, order = pads_first(table)
    assert order.tolist() == [[3, 5, 0, 1, 2, 4], [0, 1, 2, 3, 4, 5]]
    assert packed.kind.tolist() == [[PAD, PAD, IMAGE, IMAGE, TEXT, TEXT], [PAD, IMAGE, TEXT, TEXT, TEXT, TEXT]]
    assert packed.position[packed.kind != PAD].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    plain = attention_mask(shared_prefix(num_image_tokens=2, text_lengths=[2]))[0, 0]
    assert torch.equal(attention_mask(packed)[0, 0, 2:, 2:], plain)
    assert torch.equal(attention_mask(packed)[0, 0, :2], torch.eye(6).bool()[:2])


def test_the_last_queries_and_some_keys_are_a_part_of_the_whole_mask() -> None:
    table = random_table(3)
    whole = attention_mask(table, window=3)
    assert torch.equal(attention_mask(table, window=3, num_queries=5), whole[:, :, -5:])
    assert torch.equal(attention_mask(table, window=3, num_queries=5, keys=slice(7, 20)), whole[:, :, -5:, 7:20])


def test_keys_beyond_the_row_are_seen_by_no_one() -> None:
    table = shared_prefix(num_image_tokens=2, text_lengths=[3])
    mask = attention_mask(table, num_queries=1, keys=slice(3, 9))
    assert mask[0, 0].tolist() == [[True, True, False, False, False, False]]
    assert attention_mask(table, num_queries=1, keys=slice(6, 9))[0, 0].tolist() == [[False, False, False]]


def test_a_table_moves_whole_to_another_device() -> None:
    moved = random_table(0).to(torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in fields(moved)} == {"meta"}


FILLED_SAMPLES = [sample(6, 3, 5, images=2), sample(4, images=1), sample(5, 7, images=0), sample(8, 2, images=1)]


@pytest.mark.parametrize(
    "rules", [{}, {"window": 3}, {"chunk": 4}, {"causal_image": True}, {"causal_image": True, "window": 5}], ids=str
)
@pytest.mark.parametrize("rows", [None, [[0, 2], [3, 1]], [[0, 1, 2, 3]]], ids=str)
def test_a_block_mask_is_the_dense_mask(rows: RowPlan | None, rules: dict[str, Any]) -> None:
    table = table_of_batch(batch(FILLED_SAMPLES, rows=rows))
    made = block_mask(table, **rules)
    num_rows, length = table.kind.shape
    dense = create_mask(made.mask_mod, num_rows, 1, length, length, device="cpu")
    assert torch.equal(dense, attention_mask(table, **rules))
    assert made.shape == (num_rows, 1, length, length)


def test_blocks_that_no_one_sees_are_left_out() -> None:
    of = [sample(100, 60, images=0), sample(90, 70, images=0), sample(128, images=0)]
    made = block_mask(table_of_batch(batch(of, rows=[[0, 1, 2]])))
    assert made.to_dense()[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
