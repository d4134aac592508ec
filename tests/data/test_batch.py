"""Batches: the two layouts drawn small, their equality, filled rows, and what is refused."""

import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch

from visgraft.data.batch import Batch, EncodedSample, collate, split_dialogs
from visgraft.data.prompt import EncodedDialog
from visgraft.errors import ConfigError, DataError
from visgraft.model import sequence

PAD_ID = 99


def dialog(*ids: int, answer_from: int, truncated: bool = False) -> EncodedDialog:
    """A dialog whose last ids, from index answer_from on, are targets."""
    supervised = tuple(index >= answer_from for index in range(len(ids)))
    return EncodedDialog(ids, supervised, num_answer_characters=sum(supervised), truncated=truncated)


def sample(
    *dialogs: EncodedDialog, counts: tuple[int, ...] = (2,), fill: float = 0.0, name: str = "s"
) -> EncodedSample:
    """A sample whose image f is a 2 x 2 picture of the number fill + f."""
    pixels = torch.stack([torch.full((3, 2, 2), fill + frame) for frame in range(len(counts))]) if counts else None
    return EncodedSample(dialogs, {} if pixels is None else {"pixel_values": pixels}, counts, id=name)


QUESTION = dialog(10, 11, 12, answer_from=2)  # prompt 10 11, answer 12
CAPTION = dialog(20, 21, answer_from=1)
TWO_TURNS = EncodedDialog((30, 31, 32, 33), (False, True, False, True), 2, truncated=True)


def drawn(batch: Batch, name: str) -> list[str]:
    """One string a row; '.' for the value that pads have, '-' for -1."""
    symbols = {"kind": ".iT", "segment": "0123456789", "group": "0123456789", "position": "0123456789"}[name]
    return ["".join("." if value < 0 else symbols[value] for value in row) for row in batch[name].tolist()]


def contents(batch: Batch) -> Counter[tuple[object, ...]]:
    """Every target with all that its prediction depends on: the text up to it, positions and the images seen."""
    starts = batch.num_image_tokens.cumsum(0).tolist()
    image_rows = []  # the images of each row, by counting image tokens row by row
    taken = 0
    for row in range(len(batch.kind)):
        tokens, images = int((batch.kind[row] == 1).sum()), []
        while tokens:
            images.append(batch.vision_inputs["pixel_values"][taken].mean().item())
            tokens, taken = tokens - int(batch.num_image_tokens[taken]), taken + 1
        image_rows.append(tuple(images))
    assert taken == len(starts)
    found: Counter[tuple[object, ...]] = Counter()
    for (row, column), target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
        own = [c for c in range(column + 1) if batch.segment[row, c] == batch.segment[row, column]]
        found[
            tuple(batch.input_ids[row, own].tolist()), tuple(batch.position[row, own].tolist()), image_rows[row], target
        ] += 1
    return found


