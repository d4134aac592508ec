"""In which passes a batch goes through a language model that no mask governs alone.

In: the rows of a batch as a segment table and embeddings, images and several texts in each. Out: the loss of every
target, or logits. A recurrent layer carries a state from position to position, whatever a mask says; so what it must
not see is not in its row, and nothing stands in front of a row or between its parts:

    rows      i i a a a      a row for each text; pads stand behind it      i = image, a and b = texts
              i i b b _

    state     i i            the image once; what it became (keys, values and states) is copied to its texts,
              a a a          which read on from there, and gradients flow back through the copies
              b b _

    state     i i            texts a and b that begin with the same turn q: it reads on from the image, once, and they
              q q q          from there, where that is worth a pass of its own
              a a a
              b b _

Both compute the same. Attention layers have their mask in either; recurrent layers read from left to right, so that an
image is causal in them.

    losses = losses_in_passes(language, attention_spec, embeds, table, source=source, target=target, by_state=True, ...)
    logits = read(language, attention_spec, embeds, table, cache=cache)

Axis letters as in vlm.py; N texts or images of a pass.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from visgraft.errors import ModelError
from visgraft.model.cache import CACHE_NAME
from visgraft.model.language import AttentionSpec
from visgraft.model.layer_outputs import LayerOutputs
from visgraft.model.loss import gathered_head, supervised_losses
from visgraft.model.sequence import SegmentTable
from visgraft.model.state_cache import POSITIONAL, StateCache
from visgraft.segments import IMAGE, PAD, TEXT

# --- Training: a batch whose rows hold images and several texts each


MIN_SAVED = 32  # positions; what several texts begin with is read in a pass of its own from there on


@dataclass(frozen=True)
class _Text:
    """One text of a batch, whole: what it shares with others is its own beginning, too.

    Attributes:
        row: the row it is in.
        image: columns of the images in front of it.
        text: its columns.
        stops: after how many of all these columns others read on elsewhere, from copies of the states there; rising.
    """

    row: int
    image: tuple[int, ...]
    text: tuple[int, ...]
    stops: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """All of them."""
        return self.image + self.text


def losses_in_passes(
    language: PreTrainedModel,
    attention_spec: AttentionSpec,
    embeds: Tensor,
    table: SegmentTable,
    *,
    source: Tensor,
    target: Tensor,
    by_state: bool,
    causal_image: bool,
    logits_bytes: int,
) -> Tensor:
    """Compute the cross-entropy of each (source, target) pair, the rows taken apart into passes.

    Args:
        language: the causal LM.
        attention_spec: how it takes masks and positions.
        embeds: [B, S, D_lm], image tokens in their places.
        table: of the same rows.
        source: [M, 2] long, (row, column) of the position whose logits predict the target.
        target: [M] long token ids.
        by_state: several texts behind one image read on from copies of its states; else each reads its image itself.
        causal_image: image tokens see only earlier image tokens, in attention layers too.
        logits_bytes: see `supervised_losses`.

    Returns:
        [M] fp32, in the order of the pairs.
    """
    texts = _texts_of(table, by_state=by_state)
    owner = torch.full(table.kind.shape, -1, dtype=torch.long)  # [B, S], a text that stands at a position
    offset = torch.zeros(table.kind.shape, dtype=torch.long)  # [B, S], and which of its columns it is
    for index, text in reversed(list(enumerate(texts))):
        columns = torch.tensor(text.columns)
        owner[text.row, columns] = index
        offset[text.row, columns] = torch.arange(len(columns))
    rows, columns = source.cpu().unbind(1)
    passes = _Passes(
        language,
        attention_spec,
        embeds,
        table,
        texts,
        torch.stack([owner[rows, columns], offset[rows, columns]], 1),
        target,
        causal_image=causal_image,
        logits_bytes=logits_bytes,
    )
    found = list(passes.losses_of(range(len(texts)), cache=None))
    if not found:
        return embeds.sum() * target.new_zeros(0, dtype=torch.float32)
    losses, order = zip(*found, strict=True)
    return torch.cat(losses)[torch.cat(order).argsort().to(embeds.device)]


def _texts_of(table: SegmentTable, *, by_state: bool) -> list[_Text]:
    """List the texts of a batch, each with the images that it sees and with what it shares with others.

    A text that others go on from is not listed: it is the beginning of each of those.
    """
    kind, segment, sees, position = (tensor.cpu() for tensor in (table.kind, table.segment, table.sees, table.position))
    texts = []
    for row in range(kind.shape[0]):
        own = torch.where(kind[row] == PAD, -1, segment[row])  # [S]
        pieces = own[kind[row] == TEXT].unique().tolist()
        is_stem = {number: bool(sees[row, pieces, number].any()) for number in pieces}
        columns = {number: tuple((own == number).nonzero()[:, 0].tolist()) for number in pieces}
        first = {number: int(position[row, columns[number][0]]) for number in pieces}
        for number in (number for number in pieces if not is_stem[number]):
            seen = (sees[row, number][own.clamp(min=0)] & (own >= 0) & (kind[row] == IMAGE)).nonzero()[:, 0]
            stems = sorted((each for each in pieces if sees[row, number, each]), key=first.__getitem__)
            lengths = [len(columns[stem]) for stem in stems]
            text = tuple(column for each in (*stems, number) for column in columns[each])
            stops = [len(seen) + end for end in accumulate(lengths)]
            texts.append(_Text(row, tuple(seen.tolist()), text, tuple(stops)))
    return _worth_a_pass(texts) if by_state else [replace(text, stops=()) for text in texts]


def _worth_a_pass(texts: Sequence[_Text]) -> list[_Text]:
    """Keep of the stops of each text those that save enough; its images are one where several texts read them."""
    number = Counter((text.row, text.columns[:stop]) for text in texts for stop in (len(text.image), *text.stops))
    chosen = []
    for text in texts:
        kept = [len(text.image)] if text.image and number[text.row, text.image] > 1 else []
        for stop in text.stops:
            length = stop - max(kept, default=0)
            if (number[text.row, text.columns[:stop]] - 1) * length >= MIN_SAVED:
                kept.append(stop)
        chosen.append(replace(text, stops=tuple(kept)))
    return chosen


@dataclass(frozen=True)
class _Passes:
    """What all passes of a batch have in common; see `losses_in_passes`.

    Attributes:
        places: [M, 2] long, the column of which text is the source of each target; of a shared one, any that has it.
    """

    language: PreTrainedModel
    attention_spec: AttentionSpec
    embeds: Tensor
    table: SegmentTable
    texts: Sequence[_Text]
    places: Tensor
    target: Tensor
    causal_image: bool
    logits_bytes: int

    def losses_of(self, numbers: Sequence[int], *, cache: StateCache | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Read texts on to their ends: at once those that stop nowhere, the others from stop to stop.

        Args:
            numbers: which texts.
            cache: what was read of them, a row each; None: nothing.

        Yields:
            Losses [m] of some pairs, and which pairs they are.
        """
        start = 0 if cache is None else cache.num_positions
        by_stop: dict[int | None, list[int]] = {None: []}
        for index, number in enumerate(numbers):
            following = (stop for stop in self.texts[number].stops if stop > start)
            by_stop.setdefault(next(following, None), []).append(index)
        for stop, members in by_stop.items():
            chosen = [numbers[index] for index in members]
            pairs = self._pairs_of(chosen, start=start)
            if not len(pairs):
                continue
            heads = [self._head(number, stop) for number in chosen]
            row = {head: index for index, head in enumerate(dict.fromkeys(heads))}
            own = cache
            if own is not None and len(row) < len(numbers):
                own = own.select(self._tensor([members[heads.index(head)] for head in row]))
            own = StateCache() if own is None and stop is not None else own
            now = pairs if stop is None else pairs[self.places[pairs, 1] < stop]
            row_of = torch.full((len(self.texts),), -1)
            row_of[chosen] = torch.tensor([row[head] for head in heads])
            losses = self._run([text for text, _ in row], now, row_of, cache=own, start=start)
            if losses is not None:
                yield losses, now
            if stop is not None:
                assert own is not None
                behind = own.behind(stop - start).select(self._tensor([row[head] for head in heads]))
                yield from self.losses_of(chosen, cache=behind)

    def _head(self, number: int, stop: int | None) -> tuple[_Text, int]:
        """Give a text up to a stop, which is one with those that are alike up to there; whole, it is one of its own."""
        text = self.texts[number]
        if stop is None:
            return text, number
        return _Text(text.row, text.image, text.text[: stop - len(text.image)]), -1

    def _pairs_of(self, numbers: Sequence[int], *, start: int) -> Tensor:
        """List the pairs [m] whose sources are columns of these texts, from `start` on."""
        is_chosen = torch.zeros(len(self.texts), dtype=torch.bool)
        is_chosen[list(numbers)] = True
        return (is_chosen[self.places[:, 0]] & (self.places[:, 1] >= start)).nonzero()[:, 0]

    def _run(
        self, texts: Sequence[_Text], pairs: Tensor, row_of: Tensor, *, cache: StateCache | None, start: int
    ) -> Tensor | None:
        """Run one pass over texts, a row each; where there are pairs [m], give their losses."""
        rows = _Rows.of(texts, self.table)
        arguments = self.attention_spec.arguments(
            rows.table,
            dtype=self.embeds.dtype,
            num_queries=rows.table.length - start,
            cache=cache,
            causal_image=self.causal_image,
        )
        row_embeds = rows.gather(self.embeds)[:, start:]  # [N, Q, D_lm]
        run = functools.partial(self.attention_spec.call, self.language, row_embeds, arguments, cache=cache)
        if not len(pairs):
            with gathered_head(self.language, slice(-1, None)):  # its logits are thrown away: make as few as possible
                run()
            return None
        source = torch.stack([row_of[self.places[pairs, 0]], self.places[pairs, 1] - start], 1)
        target = self.target[pairs.to(self.target.device)]
        return supervised_losses(
            self.language, run, source=self._tensor(source), target=target, logits_bytes=self.logits_bytes
        )

    def _tensor(self, values: Tensor | Sequence[int]) -> Tensor:
        return torch.as_tensor(values, device=self.embeds.device)


