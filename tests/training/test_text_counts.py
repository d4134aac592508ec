"""Texts are read and encoded once, by one process; what is planned is what the planner that encoded all would plan."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.in_threads import in_threads
from tests.data.test_windows import tars, write_tars
from tests.training.plain_plan import plain_plan, plain_stream_plan, told
from tests.training.tiny import save_data
from visgraft import disk_cache
from visgraft.config import DataSettings, SourceSettings
from visgraft.data.processes import Processes
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource, Sources, open_sources
from visgraft.data.windows import open_streams
from visgraft.errors import BadSampleError
from visgraft.processor import Processor
from visgraft.training import text_counts
from visgraft.training.plan import Planner, Position
from visgraft.training.steps import LoaderSettings, load_steps
from visgraft.training.stream_plan import StreamPlanner

SIZES: dict[str, Any] = {"seed": 3, "max_dialogs": 2, "text_tokens_per_step": 60}
START = Position(0, 0)


class Texts:
    """Text-only samples of 1 to 7 dialogs; an answer is empty in every ninth, and every eleventh cannot be read."""

    def __init__(self, number: int, *, words: int = 3) -> None:
        self.number, self.words = number, words

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Sample:
        if index % 11 == 10:
            raise BadSampleError("missing column")
        answers = ["red " * (1 + (index + n) % self.words) for n in range(1 + index * 5 % 7)]
        if index % 9 == 8:
            answers[len(answers) // 2] = " "
        return Sample([], [[Turn(f"What colour is {n}?", answer)] for n, answer in enumerate(answers)], id=f"{index}")

    def where(self, index: int) -> str:
        return f"line {index + 1}"


def mixed(number: int = 40) -> Sources:
    opened = [
        OpenSource(name="few", samples=Texts(number // 2), length=number // 2, weight=2.5),
        OpenSource(name="many", samples=Texts(number, words=9), length=number, weight=0.5),
    ]
    return Sources(opened)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Which texts are encoded, and how often."""
    counter: Counter[str] = Counter()
    encode_each = Processor.encode_each

    def counted(self: Processor, sample: Sample) -> Any:
        outcomes = encode_each(self, sample)
        pairs = zip(sample.dialogs, outcomes, strict=True)
        counter.update(f"{sample.id} {dialog[0].prompt}" for dialog, outcome in pairs if not isinstance(outcome, str))
        return outcomes

    monkeypatch.setattr(Processor, "encode_each", counted)
    yield counter


@pytest.mark.parametrize("settings", [{}, {"max_dialogs": 3, "seed": 1}, {"shuffle": False}, {"max_dialogs": 99}])
def test_the_plan_is_that_of_the_planner_that_encodes_everything(
    processor: Processor, settings: dict[str, Any]
) -> None:
    sizes = {**SIZES, **settings}
    plain = plain_plan(mixed(), processor, epochs=3.5, **sizes)
    planner = Planner(mixed(), processor, **sizes)
    assert told(planner, epochs=3.5) == plain
    assert told(planner, epochs=3.5) == plain  # from the counts alone
    reasons = Counter(reason for step in plain for _, reason in step[1])
    assert len(plain) > 20 and reasons["answer is empty"] > 5
    later = plain[7][2]
    assert told(Planner(mixed(), processor, **sizes), epochs=3.5, position=Position(*later)) == plain[8:]


def test_the_plan_of_streams_is_that_of_the_planner_that_encodes_everything(
    tmp_path: Path, processor: Processor
) -> None:
    entry = SourceSettings(**tars(write_tars(tmp_path), group="content"))
    whole = (tmp_path / "a-1.tar").read_bytes()
    (tmp_path / "a-1.tar").write_bytes(whole[:2500])

    def streams() -> Any:
        return open_streams([entry], key="data.train", settings=DataSettings(stream_window=4))

    sizes = {**SIZES, "text_tokens_per_step": 20}
    plain = plain_stream_plan(streams(), processor, epochs=2.0, **sizes)

    assert told(StreamPlanner(streams(), processor, **sizes), epochs=2.0) == plain
    assert len(plain) > 3 and any(step[1] for step in plain)


