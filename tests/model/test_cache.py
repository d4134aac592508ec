"""What is read into a cache piece by piece equals one forward over the same segment table, for every family."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tests.tiny import LANGUAGES, OTHER_KERNELS, P, assert_close, fresh, joined, random_ids, random_pixels, table_logits
from visgraft.errors import ModelError
from visgraft.model.cache import KeptStates, PreallocatedCache, PreallocatedLayer, rows_of
from visgraft.model.sequence import SegmentTable, append_segment, empty_table
from visgraft.model.vlm import VisionLanguageModel
from visgraft.segments import IMAGE, TEXT

every_language = pytest.mark.parametrize("language", LANGUAGES + OTHER_KERNELS)
Piece = tuple[int, Tensor]  # a kind, and what is read: image tokens [1, P, D_lm] or ids [1, T]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def conversation(model: VisionLanguageModel) -> list[Piece]:
    """A text, an image, two texts, a later image and one more text."""
    first, later = (model.image_prefix(random_pixels(1, seed=seed))[0] for seed in (1, 2))
    texts = [(TEXT, random_ids(1, length, seed=length)) for length in (3, 5, 2, 6)]
    return [texts[0], (IMAGE, first), texts[1], texts[2], (IMAGE, later), texts[3]]


def table_of(pieces: list[Piece]) -> SegmentTable:
    table = empty_table(1)
    for kind, piece in pieces:
        table = append_segment(table, torch.ones(1, piece.shape[1], dtype=torch.bool), kind=kind)
    return table


def whole_logits(model: VisionLanguageModel, pieces: list[Piece]) -> Tensor:
    """One forward over the segment table, no cache anywhere: [S, V]."""
    table = table_of(pieces)
    text = model.get_input_embeddings()
    width = text.weight.shape[1]
    embeds = torch.cat(
        [text(piece) if kind == TEXT else torch.zeros(*piece.shape[:2], width) for kind, piece in pieces], 1
    )
    images = [
        piece if kind == IMAGE else torch.zeros(*piece.shape, model.prefix_injection.width) for kind, piece in pieces
    ]
    embeds = model.prefix_injection.inject(embeds, torch.cat(images, 1), table.kind == IMAGE)
    return table_logits(model, embeds, table)[0]


def read(model: VisionLanguageModel, pieces: list[Piece], cache: Any) -> tuple[Tensor, SegmentTable]:
    """The logits of all texts, read piece by piece: [T, V]."""
    table, logits = empty_table(1), []
    for kind, piece in pieces:
        real = torch.ones(1, piece.shape[1], dtype=torch.bool)
        if kind == IMAGE:
            table = model.read_image(piece, image_token_mask=real, context=table, cache=cache)
        else:
            logits.append(model.read_text(piece, context=table, cache=cache).logits[0])
            table = append_segment(table, real, kind=TEXT)
    return torch.cat(logits), table


@every_language
def test_a_conversation_read_piece_by_piece_is_one_forward_over_its_table(language: str) -> None:
    model = joined(language)
    pieces = conversation(model)
    is_text = table_of(pieces).kind[0] == TEXT
    expected = whole_logits(model, pieces)[is_text]
    logits, table = read(model, pieces, PreallocatedCache(capacity=4))  # outgrown more than once
    assert_close(logits, expected, tolerance=2e-5)
    assert table.position.tolist() == [list(range(table.length))]
    assert_close(read(model, pieces, DynamicCache())[0], logits)


@every_language
def test_a_later_image_is_seen_by_what_comes_behind_it_alone(language: str) -> None:
    model = joined(language)
    pieces = conversation(model)
    changed = [*pieces[:4], (IMAGE, model.image_prefix(random_pixels(1, seed=9))[0]), pieces[5]]
    before, after = (read(model, each, PreallocatedCache(capacity=64))[0] for each in (pieces, changed))
    assert torch.equal(before[:10], after[:10])  # the three earlier texts, bit by bit
    assert not torch.allclose(before[10:], after[10:], atol=1e-3)


def test_an_image_states_depend_on_no_text_before_it() -> None:
    model = joined()
    image = model.image_prefix(random_pixels(1))[0]
    states = []
    for seed in (1, 2):
        cache = PreallocatedCache(capacity=16)
        read(model, [(TEXT, random_ids(1, 3, seed=seed)), (IMAGE, image)], cache)
        states.append([layer.keys[:, :, 3:] for layer in cache.layers])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@every_language
def test_kept_states_of_different_images_stand_in_the_rows_of_one_batch(language: str) -> None:
    model = joined(language)
    tokens = model.image_prefix(random_pixels(2, 2))[0]  # two rows of two images: 2 P tokens
    mask = torch.arange(2 * P) < torch.tensor([[2 * P], [P]])
    cache = PreallocatedCache(capacity=2 * P)
    model.read_image(tokens, image_token_mask=mask, context=empty_table(2), cache=cache)
    long, short = rows_of(cache, [2 * P, P])
    ids = random_ids(3, 4)
    together = PreallocatedCache(capacity=2 * P + 4)
    together.put([short, long, None])
    counts = torch.tensor([[P], [2 * P], [0]])
    context = append_segment(empty_table(3), torch.arange(2 * P) >= 2 * P - counts, kind=IMAGE)
    logits = model.read_text(ids, context=context, cache=together).logits
    for row, image in enumerate((tokens[1:, :P], tokens[:1], tokens[:1, :0])):
        whole = [(IMAGE, image), (TEXT, ids[row : row + 1])]
        assert_close(logits[row], whole_logits(model, whole)[image.shape[1] :], tolerance=2e-5)


@every_language
def test_what_is_cut_off_can_be_read_anew(language: str) -> None:
    model = joined(language)
    pieces = conversation(model)
    cache = PreallocatedCache(capacity=8)
    expected, table = read(model, pieces, cache)
    cache.cut(table.length - 4)
    again = model.read_text(pieces[-1][1][:, -4:], context=table.cut(table.length - 4), cache=cache).logits
    assert_close(again[0], expected[-4:])


def test_generation_goes_on_behind_a_context_with_beams_and_samples() -> None:
    model, ids = joined(), random_ids(2, 4)
    tokens, mask = model.image_prefix(random_pixels(2))
    for settings in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}):
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
        cache = PreallocatedCache(capacity=P + 10)
        context = model.read_image(tokens, image_token_mask=mask, context=empty_table(2), cache=cache)
        kept = rows_of(cache, [P, P])
        expanded = PreallocatedCache(capacity=P + 10)
        expanded.put([states for states in kept for _ in range(settings["num_beams"])])
        behind = model.generate(input_ids=ids, context=context, past_key_values=expanded, **settings)
        assert torch.equal(behind, model.generate(input_ids=ids, pixel_values=random_pixels(2), **settings))


def test_a_conversation_that_outgrows_the_positions_is_an_error() -> None:
    model = fresh("gpt2")
    cache = PreallocatedCache(capacity=64)
    context = model.read_image(
        model.image_prefix(random_pixels(1))[0],
        image_token_mask=torch.ones(1, P, dtype=torch.bool),
        context=empty_table(1),
        cache=cache,
    )
    with pytest.raises(ModelError, match=r"a row of 65 positions .* is longer than the 64 positions of gpt2"):
        model.read_text(random_ids(1, 60), context=context, cache=cache)


# --- The buffers themselves


def states(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_room_is_taken_once_and_a_row_that_outgrows_it_gets_more() -> None:
    layer, written = PreallocatedLayer(6), [states(2, 3, length, 4, seed=length) for length in (3, 1, 2, 5)]
    places = []
    for index, new in enumerate(written):
        keys, values = layer.update(new, -new)
        assert torch.equal(keys, torch.cat(written[: index + 1], 2))
        assert torch.equal(values, -keys)
        places.append(keys.data_ptr())
    assert places[0] == places[1] == places[2] != places[3]


def test_beams_may_reorder_what_is_written() -> None:
    layer, plain = PreallocatedLayer(8), DynamicCache()
    order = torch.tensor([1, 1, 0])
    for seed in (1, 2, 3):
        new = states(3, 2, 2, 4, seed=seed)
        ours, theirs = layer.update(new, new), plain.update(new, new, 0)
        assert torch.equal(ours[0], theirs[0])
        layer.reorder_cache(order)
        plain.reorder_cache(order)
    assert torch.equal(layer.keys, plain.layers[0].keys)


def test_kept_states_know_their_size() -> None:
    pair = (torch.zeros(2, 5, 4), torch.zeros(2, 5, 4))
    kept = KeptStates((pair, pair))
    assert (kept.num_positions, kept.size_bytes) == (5, 4 * 2 * 5 * 4 * 4)
