"""What becomes of bad samples in a run: looked past while the budget allows it, written down once, never measured."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_windows import write_tars
from tests.training.tiny import save_data, tiny_recipe
from visgraft.builder.build import build_processor
from visgraft.compare.collect import collect
from visgraft.compare.results_table import results
from visgraft.config import load_recipe
from visgraft.data.first_look import without_good_sample
from visgraft.data.sample import Sample
from visgraft.data.sources import OpenSource
from visgraft.errors import DataError, TooManyBadError
from visgraft.runs import Run
from visgraft.training.interrupt import Interrupted
from visgraft.training.loop import train
from visgraft.training.plan import Position
from visgraft.training.progress import TrainProgress
from visgraft.training.setup import open_session
from visgraft.training.steps import LoaderSettings, StepDataset
from visgraft.training.training_data import open_planner
from visgraft.training.validate import validate


def recipe_with(folder: Path, *, validation: str, **train_settings: Any) -> dict[str, Any]:
    recipe = tiny_recipe(folder, **train_settings)
    recipe["data"]["validation"] = [{"source": "folder", "path": validation}]
    return recipe


def write_rows(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stream(path: str) -> dict[str, Any]:
    return {"source": "webdataset", "path": path, "streaming": True}


class Nothing:
    """A source without a sample."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)

    def where(self, index: int) -> str:
        return "nowhere"


# --- A set, or a source, of which nothing can be used


@pytest.mark.parametrize("bad", [3, 12])
def test_a_validation_set_of_bad_samples_alone_ends_the_run_before_it_begins(
    tmp_path: Path, quiet: TrainProgress, bad: int
) -> None:
    recipe = recipe_with(tmp_path, validation=save_data(tmp_path / "v", num_images=0, bad=bad))
    with pytest.raises(
        DataError,
        match=rf"data\.validation: source 'folder' has no good sample: all {bad} are bad: not an image \({bad}, the "
        r"first at metadata\.jsonl line 1\)\. Its first row holds \{file_name: 'bad-0\.png', text: 'never seen'\}",
    ):
        train(recipe, progress=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_source_without_a_good_sample_ends_the_run_whatever_the_others_hold(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = tiny_recipe(tmp_path)
    lost = write_rows(tmp_path / "lost.jsonl", [{"file": "a.png", "caption": None, "tags": ["x", "y"]}])
    recipe["data"]["train"].append({"source": "parquet", "path": lost})
    with pytest.raises(
        DataError, match=r"source 'parquet' has no good sample: its only one is bad: .*tags: a list of 2, the first 'x'"
    ):
        train(recipe, progress=quiet)
    recipe["data"]["group_across_sources"] = True
    with pytest.raises(DataError, match=r"data\.train: source 'parquet' has no good sample"):
        train(recipe, progress=quiet)


def test_an_empty_source_is_no_source() -> None:
    empty = OpenSource("coco", Nothing(), length=0)
    assert without_good_sample(empty, {}, {}).startswith("source 'coco' holds no sample at all; check its path and")


def test_a_stream_that_ends_without_a_good_sample_is_no_source(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = stream_recipe(tmp_path, num_bad=0)
    broken = tmp_path / "broken"
    write_tars(broken, num_tars=1, per_tar=3)
    (broken / "a-0.tar").write_bytes((broken / "a-0.tar").read_bytes()[:100])
    recipe["data"]["train"].append(stream(str(broken / "*.tar")))
    with pytest.raises(DataError, match=r"data\.train: source 'webdataset-2' has no good sample: its only one is bad"):
        train(recipe, progress=quiet)


# --- A bad beginning


def bad_from_the_start(recipe: dict[str, Any], *, number: int) -> dict[str, Any]:
    """Give a recipe the first seed with which its first steps hold nothing but bad samples."""
    for seed in range(100):
        seeded = {**recipe, "train": {**recipe["train"], "seed": seed}}
        planner = open_planner(load_recipe(seeded), "train", build_processor(load_recipe(seeded)))
        steps = StepDataset(planner, LoaderSettings("shared", max_pixels=10**6))
        if not any(steps.encode(plan)[0] for plan in islice(planner.steps(Position(0, 0), epochs=1.0), number)):
            return seeded
    raise AssertionError("no seed begins so")


def test_a_run_looks_past_first_steps_of_bad_samples(tmp_path: Path, quiet: TrainProgress) -> None:
    often = {"validate_every_steps": 2, "sample_every_steps": 2, "checkpoint_every_steps": 2}
    recipe = tiny_recipe(tmp_path, num_images=6, bad=5, text_tokens_per_step=1, max_steps=6, **often)
    run = Run.open(train(bad_from_the_start(recipe, number=2), progress=quiet))
    assert [record["step"] for record in run.steps()] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in run.validations()] == [2, 4, 6]
    assert min(record["step"] for record in run.read("samples")) == 2
    assert len(run.read("quarantine")) >= 2 and min(run.checkpoints()) == 4


def stream_recipe(folder: Path, *, num_bad: int, **train_settings: Any) -> dict[str, Any]:
    """Make a recipe over a stream, some of whose images are broken, all in the same tar."""
    recipe = tiny_recipe(folder, **{"max_steps": 8, "epochs": 9.0, "text_tokens_per_step": 1, **train_settings})
    path = write_tars(folder / "tars")
    tar = folder / "tars" / "a-1.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x89PN!", num_bad))
    recipe["data"] = {"train": [stream(path)], "stream_window": 4}
    return recipe


