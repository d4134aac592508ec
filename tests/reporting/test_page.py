"""Pages out of templates: one file, no network, text made safe, nothing missing."""

import altair
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from tests.reporting.page_tree import parse_page, read_page
from visgraft.errors import ConfigError
from visgraft.reporting import page as pages
from visgraft.reporting.charts import figure
from visgraft.reporting.page import embed_image, make_table, render_page, write_page

NASTY = "</td><b>&amp; \"quoted\" 'too'</script>"


def sheet(**changes: object) -> dict[str, object]:
    """What the contact sheet's template, which needs no chart, takes."""
    return {"totals": {}, "cards": [], "bad": None, "num_bad": 0, **changes}


def demo(**changes: object) -> dict[str, object]:
    chart = altair.Chart(altair.Data(values=[{"x": NASTY, "y": 1}])).mark_line().encode(x="x:N", y="y:Q")
    table = make_table(["kind", "number"], [["all", 1]])
    loss = figure(chart, alt=NASTY)
    return {
        "large_numbers": {},
        "loss": loss,
        "scores": table,
        "cards": [],
        "command": "visgraft ask",
        "quick": None,
        **changes,
    }


def test_a_page_is_one_file_that_asks_nothing_of_the_network(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", "demo.html", title="A title", subtitle="under it", **demo())
    page = read_page(path)
    assert (page.one("title").text, page.one("h1").text, page.one("p", "subtitle").text) == (
        "A title", "A title", "under it",
    )  # fmt: skip
    assert page.addresses == []
    assert page.all("link") == []
    [spec] = page.charts
    assert spec["data"]["values"] == [{"x": NASTY, "y": 1}]
    assert page.one("div", "plot")["aria-label"] == NASTY


def test_the_chart_library_is_only_on_pages_with_charts():
    assert "vegaEmbed" in render_page("demo.html", title="x", **demo())
    assert len(render_page("contact_sheet.html", title="x", **sheet())) < 12_000


def test_text_is_made_safe_wherever_it_stands():
    values = sheet(totals={NASTY: NASTY}, bad=make_table([NASTY], [[NASTY]]), num_bad=1)
    page = parse_page(render_page("contact_sheet.html", title=NASTY, subtitle=NASTY, **values))
    shown = [page.one("title"), page.one("h1"), page.one("p", "subtitle"), *page.one("div", "numbers").walk()]
    assert [element.content for element in shown] == [NASTY] * 3 + [NASTY * 2 + "", NASTY, NASTY]
    assert page.table == [[NASTY], [NASTY]]


def test_a_name_breaks_only_where_words_end():
    assert pages._breakable("train.max_steps") == Markup("train.<wbr>max_<wbr>steps")
    assert pages._breakable("a+<b>-c") == Markup("a+&lt;b&gt;-<wbr>c")


def test_a_value_that_a_template_misses_is_an_error():
    values = sheet()
    del values["totals"]
    with pytest.raises(UndefinedError, match="totals"):
        render_page("contact_sheet.html", title="x", **values)


def test_columns_of_numbers_stand_on_the_right_and_thousands_are_marked():
    table = make_table(["name", "number", "share"], [["a", 12345, "80.6%"], ["7", 2, "3%"]])
    assert table.rows == (("a", "12,345", "80.6%"), ("7", "2", "3%"))
    assert table.is_number == (False, True, True)


def test_small_pictures_stay_exact_and_large_ones_shrink():
    small, large = (embed_image(Image.new("RGB", size), alt="grey") for size in ((64, 64), (900, 600)))
    assert small.address.startswith("data:image/png;base64,")
    assert large.address.startswith("data:image/jpeg;base64,")
    assert len(large.address) < 10_000


def test_a_folder_is_no_page(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder: give the name of an \.html file"):
        write_page(tmp_path, "contact_sheet.html", title="x", **sheet())
