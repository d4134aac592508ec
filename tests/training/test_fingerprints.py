"""What a run depends on may not change unseen between stop and resume: refused by name, or allowed and written down."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.training.tiny import save_data, tiny_recipe
from visgraft.config import load_recipe
from visgraft.errors import CheckpointError, ConfigError, DataError
from visgraft.model.storage.model_card import model_card
from visgraft.runs import Run
from visgraft.training.loop import Interrupted, train
from visgraft.training.progress import TrainProgress, make_progress
from visgraft.training.session import Session
from visgraft.training.setup import open_session

pytestmark = pytest.mark.slow  # real trainings

STOP_AT = 3


def save_tars(folder: Path, *, numbers: range, images: Path) -> None:
    """Save two pictures and their captions a tar."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name in (2 * number, 2 * number + 1):
                members = {
                    "png": (images / f"{name % 4}.png").read_bytes(),
                    "txt": f"tar {number} picture {name}".encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{name:03}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def save_rows(path: Path, *, images: Path, number: int = 6) -> None:
    rows = [{"image": str(images / f"{index % 4}.png"), "text": f"row {index} of many"} for index in range(number)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


@dataclass(frozen=True)
class Stopped:
    """A stopped run, and the folder of all that it depends on."""

    base: Path
    folder: Path

    def resume(self, quiet: TrainProgress, **options: Any) -> Session:
        return open_session(load_recipe(self.folder), resume=self.folder, progress=quiet, **options)


def stop(recipe: dict[str, Any], *, after: int = STOP_AT) -> Path:
    with pytest.raises(Interrupted) as stopped:
        train(recipe, progress=make_progress(show=False), stop=lambda step: step == after)
    return Path(stopped.value.folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Stop a run over a folder, tars and rows after three steps; keep a copy of all that it depends on."""
    root = tmp_path_factory.mktemp("stopped")
    base = root / "base"
    recipe = tiny_recipe(base, epochs=3)
    save_tars(base / "tars", numbers=range(3), images=base / "train")
    save_rows(base / "rows.jsonl", images=base / "train")
    recipe["data"]["train"] += [
        {"source": "webdataset", "path": str(base / "tars")},
        {"source": "parquet", "path": str(base / "rows.jsonl")},
    ]
    run = stop({**recipe, "output": str(root / "runs")})
    shutil.copytree(base, root / "kept")
    return base, root / "kept", run


@pytest.fixture
def stopped(made: tuple[Path, Path, Path], tmp_path: Path) -> Iterator[Stopped]:
    base, kept, run = made
    shutil.copytree(run, tmp_path / "run")
    yield Stopped(base, tmp_path / "run")
    shutil.rmtree(base)
    shutil.copytree(kept, base)  # times of change too


def lines_of(base: Path, part: str = "train") -> list[str]:
    return (base / part / "metadata.jsonl").read_text().splitlines()


def write_lines(base: Path, lines: list[str], part: str = "train") -> None:
    (base / part / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-6  # far below what a half format holds
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def swap_ids(base: Path) -> None:
    path = base / "tiny-llama" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(values))


def replace_image(base: Path, name: str) -> None:
    Image.new("RGB", (32, 32), "white").save(base / name)


def remove_image(base: Path) -> None:
    (base / "train" / "3.png").unlink()


def swap_tars(base: Path) -> None:
    first, second, other = (base / "tars" / name for name in ("0.tar", "1.tar", "other"))
    first.rename(other)
    second.rename(first)
    other.rename(second)


def cut_tar(base: Path) -> None:
    path = base / "tars" / "1.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:end] + bytes(1024))


def rewrite_tar(base: Path) -> None:
    save_tars(base / "tars", numbers=range(1, 2), images=base / "validation-none")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "rows added": (
        lambda base: write_lines(base, [*lines_of(base), '{"file_name": "0.png", "text": "more"}']),
        r"data\.train folder texts: 30 before, 31 now",
    ),
    "rows removed": (
        lambda base: write_lines(base, lines_of(base)[:-1]),
        r"data\.train folder metadata\.jsonl: 2,170 bytes of .* before, 2,099 bytes of .* now",
    ),
    "rows reordered": (lambda base: write_lines(base, lines_of(base)[::-1]), r"data\.train folder metadata\.jsonl: "),
    "answers replaced, as long as they were": (
        lambda base: write_lines(base, [line.replace("cat", "dog") for line in lines_of(base)]),
        r"data\.train folder metadata\.jsonl: ",
    ),
    "an image replaced": (
        lambda base: replace_image(base, "train/5.png"),
        r"data\.train folder images: .* now\n",
    ),
    "an image gone": (remove_image, r"data\.train folder images: .* now\n|data\.train folder images: .*1 missing"),
    "an image that rows name replaced": (
        lambda base: replace_image(base, "train/2.png"),
        r"data\.train parquet images: 4 files, .* before, 4 files, .*, the newest 2\.png of .* now",
    ),
    "rows of a file of rows cut": (
        lambda base: save_rows(base / "rows.jsonl", images=base / "train", number=3),
        r"data\.train parquet rows\.jsonl: .*\n.*data\.train parquet",
    ),
    "validation changed": (
        lambda base: write_lines(base, lines_of(base, "validation")[:-1], "validation"),
        r"data\.validation folder metadata\.jsonl: ",
    ),
    "an image of validation replaced": (
        lambda base: replace_image(base, "validation/101.png"),
        r"data\.validation folder images: ",
    ),
    "a tar added": (
        lambda base: save_tars(base / "tars", numbers=range(3, 4), images=base / "train"),
        r"data\.train webdataset 3\.tar: not there before, ",
    ),
    "a tar gone": (lambda base: (base / "tars" / "2.tar").unlink(), r"data\.train webdataset 2\.tar: .*not there now"),
    "tars swapped": (swap_tars, r"data\.train webdataset 0\.tar: .*\n.*data\.train webdataset 1\.tar: "),
    "a tar cut": (cut_tar, r"data\.train webdataset samples: 6 before, 5 now|data\.train webdataset 1\.tar: "),
    "weights of the language model": (lambda base: edit_weights(base / "tiny-llama"), r"language weights: [0-9a-f]+ "),
    "weights of the encoder": (lambda base: edit_weights(base / "tiny-clip"), r"vision weights: [0-9a-f]+ before"),
    "ids of the tokenizer": (swap_ids, r"tokenizer vocabulary: "),
    "the language model's config": (
        lambda base: edit_json(base / "tiny-llama" / "config.json", rms_norm_eps=1e-4),
        r"language config rms_norm_eps: 1e-06 before, 0\.0001 now",
    ),
    "the encoder's config": (
        lambda base: edit_json(base / "tiny-clip" / "config.json", layer_norm_eps=1e-4),
        r"vision config layer_norm_eps: 1e-05 before, 0\.0001 now",
    ),
    "the stop tokens": (
        lambda base: edit_json(base / "tiny-llama" / "generation_config.json", eos_token_id=7),
        r"language generation eos_token_id: .* before, 7 now",
    ),
    "the image processor": (
        lambda base: edit_json(base / "tiny-clip" / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        r"image_processor image_mean: \[0\.48.*\] before, \[0\.5, 0\.5, 0\.5\] now",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_refused_by_name_and_goes_on_when_it_is_allowed(
    stopped: Stopped, quiet: TrainProgress, change: str
) -> None:
    apply, named = CHANGES[change]
    apply(stopped.base)
    before = (stopped.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=rf"(?s)has changed since it began:.*({named}).*go on all.*--allow-changed"):
        stopped.resume(quiet)
    assert (stopped.folder / "metrics.jsonl").read_bytes() == before
    session = stopped.resume(quiet, allow_changed=True)
    assert session.state.step == STOP_AT
    [record] = [record for record in session.run.read_metrics() if "changed" in record]
    assert record["step"] == STOP_AT
    assert all(each["before"] != each["now"] for each in record["changed"])
    assert session.run.read_fingerprints()["changes"] == [record]


def test_nothing_changed_is_nothing_written(stopped: Stopped, quiet: TrainProgress) -> None:
    kept = {name: (stopped.folder / name).stat().st_mtime_ns for name in ("recipe.yaml", "fingerprints.json")}
    session = stopped.resume(quiet)
    assert {name: (stopped.folder / name).stat().st_mtime_ns for name in kept} == kept
    assert not any("changed" in record for record in session.run.read_metrics())


def test_what_was_allowed_once_is_what_counts_from_then_on(stopped: Stopped, quiet: TrainProgress) -> None:
    replace_image(stopped.base, "train/5.png")
    stopped.resume(quiet, allow_changed=True)
    run = stopped.resume(quiet).run
    assert len(run.read_fingerprints()["changes"]) == 1
    assert sum("changed" in record for record in run.read_metrics()) == 1
    edit_weights(stopped.base / "tiny-clip")
    with pytest.raises(ConfigError, match=r"began:\n  vision weights: .*\nBring back"):
        stopped.resume(quiet)
    stopped.resume(quiet, allow_changed=True)
    names = [[change["what"] for change in each["changed"]] for each in run.read_fingerprints()["changes"]]
    assert names == [["data.train folder images"], ["vision weights"]]


def test_a_change_is_recorded_once_wherever_a_resume_was_killed(stopped: Stopped, quiet: TrainProgress) -> None:
    replace_image(stopped.base, "validation/101.png")
    run = stopped.resume(quiet, allow_changed=True).run
    whole = run.read_metrics()
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"changed"' not in line]
    (run.folder / "metrics.jsonl").write_text("\n".join(kept) + "\n")  # killed between the two files
    stopped.resume(quiet)
    assert run.read_metrics() == whole


def test_a_run_goes_on_to_its_end_and_its_card_tells_the_change(stopped: Stopped, quiet: TrainProgress) -> None:
    write_lines(stopped.base, [line.replace("cat", "dog") for line in lines_of(stopped.base)])
    folder = train(resume=stopped.folder, allow_changed=True, progress=quiet)
    card = model_card(folder / "model", repo_id="me/cats", run=folder)
    assert f"| {STOP_AT} | data.train folder metadata.jsonl | " in card
    assert str(stopped.base) not in card


def test_an_image_that_no_row_names_is_no_change(stopped: Stopped, quiet: TrainProgress) -> None:
    replace_image(stopped.base, "train/unused.png")
    stopped.resume(quiet)


def test_other_versions_are_refused(stopped: Stopped, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = stopped.resume(quiet).run.read_fingerprints()["versions"]
    monkeypatch.setattr("visgraft.training.fingerprints.library_versions", lambda: {**versions, "torch": "9.0"})
    with pytest.raises(ConfigError, match=rf"versions torch: {torch.__version__.split('+')[0]}.* before, 9\.0 now"):
        stopped.resume(quiet)
    stopped.resume(quiet, allow_changed=True)
    stopped.resume(quiet)


def test_a_run_of_an_older_version_has_nothing_to_compare_and_keeps_it_from_now_on(
    stopped: Stopped, quiet: TrainProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fingerprints.json", "first_recipe.yaml"):
        (stopped.folder / name).unlink()
    replace_image(stopped.base, "train/5.png")
    said: list[str] = []
    monkeypatch.setattr(quiet, "say", said.append)
    stopped.resume(quiet)
    assert any("has kept no fingerprints" in text for text in said)
    replace_image(stopped.base, "train/6.png")
    with pytest.raises(ConfigError, match=r"data\.train folder images"):
        stopped.resume(quiet)


def test_damaged_fingerprints_are_said(stopped: Stopped, quiet: TrainProgress) -> None:
    (stopped.folder / "fingerprints.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"fingerprints\.json: cannot be read .*; bring it back, or remove it"):
        stopped.resume(quiet)


# --- The recipe


def edit_recipe(folder: Path, key: str, value: Any) -> None:
    path = folder / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    values["train"][key] = value
    path.write_text(yaml.safe_dump(values))


def test_an_edited_recipe_is_refused_by_name(stopped: Stopped, quiet: TrainProgress) -> None:
    edit_recipe(stopped.folder, "learning_rate", 0.5)
    with pytest.raises(ConfigError, match=r"train\.learning_rate: got 0\.5, but the run began with 0\.01; resume it"):
        stopped.resume(quiet)


def test_an_allowed_rate_rules(stopped: Stopped, quiet: TrainProgress) -> None:
    edit_recipe(stopped.folder, "learning_rate", 0.5)
    edit_recipe(stopped.folder, "betas", [0.5, 0.6])
    session = stopped.resume(quiet, allow_changed=True)
    assert {group["base_rate"] for group in session.optimizer.param_groups} == {0.5}
    assert {tuple(group["betas"]) for group in session.optimizer.param_groups} == {(0.5, 0.6)}
    assert load_recipe(session.run.first_recipe_path).train.learning_rate == 0.01
    [record] = [record for record in session.run.read_metrics() if "changed" in record]
    assert {"what": "train.learning_rate", "before": 0.01, "now": 0.5} in record["changed"]
    stopped.resume(quiet)  # what was allowed is what the run has now


def test_a_setting_that_may_change_is_taken_and_written_down(stopped: Stopped, quiet: TrainProgress) -> None:
    edit_recipe(stopped.folder, "epochs", 5)
    for _ in range(2):
        session = stopped.resume(quiet)
        assert session.recipe.train.epochs == 5
        records = [record for record in session.run.read_metrics() if "changed" in record]
        change = {"what": "train.epochs", "before": 3.0, "now": 5.0}
        assert records == [{"step": STOP_AT, "changed": [change]}]


@pytest.mark.parametrize(
    "override", ["model.attention=eager", "train.layout=rows", "train.gradient_checkpointing=true", "train.seed=0"]
)
def test_what_only_changes_the_speed_changes_nothing_that_the_run_depends_on(
    stopped: Stopped, quiet: TrainProgress, override: str
) -> None:
    recipe = load_recipe(stopped.folder, overrides=[override])
    run = open_session(recipe, resume=stopped.folder, progress=quiet).run
    names = [change["what"] for each in run.read_fingerprints()["changes"] for change in each["changed"]]
    assert names == ([] if "seed" in override else [override.partition("=")[0]])  # seed 0 is the default


def test_a_moved_data_set_may_be_allowed(stopped: Stopped, quiet: TrainProgress) -> None:
    moved = stopped.base / "elsewhere"
    shutil.copytree(stopped.base / "validation", moved)
    values = yaml.safe_load((stopped.folder / "recipe.yaml").read_text())
    values["data"]["validation"][0]["path"] = str(moved)
    with pytest.raises(ConfigError, match=r"data\.validation\.0\.path: got .*elsewhere, but the run began with "):
        open_session(load_recipe(values), resume=stopped.folder, progress=quiet)
    session = open_session(load_recipe(values), resume=stopped.folder, allow_changed=True, progress=quiet)
    [record] = [record for record in session.run.read_metrics() if "changed" in record]
    assert [each["what"] for each in record["changed"]] == ["data.validation.0.path"]  # its files are as they were


# --- Data that have become few


def test_data_cut_below_the_cursor_end_in_words_and_never_in_silence(tmp_path: Path, quiet: TrainProgress) -> None:
    run = stop(tiny_recipe(tmp_path, num_images=24, epochs=1, text_tokens_per_step=60), after=6)
    cursor = open_session(load_recipe(run), resume=run, progress=quiet).state.position.cursor
    assert cursor > 12
    write_lines(tmp_path, lines_of(tmp_path)[:6])
    with pytest.raises(ConfigError, match=r"data\.train folder samples: 24 before, 3 now"):
        train(resume=run, progress=quiet)
    nothing_left = r"has learned from \d+ groups .* of which there are only 4 now: nothing is left of train\.epochs: 1;"
    with pytest.raises(DataError, match=nothing_left):
        train(resume=run, allow_changed=True, progress=quiet)
    (run / "fingerprints.json").unlink()  # as of an older version
    with pytest.raises(DataError, match=nothing_left):
        train(resume=run, progress=quiet)
    assert Run.open(run).status() == "unfinished"
    longer = load_recipe(run, overrides=["train.epochs=3"])
    train(longer, resume=run, allow_changed=True, progress=quiet)
    steps = Run.open(run).steps()
    assert steps[-1]["epoch"] == 3.0
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))


def test_a_finished_run_whose_data_have_become_too_few_stays_finished(tmp_path: Path, quiet: TrainProgress) -> None:
    run = Run.open(train(tiny_recipe(tmp_path, num_images=24, epochs=1, text_tokens_per_step=60), progress=quiet))
    summary, steps = run.read_summary(), run.steps()
    write_lines(tmp_path, lines_of(tmp_path)[:6])
    with pytest.raises(DataError, match="nothing is left"):
        train(resume=run.folder, allow_changed=True, progress=quiet)
    assert run.status() == "finished"
    assert (run.read_summary(), run.steps()) == (summary, steps)


def test_data_cut_so_that_the_cursor_is_behind_the_end_of_the_run_are_refused(
    tmp_path: Path, quiet: TrainProgress
) -> None:
    run = stop(tiny_recipe(tmp_path, num_images=24, epochs=0.5, text_tokens_per_step=60), after=3)
    cursor = open_session(load_recipe(run), resume=run, progress=quiet).state.position.cursor
    write_lines(tmp_path, lines_of(tmp_path)[: cursor * 2])  # at most two texts a group: the cursor is still inside
    with pytest.raises(DataError, match=r"nothing is left of train\.epochs: 0\.5"):
        train(resume=run, allow_changed=True, progress=quiet)


# --- Other sources


def test_streams_tell_their_files(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=5)
    save_tars(tmp_path / "tars", numbers=range(4), images=tmp_path / "train")
    recipe["data"]["train"] = [{"source": "webdataset", "path": str(tmp_path / "tars"), "streaming": True}]
    recipe["data"]["validation"] = []
    run = stop(recipe, after=2)
    open_session(load_recipe(run), resume=run, progress=quiet)
    os.utime(tmp_path / "tars" / "2.tar")
    with pytest.raises(ConfigError, match=r"data\.train webdataset 2\.tar: .* bytes of .* before, .* bytes of .* now"):
        train(resume=run, progress=quiet)
    train(resume=run, allow_changed=True, progress=quiet)


def test_a_continued_model_is_looked_at_as_a_whole(tmp_path: Path, quiet: TrainProgress) -> None:
    first = train(tiny_recipe(tmp_path, max_steps=1), progress=quiet)
    recipe = tiny_recipe(tmp_path, max_steps=4, projection="frozen", lora={"r": 2})
    recipe["model"] = {"start_from": str(first)}
    run = stop(recipe, after=2)
    open_session(load_recipe(run), resume=run, progress=quiet)
    edit_weights(first / "model")  # the projection, which is frozen
    with pytest.raises(ConfigError, match=r"start_from weights: "):
        train(resume=run, progress=quiet)


def test_a_held_out_share_is_part_of_it(tmp_path: Path, quiet: TrainProgress) -> None:
    recipe = tiny_recipe(tmp_path)
    path = save_data(tmp_path / "both", num_images=12)
    recipe["data"] = {"train": [{"source": "folder", "path": path, "split": {"validation": "25%"}}]}
    session = open_session(load_recipe(recipe), progress=quiet)
    kept = session.run.read_fingerprints()
    assert kept["data.train"]["folder"]["split"] != kept["data.validation"]["folder"]["split"]
