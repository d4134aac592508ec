"""Turn encoded samples into the tensors of one step.

In: `EncodedSample`s (token ids with their targets, and pixels). Out: a `Batch` of plain torch tensors that knows no
model. `packing.py` plans which samples share a row.

    batch = collate(samples, layout="shared", pad_token_id=0)

One sample with two dialogs a and b, another with one, c (2 image tokens i, pads _):

    layout "shared"   i i a a a b b        layout "rows"   i i a a a        rows=[[0, 1]]   i i a a a b b i i c c
                      i i c c _ _ _                        i i b b _
                                                           i i c c _

Dialogs of a sample that begin alike (the same first turns, the same instruction) share what they begin with, as they
share the image: branches.py finds it by token ids, and its tokens stand in the row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from visgraft.branches import Grown, grow
from visgraft.data.images.pixels import join_images, tells_sizes
from visgraft.data.prompt import EncodedDialog
from visgraft.errors import ConfigError, DataError
from visgraft.segments import IMAGE, PAD, TEXT

Layout = Literal["shared", "rows"]
RowPlan = Sequence[Sequence[int]]  # which samples share a row, as indices


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids and pixels.

    Attributes:
        dialogs: its dialogs, at least one.
        vision_inputs: what the image processor made of its F images, each tensor [F, ...]; {} without images.
        num_image_tokens: how many image tokens each of its images becomes.
        id: the name of the sample in its source.
        source: where it came from.
    """

    dialogs: tuple[EncodedDialog, ...]
    vision_inputs: dict[str, Tensor] = field(default_factory=dict)
    num_image_tokens: tuple[int, ...] = ()
    id: str | None = None
    source: str | None = None

    @property
    def num_prefix_tokens(self) -> int:
        """The image tokens of all its images together, P."""
        return sum(self.num_image_tokens)

    @property
    def num_text_tokens(self) -> int:
        """The tokens of all its dialogs together, prompts and answers."""
        return sum(len(dialog.input_ids) for dialog in self.dialogs)

    @cached_property
    def grown(self) -> Grown:
        """Its dialogs as branches: what several of them begin with is one."""
        return grow([dialog.input_ids for dialog in self.dialogs])

    @property
    def num_positions(self) -> int:
        """The length of its row in the shared layout, pads apart."""
        return self.num_prefix_tokens + self.grown.num_tokens

    @property
    def num_segments(self) -> int:
        """The images together, if there are any, and the branches of the texts."""
        return (self.num_prefix_tokens > 0) + len(self.grown.branches)


class Batch(dict[str, Any]):
    """The tensors of one step, read as keys or as attributes.

    Axes: B rows, S positions of a row, N images of the whole batch, G segments of a row, M targets.

    Attributes:
        vision_inputs: every tensor [N, ...], images in the order in which their tokens appear row by row; {} if N = 0.
        num_image_tokens: [N] long, image tokens of each image.
        frame_index: [N] long, index of the image in its sample; -1 where the sample has one image.
        input_ids: [B, S] long, the pad id wherever there is no text.
        kind: [B, S] long, `PAD`, `IMAGE` or `TEXT` of segments.py.
        group: [B, S] long, positions of different groups never see each other; -1 at pads.
        segment: [B, S] long, index into the row's segments; -1 at pads.
        position: [B, S] long, logical position: the image counts from 0, each text restarts behind it, and texts that
            begin alike behind what they share; 0 at pads.
        sees: [B, G, G] bool, whether segment q may see the whole of segment k (k != q).
        source: [M, 2] long, (row, column) whose logits predict each target.
        target: [M] long, the token ids to predict: answers and their end-of-text. A supervised token that dialogs share
            is there once for each.
        distinct: [U] long, an index into `source` and `target` for each pair that differs; None = all M do.
        as_distinct: [M] long, an index into `distinct` for each pair; None = all differ.
        target_dialog: [M] long, which dialog each belongs to, counted in the order of `sample_ids`.
        target_sample: [M] long, which sample each belongs to, an index into `sample_ids`.
        num_dialogs: dialogs of the batch.
        num_text_tokens: text tokens of the dialogs, counted for each dialog though several share them.
        num_answer_characters: characters of all answers.
        num_truncated: dialogs that were cut.
        sample_ids: the id of each sample, in the order of the rows.
        layout: "shared" or "rows".
    """

    vision_inputs: dict[str, Tensor]
    num_image_tokens: Tensor
    frame_index: Tensor
    input_ids: Tensor
    kind: Tensor
    group: Tensor
    segment: Tensor
    position: Tensor
    sees: Tensor
    source: Tensor
    target: Tensor
    distinct: Tensor | None
    as_distinct: Tensor | None
    target_dialog: Tensor
    target_sample: Tensor
    num_dialogs: int
    num_text_tokens: int
    num_answer_characters: int
    num_truncated: int
    sample_ids: list[str]
    layout: Layout

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"a Batch has no {name!r}; it has {', '.join(self)}") from None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from where copies to a GPU can overlap with work."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> Batch:
        moved = Batch({key: function(value) if isinstance(value, Tensor) else value for key, value in self.items()})
        moved["vision_inputs"] = {key: function(value) for key, value in self.vision_inputs.items()}
        return moved


