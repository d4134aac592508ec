"""Rows with unlike histories read and decode in one cache as each would alone, in every family."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_prefix_injection import at_first_layer
from tests.tiny import LANGUAGES, OTHER_KERNELS, P, assert_close, fresh, joined, random_ids, random_pixels
from visgraft.model.cache import KeptStates, PreallocatedCache, rows_of
from visgraft.model.sequence import append_segment, empty_table
from visgraft.model.slots import SlotCache
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE

every_language = pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def image_states(model: VisionLanguageModel, num_images: int) -> KeptStates:
    tokens, mask = model.image_prefix(random_pixels(1, num_images, seed=num_images))
    cache = PreallocatedCache(capacity=mask.shape[1])
    model.read_image(tokens, image_token_mask=mask, context=empty_table(1), cache=cache)
    return rows_of(cache, [mask.shape[1]])[0]


def logits_alone(model: VisionLanguageModel, states: KeptStates | None, ids: Tensor) -> Tensor:
    """Read an image and a text in a cache of their own: the logits [V] of its last id."""
    cache, context = PreallocatedCache(capacity=64), empty_table(1)
    if states is not None:
        cache.put([states])
        context = append_segment(context, torch.ones(1, states.num_positions, dtype=torch.bool), kind=IMAGE)
    return model.read_text(ids[None], context=context, cache=cache).logits[0, -1]


def slots(model: VisionLanguageModel, *, rows: int = 4, columns: int = 40) -> SlotCache:
    cache = SlotCache(num_layers=model.language.config.num_hidden_layers, device=model.device)
    cache.reserve(rows, num_columns=columns)
    return cache


def read(
    model: VisionLanguageModel, cache: SlotCache, texts: list[Tensor], starts: list[int], first: int = 0
) -> Tensor:
    """Read a text behind each of some rows."""
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=7)
    with cache.reading(rows=slice(first, first + len(texts)), starts=starts, counts=[*map(len, texts)]):
        return model.read_rows(ids, unplaced=[0] * len(texts), cache=cache)


@every_language
def test_rows_with_unlike_histories_read_and_decode_as_alone(language: str) -> None:
    model = joined(language)
    histories = [image_states(model, 1), None, image_states(model, 2)]
    texts = [random_ids(length, seed=length) for length in (3, 9, 5)]
    cache = slots(model)
    lengths = []
    for row, states in enumerate(histories):
        lengths.append(0 if states is None else states.num_positions)
        if states is not None:
            cache.place(row, states, length=states.num_positions)
    logits = read(model, cache, texts, lengths)
    for step in range(4):
        for row, (states, text) in enumerate(zip(histories, texts, strict=True)):
            assert_close(logits[row], logits_alone(model, states, text), tolerance=2e-5)
        lengths = [0 if s is None else s.num_positions for s in histories]
        starts = [length + len(text) for length, text in zip(lengths, texts, strict=True)]
        following = [random_ids(1, seed=10 * step + row) for row in range(3)]
        logits = read(model, cache, following, starts)
        texts = [torch.cat([text, new]) for text, new in zip(texts, following, strict=True)]


@every_language
def test_a_row_that_comes_while_others_decode_changes_none_and_is_changed_by_none(language: str) -> None:
    model = joined(language)
    image, texts = image_states(model, 1), [random_ids(6, seed=1), random_ids(2, seed=2)]
    cache = slots(model)
    cache.place(0, image, length=P)
    first = read(model, cache, texts[:1], [P])
    late = read(model, cache, texts[1:], [0], first=1)
    both = read(model, cache, [random_ids(1, seed=3), random_ids(1, seed=4)], [P + 6, 2])
    assert_close(first[0], logits_alone(model, image, texts[0]), tolerance=2e-5)
    assert_close(late[0], logits_alone(model, None, texts[1]), tolerance=2e-5)
    assert_close(both[0], logits_alone(model, image, torch.cat([texts[0], random_ids(1, seed=3)])), tolerance=2e-5)
    assert_close(both[1], logits_alone(model, None, torch.cat([texts[1], random_ids(1, seed=4)])), tolerance=2e-5)
    cache.copy(1, 0, length=3)  # the first one is finished: the last one moves into its place
    moved = read(model, cache, [random_ids(1, seed=5)], [3])
    whole = torch.cat([texts[1], random_ids(1, seed=4), random_ids(1, seed=5)])
    assert_close(moved[0], logits_alone(model, None, whole), tolerance=2e-5)


def test_image_tokens_that_take_no_position_take_none_in_a_row_of_its_own_length() -> None:
    model = at_first_layer("opt_post_norm")
    image, texts = image_states(model, 2), [random_ids(4, seed=1), random_ids(3, seed=2)]
    cache = slots(model)
    cache.place(0, image, length=2 * P)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    with cache.reading(rows=slice(0, 2), starts=[2 * P, 0], counts=[4, 3]):
        logits = model.read_rows(ids, unplaced=[2 * P, 0], cache=cache)
    assert_close(logits[0], logits_alone(model, image, texts[0]), tolerance=2e-5)
    assert_close(logits[1], logits_alone(model, None, texts[1]), tolerance=2e-5)


# --- The buffers


def kept(length: int, *, seed: int) -> KeptStates:
    generator = torch.Generator().manual_seed(seed)
    return KeptStates(tuple((torch.randn(2, length, 3, generator=generator), torch.randn(2, length, 3)) for _ in "ab"))


def test_room_grows_with_all_that_stands_in_it_and_memory_is_what_was_reserved() -> None:
    cache, states = SlotCache(num_layers=2, device=torch.device("cpu")), kept(5, seed=1)
    cache.reserve(2, num_columns=8)
    assert cache.size_bytes == 0  # heads and widths are not yet known
    cache.place(1, states, length=5)
    assert cache.size_bytes == 2 * 2 * (2 * 8) * (2 * 3) * 4
    cache.reserve(1, num_columns=20)
    assert cache.reserved == (2, 20)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(cache.keep(1, length=5).layers, states.layers, strict=True))


def test_a_row_that_still_begins_with_a_prefix_is_not_filled_again() -> None:
    cache, states = SlotCache(num_layers=2, device=torch.device("cpu")), kept(5, seed=1)
    cache.reserve(2, num_columns=8)
    cache.place(0, states, length=5)
    cache.layers[0].buffers[0][0, :, 0] = 9.0  # a trace
    cache.place(0, states, length=5)
    assert (cache.layers[0].buffers[0][0, :, 0] == 9.0).all()
    cache.copy(0, 1, length=6)
    cache.place(1, states, length=5)
    assert (cache.layers[0].buffers[0][1, :, 0] == 9.0).all()
    with cache.reading(rows=slice(0, 2), starts=[5, 4], counts=[1, 1]):  # the second one is written over
        pass
    for row in (0, 1):
        cache.place(row, states, length=5)
    assert (cache.layers[0].buffers[0][0, :, 0] == 9.0).all()
    assert torch.equal(cache.keep(1, length=5).layers[0][0], states.layers[0][0])
    cache.place(1, states, length=3)  # a part of it is no such beginning
    cache.layers[0].buffers[0][1, :, 0] = 9.0
    cache.place(1, states, length=5)
    assert torch.equal(cache.keep(1, length=5).layers[0][0], states.layers[0][0])


def test_numbers_that_are_none_leave_with_their_row() -> None:
    model, text = fresh("llama"), random_ids(3, seed=1)
    expected = logits_alone(model, None, text)
    cache = slots(model)
    both = [text, random_ids(6, seed=2)]  # the longer one makes the shorter one look at columns behind its end
    read(model, cache, both, [0, 0])
    for layer in cache.layers:
        for buffer in layer.buffers:
            buffer[0] = float("nan")
    assert read(model, cache, [random_ids(1)] * 2, [3, 6])[0].isnan().all()  # the weight of those columns is 0
    cache.clear(0)
    assert_close(read(model, cache, both, [0, 0])[0], expected)


def test_room_that_cannot_be_had_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, states = SlotCache(num_layers=2, device=torch.device("cpu")), kept(5, seed=1)
    cache.reserve(2, num_columns=8)
    cache.place(0, states, length=5)
    resize = cache.layers[1].resize

    def fail(rows: int, columns: int) -> None:
        if columns > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        resize(rows, columns)

    monkeypatch.setattr(cache.layers[1], "resize", fail)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        cache.reserve(2, num_columns=64)
    assert cache.reserved == (2, 8)
    assert {buffer.shape[2] for layer in cache.layers for buffer in layer.buffers} == {8}
    assert torch.equal(cache.keep(0, length=5).layers[1][0], states.layers[1][0])
