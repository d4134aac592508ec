"""A rehearsal from beginning to end, and the check of its folder: whatever is changed in it is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reproduce.conftest import quiet
from visgraft.errors import CheckpointError, ConfigError
from visgraft.experiment.process import EndedJob
from visgraft.reproduce import running
from visgraft.reproduce.record import kept_files, read_record, seal
from visgraft.reproduce.running import Reproduction, reproduce
from visgraft.reproduce.verifying import verify

pytestmark = pytest.mark.slow
Rehearsed = tuple[Reproduction, list[list[str]]]
ANSWERS = "evaluations/language/coco"


def test_a_stopped_call_goes_on_where_it_was(rehearsed: Rehearsed) -> None:
    found, trained = rehearsed
    assert trained == [["opt"], ["llama", "mpt"]]
    assert found.failed == {}
    before = (found.folder / "reproduction.json").read_bytes()
    said: list[str] = []
    again = reproduce(data=None, scale="smoke", folder=found.folder, only=["language"], say=said.append)
    assert said == [f"{found.folder}: is finished; `visgraft reproduce --verify` checks it"]
    assert (found.folder / "reproduction.json").read_bytes() == before
    assert again.record["experiments"] == found.record["experiments"]
    with pytest.raises(ConfigError, match="smoke: is of --scale smoke; name another --output"):
        reproduce(data=None, scale="smoke", folder=found.folder, overrides=["train.max_steps=3"], say=quiet)


def test_the_folder_says_what_was_run_on_what_and_what_came_of_it(rehearsed: Rehearsed) -> None:
    record = json.loads((rehearsed[0].folder / "reproduction.json").read_text())
    assert (record["scale"], record["as_written"], record["changed"]) == ("smoke", False, [])
    assert record["environment"]["versions"]["torch"]
    assert record["data"]["rows"]["coco"]["train"] == {"found": 6, "card": 566_747}
    assert {Path(name).name for name in record["models"]} == {
        "clip-vit-base-patch16", "opt-6.7b", "Llama-2-7b-chat-hf", "mpt-7b"
    }  # fmt: skip
    runs = record["experiments"]["language"]["runs"]
    assert list(runs) == ["opt-seed0", "llama-seed0", "mpt-seed0"]
    for run in runs.values():
        assert run["device"] == "cpu" and run["hours"] > 0 and run["peak_memory_bytes"] > 0 and "joules" in run
        assert [point["step"] for point in run["curve"]] == [1, 2]
        assert run["validations"][-1]["validation_loss"] == run["validation_loss"] > 0
        assert run["answers"] and run["answers"][0]["expected"]
    models = record["experiments"]["language"]["evaluations"]["coco"]
    assert models.keys() == runs.keys()
    for values in models.values():
        assert values["scores"].keys() >= {"cider", "bleu_4", "rouge_l"}
        assert values["controls"].keys() == {"without_image", "another_image"}


def test_the_pages_show_the_figures_and_lead_to_one_another(rehearsed: Rehearsed) -> None:
    folder = rehearsed[0].folder
    page = (folder / "report.html").read_text()
    assert "A rehearsal on tiny random models" in page and "Left out: modules, m3it" in page
    assert f"{rehearsed[0].record['experiments']['language']['runs']['mpt-seed0']['validation_loss']:.4f}" in page
    for address in ("language/compare.html", f"{ANSWERS}/report.html"):
        assert f'href="{address}"' in page and (folder / address).is_file()


# --- The check


def test_a_folder_as_it_was_written_is_whole_with_its_weights_and_without(
    rehearsed: Rehearsed, handed_in: Path
) -> None:
    for folder in (rehearsed[0].folder, handed_in):
        found = verify(folder)
        assert found.differences == ()
        assert found.num_figures > 300
        assert found.num_files == len(rehearsed[0].record["files"])
    for path in [*handed_in.rglob("*.html"), *handed_in.rglob("*.jpg")]:
        path.unlink()
    found = verify(handed_in)
    assert found.differences == () and len(found.left_out) > 5


def change_line(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    lines = path.read_text().splitlines()
    record = json.loads(lines[number])
    change(record)
    lines[number] = json.dumps(record, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n")


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def better_answer(record: dict[str, Any]) -> None:
    record["answer"] = record["references"][0]


def higher_score(values: dict[str, Any]) -> None:
    values["models"][0]["scores"]["cider"]["value"] = 1.07


# what is damaged -> how, and what the check says of it
DAMAGES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "an answer": (
        f"{ANSWERS}/answers.jsonl",
        lambda path: change_line(path, 0, better_answer),
        [
            f"{ANSWERS}/answers.jsonl: ", "rouge_l: written 0.0, its answer has 1.0",
            f"{ANSWERS}/scores.json: opt-seed0.scores.rouge_l.value: written 0.0, its files give",
            "reproduction.json: language.evaluations.coco.opt-seed0.scores.rouge_l.value: written 0.0, its files give",
        ],
    ),
    "an answer of a control": (
        f"{ANSWERS}/controls.jsonl",
        lambda path: change_line(path, 0, better_answer),
        ["reproduction.json: language.evaluations.coco.opt-seed0.controls.without_image.scores.rouge_l.value: "],
    ),
    "a line of a log": (
        "language/llama-seed0/metrics.jsonl",
        lambda path: change_line(path, 0, lambda record: record.update(loss=0.5)),
        ["reproduction.json: language.runs.llama-seed0.curve.0.loss: written "],
    ),
    "a line of a log that no figure shows": (
        "language/llama-seed0/metrics.jsonl",
        lambda path: change_line(path, 0, lambda record: record.update(grad_norm=0.5)),
        ["language/llama-seed0/metrics.jsonl: damaged: "],
    ),
    "a line left out": (
        "language/llama-seed0/metrics.jsonl",
        lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[1:])),
        ["language/llama-seed0/summary.json: samples: written ", "metrics.jsonl gives "],
    ),
    "a line that is none": (
        "language/llama-seed0/metrics.jsonl",
        lambda path: path.write_text("{\n" + path.read_text()),
        ["language/llama-seed0: cannot be reckoned: ", "line 1 is not JSON"],
    ),
    "a sample answer": (
        "language/mpt-seed0/samples.jsonl",
        lambda path: change_line(path, -1, lambda record: record.update(answer="a dog")),
        ["language.runs.mpt-seed0.answers.", "its files give 'a dog'"],
    ),
    "a cost": (
        "language/mpt-seed0/summary.json",
        lambda path: change_json(path, lambda values: values.update(wall_seconds=1.0, peak_memory_bytes=5)),
        ["runs.mpt-seed0.peak_memory_bytes: written ", "its files give 5", "runs.mpt-seed0.wall_seconds: written "],
    ),
    "a validation loss": (
        "language/mpt-seed0/summary.json",
        lambda path: change_json(path, lambda values: values.update(validation_loss=1.0)),
        ["language/mpt-seed0/summary.json: validation_loss: written 1.0, metrics.jsonl gives "],
    ),
    "a score": (
        f"{ANSWERS}/scores.json",
        lambda path: change_json(path, higher_score),
        [f"{ANSWERS}/scores.json: opt-seed0.scores.cider.value: written 1.07, its files give 0.0"],
    ),
    "a figure": (
        "reproduction.json",
        lambda path: change_json(
            path, lambda values: values["experiments"]["language"]["runs"]["opt-seed0"].update(validation_loss=1.0)
        ),
        ["reproduction.json: language.runs.opt-seed0.validation_loss: written 1.0, its files give "],
    ),
    "what no file proves": (
        "reproduction.json",
        lambda path: change_json(path, lambda values: values["data"].update(revision="another")),
        ["reproduction.json: damaged: its values are not those that were written"],
    ),
    "a recipe": (
        "language/opt-seed0/recipe.yaml",
        lambda path: path.write_text(path.read_text() + "\n"),
        ["language/opt-seed0/recipe.yaml: damaged: "],
    ),
    "a page": (
        "report.html",
        lambda path: path.write_text(path.read_text().replace("smoke", "large")),
        ["report.html: damaged: "],
    ),
    "a run that is gone": (
        "language/opt-seed0/summary.json",
        lambda path: shutil.rmtree(path.parent),
        ["language/opt-seed0: cannot be reckoned: ", "language/opt-seed0/summary.json: missing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(handed_in: Path, name: str) -> None:
    file, damage, expected = DAMAGES[name]
    assert (handed_in / file).is_file()
    damage(handed_in / file)
    said = "\n".join(verify(handed_in).differences)
    assert [text for text in expected if text not in said] == [], said


def test_a_changed_answer_is_found_though_every_sum_was_made_again(handed_in: Path) -> None:
    record = read_record(handed_in)
    change_line(handed_in / ANSWERS / "answers.jsonl", 0, better_answer)
    seal(handed_in, {key: value for key, value in record.items() if key not in ("files", "crc32")})
    said = verify(handed_in).differences
    assert any("scores.rouge_l.value: written 0.0" in line for line in said)
    assert not any("damaged" in line for line in said)


def test_every_file_that_is_handed_in_has_a_sum(handed_in: Path) -> None:
    names = set(read_record(handed_in)["files"])
    assert names == set(kept_files(handed_in))
    there = {path.relative_to(handed_in).as_posix() for path in handed_in.rglob("*") if path.is_file()}
    assert there - names == {"reproduction.json"}


def test_a_folder_that_is_no_reproduction_or_not_finished_is_refused(handed_in: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no reproduction.json, which is written once everything has run"):
        verify(tmp_path)
    change_json(handed_in / "reproduction.json", lambda values: values.update(form=2))
    with pytest.raises(CheckpointError, match="is of form 2, this version of visgraft reads form 1"):
        verify(handed_in)
    (handed_in / "reproduction.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"reproduction.json: cannot be read .*bring it back as it was written"):
        verify(handed_in)


# --- Runs that fail, or would


def test_a_run_that_fails_is_named_and_the_next_call_runs_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = running.train_here, []
    monkeypatch.setattr(running, "_ask", lambda experiment, finished, *_, **__: asked.append(len(finished)))
    monkeypatch.setattr(running, "_draw", lambda experiment, **_: None)

    def train_here(run: Any, *args: Any) -> Any:
        return EndedJob("out of memory") if run.variant == "mpt" else real(run, *args)

    changed = ["train.max_steps=1"]
    settings: dict[str, Any] = {"folder": tmp_path / "out", "only": ["language"], "overrides": changed}
    with monkeypatch.context() as patched:
        patched.setattr(running, "train_here", train_here)
        found = reproduce(data=None, scale="smoke", say=quiet, **settings)
    assert found.failed == {"language/mpt-seed0": "out of memory"}
    assert found.record["changed"] == changed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mpt-seed0 failed: out of memory" in page and "Changed: train.max_steps=1" in page
    assert verify(tmp_path / "out").differences == ()
    assert reproduce(data=None, scale="smoke", say=quiet, **settings).failed == {}
    assert asked == [2, 3]


def test_a_setting_that_a_run_cannot_take_is_refused_before_any_run(tmp_path: Path) -> None:
    wrong = ["train.lora.target_modules=[q_proj]"]
    with pytest.raises(ConfigError, match=r"language, mpt: train.lora.target_modules: 'q_proj' matches no linear"):
        reproduce(data=None, scale="smoke", folder=tmp_path, only=["language"], overrides=wrong, say=quiet)
    assert not (tmp_path / "language").exists()