def split_dialogs(samples: Sequence[EncodedSample]) -> list[EncodedSample]:
    """Make one sample of every dialog, each with all the images: what the layout "rows" is made of."""
    return [replace(sample, dialogs=(dialog,)) for sample in samples for dialog in sample.dialogs]


def collate(
    samples: Sequence[EncodedSample], *, layout: Layout, pad_token_id: int, rows: RowPlan | None = None
) -> Batch:
    """Lay samples out as the rows of one batch.

    Args:
        samples: at least one; with or without images.
        layout: "shared" puts all dialogs of a sample behind one image prefix in one row; "rows" gives every dialog a
            row, and its images again in `vision_inputs`.
        pad_token_id: stands in `input_ids` wherever there is no text; it is masked by place, never by its id.
        rows: in the layout "shared", which samples share a row, as indices, each once; they are groups that never see
            each other. None = a row for each.

    Returns:
        The batch; samples, dialogs and targets come in the order of the rows (without `rows`: of the samples).

    Raises:
        ConfigError: the layout is unknown, or rows are given for the layout "rows".
        DataError: there is no sample, a sample has no dialog, or images of different shapes cannot be stacked.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"layout: got {layout!r}, allowed are {', '.join(map(repr, get_args(Layout)))}")
    if rows is not None and layout != "shared":
        raise ConfigError("layout: got 'rows' and rows to fill; it has a row for every dialog, so leave rows out")
    _check(samples)
    if rows is not None:
        order = [index for row in rows for index in row]
        assert sorted(order) == list(range(len(samples))), "every sample is in one row"
        samples = [samples[index] for index in order]
    grouped = list(samples) if layout == "shared" else split_dialogs(samples)
    of_row = iter(grouped)
    filled = [[next(of_row) for _ in row] for row in rows] if rows is not None else [[group] for group in grouped]
    dialogs = [dialog for sample in samples for dialog in sample.dialogs]
    tensors = _Table(filled, pad_token_id=pad_token_id).tensors()
    owner = torch.tensor([index for index, sample in enumerate(samples) for _ in sample.dialogs], dtype=torch.long)
    return Batch(
        **_collect_images(grouped),
        **tensors,
        target_sample=owner[tensors["target_dialog"]],
        num_dialogs=len(dialogs),
        num_text_tokens=sum(len(dialog.input_ids) for dialog in dialogs),
        num_answer_characters=sum(dialog.num_answer_characters for dialog in dialogs),
        num_truncated=sum(dialog.truncated for dialog in dialogs),
        sample_ids=[_name(sample) for sample in samples],
        layout=layout,
    )


def _name(sample: EncodedSample) -> str:
    return sample.id or "(no id)"


def _check(samples: Sequence[EncodedSample]) -> None:
    if not samples:
        raise DataError("got no sample to collate, need at least one")
    for sample in samples:
        if not sample.dialogs:
            raise DataError(f"sample {_name(sample)} has no dialog; give it one, or leave the sample out")
        leading = {key: len(tensor) for key, tensor in sample.vision_inputs.items()}
        num_images = len(sample.num_image_tokens)
        if any(length != num_images for length in leading.values()) or bool(leading) != bool(num_images):
            raise DataError(
                f"sample {_name(sample)}: num_image_tokens names {num_images} images, but vision_inputs hold {leading}"
            )


def _collect_images(samples: Sequence[EncodedSample]) -> dict[str, Any]:
    """Concatenate the images of samples in their order."""
    illustrated = [sample for sample in samples if sample.num_image_tokens]
    counts = [count for sample in illustrated for count in sample.num_image_tokens]
    frames = [
        frame if len(sample.num_image_tokens) > 1 else -1
        for sample in illustrated
        for frame in range(len(sample.num_image_tokens))
    ]
    keys = illustrated[0].vision_inputs.keys() if illustrated else ()
    for sample in illustrated:
        if sample.vision_inputs.keys() != keys:
            raise DataError(
                f"samples of one batch need the same vision inputs: {_name(illustrated[0])} has {sorted(keys)}, "
                f"{_name(sample)} has {sorted(sample.vision_inputs)}; encode both with the same image processor"
            )
    return {
        "vision_inputs": {key: _concatenate(key, samples=illustrated) for key in keys},
        "num_image_tokens": torch.tensor(counts, dtype=torch.long),
        "frame_index": torch.tensor(frames, dtype=torch.long),
    }


def _concatenate(key: str, *, samples: Sequence[EncodedSample]) -> Tensor:
    first = samples[0].vision_inputs[key]
    for sample in samples:
        other = sample.vision_inputs[key]
        if other.shape[1:] != first.shape[1:] and not tells_sizes(sample.vision_inputs):
            raise DataError(
                f"images of one batch need one shape, but {key} is {list(first.shape[1:])} for sample "
                f"{_name(samples[0])} and {list(other.shape[1:])} for sample {_name(sample)}; "
                f"set model.image_size, so that the image processor makes all of one size"
            )
    return join_images(key, [sample.vision_inputs[key] for sample in samples])


class _Table:
    """Rows under construction; a row is a list of groups, a group one sample with its images and its dialogs."""

    def __init__(self, rows: Sequence[Sequence[EncodedSample]], *, pad_token_id: int) -> None:
        shape = (len(rows), max(sum(group.num_positions for group in row) for row in rows))
        num_segments = max(sum(group.num_segments for group in row) for row in rows)
        self.input_ids = np.full(shape, pad_token_id, dtype=np.int64)
        self.kind = np.full(shape, PAD, dtype=np.int64)
        self.group = np.full(shape, -1, dtype=np.int64)
        self.segment = np.full(shape, -1, dtype=np.int64)
        self.position = np.zeros(shape, dtype=np.int64)
        self.sees = np.zeros((len(rows), num_segments, num_segments), dtype=bool)
        self.source: list[tuple[int, int]] = []
        self.target: list[int] = []
        self.target_dialog: list[int] = []
        self.num_dialogs = 0
        for row_index, row in enumerate(rows):
            start = segment = 0
            for group_index, group in enumerate(row):
                self.group[row_index, start : start + group.num_positions] = group_index
                self._write_group(group, row=row_index, start=start, segment=segment)
                start += group.num_positions
                segment += group.num_segments

    def _write_group(self, group: EncodedSample, *, row: int, start: int, segment: int) -> None:
        in_front = []  # segments that every text sees
        if num_prefix := group.num_prefix_tokens:
            self._write_segment(IMAGE, row=row, start=start, length=num_prefix, segment=segment, first_position=0)
            in_front = [segment]
            start, segment = start + num_prefix, segment + 1
        seen: list[list[int]] = []  # by what stands behind each branch
        columns: list[range] = []
        for branch in group.grown.branches:
            length = branch.end - branch.start
            position = num_prefix + branch.start
            self._write_segment(TEXT, row=row, start=start, length=length, segment=segment, first_position=position)
            ids = group.dialogs[branch.text].input_ids[branch.start : branch.end]
            self.input_ids[row, start : start + length] = ids
            stems = in_front if branch.stem < 0 else seen[branch.stem]
            self.sees[row, segment, stems] = True
            seen.append([*stems, segment])
            columns.append(range(start, start + length))
            start, segment = start + length, segment + 1
        for dialog, path in zip(group.dialogs, group.grown.paths, strict=True):
            self._write_targets(dialog, row=row, columns=[column for number in path for column in columns[number]])

    def _write_segment(
        self, kind: int, *, row: int, start: int, length: int, segment: int, first_position: int
    ) -> None:
        columns = slice(start, start + length)
        self.kind[row, columns] = kind
        self.segment[row, columns] = segment
        self.position[row, columns] = np.arange(first_position, first_position + length)

    def _write_targets(self, dialog: EncodedDialog, *, row: int, columns: Sequence[int]) -> None:
        assert not any(dialog.supervised[:1]), "the first token of a dialog is never a target"
        targets = [index for index, is_target in enumerate(dialog.supervised) if is_target]
        self.source += [(row, columns[index - 1]) for index in targets]
        self.target += [dialog.input_ids[index] for index in targets]
        self.target_dialog += [self.num_dialogs] * len(targets)
        self.num_dialogs += 1

    def _distinct(self) -> dict[str, Tensor | None]:
        """Say which pairs there are more than once, as several dialogs share them."""
        numbers: dict[tuple[tuple[int, int], int], int] = {}
        distinct: list[int] = []
        for index, pair in enumerate(pairs := list(zip(self.source, self.target, strict=True))):
            if numbers.setdefault(pair, len(distinct)) == len(distinct):
                distinct.append(index)
        if len(distinct) == len(pairs):
            return {"distinct": None, "as_distinct": None}
        return {
            "distinct": torch.tensor(distinct, dtype=torch.long),
            "as_distinct": torch.tensor([numbers[pair] for pair in pairs], dtype=torch.long),
        }

    def tensors(self) -> dict[str, Any]:
        """Return what was written, under the names that a batch gives it."""
        tables = ("input_ids", "kind", "group", "segment", "position", "sees")
        return {
            **{name: torch.from_numpy(getattr(self, name)) for name in tables},
            "source": torch.tensor(self.source, dtype=torch.long).reshape(-1, 2),
            "target": torch.tensor(self.target, dtype=torch.long),
            "target_dialog": torch.tensor(self.target_dialog, dtype=torch.long),
            **self._distinct(),
        }
