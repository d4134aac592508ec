"""The results as the page shows them: one unit a column, as many digits as tell, mean ± spread."""

from pathlib import Path

import pytest

from tests.compare.made_runs import save_experiment
from tests.reporting.page_tree import read_page
from visgraft.compare.collect import collect
from visgraft.compare.report import Heading, ShownCell, ShownColumn, write_report
from visgraft.compare.results_table import Cell, Column, Kind


def shown(kind: Kind, *means: float, key: str = "x", title: str = "some measure", half: float = 0.0) -> ShownColumn:
    cells = {f"v{n}": Cell(mean, mean - half, mean + half, 2 if half else 1) for n, mean in enumerate(means)}
    return ShownColumn(Column(key, title, kind, cells))


@pytest.mark.parametrize(
    ("kind", "means", "unit", "texts"),
    [
        ("count", (788_480, 306_288_480, 391_288_480), "M", ("0.788", "306", "391")),
        ("count", (512, 96), "", ("512", "96")),
        ("count", (0, 6.7e9), "B", ("0", "6.70")),
        ("minutes", (0.5, 2.5, 12.0), "min", ("0.500", "2.50", "12.0")),
        ("minutes", (0.2, 0.3), "s", ("12.0", "18.0")),
        ("minutes", (90.0, 6000.0), "h", ("1.50", "100")),
        ("memory", (2**31, 2**33), "GiB", ("2.00", "8.00")),
        ("memory", (2**20, 2**20), "MiB", ("1.00", "1.00")),
        ("share", (0.806, 0.0, 0.05), "%", ("80.6", "0.0", "5.0")),
        ("loss", (1.23456, 0.51, 0.52), "token", ("1.2346", "0.5100")),
        ("speed", (1234.5, 63.94), "", ("1,234", "63.9")),
        ("score", (1.05,), "", ("1.050",)),
        ("score", (0.0,), "", ("0",)),
    ],
)  # fmt: skip
def test_a_column_has_one_unit_and_numbers_that_tell(
    kind: Kind, means: tuple[float, ...], unit: str, texts: tuple[str, ...]
) -> None:
    column = shown(kind, *means, title="validation loss per token")
    assert column.heading.unit == (f"/{unit}" if kind == "loss" else unit)
    for number, text in enumerate(texts):
        assert column.cell(f"v{number}") == ShownCell(text)


def test_seeds_stand_on_one_line_with_their_spread_and_the_range_under_the_pointer() -> None:
    cell = shown("share", 0.806, half=0.012).cell("v0")
    assert cell == ShownCell("80.6", spread="± 1.2", range="79.4% to 81.8%, 2 seeds")
    assert shown("share", 0.806, half=0.0001).cell("v0").spread == ""  # nothing of it would be seen


def test_what_a_variant_lacks_is_a_dash_and_long_titles_are_short_with_all_their_words_at_hand() -> None:
    column = shown("loss", 1.0, key="validation_loss", title="validation loss per character")
    assert column.cell("other") == ShownCell("—")
    assert column.heading == Heading("val. loss", "/character", "validation loss per character")
    assert shown("count", 3e6, key="trainable.head", title="x").heading == Heading("in head", "M", "x")
    assert shown("speed", 3.0, key="samples_per_second", title="x").heading == Heading("samples", "/s", "x")


def test_the_best_is_marked_on_the_page_and_the_range_stands_under_the_pointer(tmp_path: Path) -> None:
    folder = save_experiment(tmp_path / "modules", num_variants=3, num_steps=20)
    page = read_page(write_report(collect([folder]), [], tmp_path / "report.html"))
    results = page.section("Results")
    header, *rows = results.table
    assert header[:3] == ["variant", "exact match %", "val. loss /token"]
    assert [row[0] for row in rows] == ["projection", "lora", "language"]
    best = results.all("td", "best")
    assert len(best) == 3
    assert best == [results.all("tr")[-1].all("td")[place] for place in range(3)]
    assert all(" to " in cell["title"] and cell["title"].endswith(", 2 seeds") for cell in best)
    abbreviations = {abbr.text: abbr["title"] for abbr in results.all("abbr")}
    assert abbreviations["val. loss"] == "validation loss per token"
