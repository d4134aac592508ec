"""Evaluations of models: asked once, gone on with, scored, controlled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import randomise
from visgraft.errors import ConfigError, DataError
from visgraft.evaluation import asking, loading
from visgraft.evaluation.benchmarks import open_task
from visgraft.evaluation.running import Settings, choose_folder, evaluate_models
from visgraft.inference import load
from visgraft.model.storage.restoring import read_config
from visgraft.model.trainable import set_trainable

FAST = {"precision": "fp32", "max_new_tokens": 4, "control_limit": 0}


def quiet(text: str) -> None:
    """Say nothing."""


def evaluate(made: Path, folder: Path, *models: str, **settings: Any):
    task = open_task(str(made / "test.yaml"), say=quiet)
    names = [str(made / name) for name in models or ("first",)]
    return evaluate_models(names, task, settings=Settings(**{**FAST, **settings}), folder=folder, say=quiet)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Counted:
    """Count the answers that a model gives, and stop it after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None) -> None:
        self.number = 0
        real = asking.answer_each

        def answer_each(*args: Any, **kwargs: Any):
            for each in real(*args, **kwargs):
                if self.number == stop_after:
                    raise KeyboardInterrupt
                self.number += 1
                yield each

        monkeypatch.setattr(asking, "answer_each", answer_each)


def test_an_evaluation_writes_answers_with_their_values_and_scores(made: Path, tmp_path: Path) -> None:
    found = evaluate(made, tmp_path / "out", "first", "second")
    records = lines(tmp_path / "out" / "answers.jsonl")
    assert len(records) == 40  # 8 images with 1, 2, 3, 4, 1, 2, 3, 4 questions; two models
    assert list(records[0])[:5] == ["id", "image", "prompt", "references", "answer"]
    assert {"scores", "tokens", "stopped", "model"} <= records[0].keys()
    assert records[0]["scores"].keys() == {"exact_match"}
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores == json.loads(json.dumps(found.as_json()))
    assert [model["model"] for model in scores["models"]] == [str(made / "first"), str(made / "second")]
    assert scores["models"][0]["settings"]["max_new_tokens"] == 4
    assert scores["comparisons"][0]["score"] == "exact_match"


def test_answers_are_those_that_the_model_gives_alone(made: Path, tmp_path: Path) -> None:
    from visgraft import Sample, Turn
    from visgraft.inference import answer

    evaluate(made, tmp_path / "out", "first")
    pair = load(str(made / "first"), precision="fp32")
    for record in lines(tmp_path / "out" / "answers.jsonl"):
        sample = Sample(images=[record["image"]], dialogs=[[Turn(record["prompt"], "")]])
        assert record["answer"] == answer(*pair, [sample], max_new_tokens=4)[0]


def test_a_stopped_evaluation_goes_on_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    whole = evaluate(made, tmp_path / "whole")
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "other cache"))  # so that the folder alone is what is known
    with monkeypatch.context() as patched:
        Counted(patched, stop_after=7)
        with pytest.raises(KeyboardInterrupt):
            evaluate(made, tmp_path / "out")
    path = tmp_path / "out" / "answers.jsonl"
    assert len(lines(path)) == 7
    with path.open("ab") as file:
        file.write(b'{"id": "torn')  # as a kill leaves it
    monkeypatch.setenv("VISGRAFT_CACHE", str(tmp_path / "third cache"))
    counted = Counted(monkeypatch)
    found = evaluate(made, tmp_path / "out")
    assert counted.number == 13
    assert found.models[0].num_known == 7
    assert path.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert found.models[0].scored.intervals == whole.models[0].scored.intervals


def test_what_was_answered_under_the_same_conditions_is_not_asked_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(made, tmp_path / "first", limit=5)
    counted = Counted(monkeypatch)
    evaluate(made, tmp_path / "second", limit=9)
    assert counted.number == 4  # a larger limit adds to the smaller one
    evaluate(made, tmp_path / "third", limit=9, metrics=["cider"])
    assert counted.number == 4
    evaluate(made, tmp_path / "fourth", limit=9, max_new_tokens=3)
    assert counted.number == 13
    evaluate(made, tmp_path / "fifth", "second", limit=9)
    assert counted.number == 22


