"""Dialogs behind one image that begin with the same turns share those, too: exactly as if each had a row of its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.tiny import (
    BY_STATE,
    LANGUAGES,
    OTHER_KERNELS,
    P,
    assert_close,
    assert_same_gradients,
    batch,
    fresh,
    gradients,
    joined,
    sample,
    tree,
)
from tests.versions import since
from visgraft.config import LoraSettings
from visgraft.data.batch import Batch, EncodedSample
from visgraft.model import passes
from visgraft.model.checks.preflight import preflight
from visgraft.model.loss import VisionLanguageOutput
from visgraft.model.sequence import SegmentTable, attention_mask, block_mask
from visgraft.model.trainable import set_trainable

SAMPLES = [tree(), sample(4, 3), tree(images=0), replace(tree(images=2), id="two")]


def loss(name: str, of: list[EncodedSample], layout: Any, rows: Any = None) -> VisionLanguageOutput:
    return joined(name).loss(batch(of, layout=layout, rows=rows))


def table_of(laid_out: Batch) -> SegmentTable:
    return SegmentTable(*(laid_out[name] for name in ("kind", "group", "segment", "position", "sees")))


def test_a_shared_turn_stands_in_the_row_once_and_its_targets_count_for_each_dialog() -> None:
    shared, rows = batch([tree()]), batch([tree()], layout="rows")
    assert shared.kind.shape == (1, P + 10 + 9 + 3 + 7 + 2 + 5)
    assert shared.num_text_tokens == rows.num_text_tokens == sum(len(each.input_ids) for each in tree().dialogs)
    for name in ("target", "target_dialog", "target_sample"):
        assert torch.equal(shared[name], rows[name])
    assert len(shared.distinct) == len(shared.target) - 3 * 4  # four dialogs have the turn's answer of four tokens
    assert torch.equal(shared.target[shared.distinct][shared.as_distinct], shared.target)
    assert torch.equal(shared.source[shared.distinct][shared.as_distinct], shared.source)
    sources = [laid_out.position[laid_out.source[:, 0], laid_out.source[:, 1]].tolist() for laid_out in (shared, rows)]
    assert sources[0] == sources[1]


@pytest.mark.parametrize("language", [*LANGUAGES, *OTHER_KERNELS, *BY_STATE, "jamba", "rwkv"])
def test_shared_turns_give_the_loss_and_the_gradients_of_rows(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MIN_SAVED", 1)
    shared, rows = loss(language, SAMPLES, "shared"), loss(language, SAMPLES, "rows")
    assert int(shared.num_supervised) == int(rows.num_supervised)
    assert_close(shared.target_losses, rows.target_losses)
    first, second = gradients(joined(language), shared.loss), gradients(joined(language), rows.loss)
    assert_same_gradients(first, second)
    assert any(name.startswith("projection") for name in first)


@pytest.mark.parametrize("language", ["llama", "mpt", "lfm2"])
def test_filled_rows_keep_trees_apart(language: str) -> None:
    filled = loss(language, SAMPLES, "shared", rows=[[0, 1], [2, 3]])
    rows = loss(language, SAMPLES, "rows")
    assert_close(filled.target_losses, rows.target_losses)
    assert_same_gradients(gradients(joined(language), filled.loss), gradients(joined(language), rows.loss))


@pytest.mark.parametrize("language", ["llama", "lfm2"])
def test_lora_learns_the_same_from_trees(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "MIN_SAVED", 1)
    model = fresh(language)
    modes: Any = {"projection": "full", "language": "lora"}
    set_trainable(model, modes=modes, lora={"language": LoraSettings(r=2)})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    model.logits_bytes = 4 * 96 * 5  # in chunks
    found = [gradients(model, model.loss(batch(SAMPLES, layout=layout)).loss) for layout in ("shared", "rows")]
    assert any("lora_A" in name for name in found[0])
    assert_same_gradients(*found)


def test_causal_images_and_sliding_windows_change_nothing_of_that() -> None:
    model = fresh("gemma3", image_attention="causal")
    losses = [model.loss(batch(SAMPLES, layout=layout)).target_losses for layout in ("shared", "rows")]
    assert losses[0] is not None
    assert_close(losses[0], losses[1])


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_mask_of_a_tree_is_its_dense_mask(window: int | None) -> None:
    table = table_of(batch(SAMPLES, rows=[[0, 1], [2, 3]]))
    dense, blocks = attention_mask(table, window=window)[:, 0], block_mask(table, window=window)
    index = [torch.arange(size) for size in dense.shape]
    row, query, key = torch.meshgrid(*index, indexing="ij")
    assert torch.equal(blocks.mask_mod(row, torch.zeros_like(row), query, key), dense)


@since("transformers", "5.21", "states are read from the cache in another way")
def test_a_hybrid_reads_a_shared_turn_once_where_it_is_long_and_else_with_each_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    run = passes._Passes._run

    def counting(self: Any, texts: Any, *others: Any, start: int, **named: Any) -> Any:
        counted.append(sum(len(text.columns) - start for text in texts))
        return run(self, texts, *others, start=start, **named)

    monkeypatch.setattr(passes._Passes, "_run", counting)
    long, short = [], []
    for least, found in ((1, long), (10**6, short)):
        monkeypatch.setattr(passes, "MIN_SAVED", least)
        counted.clear()
        loss("lfm2", [tree()], "shared")
        found += counted
    assert sum(long) == P + 10 + 9 + 3 + 7 + 2 + 5  # each position of the row once
    assert sum(short) == P + 22 + 7 + 21 + 15  # the image once; the turn alone is the beginning of another text


def test_the_checks_before_training_take_a_tree() -> None:
    model = fresh("llama")
    set_trainable(model, modes={"projection": "full", "language": "frozen"})
    preflight(model, batch([tree()]))


def test_nothing_is_computed_otherwise_where_dialogs_share_too_little() -> None:
    laid_out = batch([sample(6, 3, 5)])
    assert laid_out.distinct is None
    assert laid_out.as_distinct is None