def test_in_every_epoch_each_text_is_encoded_once_and_each_row_read_once(
    processor: Processor, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = Planner(mixed(), processor, **SIZES)
    rows: Counter[str] = Counter()
    getitem = Sources.__getitem__

    def read(self: Sources, index: int) -> Sample:
        rows[str(index)] += 1
        return getitem(self, index)

    monkeypatch.setattr(Sources, "__getitem__", read)
    for _ in range(2):  # the first time they are counted
        encoded.clear(), rows.clear()
        steps = list(load_steps(planner, START, epochs=1.0, settings=LoaderSettings("shared", 10**6)))
        texts = sum(step.counts()["dialogs"] for step in steps)
        good = {key: times for key, times in encoded.items() if times}
        groups = Counter(str(group.sample_index) for step in steps for group in step.plan.groups)
        bad = Counter(str(bad.index if bad.source == "few" else bad.index + 20) for step in steps for bad in step.bad)
        assert all(rows[index] <= groups[index] + bad[index] for index in rows)
        assert texts <= sum(good.values()) <= texts + sum(rows[index] for index in bad) * 2
    assert not any(rows[index] for index in bad if index not in groups)  # bad ones are known as such by now


def test_a_process_encodes_its_own_share_alone_once_the_texts_are_counted(
    processor: Processor, encoded: Counter[str]
) -> None:
    planner = Planner(mixed(), processor, **SIZES)
    list(planner.steps(START, epochs=1.0))
    encoded.clear()
    settings = LoaderSettings("shared", 10**6, process_index=1, num_processes=3)
    steps = list(load_steps(planner, START, epochs=1.0, settings=settings))
    assert sum(encoded.values()) == sum(step.counts()["dialogs"] for step in steps)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("max_dialogs", [2, 99])
def test_several_processes_plan_the_same_and_each_reads_and_encodes_its_share_alone(
    processor: Processor, monkeypatch: pytest.MonkeyPatch, number: int, max_dialogs: int
) -> None:
    monkeypatch.setattr("visgraft.training.plan.READ_AHEAD", 3)
    sizes = {**SIZES, "max_dialogs": max_dialogs}
    plain = plain_plan(mixed(), processor, epochs=2.0, **sizes)
    encoded: Counter[tuple[int, str]] = Counter()
    encode_each = Processor.encode_each

    def counted(self: Processor, sample: Sample) -> Any:
        encoded.update((threading.get_ident(), f"{sample.id} {dialog[0].prompt}") for dialog in sample.dialogs)
        return encode_each(self, sample)

    monkeypatch.setattr(Processor, "encode_each", counted)
    idents: list[int] = [0] * number

    def plan(processes: Processes) -> Any:
        idents[processes.index] = threading.get_ident()
        planner = Planner(mixed(), processor, **sizes, processes=processes)
        first = list(planner.steps(START, epochs=2.0))
        share = {"process_index": processes.index, "num_processes": number}
        return first, list(planner.steps(START, epochs=2.0, **share)), planner

    found = in_threads(number, plan)
    wholes = [whole for whole, _, _ in found]
    assert all(whole == wholes[0] for whole in wholes)
    assert [step.num_groups for step in wholes[0]] == [len(groups) for groups, _, _ in plain]
    assert [step.end for step in wholes[0]] == [end for _, _, end in plain]
    texts = Counter(name for _, name in encoded.elements())
    is_good = {name: int(name.partition(":")[2].split()[0]) % 9 != 8 for name in texts}
    assert max(times for name, times in texts.items() if is_good[name]) == 1  # by one of them
    of_each = [sum(times for (ident, _), times in encoded.items() if ident == own) for own in idents]
    assert max(of_each) < 1.4 * sum(of_each) / number
    ready = [[text is not None for step in whole for text in step.texts] for whole in wholes]
    assert all(each == ready[0] for each in ready) and any(ready[0])  # what one has read goes to the others
    for step, shares in zip(wholes[0], zip(*(own for _, own, _ in found), strict=True), strict=True):
        assert sorted(group for share in shares for group in share.groups) == sorted(step.groups)
        assert {share.num_groups for share in shares} == {step.num_groups}


def test_which_process_takes_a_group_does_not_depend_on_who_counted_it_when(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visgraft.training.plan.READ_AHEAD", 3)
    share = {"process_index": 1, "num_processes": 2}
    planner = Planner(mixed(), processor, **SIZES)
    now = list(planner.steps(START, epochs=2.0, **share))
    assert list(planner.steps(START, epochs=2.0, **share)) == now  # all is counted by now
    middle = now[len(now) // 2]
    assert next(Planner(mixed(), processor, **SIZES).steps(middle.start, epochs=2.0, **share)) == middle
    own = in_threads(2, lambda processes: next(
        Planner(mixed(), processor, **SIZES, processes=processes).steps(START, epochs=2.0, **share)
    ))  # fmt: skip
    assert own == [now[0]] * 2


class Illustrated(Texts):
    """As many samples with an image as without."""

    def __getitem__(self, index: int) -> Sample:
        images = [Image.new("RGB", (8, 8))] * (index % 2)
        return replace(super().__getitem__(index), images=images)


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_images_count_when_a_step_is_shared_out(processor: Processor, layout: Any) -> None:
    samples = Illustrated(400)
    sources = Sources([OpenSource(name="texts", samples=samples, length=len(samples))])
    sizes = {**SIZES, "text_tokens_per_step": 1500, "layout": layout}
    planner = Planner(sources, processor, **sizes)
    for number in (2, 5):
        settings = [LoaderSettings(layout, 10**6, process_index=n, num_processes=number) for n in range(number)]
        shares = [next(load_steps(planner, START, epochs=1.0, settings=each)) for each in settings]
        laden = [share.counts()["text_tokens"] + share.counts()["image_tokens"] for share in shares]
        assert min(share.counts()["image_tokens"] for share in shares) > 0
        assert max(laden) < 1.03 * sum(laden) / number, laden


def data(folder: Path, processor: Processor) -> Callable[[], Planner]:
    path = save_data(folder, num_images=20)
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines + '{"file_name": "0.png", "text": "a <b> c"}\n')
    return lambda: Planner(open_sources([SourceSettings(source="folder", path=path)]), processor, **SIZES)


def test_counts_are_kept_for_other_runs_until_something_changes(
    tmp_path: Path, processor: Processor, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_cache, "_WORTH_KEEPING_S", 0.0)
    make = data(tmp_path / "data", processor)
    first = list(make().steps(START, epochs=1.0))
    assert encoded
    encoded.clear()
    assert list(make().steps(START, epochs=1.0)) == first
    assert not encoded

    def with_others() -> Planner:
        planner = make()
        planner.processor = Processor.from_parts(
            processor.image_processor, processor.tokenizer, num_image_tokens=4, template="plain", max_text_tokens=9
        )
        planner._counts = text_counts.TextCounts(planner.sources, planner.processor)
        return planner

    list(with_others().steps(START, epochs=1.0))
    assert encoded  # another template, another longest text
    encoded.clear()
    with (tmp_path / "data" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "1.png", "text": "one more"}\n')
    assert list(make().steps(START, epochs=1.0)) != first
    assert encoded


def test_kept_reasons_of_bad_texts_are_those_of_the_text(
    tmp_path: Path, processor: Processor, encoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_cache, "_WORTH_KEEPING_S", 0.0)
    short = Processor.from_parts(
        processor.image_processor, processor.tokenizer, num_image_tokens=4, template="question", max_text_tokens=6
    )
    path = save_data(tmp_path / "data", num_images=20)

    def bad() -> list[Any]:
        sources = open_sources([SourceSettings(source="folder", path=path)])
        return [step.bad for step in Planner(sources, short, **SIZES).steps(START, epochs=1.0)]

    first = bad()
    assert "prompt leaves no room for the answer (max_text_tokens 6)" in {
        each.reason for step in first for each in step
    }
    encoded.clear()
    assert bad() == first and not encoded


def test_a_row_that_could_not_be_read_is_read_again(processor: Processor) -> None:
    class Shaky(Texts):
        is_there = False

        def __getitem__(self, index: int) -> Sample:
            if index == 3 and not self.is_there:
                raise BadSampleError("the disk does not answer")
            return super().__getitem__(index)

    samples = Shaky(8)
    samples.is_there = True
    planner = Planner(Sources([OpenSource(name="texts", samples=samples, length=8)]), processor, **SIZES)
    samples.is_there = False
    first = [bad.reason for step in planner.steps(START, epochs=1.0) for bad in step.bad]
    assert set(first) == {"the disk does not answer"}
    samples.is_there = True
    assert not any(step.bad for step in planner.steps(START, epochs=1.0))


def test_a_sample_with_other_dialogs_than_when_it_was_opened_is_bad(processor: Processor) -> None:
    samples = Texts(8, words=2)
    planner = Planner(Sources([OpenSource(name="texts", samples=samples, length=8)]), processor, **SIZES)
    samples.__class__ = type("Changed", (Texts,), {"__getitem__": lambda self, index: Sample([], [[Turn("", "a")]])})
    reasons = {bad.reason for step in planner.steps(START, epochs=1.0) for bad in step.bad}
    assert "got 1 dialogs, but 6 when the data were opened" in reasons


def test_a_full_disk_does_not_end_a_run_for_its_counts(
    tmp_path: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_cache, "_WORTH_KEEPING_S", 0.0)
    monkeypatch.setattr(text_counts, "write_arrays", refuse)
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "cache"))
    assert list(data(tmp_path / "data", processor)().steps(START, epochs=1.0))