def test_shared_layout_puts_every_text_behind_one_image():
    batch = collate([sample(QUESTION, CAPTION), sample(CAPTION)], layout="shared", pad_token_id=PAD_ID)
    assert drawn(batch, "kind") == ["iiTTTTT", "iiTT..."]
    assert drawn(batch, "segment") == ["0011122", "0011..."]
    assert drawn(batch, "group") == ["0000000", "0000..."]
    assert drawn(batch, "position") == ["0123423", "0123000"]
    assert batch.input_ids.tolist() == [[99, 99, 10, 11, 12, 20, 21], [99, 99, 20, 21, 99, 99, 99]]
    assert batch.sees.long().tolist() == [
        [[0, 0, 0], [1, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
    ]
    assert batch.source.tolist() == [[0, 3], [0, 5], [1, 2]]
    assert batch.target.tolist() == [12, 21, 21]
    assert batch.target_dialog.tolist() == [0, 1, 2]
    assert batch.vision_inputs["pixel_values"].shape == (2, 3, 2, 2)


def test_samples_that_share_a_row_are_groups_of_their_own():
    of = [
        sample(QUESTION, fill=0.0, name="a"),
        sample(CAPTION, counts=(), name="b"),
        sample(CAPTION, fill=5.0, name="c"),
    ]
    batch = collate(of, layout="shared", pad_token_id=PAD_ID, rows=[[0, 2], [1]])
    assert drawn(batch, "kind") == ["iiTTTiiTT", "TT......."]
    assert drawn(batch, "group") == ["000001111", "00......."]
    assert drawn(batch, "segment") == ["001112233", "00......."]
    assert drawn(batch, "position") == ["012340123", "010000000"]
    assert batch.sees[0].long().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert batch.source.tolist() == [[0, 3], [0, 7], [1, 0]]
    assert batch.sample_ids == ["a", "c", "b"]
    assert batch.target_sample.tolist() == batch.target_dialog.tolist() == [0, 1, 2]
    assert batch.vision_inputs["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 5.0]


def test_filled_rows_hold_the_same_contexts_and_targets():
    of = [sample(QUESTION, CAPTION, counts=(2, 1), fill=float(n)) for n in range(3)] + [sample(TWO_TURNS, counts=())]
    single = collate(of, layout="shared", pad_token_id=PAD_ID)
    filled = collate(of, layout="shared", pad_token_id=PAD_ID, rows=[[3], [1], [0, 2]])
    texts = [Counter((found[0], found[1], found[3]) for found in contents(b).elements()) for b in (single, filled)]
    assert texts[0] == texts[1]
    for name in ("num_dialogs", "num_text_tokens", "num_answer_characters", "num_truncated"):
        assert single[name] == filled[name]


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_every_target_tells_its_sample(layout):
    of = [sample(QUESTION, CAPTION, name="a"), sample(TWO_TURNS, name="b")]
    batch = collate(of, layout=layout, pad_token_id=PAD_ID)
    assert [batch.sample_ids[index] for index in batch.target_sample.tolist()] == ["a", "a", "b", "b"]


def test_the_plain_baseline_has_no_rows_to_fill():
    with pytest.raises(ConfigError, match="layout: got 'rows' and rows to fill"):
        collate([sample(QUESTION)], layout="rows", pad_token_id=PAD_ID, rows=[[0]])


def test_rows_layout_repeats_the_image_for_every_dialog():
    batch = collate([sample(QUESTION, CAPTION, fill=5.0)], layout="rows", pad_token_id=PAD_ID)
    assert drawn(batch, "kind") == ["iiTTT", "iiTT."]
    assert drawn(batch, "segment") == ["00111", "0011."]
    assert drawn(batch, "position") == ["01234", "01230"]
    assert batch.vision_inputs["pixel_values"].mean((1, 2, 3)).tolist() == [5.0, 5.0]
    assert batch.num_image_tokens.tolist() == [2, 2]
    assert batch.target_dialog.tolist() == [0, 1]


def test_text_only_samples_start_at_position_zero():
    batch = collate([sample(QUESTION, CAPTION, counts=())], layout="shared", pad_token_id=PAD_ID)
    assert drawn(batch, "kind") == ["TTTTT"]
    assert drawn(batch, "segment") == ["00011"]
    assert drawn(batch, "position") == ["01201"]
    assert not batch.sees.any()
    assert batch.vision_inputs == {}
    assert batch.num_image_tokens.shape == batch.frame_index.shape == (0,)


def test_images_of_one_sample_are_one_segment_whatever_their_token_counts():
    batch = collate(
        [sample(CAPTION, counts=(2, 1)), sample(CAPTION, counts=()), sample(CAPTION, counts=(1,), fill=7.0)],
        layout="shared",
        pad_token_id=PAD_ID,
    )
    assert drawn(batch, "kind") == ["iiiTT", "TT...", "iTT.."]
    assert drawn(batch, "segment") == ["00011", "00...", "011.."]
    assert drawn(batch, "position") == ["01234", "01000", "01200"]
    assert batch.num_image_tokens.tolist() == [2, 1, 1]
    assert batch.frame_index.tolist() == [0, 1, -1]
    assert batch.vision_inputs["pixel_values"][:, 0, 0, 0].tolist() == [0.0, 1.0, 7.0]


def test_both_layouts_hold_the_same_contexts_and_targets():
    samples = [
        sample(QUESTION, CAPTION, TWO_TURNS, fill=1.0),
        sample(TWO_TURNS, counts=()),
        sample(CAPTION, QUESTION, counts=(2, 3), fill=4.0),
    ]
    shared, rows = (collate(samples, layout=layout, pad_token_id=PAD_ID) for layout in ("shared", "rows"))
    assert contents(shared) == contents(rows)
    for name in ("target", "target_dialog"):
        assert torch.equal(shared[name], rows[name])
    for name in ("num_dialogs", "num_text_tokens", "num_answer_characters", "num_truncated", "sample_ids"):
        assert shared[name] == rows[name]


def test_a_batch_counts_what_it_holds():
    batch = collate(
        [sample(QUESTION, TWO_TURNS, name="a"), replace(sample(CAPTION), id=None)], layout="rows", pad_token_id=PAD_ID
    )
    assert (batch.num_dialogs, batch.num_text_tokens, batch.num_answer_characters, batch.num_truncated) == (3, 9, 4, 1)
    assert batch.sample_ids == ["a", "(no id)"]
    assert batch.layout == "rows"


def test_targets_are_predicted_by_the_position_before_them():
    batch = collate([sample(TWO_TURNS, QUESTION)], layout="shared", pad_token_id=PAD_ID)
    row, column = batch.source.unbind(1)
    assert torch.equal(batch.input_ids[row, column + 1], batch.target)
    assert torch.equal(batch.segment[row, column + 1], batch.segment[row, column])
    assert batch.target.tolist() == [31, 33, 12]


def test_split_dialogs_then_shared_is_the_rows_layout():
    samples = [sample(QUESTION, CAPTION), sample(TWO_TURNS, counts=(1, 1))]
    split = collate(split_dialogs(samples), layout="shared", pad_token_id=PAD_ID)
    rows = collate(samples, layout="rows", pad_token_id=PAD_ID)
    for name in ("input_ids", "kind", "group", "segment", "position", "sees", "source", "target", "target_dialog"):
        assert torch.equal(split[name], rows[name])


def test_a_batch_is_a_segment_table_that_the_mask_accepts():
    batch = collate([sample(QUESTION, CAPTION)], layout="shared", pad_token_id=PAD_ID)
    table = sequence.SegmentTable(batch.kind, batch.group, batch.segment, batch.position, batch.sees)
    assert sequence.draw(table, names="iiaaabb").splitlines()[1:] == [
        "i 1 1 . . . . .",
        "i 1 1 . . . . .",
        "a 1 1 1 . . . .",
        "a 1 1 1 1 . . .",
        "a 1 1 1 1 1 . .",
        "b 1 1 . . . 1 .",
        "b 1 1 . . . 1 1",
    ]


def test_a_batch_moves_with_all_its_tensors_and_survives_a_worker():
    batch = collate([sample(QUESTION)], layout="shared", pad_token_id=PAD_ID)
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    tensors = [value for value in moved.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.is_meta for tensor in [*tensors, *moved.vision_inputs.values()])
    assert batch.input_ids.device.type == "cpu"
    assert moved.sample_ids == ["s"]
    copied = pickle.loads(pickle.dumps(batch))
    assert isinstance(copied, Batch)
    assert torch.equal(copied.target, batch.target)


def test_an_unknown_attribute_is_named():
    batch = collate([sample(QUESTION)], layout="shared", pad_token_id=PAD_ID)
    with pytest.raises(AttributeError, match="a Batch has no 'labels'; it has vision_inputs"):
        _ = batch.labels


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigError, match="layout: got 'packed', allowed are 'shared', 'rows'"):
        collate([sample(QUESTION)], layout="packed", pad_token_id=PAD_ID)


def test_nothing_to_collate_is_refused():
    with pytest.raises(DataError, match="got no sample to collate"):
        collate([], layout="shared", pad_token_id=PAD_ID)


def test_a_sample_without_dialogs_is_refused():
    with pytest.raises(DataError, match="sample lonely has no dialog"):
        collate([sample(name="lonely")], layout="shared", pad_token_id=PAD_ID)


def test_token_counts_that_do_not_fit_the_images_are_refused():
    odd = replace(sample(QUESTION), num_image_tokens=(2, 2))
    with pytest.raises(DataError, match="sample s: num_image_tokens names 2 images"):
        collate([odd], layout="shared", pad_token_id=PAD_ID)
    with pytest.raises(DataError, match=r"names 1 images, but vision_inputs hold \{\}"):
        collate([replace(odd, vision_inputs={}, num_image_tokens=(2,))], layout="shared", pad_token_id=PAD_ID)


def test_images_of_unlike_shapes_are_refused():
    large = replace(sample(QUESTION, name="large"), vision_inputs={"pixel_values": torch.zeros(1, 3, 4, 4)})
    with pytest.raises(DataError, match=r"pixel_values is \[3, 2, 2\] for sample s and \[3, 4, 4\] for sample large"):
        collate([sample(QUESTION), large], layout="shared", pad_token_id=PAD_ID)


def test_unlike_vision_inputs_are_refused():
    other = replace(sample(QUESTION, name="other"), vision_inputs={"patches": torch.zeros(1, 3, 2, 2)})
    with pytest.raises(DataError, match="need the same vision inputs"):
        collate([sample(QUESTION), other], layout="shared", pad_token_id=PAD_ID)