@pytest.mark.slow
def test_a_stream_with_a_bad_beginning_goes_on_bit_for_bit_when_it_was_stopped(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = bad_from_the_start(stream_recipe(tmp_path, num_bad=4, checkpoint_every_steps=8), number=2)
    whole = train(recipe, progress=quiet)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 0)
    went_on = train(resume=stopped.value.folder, progress=quiet)
    checkpoints = [Run.open(folder).latest_checkpoint()[1] for folder in (whole, went_on)]
    weights = [(checkpoint / "trained.safetensors").read_bytes() for checkpoint in checkpoints]
    assert weights[0] == weights[1]
    written = [Run.open(folder).read("quarantine") for folder in (whole, went_on)]
    assert written[0] == written[1] and len(written[0]) == 4


def test_a_stream_of_nothing_but_bad_rows_ends_within_its_first_window(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=3)
    path = write_tars(tmp_path / "tars", num_tars=6, per_tar=5)
    for tar in Path(path).parent.glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x89PN!"))
    recipe["data"] = {"train": [stream(path)], "stream_window": 20}
    with pytest.raises(DataError, match=r"6 of 20 samples are bad and at most 5 are allowed"):
        train(recipe, progress=quiet)


# --- Bad samples of validation


@pytest.mark.slow
def test_bad_validation_samples_are_written_down_once_however_often_it_validates_and_is_resumed(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    validation = save_data(tmp_path / "v", num_images=5, first=100, bad=4)
    recipe = recipe_with(tmp_path, validation=validation, bad=2, epochs=2, validate_every_steps=2)
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=quiet, stop=lambda step: step == 5)
    run = Run.open(train(resume=stopped.value.folder, progress=quiet))
    found = Counter((record["part"], record["source"], record["where"]) for record in run.read("quarantine"))
    assert set(found.values()) == {1}
    assert Counter(part for part, *_ in found) == {"train": 2, "validation": 4}
    assert len(run.validations()) > 3


def test_too_many_bad_validation_samples_end_the_run_once_its_steps_are_saved(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    validation = save_data(tmp_path / "v", num_images=5, first=100, bad=6)
    recipe = recipe_with(tmp_path, validation=validation, validate_every_steps=2)
    with pytest.raises(DataError, match=r"data\.validation: 6 of 11 samples are bad and at most 5 are allowed"):
        train(recipe, progress=quiet)
    [folder] = (tmp_path / "runs").iterdir()
    assert list(Run.open(folder).checkpoints()) == [2]
    with pytest.raises(DataError, match=r"data\.validation: 6 of 11 samples are bad"):
        train(resume=folder, progress=quiet)
    raised = load_recipe(Run.open(folder).folder, overrides=["data.max_bad_fraction=0.6"])
    run = Run.open(train(raised, resume=folder, progress=quiet))
    assert run.status() == "finished" and len(run.read("quarantine")) == 6


def test_too_many_bad_training_samples_end_the_run_once_its_steps_are_saved(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    recipe = tiny_recipe(tmp_path, bad=6, text_tokens_per_step=20)
    with pytest.raises(TooManyBadError, match=r"data\.train: 6 of 18 samples are bad"):
        train(recipe, progress=quiet)
    [folder] = (tmp_path / "runs").iterdir()
    [step] = Run.open(folder).checkpoints()
    assert step == Run.open(folder).steps()[-1]["step"] > 3
    with pytest.raises(TooManyBadError, match=r"data\.train: 6 of 18 samples are bad"):
        train(resume=folder, progress=quiet)
    raised = load_recipe(Run.open(folder).folder, overrides=["data.max_bad_fraction=0.4"])
    went_on = Run.open(train(raised, resume=folder, progress=quiet))
    whole = train(load_recipe(recipe, overrides=["data.max_bad_fraction=0.4"]), progress=quiet)
    assert [r["loss"] for r in went_on.steps()] == [r["loss"] for r in Run.open(whole).steps()]


def test_where_nothing_was_measured_there_is_no_number(tmp_path: Path, quiet: TrainProgress) -> None:
    validation = save_data(tmp_path / "v", num_images=3, first=100)
    recipe = recipe_with(tmp_path, validation=validation, validate_every_steps=2, max_steps=4, exact_match_samples=0)
    session = open_session(load_recipe(recipe), progress=quiet)
    for path in Path(validation).glob("*.png"):
        path.write_bytes(b"gone")
    record = validate(session)
    assert (record["validation_loss"], record["validation_loss_per_character"]) == (None, None)
    assert len(session.run.read("quarantine")) == 3
    quiet.validated(record)


def test_a_run_that_measured_nothing_keeps_its_last_model_and_is_not_the_best(
    tmp_path: Path, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=4, validate_every_steps=2)
    measured = train({**recipe, "name": "measured"}, progress=quiet)
    nothing = {"validation_loss": None, "validation_loss_per_character": None}
    monkeypatch.setattr("visgraft.training.loop.validate", lambda session: {"step": session.state.step, **nothing})
    unmeasured = train({**recipe, "name": "unmeasured"}, progress=quiet)
    summary = Run.open(unmeasured).read_summary()
    assert summary is not None and summary["model_step"] == 4
    assert (summary["validation_step"], summary["validation_loss"]) == (4, None)
    [column] = [each for each in results(collect([measured, unmeasured]).variants) if each.key == "validation_loss"]
    assert len(column.cells) == 1 and not any(cell.is_best for cell in column.cells.values())
