"""The report as a browser shows it: a click hides a variant everywhere, scales follow, a phone shows all of it."""

from pathlib import Path

import pytest

from tests.compare.chromium import needs_chromium, run_in_page
from tests.compare.made_runs import save_experiment
from visgraft.compare.answers import gather
from visgraft.compare.collect import collect
from visgraft.compare.report import write_report

pytestmark = needs_chromium
# The numbers on the y axis of the first chart, as they stand there.
TICKS = """
  const ticks = () => [...document.querySelectorAll("#chart-1 .role-axis-label text")].map(t => t.textContent);
  const domain = async name => (await window.charts[name]).view.scale("y").domain();
  const settled = async n => { while (Number(document.body.dataset.drawn ?? 0) < n) await waited(); };
  const chip = name => document.querySelector(`.chip[data-name="${name}"]`);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    comparison = collect([save_experiment(folder / "modules", num_variants=11, num_steps=60)])
    return write_report(comparison, gather(comparison.variants), folder / "report.html")


def test_a_click_on_the_legend_hides_a_variant_everywhere_and_the_scales_follow(page: Path) -> None:
    found = run_in_page(
        page,
        TICKS
        + """
        const before = [await domain("chart-1"), await domain("chart-2")];
        const rows = () => [...document.querySelectorAll("tr[data-variant], dl > div[data-variant]")];
        const visible = () => rows().filter(row => row.offsetParent !== null).length;
        const all = visible();
        for (const name of ["projection", "lora", "language", "vision"]) chip(name).click();
        await settled(4);
        const after = [await domain("chart-1"), await domain("chart-2")];
        const left = visible();
        document.getElementById("show-all").click();
        await settled(5);
        return { before, after, again: await domain("chart-2"), all, left, pressed: chip("lora").ariaPressed };
        """,
    )
    for before, after in zip(found["before"], found["after"], strict=True):
        assert after[1] < before[1]  # the worst curves are gone: the axis ends lower
    assert found["again"] == found["before"][1]
    assert found["pressed"] == "true"
    assert found["left"] == found["all"] * 7 / 11


def test_two_clicks_show_one_variant_alone(page: Path) -> None:
    shown = run_in_page(
        page,
        TICKS
        + """
        chip("head").dispatchEvent(new MouseEvent("click", { detail: 1 }));
        chip("head").dispatchEvent(new MouseEvent("click", { detail: 2 }));
        await settled(2);
        const pressed = [...document.querySelectorAll(".chip[aria-pressed=true]")].map(chip => chip.dataset.name);
        return { pressed, signal: (await window.charts["chart-1"]).view.signal("shown") };
        """,
    )
    assert shown == {"pressed": ["head"], "signal": ["head"]}


def test_the_axis_turns_from_steps_to_samples_and_minutes(page: Path) -> None:
    ends = run_in_page(
        page,
        TICKS
        + """
        const ends = {}, end = async () => (await window.charts["chart-1"]).view.scale("x").domain()[1];
        ends.steps = await end();
        for (const [number, axis] of ["samples", "minutes"].entries()) {
          document.querySelector(`input[value=${axis}]`).click();
          await settled(number + 1);
          ends[axis] = await end();
        }
        return { ...ends, words: document.querySelector(".along").textContent };
        """,
    )
    assert ends.pop("words") == "minutes of training"
    assert ends == {"steps": 60, "samples": 60 * 32, "minutes": pytest.approx(0.5, rel=0.1)}


def test_raw_values_can_be_left_out(page: Path) -> None:
    lines = run_in_page(
        page,
        TICKS
        + """
        const lines = () => document.querySelectorAll("#chart-1 .mark-line path").length;
        const before = lines();
        document.getElementById("raw").click();
        await settled(1);
        return [before, lines()];
        """,
    )
    assert lines == [22 + 11, 11]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_stands_beyond_the_edge_and_every_chart_is_drawn(page: Path, width: int) -> None:
    found = run_in_page(
        page,
        """
        const box = element => element.getBoundingClientRect();
        return {
          inner: window.innerWidth, needed: document.documentElement.scrollWidth,
          charts: [...document.querySelectorAll(".plot svg")].map(svg => [box(svg).width, box(svg).height]),
          chips: [...document.querySelectorAll(".chip")].map(chip => [chip.scrollWidth <= chip.clientWidth + 1]),
          images: [...document.images].map(image => image.naturalWidth),
          loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(x => !x.startsWith("data:")),
        };
        """,
        width=width,
    )
    assert found["needed"] <= found["inner"] <= width
    assert len(found["charts"]) == 2
    assert all(0.3 * width < w <= width and h > 300 for w, h in found["charts"])
    assert found["chips"] == [[True]] * 11
    assert found["images"] == [96] * 3
    assert found["loaded"] == []  # the page asks for nothing


def test_only_starts_with_the_others_hidden(page: Path) -> None:
    comparison = collect([page.parent / "modules"])
    only = write_report(comparison, [], page.with_name("only.html"), shown=["all"])
    found = run_in_page(
        only,
        TICKS
        + """
        await settled(1);
        const rows = [...document.querySelectorAll("tr[data-variant]")].filter(row => row.offsetParent !== null);
        return { rows: rows.map(row => row.dataset.variant), shown: (await window.charts["chart-1"]).view.signal("shown") };
        """,
    )
    assert found == {"rows": ["8", "8"], "shown": ["all"]}
