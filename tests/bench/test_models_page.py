"""docs/models.md says what the sweep found, and nothing else."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def models_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("models_page")


def test_the_page_is_what_the_sweep_found_and_nothing_was_wrong(models_page: ModuleType) -> None:
    found, encoders = (json.loads(path.read_text()) for path in (models_page.LANGUAGES, models_page.ENCODERS))
    assert models_page.PAGE.read_text("utf-8") == models_page.page(found, encoders), (
        "bench/models_page.py writes it again"
    )
    assert {each["result"] for each in found["families"].values()} == {"right", "refused"}


def test_a_reason_is_one_short_cell(models_page: ModuleType) -> None:
    said = models_page.reason("llama cannot be joined exactly: it\nis | odd. Choose another language model; most work")
    assert said == "it is \\| odd"
    assert len(models_page.reason("word " * 100)) < 240
