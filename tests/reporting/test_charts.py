"""The look of charts: lines that can be told apart, pictures on white, text that no picture can hold."""

import altair
import pytest
from PIL import Image

from visgraft.errors import ConfigError
from visgraft.reporting.charts import COLORS, LineStyles, spec_of, write_png


def bars(*names: str) -> altair.Chart:
    return altair.Chart(altair.Data(values=[{"name": name, "y": 1} for name in names])).mark_bar().encode(
        x="name:N", y="y:Q"
    )  # fmt: skip


def test_a_name_keeps_its_colour_and_the_twelfth_has_another_line_than_the_fourth() -> None:
    styles = LineStyles(tuple(f"v{number}" for number in range(12)))
    assert styles.color("v3") == styles.color("v11") == COLORS[3]
    assert styles.dash("v3") != styles.dash("v11")
    assert len({(styles.color(name), tuple(styles.dash(name))) for name in styles.names}) == 12


def test_rows_that_a_chart_calls_by_name_are_in_its_specification() -> None:
    chart = altair.Chart(altair.NamedData("rows")).mark_line().encode(x="x:Q", y="y:Q")
    assert spec_of(chart, data={"rows": [{"x": 1, "y": 2}]})["datasets"] == {"rows": [{"x": 1, "y": 2}]}


def test_a_picture_is_white_and_twice_as_large_as_the_chart(tmp_path) -> None:
    with Image.open(write_png(bars("a"), tmp_path / "new" / "a.png")) as image:
        assert image.getpixel((1, 1))[:3] == (255, 255, 255)
        width = image.width
    with Image.open(write_png(bars("a"), tmp_path / "b.png", scale=1.0)) as image:
        assert width == pytest.approx(2 * image.width, abs=2)


def test_a_control_character_in_a_text_does_not_end_the_process(tmp_path) -> None:
    assert write_png(bars("\x0f", "back\\slash \x00", "\ufffe"), tmp_path / "a.png").is_file()


def test_a_folder_is_no_picture(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder: give the name of a \.png file"):
        write_png(bars("a"), tmp_path)
