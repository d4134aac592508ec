"""What objects show of themselves in a notebook, the bars there, and the notebook of the documentation."""

import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.compare.made_runs import save_experiment
from tests.reporting.page_tree import parse_page
from tests.training.tiny import save_parts
from visgraft import Run, VisionLanguageModel
from visgraft.compare.collect import collect
from visgraft.notebook import curves_html, facts_html, is_notebook
from visgraft.reporting.progress import working

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "first_model.py"
STEPS = "STEPS = 60"


def test_a_run_shows_its_state_and_its_losses(tmp_path: Path) -> None:
    experiment = save_experiment(tmp_path / "modules", num_variants=2, seeds=1)
    page = parse_page(Run.open(experiment / "lora-seed0")._repr_html_())
    facts = dict(page.table)
    assert (facts["status"], facts["steps"]) == ("finished", "100")
    assert float(facts["training loss"]) > 0 and float(facts["validation loss"]) > 0
    assert len(page.all("polyline")) == 2
    assert "training loss, validation loss" in page.one("svg")["aria-label"]
    shown = parse_page(collect([experiment])._repr_html_())
    assert [row[:3] for row in shown.table[1:]] == [["projection", "1", "finished"], ["lora", "1", "finished"]]
    assert len(shown.all("polyline")) == 2


def test_a_model_shows_its_parts(tmp_path: Path) -> None:
    page = parse_page(VisionLanguageModel.from_parts(*save_parts(tmp_path))._repr_html_())
    assert [row[0] for row in page.table[1:]] == ["vision", "projection", "language", "head"]
    assert page.one("b").text == "VisionLanguageModel, 5 image tokens a picture"


def test_what_is_shown_is_text_and_never_html() -> None:
    nasty = "<script>&"
    assert parse_page(facts_html(nasty, {nasty: nasty})).table == [[nasty, nasty]]
    drawn = parse_page(curves_html({nasty: [2.0, None, float("nan"), 0.0, 1.0]}))
    assert not drawn.all("script") and drawn.one("polyline")["points"].count(",") == 2
    assert curves_html({"one": [1.0]}) == ""


class Output:
    """A cell's output, as IPython gives it."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: str) -> None:
        self.shown.append(html)


def test_long_work_is_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    display = SimpleNamespace(HTML=str, display=lambda html, display_id: output)
    shell = SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert is_notebook()
    with working("reading <train>", total=4, unit="samples") as advance:
        advance(1)
        advance(2)
    assert output.shown[0] == (
        '<div><progress aria-label="reading &lt;train&gt;" max="4" value="1"></progress> 1 samples &nbsp; '
        "reading &lt;train&gt;</div>"
    )
    assert capsys.readouterr().err == ""


def cells() -> list[tuple[str, str]]:
    """The cells of the notebook's source: (markdown or code, text)."""
    parts = re.split(r"^# %%(.*)\n", NOTEBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [("markdown" if "markdown" in kind else "code", text) for kind, text in zip(*[iter(parts)] * 2, strict=True)]


def test_the_notebook_explains_each_step_before_it_takes_it() -> None:
    kinds = [kind for kind, _ in cells()]
    assert kinds[0] == "markdown" and kinds.count("code") >= 6
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert sum(STEPS in text for _, text in cells()) == 1


@pytest.mark.long
@pytest.mark.starter
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for kind, text in cells():
        if kind == "code":
            exec(compile(text.replace(STEPS, "STEPS = 2"), str(NOTEBOOK), "exec"), names)
    assert 0.0 <= names["score"] <= 1.0
    assert Path("inside.png").is_file()
