"""An evaluation scored again from its folder alone: the same figures, and what was changed is named."""

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.test_running import evaluate, lines
from visgraft.errors import CheckpointError, DataError
from visgraft.evaluation.answer_log import write_lines
from visgraft.evaluation.rescoring import rescore


@pytest.fixture(scope="module")
def evaluated(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of the same evaluation, of two models with all three controls; what out/ says, the cache knew."""
    folder = tmp_path_factory.mktemp("rescoring")
    settings = {"control_limit": 12, "bare": True, "metrics": ["exact_match", "bleu"]}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VISGRAFT_CACHE", str(folder / "cache"))
        for name in ("before", "out"):
            evaluate(made, folder / name, "first", "second", **settings)
    return folder


@pytest.fixture
def folder(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the second, to damage."""
    return shutil.copytree(evaluated / "out", tmp_path / "copy")


def test_the_kept_answers_give_the_same_figures_again(folder: Path) -> None:
    again = rescore(folder)
    kept = json.loads((folder / "scores.json").read_text())
    for model in kept["models"]:
        del model["settings"]
        assert json.loads(json.dumps(again.models[model["model"]])) == model
        assert model["controls"].keys() == {"without_image", "another_image", "bare_language_model"}
    assert list(again.comparisons) == kept["comparisons"]
    assert again.wrong == []


def test_controls_that_the_cache_knew_are_in_the_folder_too(evaluated: Path, folder: Path) -> None:
    ways = [(record["control"], record["shown"]) for record in lines(folder / "controls.jsonl")]
    assert len(ways) == 2 * 3 * 12
    assert set(ways) == {
        ("no image", "no image"), ("another image", "another image"), ("bare language model", "no image")
    }  # fmt: skip
    assert (folder / "controls.jsonl").read_bytes() == (evaluated / "before" / "controls.jsonl").read_bytes()


def test_a_changed_answer_is_named_and_changes_the_score(folder: Path) -> None:
    before = rescore(folder)
    records = lines(folder / "answers.jsonl")
    records[3]["answer"] = records[3]["references"][0]
    write_lines(folder / "answers.jsonl", records)
    again = rescore(folder)
    told = f"{records[3]['id']}: exact_match: written 0.0, its answer has 1.0"
    assert any(told in line for line in again.wrong)
    name = records[3]["model"]
    before_and_now = [each.models[name]["scores"]["exact_match"]["value"] for each in (before, again)]
    assert before_and_now[1] == pytest.approx(before_and_now[0] + 1 / 20)


def test_a_changed_control_changes_what_sight_gains(folder: Path) -> None:
    before = rescore(folder)
    records = lines(folder / "controls.jsonl")
    records[0]["answer"] = records[0]["references"][0]
    write_lines(folder / "controls.jsonl", records)
    name = records[0]["model"]
    sight = [each.models[name]["sight"]["exact_match"] for each in (before, rescore(folder))]
    gains = [each["multi_modal_gain"]["value"] for each in sight]
    assert gains[0] - gains[1] == pytest.approx(1 / 12)


def test_what_is_missing_is_said(folder: Path) -> None:
    write_lines(folder / "answers.jsonl", lines(folder / "answers.jsonl")[:20])
    with pytest.raises(DataError, match=r"holds no answers of .*second, which request.json names; bring them back"):
        rescore(folder)
    (folder / "answers.jsonl").write_text('{"id"\n{}\n')
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        rescore(folder)
    (folder / "request.json").unlink()
    with pytest.raises(DataError, match=r"request.json: does not say what was evaluated .*; bring it back"):
        rescore(folder)