def test_a_model_that_is_asked_nothing_is_not_loaded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(made, tmp_path / "out", control_limit=6)
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("it was loaded"))
    evaluate(made, tmp_path / "out", control_limit=6)


def test_an_image_that_changed_is_asked_about_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(made, tmp_path / "out")
    os.utime(made / "data" / "0.png")
    counted = Counted(monkeypatch)
    evaluate(made, tmp_path / "out")
    assert counted.number == 20


def test_a_bad_image_is_left_out_and_told(made: Path, tmp_path: Path) -> None:
    from tests.training.tiny import save_data

    data = save_data(tmp_path / "data", num_images=4, bad=2)
    (tmp_path / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {data}}}]}}\n")
    task = open_task(str(tmp_path / "test.yaml"), say=quiet)
    found = evaluate_models([str(made / "first")], task, settings=Settings(**FAST), folder=tmp_path / "out", say=quiet)
    assert found.models[0].unusable == {"folder:bad-0.png": "not an image", "folder:bad-1.png": "not an image"}
    assert found.models[0].scored.intervals["exact_match"].n == 10


def with_questions(tmp_path: Path, questions: list[str]) -> Any:
    """Make a task of questions about the first images of a data set."""
    from tests.training.tiny import save_data

    data = Path(save_data(tmp_path / "data", num_images=len(questions)))
    rows = [{"file_name": f"{number}.png", "question": text, "answer": "red"} for number, text in enumerate(questions)]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {data}}}]}}\n")
    return open_task(str(tmp_path / "test.yaml"), say=quiet)


def test_a_question_that_is_too_long_for_the_model_costs_itself_and_is_told(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visgraft.evaluation.report import write_report

    task = with_questions(tmp_path, ["Which colour?", "cat " * 200, "What is it?", ""])
    settings = Settings(**{**FAST, "control_limit": 4}, metrics=["exact_match", "loss", "choice_likelihood"])
    found = evaluate_models([str(made / "first")], task, settings=settings, folder=tmp_path / "out", say=quiet)
    [model] = found.models
    assert [name.split(":")[1] for name in model.not_answered] == ["1.png"]
    records = lines(tmp_path / "out" / "answers.jsonl")
    assert ["no_answer" in record for record in records] == [False, True, False, False]
    assert (records[1]["answer"], records[1]["scores"]["exact_match"]) == ("", 0.0)
    assert "the 128 positions of llama leave no room for an answer" in records[1]["no_answer"]
    scores = model.scored.intervals
    assert {name: each.n for name, each in scores.items()} == dict.fromkeys(scores, 4)
    assert found.as_json()["models"][0]["settings"]["prompts_too_long"] == 1
    [warning] = model.warnings
    assert warning.startswith(
        "questions too long for the model: 1 of 4, and an empty answer is counted for each; the first:"
    )
    page = write_report(found, tmp_path / "out" / "report.html").read_text()
    assert page.count("questions too long for the model: 1 of 4") == 1
    assert model.scored.scores["loss"].sums[1].tolist() == [0.0, 0.0]  # it has no part in the mean
    assert records[1]["scores"]["choice_likelihood"] == 0.0
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("it was loaded"))
    again = evaluate_models([str(made / "first")], task, settings=settings, folder=tmp_path / "out", say=quiet)
    assert again.models[0].scored.intervals == scores
    assert again.models[0].not_answered == model.not_answered


def test_controls_show_no_image_another_one_and_the_bare_language_model(made: Path, tmp_path: Path) -> None:
    found = evaluate(made, tmp_path / "out", control_limit=12, bare=True)
    assert [control.kind for control in found.models[0].controls] == [
        "no image", "another image", "bare language model"
    ]  # fmt: skip
    records = lines(tmp_path / "out" / "controls.jsonl")
    assert len(records) == 36
    values = found.as_json()["models"][0]
    assert values["controls"].keys() == {"without_image", "another_image", "bare_language_model"}
    assert values["sight"]["exact_match"].keys() == {"multi_modal_gain", "leakage"}


