"""What `show` says of recipes, runs and models, and of settings that do not fit the parts."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Visgraft
from visgraft import Processor, VisionLanguageModel
from visgraft.model.trainable import parts_table, set_trainable
from visgraft.runs import Run


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    values = {
        "model": {"vision": str(folder / "tiny-clip"), "language": str(folder / "tiny-llama")},
        "train": {"language": "lora", "lora": {"r": 2}, "learning_rate": {"projection": 1e-3, "language": 2e-4}},
        "data": {"train": [{"source": "folder", "path": str(folder / "photos")}]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_is_shown_as_it_would_train(visgraft: Visgraft, folder: Path, recipe: Path) -> None:
    shown = json.loads(visgraft("show", recipe, "--set", "train.precision=fp32", "--json").out)
    model = VisionLanguageModel.from_parts(str(folder / "tiny-clip"), str(folder / "tiny-llama"))
    report = set_trainable(model, modes={"projection": "full"})
    real = {row.part: row for row in parts_table(model, report)}
    parts = {part["part"]: part for part in shown["parts"]}
    for name in ("vision", "projection", "head"):
        assert parts[name]["num_parameters"] == real[name].num_parameters
        assert parts[name]["num_trainable"] == real[name].num_trainable
        assert parts[name]["dtype"] == real[name].dtype
    assert parts["language"]["mode"] == "lora"
    assert parts["language"]["num_parameters"] == real["language"].num_parameters + parts["language"]["num_trainable"]
    assert parts["language"]["num_trainable"] == 2 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32)) * 2
    assert [parts[name]["learning_rate"] for name in ("vision", "projection", "language", "head")] == [
        None, 1e-3, 2e-4, None,
    ]  # fmt: skip
    assert shown["num_parameters"] == sum(part["num_parameters"] for part in parts.values())
    assert shown["data"]["train"] == [{"source": "folder", "path": str(folder / "photos")}]
    facts = {key: shown[key] for key in ("kind", "image_size", "image_tokens", "max_positions", "template")}
    assert facts == {
        "kind": "recipe", "image_size": 32, "image_tokens": 5, "max_positions": 128, "template": "question"
    }  # fmt: skip


def test_a_table_is_printed_for_people(visgraft: Visgraft, folder: Path, recipe: Path) -> None:
    outcome = visgraft("show", recipe)
    assert (outcome.status, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert f"vision {folder / 'tiny-clip'}" in lines
    assert "part trains parameters trained format learning rate" in lines
    assert "projection full 1,120 1,120 fp32 0.001" in lines
    assert "language LoRA on 8 linears: q_proj, k_proj, v_proj, o_proj" in lines
    assert "image 32 x 32 pixels become 5 image tokens, bidirectional attention" in lines
    assert "template question: Question: {prompt} Answer:" in lines
    assert "\x1b" not in outcome.out


def test_the_joined_model_is_drawn_from_the_image_to_the_logits(visgraft: Visgraft, folder: Path, recipe: Path) -> None:
    drawn = [
        "| image 3 x 32 x 32",
        "vision: frozen",
        "clip_vision_model, 2 layers",
        "none trains",
        "| 5 x 32 features",
        "projection: full",
        "1,120 parameters, all train",
        "| 5 x 32 image tokens",
        "see each other",
        "language: lora",
        "llama, 2 layers, 32 wide",
        "| (5 + T) x 32 states",
        "head: frozen",
        "logits",
    ]
    out = visgraft("show", recipe).out
    places = [out.index(line) for line in drawn]
    assert places == sorted(places)
    assert max(len(line.rstrip()) for line in out[places[0] : places[-1]].splitlines()) <= 68
    causal = visgraft("show", recipe, "--set", "model.image_attention=causal").out
    assert "see those before them" in causal
    assert "stored here" in visgraft("show", folder / "run" / "model").out
    assert json.loads(visgraft("show", recipe, "--json").out)["shapes"]["features"] == [5, 32]


def test_a_run_says_how_far_it_is(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text((folder / "run" / "recipe.yaml").read_text())
    for record in (
        {"step": 1, "loss": 3.0, "seconds": 30.0},
        {"step": 1, "validation_loss": 2.5, "exact_match": 0.25},
        {"step": 2, "loss": 2.0, "seconds": 60.0},
        {"step": 2, "validation_loss": 2.75, "exact_match": 0.5},
    ):
        Run(run).append("metrics", record)
    assert json.loads(visgraft("show", run, "--json").out)["run"] == {
        "steps": 2,
        "loss": 2.0,
        "seconds": 90.0,
        "best_validation_loss": 2.5,
        "exact_match": 0.25,
        "bad_samples": 0,
        "checkpoints": [],
        "has_model": False,
    }
    out = " ".join(visgraft("show", run).out.split())
    assert "2 steps in 1.5 minutes, loss 2.0000, best validation loss 2.5000, 25.0% of answers right, no model" in out


def test_a_model_says_what_its_folder_holds(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    shown = json.loads(visgraft("show", folder / "run" / "model", "--json").out)
    assert shown["kind"] == "model"
    assert shown["vision"] == str(folder / "tiny-clip")
    parts = {part["part"]: (part["mode"], part["num_trainable"]) for part in shown["parts"]}
    assert parts["vision"] == ("named", 0)
    assert parts["projection"][0] == "stored"
    assert parts["projection"][1] == next(p["num_parameters"] for p in shown["parts"] if p["part"] == "projection")

    model = VisionLanguageModel.from_pretrained(folder / "run" / "model")
    set_trainable(model, modes={"language": "lora"})
    model.save_pretrained(tmp_path / "lora")
    Processor.from_pretrained(folder / "run" / "model").save_pretrained(tmp_path / "lora")
    shown = json.loads(visgraft("show", tmp_path / "lora", "--json").out)
    language = next(part for part in shown["parts"] if part["part"] == "language")
    assert language["mode"] == "named + LoRA"
    assert language["num_trainable"] == 8 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32)) * 2
    assert "kept" in visgraft("show", tmp_path / "lora").out


def test_a_recipe_that_starts_from_a_model_shows_that_models_parts(
    visgraft: Visgraft, folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "second.yaml"
    recipe.write_text(f"model: {{start_from: {folder / 'run'}}}\ntrain: {{language: lora}}\n")
    shown = json.loads(visgraft("show", recipe, "--json").out)
    assert shown["start_from"] == str(folder / "run")
    assert shown["image_tokens"] == 5
    assert {part["part"]: part["mode"] for part in shown["parts"]}["language"] == "lora"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown key; did you mean train.epochs?"),
        ("train.epochs=many", "train.epochs: got 'many', need a number above 0"),
        ("epochs=3", "epochs: unknown key; did you mean train.epochs?"),
        (
            "train.lora.target_modules=[foo]",
            "'foo' matches no linear of the language part; what could match: down_proj",
        ),
        ("train.language={patterns: ['nothing*']}", "'nothing*' matches no parameter of the language part"),
        (
            "model.vision=someone/nothing",
            "someone/nothing: not found on the Hugging Face Hub, in its local cache or as",
        ),
        ("model.vision=/no/such/folder", "/no/such/folder: no such folder"),
        ("model.language=starter:tongue", "got 'starter:tongue', need one of starter:vision, starter:language"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_and_status_2(
    visgraft: Visgraft, recipe: Path, override: str, message: str
) -> None:
    outcome = visgraft("show", recipe, "--set", override)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_gated_part_says_which_page_to_accept(
    visgraft: Visgraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it")

    monkeypatch.setattr("visgraft.model.storage.pretrained.AutoConfig.from_pretrained", refuse)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {vision: meta/eye, language: meta/llama}\n")
    outcome = visgraft("show", recipe)
    assert outcome.status == 2
    assert outcome.err == (
        "error: meta/eye is gated: accept its licence at https://huggingface.co/meta/eye, then run `hf auth login`\n"
    )


def test_a_model_takes_no_settings(visgraft: Visgraft, folder: Path) -> None:
    outcome = visgraft("show", folder / "run" / "model", "--set", "train.epochs=3")
    assert outcome.status == 2
    assert "is no recipe, so there is nothing to change; leave --set out" in outcome.err


def test_what_is_neither_recipe_nor_model_is_said(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    assert "no such recipe; need a YAML file" in visgraft("show", tmp_path / "nowhere.yaml").err
    assert "cannot be read: line 1" in visgraft("show", _file(tmp_path / "bad.yaml", "model: [")).err
    assert "holds no config.json: give a run folder, a model folder or a Hub name" in visgraft("show", tmp_path).err
    (tmp_path / "config.json").write_text((folder / "run" / "model" / "config.json").read_text())
    assert "holds no visgraft processor" in visgraft("show", tmp_path).err


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_60_columns_show_every_number_whole(visgraft: Visgraft, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visgraft.cli.terminal.PLAIN_WIDTH", 60)
    parts = json.loads(visgraft("show", folder / "run", "--json").out)["parts"]
    out = visgraft("show", folder / "run").out
    assert "…" not in out and max(map(len, out.splitlines())) <= 60
    words = " ".join(out.split())
    for part in parts:
        assert f"{part['num_parameters']:,} parameters, {part['num_trainable']:,} trained" in words
