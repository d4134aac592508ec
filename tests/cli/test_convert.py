"""`visgraft import`, `merge` and `export` say what they did and end with the right status."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Visgraft
from tests.convert.made_checkpoints import make, write
from tests.convert.test_git_llm_recipes import git_llm
from visgraft.convert import merge


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    values, state = make("git_llama", lora=True)
    return write(tmp_path / "checkpoint", values, state)


def test_import_says_what_it_found(visgraft: Visgraft, checkpoint: Path, tmp_path: Path) -> None:
    done = visgraft("import", checkpoint, tmp_path / "imported")
    assert done.status == 0, done.err
    assert "git_llama, 5 image tokens, image attention bidirectional" in done.out
    assert "LoRA on 4 linears of the language part: r 8, alpha 32" in done.out
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" in done.out
    assert "note: the source has no image processor" in done.out
    as_json = visgraft("import", checkpoint, tmp_path / "again", "--json", "--lora-alpha", "16")
    assert json.loads(as_json.out)["lora"]["language"]["lora_alpha"] == 16


def test_import_converts_a_training_file(visgraft: Visgraft, tmp_path: Path) -> None:
    source = tmp_path / "exp.yml"
    source.write_text(yaml.safe_dump(git_llm()))
    printed = visgraft("import", "--recipe", source)
    assert printed.status == 0
    assert yaml.safe_load(printed.out)["model"]["template"] == "git-llm"
    written = visgraft("import", source, tmp_path / "recipe.yaml", "--recipe")
    assert written.status == 0
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == yaml.safe_load(printed.out)
    confused = visgraft("import", source, tmp_path / "x")
    assert (confused.status, "say --recipe to convert" in confused.err) == (2, True)
    assert visgraft("import", tmp_path).status == 2


def test_merge_and_its_refusal(
    visgraft: Visgraft, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visgraft("import", checkpoint, tmp_path / "imported")
    done = visgraft("merge", tmp_path / "imported", tmp_path / "merged")
    assert done.status == 0, done.err
    assert "merged 4 linears of the language part; logits moved by" in done.out
    assert json.loads(visgraft("merge", tmp_path / "imported", tmp_path / "m2", "--json").out)["merged"] == {
        "language": 4
    }
    monkeypatch.setattr(merge, "ALLOWED", dict.fromkeys(merge.ALLOWED, -1.0))
    refused = visgraft("merge", tmp_path / "imported", tmp_path / "never")
    assert (refused.status, "refused: merging" in refused.err) == (1, True)
    assert not (tmp_path / "never").exists()
    assert visgraft("merge", tmp_path / "merged", tmp_path / "never").status == 2


def test_export_and_its_refusal(visgraft: Visgraft, folder: Path, tmp_path: Path) -> None:
    done = visgraft("export", folder / "run", tmp_path / "whole", "--portable")
    assert (done.status, "written whole, with code" in done.out) == (0, True), done.err
    assert "auto_map" in json.loads((tmp_path / "whole" / "config.json").read_text())
    refused = visgraft("export", folder / "run", tmp_path / "plain", "--format", "llava")
    assert refused.status == 1
    assert "LLaVA's is an MLP (projection.type mlp); its image tokens see each other both ways" in refused.err
    confused = visgraft("export", folder / "run", tmp_path / "plain", "--format", "llava", "--portable")
    assert (confused.status, "a LLaVA folder needs no code of ours" in confused.err) == (2, True)