def test_without_an_image_all_images_get_one_answer_and_the_bare_model_is_the_language_model(
    made: Path, tmp_path: Path
) -> None:
    evaluate(made, tmp_path / "out", control_limit=20, bare=True)
    blind = [record for record in lines(tmp_path / "out" / "controls.jsonl") if record["shown"] == "no image"]
    by_prompt: dict[str, set[str]] = {}
    for record in blind:
        by_prompt.setdefault(record["prompt"], set()).add(record["answer"])
    # these models train nothing of the language model: blind and bare are one
    assert all(len(answers) == 1 for answers in by_prompt.values())


@pytest.mark.parametrize(("models", "message"), [(("first", "first"), "first: is named twice; name each model once")])
def test_a_model_named_twice_is_refused(made: Path, tmp_path: Path, models: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(made, tmp_path / "out", *models)


def test_a_folder_of_something_else_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex, which is no part of an evaluation; give a new folder"):
        evaluate(made, tmp_path)
    with pytest.raises(ConfigError, match="is a file; give a folder with -o"):
        evaluate(made, tmp_path / "thesis.tex")


def test_where_no_image_can_be_used_nothing_is_scored(made: Path, tmp_path: Path) -> None:
    from tests.training.tiny import save_data

    data = save_data(tmp_path / "data", num_images=0, bad=2)
    (tmp_path / "test.yaml").write_text(f"data: {{test: [{{source: folder, path: {data}}}]}}\n")
    task = open_task(str(tmp_path / "test.yaml"), say=quiet)
    with pytest.raises(DataError, match="no question could be asked: not an image; mend the images"):
        settings = Settings(**FAST, metrics=["exact_match"])
        evaluate_models([str(made / "first")], task, settings=settings, folder=tmp_path / "out", say=quiet)


def test_an_evaluation_that_was_stopped_is_found_again_by_what_it_asks(tmp_path: Path) -> None:
    request = {"models": ["m"], "limit": None}
    first = choose_folder(request, parent=tmp_path, name="m-data")
    first.mkdir()
    (first / "request.json").write_text(json.dumps(request))
    assert choose_folder(request, parent=tmp_path, name="m-data") == first
    assert choose_folder({**request, "limit": 3}, parent=tmp_path, name="m-data") != first
    (first / "scores.json").write_text("{}")  # it is whole
    assert choose_folder(request, parent=tmp_path, name="m-data") != first


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_as_if_it_never_was(made: Path, tmp_path: Path) -> None:
    whole = evaluate(made, tmp_path / "whole", metrics=["cider"])
    command = [sys.executable, "-m", "visgraft", "evaluate", str(made / "first"), "--data", str(made / "test.yaml"),
               "--metrics", "cider", "--no-controls", "--precision", "fp32", "--max-new-tokens", "4",
               "--batch-size", "1", "-o", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "VISGRAFT_CACHE": str(tmp_path / "killed")}
    path = tmp_path / "out" / "answers.jsonl"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert " known, " in done.stderr
    assert path.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["models"][0]["scores"]
    assert scores["cider"]["value"] == whole.models[0].scored.intervals["cider"].value


def test_the_loss_is_that_of_the_models_own_loss_function(made: Path, tmp_path: Path) -> None:
    found = evaluate(made, tmp_path / "out", metrics=["loss", "exact_match"])
    model, processor = load(str(made / "first"), precision="fp32")
    questions = open_task(str(made / "test.yaml"), say=quiet).questions
    total, tokens, characters = 0.0, 0, 0
    for index in range(len(questions.sources)):
        batch = processor.collate([questions.sources[index]])
        out = model.loss(batch)
        total, tokens = total + float(out.loss_sum), tokens + int(out.num_supervised)
        characters += batch.num_answer_characters
    intervals = found.models[0].scored.intervals
    assert intervals["loss"].value == pytest.approx(total / tokens, abs=1e-4)
    assert intervals["loss_per_character"].value == pytest.approx(total / characters, abs=1e-4)


def test_the_likeliest_candidate_is_chosen_and_nothing_is_measured_twice(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visgraft.inference import score_candidates

    found = evaluate(made, tmp_path / "out", metrics=["choice_likelihood"])
    pair = load(str(made / "first"), precision="fp32")
    questions = open_task(str(made / "test.yaml"), say=quiet).questions
    every = list(dict.fromkeys(text for question in questions.all for text in question.references))
    right = 0
    for question in questions.all:
        logs = score_candidates(*pair, questions.sample(question), every)
        right += every[logs.index(max(logs))] in question.references
    assert found.models[0].scored.intervals["choice_likelihood"].value == right / 20
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("it was loaded"))
    evaluate(made, tmp_path / "out", metrics=["choice_likelihood"])


def test_too_many_candidates_are_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visgraft.evaluation import measuring

    monkeypatch.setattr(measuring, "MOST_CANDIDATES", 3)
    with pytest.raises(ConfigError, match="lists no candidates and has 9 different answers, of which 3 can be told"):
        evaluate(made, tmp_path / "out", metrics=["choice_likelihood"])


def test_a_text_is_as_well_known_as_before_to_a_language_model_that_did_not_train(made: Path, tmp_path: Path) -> None:
    from visgraft.evaluation.text_loss import measure_forgetting

    (tmp_path / "text.txt").write_text("a red cat on a sofa and two dogs " * 30)
    found = measure_forgetting(str(made / "first"), tmp_path / "text.txt", device="cpu", precision="fp32")
    assert found.before == found.after > 0
    assert "as before, over 990 characters" in found.words
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(DataError, match="got 0 characters, need at least two tokens of text"):
        measure_forgetting(str(made / "first"), tmp_path / "text.txt", device="cpu", precision="fp32")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        measure_forgetting(str(made / "first"), tmp_path / "none.txt", device="cpu", precision="fp32")


def test_a_language_model_that_was_all_trained_is_compared_with_the_one_that_its_runs_recipe_names(
    made: Path, tmp_path: Path
) -> None:
    from visgraft.evaluation.text_loss import measure_forgetting

    (tmp_path / "text.txt").write_text("a red cat on a sofa and two dogs " * 30)
    model, processor = load(str(made / "first"), device="cpu", precision="fp32")
    set_trainable(model, modes={"language": "full"})
    before = measure_forgetting(str(made / "first"), tmp_path / "text.txt", device="cpu", precision="fp32").before
    randomise(model.language, seed=5)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "first" / "model")
    with pytest.raises(ConfigError, match="its folder does not say which language model it was made of"):
        measure_forgetting(str(tmp_path / "first" / "model"), tmp_path / "text.txt", device="cpu", precision="fp32")
    config = read_config(made / "first").parts
    recipe = {"model": {part: config[part]["name"] for part in ("vision", "language")}, "data": {"train": []}}
    data = [{"source": "folder", "path": str(made / "data")}]
    (tmp_path / "first" / "recipe.yaml").write_text(json.dumps({**recipe, "data": {"train": data}}))
    further = {"model": {"start_from": str(tmp_path / "first" / "model")}, "data": {"train": data}}
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "recipe.yaml").write_text(json.dumps(further))
    for name in ("first", "second"):
        found = measure_forgetting(str(tmp_path / name), tmp_path / "text.txt", device="cpu", precision="fp32")
        assert found.before == before
        assert found.after != before
    fresh = {**recipe, "model": {**recipe["model"], "language": {"name": config["language"]["name"], "init": "random"}}}
    (tmp_path / "first" / "recipe.yaml").write_text(json.dumps({**fresh, "data": {"train": data}}))
    with pytest.raises(ConfigError, match="its folder does not say which language model it was made of"):
        measure_forgetting(str(tmp_path / "first"), tmp_path / "text.txt", device="cpu", precision="fp32")


def test_references_that_a_metric_cannot_score_are_told_before_anything_is_asked(made: Path, tmp_path: Path) -> None:
    for metric in ("yes_no", "choice"):
        with pytest.raises(DataError, match=f"{metric}: got the references "):
            evaluate(made, tmp_path / "out", metrics=[metric])
    assert not (tmp_path / "out").exists()
