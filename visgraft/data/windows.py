"""Read streams a window at a time: the next rows of all of them, gathered by image, as ordinary Sources.

In:  the entries of a recipe that say `streaming: true`. Out: windows, each with the place where the next one begins.

    streams = open_streams(recipe.data.train, key="data.train", settings=recipe.data)
    window = streams.window(seed=0, epoch=0, place=None)        # window.after is where the next one begins

    stream    r0 r1 r2 r3 | r4 r5 r6 r7 | r8 r9       what is gathered, and the order of an epoch, is drawn inside
              window        window        window      a window; data.stream_window is its size in rows

Several streams take turns, row by row, until all have ended. A window is a pure function of seed, epoch and place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from visgraft.config import DataSettings, SourceSettings
from visgraft.data.grouping import Grouped
from visgraft.data.quarantine import BadSample
from visgraft.data.row_streams import BufferedSamples, SampleStream, StreamedRow, StreamPlace
from visgraft.data.sources import OpenSource, Part, Sources, adapt, name_sources, part_of, reader_of
from visgraft.errors import ConfigError

_ENDED = "ended"


class OpenStream(NamedTuple):
    """One stream among others: its name, and what the recipe says of it."""

    name: str
    stream: SampleStream
    entry: SourceSettings


class WindowSources(Sources):
    """The samples of a window; a bad one is numbered as in the stream."""

    def __init__(self, opened: Sequence[OpenSource], *, numbers: Sequence[Sequence[int]], **settings: Any) -> None:
        super().__init__(opened, **settings)
        self._numbers = numbers

    def bad_sample(self, index: int, reason: str) -> BadSample:
        """Say of a bad sample what its line in quarantine.jsonl says."""
        bad = super().bad_sample(index, reason)
        number = [entry.name for entry in self.opened].index(bad.source)
        return replace(bad, index=self._numbers[number][bad.index])


class Window(NamedTuple):
    """Some rows of the streams.

    Attributes:
        sources: what is in it, by number.
        num_read: rows of this epoch from its beginning to the end of the window.
        after: the place of the next window; None: the streams have ended.
    """

    sources: Sources
    num_read: int
    after: StreamPlace


class Streams:
    """Read several streams by turns."""

    def __init__(self, streams: Sequence[OpenStream], *, settings: DataSettings, part: Part) -> None:
        self.streams = tuple(streams)
        self.settings = settings
        self._part = part
        self._running: tuple[Any, list[Iterator[StreamedRow] | None]] = (None, [])

    def window(self, *, seed: int | None, epoch: int, place: StreamPlace) -> Window:
        """Read the window that begins at a place (None: the beginning); behind the last one the reading goes on."""
        num_read, places = place or [0, [[0, None] for _ in self.streams]]
        key, iterators = self._running
        if key != (seed, epoch, place) or place is None:
            iterators = [
                None if at == _ENDED else self._begin(number, seed=seed, epoch=epoch, place=at[1])
                for number, at in enumerate(places)
            ]
        buffered, places = self._read(iterators, list(places))
        num_read += sum(map(len, buffered))
        after = [num_read, places] if any(iterators) else None
        self._running = ((seed, epoch, after), iterators)
        return Window(self._gather(buffered), num_read, after)

    def unfinished(self, window: Window) -> list[str]:
        """Name the streams that go on behind a window."""
        places = [_ENDED] * len(self.streams) if window.after is None else window.after[1]
        return [stream.name for stream, place in zip(self.streams, places, strict=True) if place != _ENDED]

    def described(self) -> dict[str, dict[str, str]]:
        """Describe by name what is known of each stream's files, without reading them."""
        return {name: stream.rows.fingerprint.described() for name, stream, _ in self.streams}

    def _begin(self, number: int, *, seed: int | None, epoch: int, place: StreamPlace) -> Iterator[StreamedRow]:
        _, stream, entry = self.streams[number]
        seed = seed if entry.limit is None else None  # the first rows are the same in every epoch
        return stream.rows.read(seed=seed, epoch=epoch, place=place)

    def _read(self, iterators: list[Any], places: list[Any]) -> tuple[list[BufferedSamples], list[Any]]:
        """Fill a window; an iterator that has ended becomes None."""
        buffered = [BufferedSamples() for _ in self.streams]
        left = self.settings.stream_window
        while left and any(iterators):
            for number, (_, stream, entry) in enumerate(self.streams):
                if iterators[number] is None or not left:
                    continue
                count = places[number][0]
                row = None if count == entry.limit else next(iterators[number], None)
                if row is None:
                    iterators[number], places[number] = None, _ENDED
                    continue
                buffered[number].append(stream.sample(row), row=row)
                places[number] = [count + 1, row.after]
                left -= 1
        return buffered, places

    def _gather(self, buffered: Sequence[BufferedSamples]) -> Sources:
        opened, numbers = [], []
        for (name, stream, entry), samples in zip(self.streams, buffered, strict=True):
            grouped = None if entry.group == "none" else Grouped(samples, by_content=entry.group == "content")
            adapted = adapt(samples if grouped is None else grouped, entry=entry, settings=self.settings)
            opened.append(OpenSource(name=name, samples=adapted, length=len(adapted), notes=stream.notes))
            firsts = range(len(samples)) if grouped is None else (grouped.members(i)[0] for i in range(len(grouped)))
            numbers.append([samples.numbers[int(first)] for first in firsts])
        return WindowSources(opened, numbers=numbers, settings=self.settings, part=self._part)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": (None, [])}  # a stream that is being read does not travel


def open_streams(entries: Sequence[SourceSettings], *, key: str, settings: DataSettings) -> Streams | None:
    """Open the streams of a list; None where no entry is one.

    Raises ConfigError where only some are, or where a setting needs what only the end of a stream would tell.
    """
    is_stream = [bool(entry.options.get("streaming")) and "take" not in entry.options for entry in entries]
    if not any(is_stream):
        return None
    if not all(is_stream):
        raise ConfigError(
            f"{key}.{is_stream.index(True)}: is a stream, and {key}.{is_stream.index(False)} is not; streams go with "
            "streams only: set streaming on all, or on none"
        )
    if settings.group_across_sources or settings.mixing_temperature != 1.0:
        raise ConfigError(
            f"{key}: holds streams, which data.group_across_sources and data.mixing_temperature do not fit"
        )
    streams = []
    for number, (name, entry) in enumerate(zip(name_sources(entries), entries, strict=True)):
        unfit = {
            "weight": entry.weight != 1.0,
            "split": not isinstance(entry.split, str),
            "balance": entry.balance,
            "stage": entry.stage != 1,
        }
        for setting, is_set in unfit.items():
            if is_set:
                raise ConfigError(
                    f"{key}.{number}.{setting}: got {getattr(entry, setting)}, which a stream cannot have, as no one "
                    f"knows how much it holds; leave it out, or read the source without streaming"
                )
        read = reader_of(entry, key=f"{key}.{number}")
        stream = read(None if entry.path is None else Path(entry.path).expanduser(), split=entry.split)
        assert isinstance(stream, SampleStream), "readers return streams where streaming is true"
        streams.append(OpenStream(name, stream, entry))
    return Streams(streams, settings=settings, part=part_of(key))
