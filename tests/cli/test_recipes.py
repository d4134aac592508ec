"""`visgraft recipes`: what is shipped is listed, printed and copied."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Visgraft
from visgraft.config.shipped import shipped_recipes


def test_the_shipped_recipes_are_listed_with_what_they_are_for(visgraft: Visgraft) -> None:
    listed = visgraft("recipes")
    assert (listed.status, listed.err) == (0, "")
    assert [line.split()[0] for line in listed.out.splitlines()] == list(shipped_recipes())
    assert "launch/ddp                     Every GPU of one machine, each with the whole model." in listed.out
    assert list(json.loads(visgraft("recipes", "--json").out)) == list(shipped_recipes())


def test_one_is_printed_or_copied_and_a_copy_trains_the_same(visgraft: Visgraft, tmp_path: Path) -> None:
    text = shipped_recipes()["easy_vqa"].read_text()
    assert visgraft("recipes", "easy_vqa").out == text
    copy = tmp_path / "new" / "recipe.yaml"
    assert visgraft("recipes", "easy_vqa", "-o", copy).out == f"{copy}\n"
    assert copy.read_text() == text
    refused = visgraft("recipes", "demo", "-o", copy)
    assert (refused.status, refused.err) == (2, f"error: {copy}: already there; name another with -o, or say --force\n")
    assert visgraft("recipes", "demo", "-o", copy, "--force").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["easy_vqas"], "easy_vqas: nothing is shipped under that name; did you mean easy_vqa?"),
        (["zzz"], "zzz: nothing is shipped under that name; `visgraft recipes` lists them"),
        (["-o", "x.yaml"], "--output x.yaml: got no NAME to copy; `visgraft recipes` lists them"),
    ],
)
def test_what_cannot_be_shown_is_said(visgraft: Visgraft, arguments: list[str], message: str) -> None:
    outcome = visgraft("recipes", *arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"error: {message}\n")
