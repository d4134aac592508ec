"""The results as the page shows them: one unit a column, as many digits as tell, mean ± spread."""

import pytest

from visgraft.compare.results_table import Cell, Column, Kind
from visgraft.compare.shown import Shown


def shown(kind: Kind, *means: float, key: str = "x", title: str = "some measure", half: float = 0.0) -> Shown:
    cells = {f"v{n}": Cell(mean, mean - half, mean + half, 2 if half else 1) for n, mean in enumerate(means)}
    return Shown(Column(key, title, kind, cells))


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
    assert (f"<small>/{unit}</small>" if kind == "loss" else f"<small>{unit}</small>" if unit else "</abbr>") in (
        column.heading()
    )
    for number, text in enumerate(texts):
        assert column.cell(f"v{number}") == f"<td class=number>{text}</td>".replace("=number", '="number"')


def test_seeds_stand_on_one_line_with_their_spread_and_the_range_under_the_pointer() -> None:
    cell = shown("share", 0.806, half=0.012).cell("v0")
    assert cell == '<td class="number" title="79.4% to 81.8%, 2 seeds">80.6<small>± 1.2</small></td>'
    assert "±" not in shown("share", 0.806, half=0.0001).cell("v0")  # nothing of it would be seen


def test_what_a_variant_lacks_is_a_dash_and_long_titles_are_short_with_all_their_words_at_hand() -> None:
    column = shown("loss", 1.0, key="validation_loss", title="validation loss per character")
    assert column.cell("other") == "<td class=number>—</td>"
    assert column.heading() == '<abbr title="validation loss per character">val. loss</abbr><small>/character</small>'
    assert ">of it head</abbr><small>M</small>" in shown("count", 3e6, key="trainable.head", title="x").heading()
    assert ">samples</abbr><small>/s</small>" in shown("speed", 3.0, key="samples_per_second").heading()