@dataclass(frozen=True)
class _Rows:
    """Rows of a pass, [images][text][pads], and where each position stands in the batch.

    Attributes:
        row: [N, 1] long, the batch's row.
        column: [N, S] long, the batch's column; of a pad any.
        table: of these rows.
    """

    row: Tensor
    column: Tensor
    table: SegmentTable

    @staticmethod
    def of(texts: Sequence[_Text], table: SegmentTable) -> _Rows:
        device = table.kind.device
        length = max(len(text.columns) for text in texts)
        columns = [list(text.columns) for text in texts]
        padded = torch.tensor([own + [0] * (length - len(own)) for own in columns], device=device)  # [N, S]
        row = torch.tensor([[text.row] for text in texts], device=device)  # [N, 1]
        num_image = torch.tensor([[len(text.image)] for text in texts], device=device)  # [N, 1]
        num_real = torch.tensor([[len(own)] for own in columns], device=device)  # [N, 1]
        place = torch.arange(length, device=device)[None]  # [1, S]
        is_pad = place >= num_real
        position = table.position[row, padded]  # [N, S]
        last = position.masked_fill(is_pad, -1).amax(1, keepdim=True)
        sees = torch.tensor([[False, False], [True, False]], device=device).expand(len(texts), 2, 2)
        own = SegmentTable(
            kind=torch.where(is_pad, PAD, torch.where(place < num_image, IMAGE, TEXT)),
            group=torch.zeros_like(padded),
            segment=(place >= num_image).long(),
            position=torch.where(is_pad, last + 1 + place - num_real, position),
            sees=sees,
        )
        return _Rows(row, padded, own)

    def gather(self, embeds: Tensor) -> Tensor:
        """Take embeddings [B, S, D] to the places of these rows."""
        return embeds[self.row, self.column]


