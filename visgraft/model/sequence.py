"""Who may see whom, and at which position: pure functions over a segment table.

In: a `SegmentTable`, which says for every position of every row what it is (padding, image or text), to which
group and segment it belongs and which logical position it has. Out: attention masks and position ids.

    mask = attention_mask(image_then_text(image_mask, text_mask))       # dense, [B, 1, S, S]
    mask = block_mask(table, window=4096)                               # in blocks, for FlexAttention on a GPU

One image with two texts behind it (2 image tokens i, texts a and b of 2 tokens each; the row looks at the column):

    >>> print(draw(shared_prefix(num_image_tokens=2, text_lengths=[2, 2]), names="iiaabb"))
      i i a a b b
    i 1 1 . . . .
    i 1 1 . . . .
    a 1 1 1 . . .
    a 1 1 1 1 . .
    b 1 1 . . 1 .
    b 1 1 . . 1 1

Where both begin with a turn q, that stands there once, a segment that two others see (branches.py finds it):

    >>> from visgraft.branches import grow
    >>> table = append_segment(empty_table(1), torch.ones(1, 2, dtype=torch.bool), kind=IMAGE)
    >>> grown = grow([[7, 8, 4, 5], [7, 8, 6]], min_saved=2)
    >>> print(draw(append_branches(table, branches=grown.branches), names="iiqqaab"))
      i i q q a a b
    i 1 1 . . . . .
    i 1 1 . . . . .
    q 1 1 1 . . . .
    q 1 1 1 1 . . .
    a 1 1 1 1 1 . .
    a 1 1 1 1 1 1 .
    b 1 1 1 1 . . 1

Axis letters: B rows, S positions of a row, P image tokens, T text tokens, G segments, Q queries, K keys.

No image state depends on any text, so every text behind the prefix computes exactly what it would compute alone
(GIT, Wang et al. 2022, arXiv:2205.14100, figure 2 and section 3.1: the seq2seq mask of the text decoder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from visgraft.branches import Branch
from visgraft.segments import IMAGE, PAD, TEXT


class TableEntries(NamedTuple):
    """What a table says of some positions; the fields are of one shape, or broadcast to one."""

    row: Tensor
    column: Tensor
    kind: Tensor
    group: Tensor
    segment: Tensor
    position: Tensor


@dataclass(frozen=True)
class SegmentTable:
    """What every position of a batch of rows is.

    Attributes:
        kind: [B, S] long, `PAD`, `IMAGE` or `TEXT`. A pad is never seen by another position.
        group: [B, S] long; positions of different groups never see each other.
        segment: [B, S] long, index into `sees`; -1 for filler, which sees nothing but itself.
        position: [B, S] long, logical position: images count from 0, each text goes on from its prefix.
        sees: [B, G, G] bool, whether segment q may see the whole of segment k (q != k).
    """

    kind: Tensor
    group: Tensor
    segment: Tensor
    position: Tensor
    sees: Tensor

    @property
    def length(self) -> int:
        """The number of positions of a row, S."""
        return self.kind.shape[1]

    def to(self, device: torch.device) -> SegmentTable:
        """Move every tensor to `device`."""
        return SegmentTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def repeat(self, copies: int) -> SegmentTable:
        """Repeat every row, its copies next to each other."""
        if copies == 1:
            return self
        return SegmentTable(
            **{field.name: getattr(self, field.name).repeat_interleave(copies, 0) for field in fields(self)}
        )

    def cut(self, length: int) -> SegmentTable:
        """Forget all positions from `length` on."""
        kind, group, segment, position = (
            tensor[:, :length] for tensor in (self.kind, self.group, self.segment, self.position)
        )
        return SegmentTable(kind, group, segment, position, self.sees)

    def pick(self, rows: Tensor, columns: Tensor) -> SegmentTable:
        """Take these columns [s] of these rows [n], in their order."""
        index = (rows[:, None], columns[None])
        kind, group, segment, position = (
            tensor[index] for tensor in (self.kind, self.group, self.segment, self.position)
        )
        return SegmentTable(kind, group, segment, position, self.sees[rows])

    def at(self, row: Tensor, column: Tensor) -> TableEntries:
        """Read the table at [row, column] (any broadcastable index tensors)."""
        index = (row, column)
        return TableEntries(row, column, self.kind[index], self.group[index], self.segment[index], self.position[index])


def may_attend(
    query: TableEntries,
    key: TableEntries,
    *,
    sees: Tensor,
    causal_image: bool = False,
    window: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Say whether the query position may attend to the key position.

    Args:
        query: where attention looks from.
        key: where it looks at; broadcast against the query.
        sees: [B, G, G] bool of the same table.
        causal_image: image tokens see only earlier image tokens (the ablation) instead of all of their image.
        window: sliding window of the layer, in logical positions (the query's own position included).
        chunk: chunk length of the layer, in logical positions (chunked attention).

    Returns:
        Bool tensor of the broadcast shape, True = may attend. Filler sees itself, and so does a pad that a window
        may have cut off from all else, so that no row of the softmax is ever empty.
    """
    own_segment = (query.segment == key.segment) & (query.segment >= 0)
    in_past = key.position <= query.position
    within = own_segment & (in_past | ((key.kind == IMAGE) & (not causal_image)))
    # Negative segments are filler; clamping only keeps the look-up in range, `known` masks the answer.
    known = (query.segment >= 0) & (key.segment >= 0)
    across = sees[query.row, query.segment.clamp(min=0), key.segment.clamp(min=0)] & known
    allowed = (within | across) & (query.group == key.group) & (key.kind != PAD)
    if window is not None:
        allowed = allowed & (query.position - key.position < window)
    if chunk is not None:
        allowed = allowed & (query.position // chunk == key.position // chunk)
    is_alone = query.segment < 0
    if window is not None or chunk is not None:
        is_alone = is_alone | (query.kind == PAD)
    return allowed | (is_alone & (query.column == key.column))


def attention_mask(
    table: SegmentTable,
    *,
    num_queries: int | None = None,
    keys: slice | None = None,
    causal_image: bool = False,
    window: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Make the dense mask of `may_attend`.

    Args:
        table: the rows, S positions each.
        num_queries: only the last Q positions ask (cached decoding); default all.
        keys: only these columns are asked (a layer's cache may have dropped early ones); default all. A slice that
            ends beyond the table (the unwritten end of a static cache) is filled with False.
        causal_image: see `may_attend`, likewise `window` and `chunk`.

    Returns:
        [B, 1, Q, K] bool, True = may attend.
    """
    rows = torch.arange(table.kind.shape[0], device=table.kind.device)[:, None, None]  # [B, 1, 1]
    columns = torch.arange(table.length, device=table.kind.device)  # [S]
    query = table.at(rows, (columns if num_queries is None else columns[-num_queries:])[None, :, None])  # [B, Q, 1]
    key = table.at(rows, (columns if keys is None else columns[keys])[None, None, :])  # [B, 1, K]
    mask = may_attend(query, key, sees=table.sees, causal_image=causal_image, window=window, chunk=chunk)  # [B, Q, K]
    if keys is not None and keys.stop is not None and keys.stop > table.length:
        beyond = min(keys.stop - table.length, keys.stop - (keys.start or 0))
        mask = torch.nn.functional.pad(mask, (0, beyond), value=False)
    return mask[:, None]


def block_mask(
    table: SegmentTable, *, causal_image: bool = False, window: int | None = None, chunk: int | None = None
) -> BlockMask:
    """Make FlexAttention's mask of `may_attend`: which blocks of 128 x 128 positions are seen in whole or in part.

    On a GPU it is made by a compiled kernel, so that no S x S tensor ever is. The arguments are those of `may_attend`.
    """

    def mask_mod(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        entries = table.at(row, query), table.at(row, key)  # of one pair: scalars, which torch maps over all
        return may_attend(*entries, sees=table.sees, causal_image=causal_image, window=window, chunk=chunk)

    num_rows, length = table.kind.shape
    device = table.kind.device
    return create_block_mask(mask_mod, num_rows, None, length, length, device, _compile=device.type == "cuda")


def image_then_text(image_mask: Tensor, text_mask: Tensor) -> SegmentTable:
    """Describe rows of one image prefix and one text, padded as given.

    A pad behind the text counts on (as the field's models do), so that its own state stays defined; a pad with
    nothing to see becomes filler.

    Args:
        image_mask: [B, P] bool, True = a real image token (P may be 0).
        text_mask: [B, T] bool, True = a real text token.

    Returns:
        The table of B rows with S = P + T.
    """
    num_image, text_mask = image_mask.sum(1, keepdim=True), text_mask.bool()  # [B, 1], [B, T]
    count = text_mask.long().cumsum(1)  # [B, T], the real text tokens so far
    leading = (count == 0).sum(1, keepdim=True)  # [B, 1], pads in front of the text
    columns = torch.arange(text_mask.shape[1], device=text_mask.device)[None]  # [1, T]
    text_position = num_image + torch.where(text_mask, count - 1, (columns - leading).clamp(min=0))  # [B, T]
    is_filler = (count == 0) & (num_image == 0)  # [B, T]
    image_position = (image_mask.long().cumsum(1) - 1).clamp(min=0)  # [B, P]
    kind = torch.cat([image_mask.long() * IMAGE, text_mask.long() * TEXT], 1)  # [B, S]; PAD is 0
    segment = torch.cat([image_mask.long() - 1, 1 - 2 * is_filler.long()], 1)  # [B, S]; image 0, text 1, filler -1
    sees = torch.tensor([[False, False], [True, False]], device=kind.device).expand(kind.shape[0], 2, 2)  # [B, 2, 2]
    return SegmentTable(kind, torch.zeros_like(kind), segment, torch.cat([image_position, text_position], 1), sees)


def text_positions(table: SegmentTable) -> Tensor:
    """Count positions as a language model does whose image tokens take none (GIT-LLM's OPT).

    Returns:
        [B, S] long: text counts the text tokens before it in its own sequence; image tokens 0 (which is never read);
        pads -1, which is the row of pads in OPT's table.
    """
    seen = attention_mask(table)[:, 0] & (table.kind == IMAGE)[:, None]  # [B, S, S]: image tokens that each may see
    position = (table.position - seen.sum(-1)).masked_fill(table.kind == IMAGE, 0)  # [B, S]
    return position.masked_fill(table.kind == PAD, -1)


def pads_first(table: SegmentTable) -> tuple[SegmentTable, Tensor]:
    """Reorder every row of one image and one text to [pads][image][text].

    Physical then equals logical distance, which sliding and static caches count on.

    Args:
        table: rows as `image_then_text` makes them.

    Returns:
        The reordered table and [B, S] long, the old column of each new one.
    """
    order = (table.kind != PAD).long().argsort(dim=1, stable=True)  # [B, S]
    kind, group, segment, position = (
        tensor.gather(1, order) for tensor in (table.kind, table.group, table.segment, table.position)
    )
    return SegmentTable(kind, group, torch.where(kind == PAD, -1, segment), position, table.sees), order


def shared_prefix(*, num_image_tokens: int, text_lengths: Sequence[int]) -> SegmentTable:
    """Describe one row of one image with several texts behind it, each restarting at position P."""
    lengths = [num_image_tokens, *text_lengths]
    segment = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)])[None]  # [1, S]
    starts = [0, *[num_image_tokens] * len(text_lengths)]
    position = torch.tensor([s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)])[None]
    sees = torch.zeros(1, len(lengths), len(lengths), dtype=torch.bool)  # [1, G, G]
    sees[:, 1:, 0] = num_image_tokens > 0
    kind = torch.where(segment == 0, IMAGE, TEXT)
    return SegmentTable(kind, torch.zeros_like(kind), segment, position, sees)


def empty_table(num_rows: int, *, device: torch.device | None = None) -> SegmentTable:
    """Describe rows before anything is read: S = 0."""
    empty = torch.zeros(num_rows, 0, dtype=torch.long, device=device)  # [B, 0]
    return SegmentTable(empty, empty, empty, empty, torch.zeros(num_rows, 0, 0, dtype=torch.bool, device=device))


def append_segment(context: SegmentTable, mask: Tensor, *, kind: int, image_sees_before: bool = False) -> SegmentTable:
    """Describe rows to which one more segment, an image or a text, is added.

    A text sees all that was read before it, and its own past. An image sees itself alone, as everywhere: its states
    depend on no text. Positions go on in either case, so that logical distance is distance in reading; what was read
    before sees nothing of the new segment. An image i, a text a, a later image j and a later text b:

        >>> table = empty_table(1)
        >>> for kind, length in [(IMAGE, 2), (TEXT, 2), (IMAGE, 2), (TEXT, 2)]:
        ...     table = append_segment(table, torch.ones(1, length, dtype=torch.bool), kind=kind)
        >>> print(draw(table, names="iiaajjbb"))
          i i a a j j b b
        i 1 1 . . . . . .
        i 1 1 . . . . . .
        a 1 1 1 . . . . .
        a 1 1 1 1 . . . .
        j . . . . 1 1 . .
        j . . . . 1 1 . .
        b 1 1 1 1 1 1 1 .
        b 1 1 1 1 1 1 1 1

    Args:
        context: rows as read so far, S positions; the rows may come in more copies than the context has (beams).
        mask: [B, Q] bool, True = a real token; B a multiple of the context's rows.
        kind: `IMAGE` or `TEXT`.
        image_sees_before: an image sees all that was read before it, as a text does (LLaVA's), not itself alone.

    Returns:
        The table of B rows with S + Q positions; pads see themselves alone and are never seen.
    """
    context = context.repeat(mask.shape[0] // context.kind.shape[0])
    position = _next_position(context) + (mask.long().cumsum(1) - 1).clamp(min=0)  # [B, Q]
    num_segments = context.sees.shape[1]  # G
    sees = torch.nn.functional.pad(context.sees, (0, 1, 0, 1))  # [B, G + 1, G + 1]
    sees[:, num_segments, :num_segments] = kind == TEXT or image_sees_before
    return SegmentTable(
        kind=torch.cat([context.kind, mask.long() * kind], 1),
        group=torch.cat([context.group, torch.zeros_like(mask, dtype=torch.long)], 1),
        segment=torch.cat([context.segment, torch.where(mask, num_segments, -1)], 1),
        position=torch.cat([context.position, position], 1),
        sees=sees,
    )


def append_branches(context: SegmentTable, *, branches: Sequence[Branch]) -> SegmentTable:
    """Describe one row to which the branches of several texts are added, to be read at once.

    Each sees all that was read before, the branches that it stands behind and its own past, and none sees another;
    texts restart at the next position.

    Args:
        context: one row as read so far, S positions.
        branches: of the texts; no text is empty.

    Returns:
        The table of one row with the positions of all branches behind those of the context.
    """
    num_segments, device = context.sees.shape[1], context.kind.device
    sees = torch.nn.functional.pad(
        context.sees, (0, len(branches), 0, len(branches))
    )  # [1, G + branches, G + branches]
    sees[:, num_segments:, :num_segments] = True
    segment: list[int] = []
    step: list[int] = []
    for index, branch in enumerate(branches, start=num_segments):
        if branch.stem >= 0:
            stem = num_segments + branch.stem
            sees[0, index] |= sees[0, stem]
            sees[0, index, stem] = True
        segment += [index] * (branch.end - branch.start)
        step += range(branch.start, branch.end)
    own, steps = (torch.tensor([values], dtype=torch.long, device=device) for values in (segment, step))  # [1, T] each
    return SegmentTable(
        kind=torch.cat([context.kind, torch.full_like(own, TEXT)], 1),
        group=torch.cat([context.group, torch.zeros_like(own)], 1),
        segment=torch.cat([context.segment, own], 1),
        position=torch.cat([context.position, _next_position(context) + steps], 1),
        sees=sees,
    )


def rows_going_on(starts: Tensor, *, counts: Tensor, num_new: int, num_columns: int) -> SegmentTable:
    """Describe rows of unlike length without gaps, each of which goes on with a text of its own length.

    The keys come first, a column for each position; behind them stand the queries. Where a row has fewer than
    `num_new`, what is left over asks what its last one asks, and is never looked at.

          0 1 2 3 4 5 | queries          x what a row has read, q what it reads now
        x x x q q q . | 3 4 5
        x q . . . . . | 1 1 1

    Args:
        starts: [B] long, positions that each row has read.
        counts: [B] long, positions that each row reads now, at least 1.
        num_new: the most of them, Q.
        num_columns: columns that hold keys, K, those of this reading included.

    Returns:
        The table of B rows with K + Q positions; only the last Q ask, and only the first K are looked at.
    """
    columns = torch.arange(num_columns, device=starts.device).expand(len(starts), -1)  # [B, K]
    ends = (starts + counts)[:, None]
    query = (starts[:, None] + torch.arange(num_new, device=starts.device)).minimum(ends - 1)  # [B, Q]
    position = torch.cat([columns, query], 1)
    kind = torch.cat([torch.where(columns < ends, TEXT, PAD), torch.full_like(query, TEXT)], 1)
    none = torch.zeros_like(position)
    return SegmentTable(kind, none, none, position, torch.zeros_like(ends[..., None], dtype=torch.bool))


def _next_position(context: SegmentTable) -> Tensor:
    """Give the position behind each row's last real one: [B, 1]."""
    ends = torch.where(context.kind != PAD, context.position + 1, 0)  # [B, S]
    return torch.nn.functional.pad(ends, (1, 0)).amax(1, keepdim=True)


def draw(table: SegmentTable, *, names: str, causal_image: bool = False) -> str:
    """Draw the first row's mask: one line a query, `1` = may attend, `.` = may not."""
    mask = attention_mask(table, causal_image=causal_image)[0, 0]
    lines = ["  " + " ".join(names)]
    lines += [
        f"{name} " + " ".join("1" if seen else "." for seen in row)
        for name, row in zip(names, mask.tolist(), strict=True)
    ]
    return "\n".join(lines)
