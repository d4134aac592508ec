"""Every row once: begun, stopped, gone on with, divided, tried again; and never two kinds of answers in one folder."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.annotate.made import (
    PROMPTS,
    label,
    request_of,
    rows_of,
    same_rows,
    save_model,
    save_tars,
    write_lines,
    write_tar,
)
from tests.full_disk import Disk
from visgraft import Sample, Turn
from visgraft.annotate import Request, working
from visgraft.annotate.folder import MANIFEST
from visgraft.annotate.job import Job
from visgraft.annotate.labelling import Labelled, Labeller
from visgraft.annotate.progress import Progress
from visgraft.config import SourceSettings
from visgraft.data.sources import open_sources
from visgraft.errors import BadSampleError, CheckpointError, ConfigError, DataError, DiskError, MissingAssetError
from visgraft.inference import answer_each, load
from visgraft.training.loop import train
from visgraft.training.progress import make_progress


@pytest.fixture(scope="module")
def undisturbed(made: Path, model: Path, photos: Path) -> Path:
    output = made / "undisturbed"
    standing = label(request_of(model, photos, output))
    assert (standing.images, standing.total, standing.errors, standing.is_finished) == (8, 8, 2, True)
    return output


def test_every_image_is_asked_every_prompt_and_a_bad_one_is_a_row_with_its_error(
    undisturbed: Path, model: Path, photos: Path
) -> None:
    rows = rows_of(undisturbed)
    names = [*(f"{number}.png" for number in range(7)), "bad-0.png"]
    assert [(row["id"], row["prompt"]) for row in rows] == [(name, prompt) for name in names for prompt in PROMPTS]
    assert [row["row"] for row in rows] == [number for number in range(8) for _ in PROMPTS]
    samples = [Sample(images=[photos / name], dialogs=[[Turn(p, "")] for p in PROMPTS]) for name in names[:7]]
    loaded = load(str(model), device="cpu", precision="fp32")
    answers = list(answer_each(*loaded, samples, max_new_tokens=4, log_probabilities=0))
    for row, answer in zip(rows[:14], answers, strict=True):
        assert (row["answer"], row["stopped"], row["error"]) == (answer.text, answer.has_stopped, None)
        assert row["tokens"] == len(answer.token_ids)
        scores = [score.log_probability for score in answer.scores or ()]
        assert row["log_probability"] == pytest.approx(sum(scores), abs=1e-3)
        assert row["images"][0]["path"] == str(photos / row["id"])
    for row in rows[14:]:
        assert (row["answer"], row["tokens"], row["error"]) == (None, None, "not an image")
    assert len({row["answer"] for row in rows}) > 6, "answers that are all alike would prove nothing"


def test_what_is_done_is_not_done_again_and_no_model_is_loaded_for_it(
    undisturbed: Path, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("data/*")}
    monkeypatch.setattr(working, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert label(request_of(model, photos, undisturbed)).is_finished
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("data/*")} == before
    assert sorted(path.name for path in undisturbed.iterdir()) == ["data", MANIFEST, "progress.json"]


def test_a_call_that_was_stopped_goes_on_to_the_same_rows(
    undisturbed: Path, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(model, photos, tmp_path / "out")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "unit_done", stop)
        for done in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                label(request)
            assert len(list((tmp_path / "out" / "data").iterdir())) == done, "a finished unit stays, and no other"
    progress = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert (progress["images"], progress["total"], progress["finished"]) == (6, 8, False)
    assert label(request).is_finished
    assert same_rows(rows_of(tmp_path / "out"), rows_of(undisturbed))


def test_parts_of_the_work_make_up_the_whole_without_claims(
    undisturbed: Path, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    label_unit = Labeller.label

    def counted(self: Labeller, unit: Any, **settings: Any) -> Labelled:
        done.append(unit.start)
        return label_unit(self, unit, **settings)

    monkeypatch.setattr(Labeller, "label", counted)
    request = request_of(model, photos, tmp_path / "out", rows_per_unit=2)
    for number in (2, 0, 1):
        label(request, shard=(number, 3))
    assert sorted(done) == [0, 2, 4, 6], "each unit once"
    assert same_rows(rows_of(tmp_path / "out"), rows_of(undisturbed))
    assert not (tmp_path / "out" / "claims").exists()


def test_rows_with_an_error_are_tried_again_when_that_is_asked_for_and_others_are_left(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "photos"))
    request = request_of(model, own, tmp_path / "out", rows_per_unit=4)
    label(request)
    before = rows_of(tmp_path / "out")
    first = next((tmp_path / "out" / "data").glob("train-00000-0000000000-*")).stat().st_mtime_ns
    shutil.copy(own / "0.png", own / "bad-0.png")
    assert label(request).errors == 0
    assert rows_of(tmp_path / "out") == before, "nobody asked for it"
    standing = label(request, retry_errors=True)
    assert (standing.errors, standing.is_finished) == (0, True)
    after = rows_of(tmp_path / "out")
    assert same_rows(after[:14], before[:14])
    assert [row["answer"] for row in after[14:]] == [row["answer"] for row in after[:2]]
    assert [row["error"] for row in after[14:]] == [None, None]
    assert next((tmp_path / "out" / "data").glob("train-00000-0000000000-*")).stat().st_mtime_ns == first


def test_a_row_that_stays_bad_is_tried_once_a_call_whatever_the_clock_of_the_disk_says(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(model, photos, tmp_path / "out", rows_per_unit=8)
    label(request)
    job = Job.begin(replace(request, retry_errors=True), say=lambda text: None)
    monkeypatch.setattr(working.time, "time", lambda: 2.0**40)  # this machine's is far ahead
    work = working.Work(job, claims=None)
    given = 0
    for unit in work.take():
        given += unit is not None
        if unit is not None:
            work.finished(unit)
        assert given < 2
    assert given == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": ("What is it?",)}, r"prompts: 'What is it\?' \| '' then, 'What is it\?' now"),
        ({"max_new_tokens": 5}, "decoding: max_new_tokens 4, log_probabilities 0 then, max_new_tokens 5"),
        ({"precision": "bf16"}, "precision: fp32 then, bf16 now"),
        ({"keep_images": True}, "images: places then, bytes now"),
        ({"rows_per_unit": 4}, "rows_per_unit: 3 then, 4 now"),
        ({"limit": 2}, "limit: none then, 2 now"),
    ],
)
def test_a_folder_is_not_gone_on_with_in_another_way(
    undisturbed: Path, model: Path, photos: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"was begun with other settings \({says}.*name a new folder"):
        label(request_of(model, photos, undisturbed), **changes)


def test_another_model_never_goes_on_with_a_folder_and_the_same_one_elsewhere_does(
    undisturbed: Path, made: Path, model: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"model: checksum [0-9a-f]+ then, checksum [0-9a-f]+ now"):
        label(request_of(save_model(made, seed=1), photos, undisturbed))
    copied = shutil.copytree(model, tmp_path / "copied")
    assert label(request_of(Path(copied), photos, undisturbed), rows_per_unit=None).is_finished


def test_other_data_are_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "photos"))
    label(request_of(model, own, tmp_path / "out"))
    shutil.copy(own / "0.png", own / "7.png")
    with pytest.raises(CheckpointError, match="photos is not what it was when it was labelled"):
        label(request_of(model, own, tmp_path / "out"))
    with pytest.raises(CheckpointError, match=r"was begun with other data, .*photos \(old is in one of the two\)"):
        label(request_of(model, own.rename(tmp_path / "old"), tmp_path / "out"))


def test_tars_are_opened_one_by_one_and_each_image_is_found_again_in_its_tar(
    undisturbed: Path, model: Path, photos: Path, tmp_path: Path
) -> None:
    pattern = save_tars(tmp_path / "tars", photos, number=7, per_tar=3)
    write_tar(tmp_path / "tars" / "part-empty.tar", {})
    standing = label(request_of(model, pattern, tmp_path / "out", rows_per_unit=2))
    assert (standing.images, standing.total, standing.is_estimate) == (7, 7, False)
    rows = rows_of(tmp_path / "out")
    assert [row["answer"] for row in rows] == [row["answer"] for row in rows_of(undisturbed)[:14]]
    assert [row["shard"] for row in rows[::6]] == ["part-000.tar", "part-001.tar", "part-002.tar"]
    opened = open_sources([SourceSettings("parquet", path=str(tmp_path / "out"))])
    assert len(opened) == 7
    [image] = opened[3].images
    assert image.read() == (photos / "3.png").read_bytes()  # type: ignore[union-attr]


def test_a_tar_that_is_damaged_is_left_out_and_said_at_the_end_and_a_later_call_takes_it_up(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    pattern = save_tars(tmp_path / "tars", photos, number=6, per_tar=2)
    whole = (tmp_path / "tars" / "part-001.tar").read_bytes()
    (tmp_path / "tars" / "part-001.tar").write_bytes(whole[:700])
    request = request_of(model, pattern, tmp_path / "out")
    with pytest.raises(
        DataError, match=r"1 of 3 shards could not be read, all else is done; the first is part-001\.tar"
    ):
        label(request)
    assert len(rows_of(tmp_path / "out")) == 4 * 2
    (tmp_path / "tars" / "part-001.tar").write_bytes(whole)
    assert label(request).is_finished
    assert [row["id"] for row in rows_of(tmp_path / "out")[::2]] == [f"{number:03d}" for number in range(6)]


def test_the_dialogs_of_the_data_are_asked_each_question_once_and_turns_keep_what_came_before(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    captions = [{"prompt": "", "answer": text} for text in ("a cat", "a dog", "two birds")]
    turns = [{"prompt": "What is it?", "answer": "A cat."}, {"prompt": "Which colour?", "answer": "Red."}]
    rows = [
        {"image": "0.png", "dialogs": [[caption] for caption in captions]},
        {"image": "1.png", "dialogs": [turns, [turns[0]]]},
        {"image": "2.png", "question": "What is it?"},
    ]
    path = write_lines(tmp_path / "train.jsonl", rows)
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(photos / name, tmp_path / name)
    label(request_of(model, path, tmp_path / "out", prompts=None))
    found = rows_of(tmp_path / "out")
    assert [row["prompt"] for row in found[:3]] == ["", "What is it?", "Which colour?"]
    loaded = load(str(model), device="cpu", precision="fp32")
    asked = [Turn("What is it?", "A cat."), Turn("Which colour?", "")]
    [later] = answer_each(*loaded, [Sample(images=[photos / "1.png"], dialogs=[asked])], max_new_tokens=4)
    assert found[2]["answer"] == later.text
    assert [turn["answer"] for turn in found[2]["dialogs"][0]] == ["A cat.", later.text]
    assert found[0]["dialogs"] is None
    assert "row has no text" in found[3]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("keep_images", [False, True])
def test_a_model_trains_on_what_another_one_said(
    made: Path, model: Path, photos: Path, tmp_path: Path, keep_images: bool
) -> None:
    output = tmp_path / "out"
    label(request_of(model, photos, output, keep_images=keep_images))
    sources = open_sources([SourceSettings("parquet", path=str(output))])
    said = rows_of(output)
    good = [sources[number] for number in range(7)]
    assert [[turn.answer for [turn] in sample.dialogs] for sample in good] == [
        [row["answer"] for row in said[first : first + 2] if row["answer"]] for first in range(0, 14, 2)
    ]
    with pytest.raises(BadSampleError):
        sources[7]
    if keep_images:
        assert good[3].images[0]["bytes"] == (photos / "3.png").read_bytes()  # type: ignore[index,call-overload]
        assert b"Image" in pq.read_schema(next(output.glob("data/*"))).metadata[b"huggingface"]
    recipe = {
        "model": {"vision": str(made / "tiny-clip"), "language": str(made / "tiny-llama")},
        "train": {"max_steps": 1, "precision": "fp32"},
        "data": {"train": [{"source": "parquet", "path": str(output)}], "max_bad_fraction": 0.5},
    }
    run = train(recipe, folder=tmp_path / "run", progress=make_progress(show=False))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["samples"] == 7


def test_a_prompt_that_leaves_no_room_is_an_error_of_its_own_row(model: Path, photos: Path, tmp_path: Path) -> None:
    long = "word " * 400
    label(request_of(model, photos / "0.png", tmp_path / "out", prompts=("What is it?", long)))
    first, second = rows_of(tmp_path / "out")
    assert (first["error"], second["answer"]) == (None, None)
    assert "leave no room for an answer" in second["error"]


def test_a_full_disk_leaves_nothing_half_written_and_the_same_call_goes_on(
    undisturbed: Path, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(model, photos, tmp_path / "out")
    disk = Disk(monkeypatch)
    disk.refuse("fsync", errno.ENOSPC, match="0000000003")
    with pytest.raises(
        DiskError, match=r"train-00000-0000000003-of-0000000008.parquet: cannot be written: the disk is"
    ):
        label(request)
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == [
        "train-00000-0000000000-of-0000000008.parquet"
    ]
    disk.repair()
    assert label(request).is_finished
    assert same_rows(rows_of(tmp_path / "out"), rows_of(undisturbed))


# --- What a newcomer gets wrong


def test_what_is_no_folder_of_ours_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds 0\.png and was not begun by `visgraft annotate`; name a new folder"):
        label(request_of(model, photos, photos))
    with pytest.raises(ConfigError, match=r"0\.png: is a file; name a folder for the answers"):
        label(request_of(model, photos, photos / "0.png"))
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="is no manifest of `visgraft annotate`"):
        label(request_of(model, photos, tmp_path))
    (tmp_path / MANIFEST).write_text('{"form": 1')
    with pytest.raises(CheckpointError, match=r"cannot be read .* bring it back, or name a new folder"):
        label(request_of(model, photos, tmp_path))
    (tmp_path / MANIFEST).write_text('{"form": 2, "key": {}, "data": {}}')
    with pytest.raises(CheckpointError, match="is of the form 2, and this version writes form 1"):
        label(request_of(model, photos, tmp_path))


def test_a_model_that_is_none_is_said_before_anything_is_made(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        label(request_of(photos, photos, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_written_is_said(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch).refuse("mkdir", errno.EROFS, match="out")
    with pytest.raises(DiskError, match="the disk is read-only"):
        label(request_of(model, photos, tmp_path / "out"))


def test_settings_that_do_not_fit_together_are_refused() -> None:
    usual: dict[str, Any] = {"model": "m", "data": "d", "output": "o"}
    with pytest.raises(ConfigError, match="got 'a' twice; name each prompt once"):
        Request(**usual, prompts=("a", "a"))
    with pytest.raises(ConfigError, match="--shard: got it beside --workers 2"):
        Request(**usual, shard=(0, 2), workers=2)
    with pytest.raises(ConfigError, match="--shard: got it beside --engine ray"):
        Request(**usual, shard=(0, 2), engine="ray")
    with pytest.raises(ConfigError, match="--workers: got 0, need 1 or more"):
        Request(**usual, workers=0)
    with pytest.raises(ConfigError, match="--device: got cuda:1 beside --engine ray"):
        Request(**usual, engine="ray", device="cuda:1")


def test_ray_that_is_not_installed_is_said_with_what_to_do(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingAssetError, match=r"Ray is not installed; `pip install 'visgraft\[ray\]'`"):
        label(request_of(model, photos, tmp_path / "out"), engine="ray")


# --- Drawn answers, and answers among choices


def test_drawn_answers_are_those_of_their_rows_whoever_asks_when(model: Path, photos: Path, tmp_path: Path) -> None:
    drawn = {"temperature": 5.0, "top_p": 0.9, "seed": 3, "max_new_tokens": 6}
    label(request_of(model, photos, tmp_path / "whole", **drawn))
    rows = rows_of(tmp_path / "whole")
    answers = [row["answer"] for row in rows if row["error"] is None]
    assert len(set(answers)) > 0.8 * len(answers)
    label(request_of(model, photos, tmp_path / "other", rows_per_unit=3, batch_size=1, **drawn))
    assert same_rows(rows_of(tmp_path / "other"), rows)
    begun = replace(request_of(model, photos, tmp_path / "parts", rows_per_unit=2, **drawn))
    for part in ((1, 2), (0, 2)):
        label(replace(begun, shard=part))
    assert same_rows(rows_of(tmp_path / "parts"), rows)
    label(request_of(model, photos, tmp_path / "seed", **{**drawn, "seed": 4}))
    assert [row["answer"] for row in rows_of(tmp_path / "seed")] != [row["answer"] for row in rows]
    decoding = json.loads((tmp_path / "whole" / MANIFEST).read_text())["key"]["decoding"]
    assert (decoding["temperature"], decoding["top_p"], decoding["seed"]) == (5.0, 0.9, 3)
    with pytest.raises(CheckpointError, match="was begun with other settings"):
        label(request_of(model, photos, tmp_path / "whole", **{**drawn, "seed": 4}))


def test_an_image_asked_in_two_rows_has_two_drawn_answers(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos.parent / "twice.jsonl").write_text(
        "".join(f'{{"image": "{photos}/0.png", "text": "{n}"}}\n' for n in range(6))
    )
    drawn = {"temperature": 5.0, "max_new_tokens": 6}
    label(request_of(model, photos.parent / "twice.jsonl", tmp_path / "out", **drawn))
    assert len({row["answer"] for row in rows_of(tmp_path / "out")}) > 8


def test_an_answer_among_choices_is_one_of_them(model: Path, photos: Path, tmp_path: Path) -> None:
    label(request_of(model, photos, tmp_path / "out", choices=("red", "a green one"), max_new_tokens=16))
    found = {row["answer"] for row in rows_of(tmp_path / "out") if row["error"] is None}
    assert found and found <= {"red", "a green one"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"--temperature: got 0, need more than 0, or leave it out: the likeliest token each"),
        ({"top_p": 0.9}, r"--top-p: got 0.9 without --temperature, so nothing is drawn; give one, such as 1"),
        ({"seed": 1}, r"--seed: got 1 without --temperature"),
        ({"temperature": 1.0, "top_p": 1.5}, r"--top-p: got 1.5, need a share above 0, up to 1"),
    ],
)
def test_settings_of_draws_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(model="m", data="d", output="o", **settings)