# --- Logits, and reading on behind a cache


def read(
    language: PreTrainedModel,
    attention_spec: AttentionSpec,
    embeds: Tensor,
    table: SegmentTable,
    *,
    cache: Cache | None = None,
    causal_image: bool = False,
    logits_to_keep: int = 0,
    shown: LayerOutputs | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the last Q of a table's positions, pads left out, rows with like pads together.

    Args:
        language: the causal LM.
        attention_spec: how it takes masks and positions.
        embeds: [B, Q, D_lm].
        table: the rows, S positions with the cached ones.
        cache: a `StateCache`, which holds the S - Q positions before, then all of them, zeros in the places of pads.
        causal_image: see `losses_in_passes`.
        logits_to_keep: only the logits of each row's last n real positions; 0 = all.
        shown: takes in what the layers are to show; 0 at pads.

    Returns:
        Logits [B, Q or n, V], and what comes to the head, [B, Q, D]; 0 at pads.

    Raises:
        ModelError: another kind of cache.
    """
    if cache is not None and not isinstance(cache, StateCache):
        raise ModelError(
            f"{CACHE_NAME}: got {type(cache).__name__}, but {attention_spec.name} carries states: give a StateCache "
            "(visgraft.model.state_cache), or leave it out"
        )
    if cache is not None and attention_spec.behind_cache == "nothing":
        return _read_anew(language, attention_spec, embeds, table, cache, causal_image, logits_to_keep, shown)
    num_queries = embeds.shape[1]
    num_kept = logits_to_keep or num_queries
    is_real = table.kind[:, -num_queries:] != PAD  # [B, Q]
    patterns, member = is_real.unique(dim=0, return_inverse=True)
    logits: Tensor | None = None
    states: Tensor | None = None
    parts: list[tuple[Tensor, Tensor, StateCache]] = []
    for number, pattern in enumerate(patterns):
        rows, columns = (member == number).nonzero()[:, 0], pattern.nonzero()[:, 0]
        if not len(columns):
            continue
        own = None if cache is None else cache.select(rows)
        some = embeds[rows[:, None], columns[None]]  # [n, q, D_lm]
        part_logits, part_states = _read_alike(
            language, attention_spec, some, table, rows, columns, own, causal_image, logits_to_keep, shown
        )
        if logits is None or states is None:
            logits = part_logits.new_zeros(len(embeds), num_kept, part_logits.shape[-1])
            states = part_states.new_zeros(*embeds.shape[:2], part_states.shape[-1])
        places = columns if not logits_to_keep else torch.arange(num_kept, device=rows.device)[-len(columns) :]
        logits = logits.index_put((rows[:, None], places[None]), part_logits)
        states = states.index_put((rows[:, None], columns[None]), part_states)
        if own is not None:
            parts.append((rows, columns, own))
    assert logits is not None, "a batch has a real token"
    assert states is not None
    if cache is not None:
        _join(cache, parts, num_rows=len(embeds), num_queries=num_queries)
    return logits, states


def _read_anew(
    language: PreTrainedModel,
    attention_spec: AttentionSpec,
    embeds: Tensor,
    table: SegmentTable,
    cache: StateCache,
    causal_image: bool,
    logits_to_keep: int,
    shown: LayerOutputs | None,
) -> tuple[Tensor, Tensor]:
    """Read everything again, for a family that reads nothing rightly behind a cache: it holds what was put in."""
    place = ("inputs", 0, 0)
    before = cache.base.get(place)
    whole = embeds if before is None else torch.cat([before.to(embeds.dtype), embeds], 1)  # [B, S, D_lm]
    logits, states = read(
        language, attention_spec, whole, table, causal_image=causal_image, logits_to_keep=logits_to_keep, shown=shown
    )
    if shown is not None:
        shown.keep_last(embeds.shape[1])
    cache.written = {place: whole}
    cache.advance(embeds.shape[1])
    return logits if logits_to_keep else logits[:, -embeds.shape[1] :], states[:, -embeds.shape[1] :]


def _read_alike(
    language: PreTrainedModel,
    attention_spec: AttentionSpec,
    embeds: Tensor,
    table: SegmentTable,
    rows: Tensor,
    columns: Tensor,
    cache: StateCache | None,
    causal_image: bool,
    logits_to_keep: int,
    shown: LayerOutputs | None,
) -> tuple[Tensor, Tensor]:
    """Run columns [q] of rows [n] in one pass or, behind a cache where the family needs it so, one by one.

    Returns:
        Logits [n, q or as many as are to be kept, V], and states [n, q, D].
    """
    num_before = 0 if cache is None else cache.num_positions
    is_stepwise = num_before > 0 and attention_spec.behind_cache == "single"
    before = torch.arange(num_before, device=columns.device)
    asked = {} if shown is None else shown.arguments
    logits, states = [], []
    start = 0
    for some in columns.split(1) if is_stepwise else [columns]:
        end = start + len(some)
        keys = torch.cat([before, columns[:end] + num_before])
        part = table.pick(rows, keys)
        arguments = attention_spec.arguments(
            part, dtype=embeds.dtype, num_queries=len(some), cache=cache, causal_image=causal_image
        )
        with gathered_head(language, slice(-logits_to_keep, None) if logits_to_keep else None) as seen:
            output = attention_spec.call(language, embeds[:, start:end], {**arguments, **asked}, cache=cache)
        logits.append(output.logits)
        states.append(seen[-1])
        if shown is not None:
            shown.take_part(
                output,
                rows=rows,
                columns=some,
                keys=keys,
                num_rows=table.kind.shape[0],
                num_queries=table.length - num_before,
                length=table.length,
            )
        if cache is not None:
            cache.advance(len(some))
        start = end
    return torch.cat(logits, 1)[:, -logits_to_keep:], torch.cat(states, 1)


def _join(
    cache: StateCache, parts: Sequence[tuple[Tensor, Tensor, StateCache]], *, num_rows: int, num_queries: int
) -> None:
    """Put what some passes have read into one cache: (rows [n], columns [q] of the new positions, what was read)."""
    num_before = cache.num_positions
    if len(parts) == 1 and len(parts[0][1]) == num_queries:
        cache.base = parts[0][2].base
    else:
        for place, like in parts[0][2].base.items():
            shape = [num_rows, *like.shape[1:]]
            if place[0] in POSITIONAL:
                shape[-2] = num_before + num_queries
            whole = like.new_zeros(shape)
            if place in cache.base:  # of rows that read nothing now
                before = cache.base[place]
                if place[0] in POSITIONAL:
                    whole[..., :num_before, :] = before
                else:
                    whole.copy_(before)
            for rows, columns, own in parts:
                kept = torch.cat([torch.arange(num_before, device=rows.device), columns + num_before])
                if place[0] in POSITIONAL:
                    whole[rows] = whole[rows].index_copy(-2, kept, own.base[place])
                else:
                    whole[rows] = own.base[place]
            cache.base[place] = whole
    cache.num_positions = num_before + num_queries
