"""Under which terms parts and data are: read from cards, licence files and the starter's own table, else unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import fresh
from tests.training.tiny import tiny_recipe
from visgraft import VisionLanguageModel
from visgraft.cli.program import main
from visgraft.config import load_recipe
from visgraft.licences import Licence, licence_of, licences_of_model, licences_of_recipe
from visgraft.runs import Run

HUB = "huggingface_hub.hf_hub_download"


def card(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    (folder / "README.md").write_text(f"---\n{lines}---\nText.\n")
    return folder


@pytest.mark.parametrize(
    ("licence", "terms", "kind"),
    [
        ("apache-2.0", "", "open"),
        ("Apache-2.0, Unicode-3.0", "", "open"),
        ("cc-by-sa-4.0", "", "open"),
        ("cc-by-nc-4.0", "", "non-commercial"),
        ("cc-by-nc-sa-4.0", "", "non-commercial"),
        ("other", "research-only", "non-commercial"),
        ("other", "", "unknown"),
        ("unknown", "", "unknown"),
        ("llama2", "", "conditions"),
        ("other", "my-own-terms", "conditions"),
    ],
)
def test_a_licence_is_open_or_asks_for_something(licence: str, terms: str, kind: str) -> None:
    found = Licence("vision", "a", licence, terms=terms)
    assert found.kind == kind
    assert found.is_worrying == (kind in ("unknown", "non-commercial"))


def test_a_card_says_licence_terms_and_where(tmp_path: Path) -> None:
    named = {"license": "other", "license_name": "own-terms", "license_link": "https://a.b"}
    folder = card(tmp_path / "a", **named, extra_gated_prompt="say who you are")
    found = licence_of("vision", str(folder))
    assert (found.licence, found.terms) == ("other", "own-terms; https://a.b; access is asked for on its page")
    assert found.found_in == str(folder / "README.md")
    several = card(tmp_path / "b", license=["mit", "cc-by-4.0"])
    assert licence_of("data.train.0", str(several)).licence == "mit, cc-by-4.0"
    assert licence_of("vision", str(card(tmp_path / "c", title="a"))).licence == "unknown"
    (tmp_path / "c" / "README.md").write_text("---\n: [\n---\n")
    assert licence_of("vision", str(tmp_path / "c")).licence == "unknown"


def test_a_licence_file_says_it_where_no_card_does(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("MIT License\n\nCopyright me")
    assert licence_of("data.train.0", str(tmp_path), reader="folder").licence == "mit"
    (tmp_path / "LICENSE").write_text("Ask me first.")
    found = licence_of("data.train.0", str(tmp_path), reader="folder")
    assert found.licence == "other" and found.terms.startswith("see ") and found.kind == "conditions"


def test_the_hubs_cache_tells_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = card(tmp_path / "snapshots" / "abc123", license="cc-by-nc-4.0")
    asked = []

    def download(name: str, file: str, **given: object) -> str:
        asked.append((name, file, given))
        return str(folder / file)

    monkeypatch.setattr(HUB, download)
    found = licence_of("data.train.0", "me/cats", revision="main", is_dataset=True)
    assert asked == [("me/cats", "README.md", {"revision": "main", "repo_type": "dataset"})]
    assert (found.licence, found.revision) == ("cc-by-nc-4.0", "abc123")
    assert found.line == "data.train.0 me/cats at abc123: cc-by-nc-4.0, not for commercial use"


def test_starter_assets_and_known_readers_bring_theirs() -> None:
    assert licence_of("vision", "starter:vision").licence == "Apache-2.0"
    assert licence_of("data.train.0", "starter:emoji/ja").licence == "Apache-2.0, Unicode-3.0"
    assert licence_of("data.train.0", "starter:nothing").licence == "unknown"
    assert licence_of("data.train.0", "gone", reader="easy_vqa").licence == "MIT"
    assert "Flickr" in licence_of("data.train.0", "gone", reader="coco").terms


def test_a_recipe_and_the_run_it_became_tell_parts_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(tiny_recipe(tmp_path))
    card(tmp_path / "tiny-clip", license="cc-by-nc-4.0")
    card(tmp_path / "tiny-llama", license="mit")
    found = {each.what: each.kind for each in licences_of_recipe(recipe)}
    assert found == {
        "vision": "non-commercial", "language": "open", "data.train.0": "unknown", "data.validation.0": "unknown",
    }  # fmt: skip
    run = Run.create(recipe, folder=tmp_path / "run")
    assert main(["licences", str(run.folder), "--json"]) == 0  # not yet trained: its recipe tells
    assert len(json.loads(capsys.readouterr().out)) == 4
    parts = [str(tmp_path / name) for name in ("tiny-clip", "tiny-llama")]
    VisionLanguageModel.from_parts(*parts).save_pretrained(run.model_path)
    assert [each.what for each in licences_of_model(str(run.folder))] == [
        "vision", "language", "data.train.0", "data.validation.0",
    ]  # fmt: skip
    assert main(["licences", str(run.folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values[0]["licence"] == "cc-by-nc-4.0" and values[0]["kind"] == "non-commercial"
    assert main(["licences", str(run.folder)]) == 0
    assert "3 of 4 have no known terms, or forbid commercial use" in capsys.readouterr().out


def test_an_imported_model_is_under_the_terms_of_where_it_came_from(tmp_path: Path) -> None:
    source = card(tmp_path / "llava", license="llama2")
    fresh("llama", "clip").save_pretrained(tmp_path / "model", full=True)
    (tmp_path / "model" / "import.json").write_text(json.dumps({"source": str(source)}))
    assert [each.licence for each in licences_of_model(str(tmp_path / "model"))] == ["llama2", "llama2"]


def test_a_folder_that_is_no_model_and_overrides_of_no_recipe_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["licences", str(tmp_path)]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert main(["licences", str(tmp_path), "--set", "a=1"]) == 2
    assert "is no recipe" in capsys.readouterr().err


def test_a_benchmark_tells_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["licences", "pope", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["what"] == "data.test.0" and found["name"] == "lmms-lab/POPE"
