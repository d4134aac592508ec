"""The planner as it was first written: it reads and encodes every text of a step to see how long it is.

In: sources or streams, a processor and the settings of a planner. Out: what each step consists of, in plain values, to
compare with.
Usage: `assert told(planner, epochs=2.5) == plain_plan(sources, processor, epochs=2.5, seed=0, ...)`
"""

from collections.abc import Iterator
from hashlib import blake2b
from random import Random
from typing import Any

import numpy as np

from visgraft.data.dealing import chunk_dialogs
from visgraft.data.sources import Sources, epoch_order
from visgraft.data.windows import Streams
from visgraft.errors import BadSampleError
from visgraft.processor import Processor
from visgraft.training.plan import Planner, Position

START = Position(0, 0)
Told = tuple[Any, ...]  # of a step: its groups (epoch, id, texts), its bad samples, where it ends


def told(planner: Planner, *, epochs: float, position: Position = START) -> list[Told]:
    """Say in plain values what a planner plans."""
    steps = []
    for step in planner.steps(position, epochs=epochs):
        samples = [(group.epoch, planner.sample(group)) for group in step.groups]
        groups = [(epoch, sample.id, texts_of(sample)) for epoch, sample in samples]
        steps.append((groups, [(bad.where, bad.reason) for bad in step.bad], tuple(step.end)))
    return steps


def texts_of(sample: Any) -> list[tuple[str, str]]:
    return [(dialog[0].prompt, dialog[0].answer) for dialog in sample.dialogs]


def groups_of(
    sources: Sources, *, seed: int, epoch: int, max_dialogs: int, shuffle: bool = True
) -> list[tuple[int, int]]:
    """List sample and chunk of every group of an epoch."""
    order = sources.order(seed=seed, epoch=epoch) if shuffle else np.arange(len(sources))
    counts = sources.num_dialogs
    groups = [(index, chunk) for index in order.tolist() for chunk in range(-(-int(counts[index]) // max_dialogs))]
    return [groups[n] for n in epoch_order(len(groups), seed=seed, epoch=epoch)] if shuffle else groups


def read(sources: Sources, group: tuple[int, int], *, seed: int, epoch: int, max_dialogs: int) -> Any:
    chunks = chunk_dialogs(sources[group[0]], max_dialogs=max_dialogs, rng=Random(f"{seed} {epoch} {group[0]}"))
    return chunks[group[1]]


def fill(
    taken: Iterator[Any], processor: Processor, *, text_tokens_per_step: int, epochs: float, done: Any
) -> list[Told]:
    """Take groups until their texts fill a step, step after step."""
    steps: list[Told] = []
    end: tuple[Any, ...] = (0, 0, None)
    while done(end) < epochs:
        groups, bad, num_tokens = [], [], 0
        while num_tokens < text_tokens_per_step and done(end) < epochs:
            epoch, sample, where, met, end = next(taken)
            bad += met
            if sample is None:
                continue
            try:
                if isinstance(sample, str):
                    raise BadSampleError(sample)
                reasons: list[str] = []
                num_tokens += sum(len(dialog.input_ids) for dialog in processor.encode_text(sample, bad=reasons))
                bad += [(where, reason) for reason in reasons[:1]]
                groups.append((epoch, sample.id, texts_of(sample)))
            except BadSampleError as error:
                bad.append((where, str(error)))
        steps.append((groups, bad, end))
    return steps


def plain_plan(
    sources: Sources,
    processor: Processor,
    *,
    epochs: float,
    seed: int,
    max_dialogs: int,
    text_tokens_per_step: int,
    shuffle: bool = True,
) -> list[Told]:
    """Plan the steps over sources of known length."""
    numbers: dict[str, Any] = {"seed": seed, "max_dialogs": max_dialogs}

    def num_groups(epoch: int) -> int:
        return len(groups_of(sources, epoch=epoch, shuffle=shuffle, **numbers))

    def taken() -> Iterator[Any]:
        epoch = 0
        while True:
            groups = groups_of(sources, epoch=epoch, shuffle=shuffle, **numbers)
            following = next(e for e in range(epoch + 1, epoch + 99) if num_groups(e))
            for cursor, group in enumerate(groups):
                try:
                    sample = read(sources, group, epoch=epoch, **numbers)
                except BadSampleError as error:
                    sample = str(error)
                end = (epoch, cursor + 1, None) if cursor + 1 < len(groups) else (following, 0, None)
                yield epoch, sample, sources.where(group[0]), [], end
            epoch = following

    def done(end: Any) -> float:
        return end[0] + (end[1] / num_groups(end[0]) if end[1] else 0.0)

    return fill(taken(), processor, text_tokens_per_step=text_tokens_per_step, epochs=epochs, done=done)


def plain_stream_plan(
    streams: Streams, processor: Processor, *, epochs: float, seed: int, max_dialogs: int, text_tokens_per_step: int
) -> list[Told]:
    """Plan the steps over streams."""

    def taken() -> Iterator[Any]:
        epoch, now = 0, None  # now: rows read before this window, rows of the last epoch, where the window begins
        while True:
            place, in_last = (None, 0) if now is None else (now[2], now[1])
            window = streams.window(seed=seed, epoch=epoch, place=place)
            own = int.from_bytes(blake2b(f"{seed} {epoch} {place}".encode(), digest_size=8).digest())
            groups = groups_of(window.sources, seed=own, epoch=0, max_dialogs=max_dialogs)
            met = []
            for index in np.flatnonzero(window.sources.num_dialogs == 0).tolist():
                try:
                    met.append((window.sources.where(index), f"it has {len(window.sources[index].dialogs)} dialogs"))
                except BadSampleError as error:
                    met.append((window.sources.where(index), str(error)))
            behind: Any = (epoch, 0, [window.num_read, in_last, window.after])
            if window.after is None:
                behind = (epoch + 1, 0, [0, window.num_read, None])
            if not groups:
                yield epoch, None, "", met, behind
            for cursor, group in enumerate(groups):
                sample = read(window.sources, group, seed=own, epoch=0, max_dialogs=max_dialogs)
                end = (epoch, cursor + 1, now) if cursor + 1 < len(groups) else behind
                yield epoch, sample, window.sources.where(group[0]), met if cursor == 0 else [], end
            epoch, now = behind[0], behind[2]

    return fill(
        taken(), processor, text_tokens_per_step=text_tokens_per_step, epochs=epochs, done=lambda end: float(end[0])
    )
