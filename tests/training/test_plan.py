"""A step is a pure function of the seed and of how far the run is."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.plain_plan import told
from tests.training.tiny import save_data
from visgraft.config import SourceSettings
from visgraft.data.sample import Sample, Turn
from visgraft.data.sources import OpenSource, Sources, open_sources
from visgraft.errors import BadSampleError, DataError
from visgraft.processor import Processor
from visgraft.training.plan import Planner, Position, StepPlan
from visgraft.training.steps import LoaderSettings, load_steps

Make = Callable[..., Planner]
START = Position(0, 0)


def texts_of(planner: Planner, steps: list[StepPlan]) -> Counter[tuple[str | None, str, str]]:
    samples = [planner.sample(group) for step in steps for group in step.groups]
    return Counter((s.id, dialog[0].prompt, dialog[0].answer) for s in samples for dialog in s.dialogs)


def test_an_epoch_brings_every_dialog_once(make_planner: Make) -> None:
    planner = make_planner()
    texts = texts_of(planner, list(planner.steps(START, epochs=1.0)))
    assert set(texts.values()) == {1}
    assert len(texts) == 3 * (1 + 2 + 3 + 4)
    assert set(texts_of(planner, list(planner.steps(START, epochs=2.0))).values()) == {2}


def test_a_plan_that_goes_on_equals_one_that_never_stopped(make_planner: Make) -> None:
    whole = list(make_planner().steps(START, epochs=2.5))
    for number in (1, 4, len(whole) - 1):
        again = make_planner()  # a new process knows nothing but the position
        assert list(again.steps(whole[number].start, epochs=2.5)) == whole[number:]


def test_seed_and_epoch_change_the_order_and_nothing_else_does(make_planner: Make) -> None:
    first = [step.groups for step in make_planner().steps(START, epochs=1.0)]
    assert first == [step.groups for step in make_planner().steps(START, epochs=1.0)]
    assert first != [step.groups for step in make_planner(seed=1).steps(START, epochs=1.0)]
    planner = make_planner()
    epochs = [[group[:2] for step in planner.steps(Position(e, 0), epochs=e + 1.0) for group in step.groups]
              for e in (0, 1)]  # fmt: skip
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_a_step_takes_groups_until_its_texts_fill_the_budget(make_planner: Make, processor: Processor) -> None:
    planner = make_planner()
    steps = list(planner.steps(START, epochs=3.0))
    for step in steps[:-1]:
        lengths = [
            sum(len(dialog.input_ids) for dialog in processor.encode_text(planner.sample(group)))
            for group in step.groups
        ]
        assert sum(lengths) >= 80 > sum(lengths[:-1])
    assert any(step.end.epoch > step.start.epoch and step.end.cursor > 0 for step in steps)


def test_a_budget_below_one_group_makes_steps_of_one_group(make_planner: Make) -> None:
    planner = make_planner(text_tokens_per_step=1)
    assert all(len(step.groups) == 1 for step in planner.steps(START, epochs=1.0))


def test_a_fraction_of_an_epoch_ends_where_it_says(make_planner: Make) -> None:
    planner = make_planner(text_tokens_per_step=1)
    assert planner.num_groups(0) == 18
    assert len(list(planner.steps(START, epochs=0.5))) == 9
    assert len(list(planner.steps(START, epochs=1.5))) == 27
    assert planner.epochs_done(Position(1, 9)) == 1.5


def test_groups_hold_no_more_dialogs_than_allowed_and_other_ones_each_epoch(make_planner: Make) -> None:
    planner = make_planner(max_dialogs=2, text_tokens_per_step=1)
    divisions = []
    for epoch in range(4):
        groups = [group for step in planner.steps(Position(epoch, 0), epochs=epoch + 1.0) for group in step.groups]
        samples = [planner.sample(group) for group in sorted(groups)]
        assert max(len(sample.dialogs) for sample in samples) == 2
        divisions.append([sample.dialogs for sample in samples])
    assert any(division != divisions[0] for division in divisions[1:])


def test_the_groups_of_one_image_do_not_come_together(make_planner: Make) -> None:
    planner = make_planner(num_images=40, max_dialogs=1, text_tokens_per_step=1)
    order = [step.groups[0].sample_index for step in planner.steps(START, epochs=1.0)]
    neighbours = sum(first == second for first, second in pairwise(order))
    assert neighbours < len(order) / 10


def test_validation_comes_in_its_own_order(make_planner: Make) -> None:
    planner = make_planner(shuffle=False)
    order = [group.sample_index for step in planner.steps(START, epochs=1.0) for group in step.groups]
    assert order == sorted(order)


class Texts:
    """A source of text-only samples; an answer of None cannot be read, an empty one not be encoded."""

    def __init__(self, answers: list[str | None]) -> None:
        self.answers = answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Sample:
        answer = self.answers[index]
        if answer is None:
            raise BadSampleError("missing column")
        return Sample(images=[], dialogs=[[Turn("Which colour?", answer)]])

    def where(self, index: int) -> str:
        return f"line {index + 1}"


def plan_texts(processor: Processor, answers: list[str | None], *, weight: float = 1.0) -> Planner:
    sources = Sources([OpenSource(name="texts", samples=Texts(answers), length=len(answers), weight=weight)])
    return Planner(sources, processor, seed=0, max_dialogs=2, text_tokens_per_step=40)


def test_bad_texts_are_set_aside_with_their_place(processor: Processor) -> None:
    planner = plan_texts(processor, ["red", None, "green", "", "blue"])
    assert [(bad.where, bad.reason) for bad in planner.unreadable] == [("line 2", "missing column")]
    steps = list(planner.steps(START, epochs=1.0))
    assert [(bad.where, bad.reason) for step in steps for bad in step.bad] == [("line 4", "answer is empty")]
    assert sorted(group.sample_index for step in steps for group in step.groups) == [0, 2, 4]


def test_sources_without_anything_to_use_are_an_error(processor: Processor) -> None:
    planner = plan_texts(processor, [None, None])
    with pytest.raises(DataError, match=r"data: got 2 samples and none can be used \(missing column\)"):
        next(planner.steps(START, epochs=1.0))


def test_an_epoch_without_any_group_is_passed_over(processor: Processor) -> None:
    planner = plan_texts(processor, ["red", "green", "blue"], weight=0.5)
    groups = [planner.num_groups(epoch) for epoch in range(12)]
    steps = list(planner.steps(START, epochs=12.0))
    assert sum(len(step.groups) for step in steps) == sum(groups)
    assert steps[-1].end.epoch == 12


def test_a_long_run_keeps_only_the_epochs_at_hand(make_planner: Make) -> None:
    planner = make_planner()
    list(islice(planner.steps(START, epochs=100.0), 60))
    assert len(planner._epochs) <= 3


# --- Balanced answers


def balanced(folder: Path, processor: Processor, **settings: Any) -> Planner:
    """Plan 24 images with three questions each, whose answers are mostly the same, beside another source."""
    answers = {"Is it red?": "no", "Where?": "here"}
    rows = [
        {"image": f"data/{n}.png", "question": question, "answer": answer if n % 8 else "perhaps"}
        for n in range(24)
        for question, answer in {**answers, f"What is {n}?": "a cat"}.items()
    ]
    path = folder / "rows.jsonl"
    if not path.exists():  # another time of change is another source
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = [
        SourceSettings("folder", path=save_data(folder / "data", num_images=24), limit=4),
        SourceSettings("parquet", path=str(path), balance="answers"),
    ]
    sizes = {"seed": 0, "max_dialogs": 2, "text_tokens_per_step": 80, **settings}
    return Planner(open_sources(entries), processor, **sizes)


def test_balanced_answers_come_equally_often_behind_shared_images(tmp_path: Path, processor: Processor) -> None:
    planner = balanced(tmp_path, processor)
    for epoch in range(3):
        steps = list(planner.steps(Position(epoch, 0), epochs=epoch + 1.0))
        samples = [planner.sample(group) for step in steps for group in step.groups]
        found = Counter((dialog[0].prompt, dialog[0].answer) for s in samples for dialog in s.dialogs)
        red = {answer: found["Is it red?", answer] for answer in ("no", "perhaps", "yes")}
        assert red["no"] == red["perhaps"] == 12
        assert sum(number for (prompt, _), number in found.items() if prompt == "Where?") == 24
        assert sum(found.values()) == 24 * 3 + 10
        ours = [s for s in samples if s.source == "parquet"]
        assert max(len(s.dialogs) for s in ours) == 2 and len(ours) < 24 * 3 * 0.8


def test_a_balanced_plan_goes_on_from_every_position_and_is_the_same_in_several_processes(
    tmp_path: Path, processor: Processor
) -> None:
    whole = told(balanced(tmp_path, processor), epochs=2.5)
    steps = list(balanced(tmp_path, processor).steps(START, epochs=2.5))
    assert len(whole) > 20 and told(balanced(tmp_path, processor, seed=1), epochs=2.5) != whole
    for number in (1, len(steps) // 2, len(steps) - 1):
        assert told(balanced(tmp_path, processor), epochs=2.5, position=steps[number].start) == whole[number:]
    one = balanced(tmp_path, processor)
    alone = list(load_steps(one, START, epochs=2.5, settings=LoaderSettings("shared", 10**6)))
    settings = [LoaderSettings("shared", 10**6, process_index=n, num_processes=2) for n in range(2)]
    shares = [list(load_steps(one, START, epochs=2.5, settings=each)) for each in settings]
    for step, first, second in zip(alone, *shares, strict=True):
        texts = step.counts()["dialogs"]
        assert first.counts()["dialogs"] + second.counts()["dialogs"] == texts
        assert not step.bad
    assert sum(step.counts()["dialogs"] for step in alone) > 2.3 * 82


def staged(processor: Processor, stages: list[int]) -> Planner:
    entries = [SourceSettings(source=f"s{n}", stage=stage) for n, stage in enumerate(stages)]
    opened = [
        OpenSource(
            name=f"s{n}", samples=Texts([f"{word} {n}" for word in ("red", "green", "blue")]), length=3, entry=entry
        )
        for n, entry in enumerate(entries)
    ]
    return Planner(Sources(opened), processor, seed=0, max_dialogs=8, text_tokens_per_step=1)


def test_texts_of_a_later_stage_come_behind_all_of_the_earlier_ones_in_every_epoch(processor: Processor) -> None:
    planner = staged(processor, [2, 1, 2])
    for epoch in range(3):
        steps = list(planner.steps(Position(epoch, 0), epochs=epoch + 1.0))
        names = [planner.sample(group).source for step in steps for group in step.groups]
        assert names[:3] == ["s1"] * 3 and Counter(names[3:]) == {"s0": 3, "s2": 3}
        assert names[3:] != sorted(names[3:]) or epoch  # those of one stage are shuffled
    whole = told(staged(processor, [2, 1, 2]), epochs=2.0)
    assert told(staged(processor, [2, 1, 2]), epochs=2.0, position=Position(0, 4)) == whole[4:]
    assert told(staged(processor, [7, 7, 7]), epochs=2.0) == told(staged(processor, [1, 1, 1]), epochs=2.0) != whole


def test_workers_make_balanced_batches_as_the_main_process_does(tmp_path: Path, processor: Processor) -> None:
    planner = balanced(tmp_path, processor)
    alone, helped = (
        list(load_steps(planner, START, epochs=1.5, settings=LoaderSettings("shared", 10**6, num_workers=number)))
        for number in (0, 2)
    )
    assert [step.plan for step in alone] == [step.plan for step in helped]
    for first, second in zip(alone, helped, strict=True):
        for batch, other in zip(first.batches, second.batches, strict=True):
            assert torch.equal(batch.input_ids, other.input_ids)
