"""The page shell: one file, no network, text made safe."""

import altair
import pytest
from PIL import Image

from visgraft.errors import ConfigError
from visgraft.reporting.page import Page, image_tag, numbers, table


def test_a_page_asks_nothing_of_the_network(tmp_path):
    page = Page("A title", subtitle="under it")
    chart = altair.Chart(altair.Data(values=[{"x": 0, "y": 1}, {"x": 1, "y": 2}])).mark_line().encode(x="x:Q", y="y:Q")
    page.add("Curve", page.chart(chart, alt="a line"))
    text = page.write(tmp_path / "new" / "page.html").read_text()
    assert 'vegaEmbed("#chart-1"' in text
    assert "<script src" not in text
    assert "<link" not in text


def test_a_page_without_charts_carries_no_chart_library():
    page = Page("A title")
    page.add("Words", "<p>hello</p>")
    assert len(page.html()) < 10_000


def test_text_is_made_safe():
    page = Page("<b>", subtitle="a & b")
    page.add("x < y", table(["<i>"], [["</td>"]]), numbers({"<n>": "<1>"}))
    text = page.html()
    assert "&lt;b&gt;" in text
    assert "x &lt; y" in text
    for raw in ("<i>", "<n>", "<1>", "</td></td>"):
        assert raw not in text


def test_small_pictures_stay_exact_and_large_ones_shrink():
    assert 'src="data:image/png;base64,' in image_tag(Image.new("L", (64, 64)), alt="grey")
    assert 'src="data:image/jpeg;base64,' in image_tag(Image.new("RGB", (900, 600)), alt='"large"')


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder: give the name of an \.html file"):
        Page("x").write(tmp_path)
