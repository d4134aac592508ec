from collections import Counter

import numpy as np
import pytest

from visgraft.data.mixing import is_held_out, mixed_order, temper


def texts_seen(order, counts):
    flat = np.concatenate(counts)
    owner = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
    return [int(flat[order][owner[order] == number].sum()) for number in range(len(counts))]


def test_weights_are_per_text_and_hold_after_grouping():
    rng = np.random.default_rng(0)
    counts = [rng.integers(1, 9, 300), rng.integers(1, 3, 500), rng.integers(1, 40, 60)]
    weights = [1.0, 0.3, 2.75]
    totals = np.zeros(3)
    for epoch in range(20):
        seen = texts_seen(mixed_order(counts, weights=weights, seed=1, epoch=epoch), counts)
        for number, (texts, weight) in enumerate(zip(counts, weights, strict=True)):
            assert abs(seen[number] - weight * texts.sum()) <= texts.max()
        totals += seen
    assert totals == pytest.approx([20 * w * c.sum() for w, c in zip(weights, counts, strict=True)], rel=0.002)


def test_a_fraction_brings_every_sample_in_turn():
    counts = [np.array([3, 1, 2, 2, 4, 1, 1, 2])]
    seen = Counter()
    for epoch in range(4):
        seen.update(mixed_order(counts, weights=[0.25], seed=0, epoch=epoch).tolist())
    assert sorted(seen.items()) == [(i, 1) for i in range(8)]


def test_temperature_draws_sources_nearer_to_each_other_and_keeps_the_epoch_as_long():
    assert temper([1.0, 2.0], num_texts=[900, 100], temperature=1.0) == [1.0, 2.0]
    weights = temper([1.0, 1.0], num_texts=[900, 100], temperature=2.0)
    seen = [900 * weights[0], 100 * weights[1]]
    assert sum(seen) == pytest.approx(1000) and seen[0] / seen[1] == pytest.approx(3.0)
    flat = temper([1.0, 1.0], num_texts=[900, 100], temperature=1e9)
    assert [900 * flat[0], 100 * flat[1]] == pytest.approx([500, 500])
    assert temper([1.0, 1.0], num_texts=[10, 0], temperature=2.0) == [1.0, 0.0]


def test_a_share_is_held_out_by_key_whatever_the_order():
    keys = [f"image {i // 2}".encode() for i in range(2000)]
    held = is_held_out(keys, share=0.02)
    assert held.sum() == 40 and all(held[0::2] == held[1::2])
    order = np.random.default_rng(0).permutation(2000)
    assert (is_held_out([keys[i] for i in order], share=0.02) == held[order]).all()
    assert is_held_out(keys, share=0.0001).sum() == 2 and is_held_out(keys, share=0.9999).sum() == 1998
    assert not is_held_out([b"one", b"one"], share=0.5).any()
