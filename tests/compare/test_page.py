"""The report as a browser shows it: a click hides a variant everywhere, scales follow, a phone shows all of it.

A browser takes long to start, so one visit does everything in turn, and the tests look at what it brought home.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compare.made_runs import save_experiment
from tests.reporting.chromium import needs_chromium, run_in_page
from tests.reporting.page_tree import read_page
from visgraft.compare.answers import gather
from visgraft.compare.collect import collect
from visgraft.compare.report import write_report

pytestmark = [needs_chromium, pytest.mark.slow]
LAYOUT = """
  const box = element => element.getBoundingClientRect();
  const layout = {
    inner: window.innerWidth, needed: document.documentElement.scrollWidth,
    charts: [...document.querySelectorAll(".plot svg")].map(svg => [box(svg).width, box(svg).height]),
    chips: [...document.querySelectorAll(".chip")].filter(chip => chip.scrollWidth > chip.clientWidth + 1).length,
    tables: [...document.querySelectorAll(".scroll")].map(place => [place.scrollWidth, place.clientWidth]),
    images: [...document.images].map(image => image.naturalWidth),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(x => !x.startsWith("data:")),
  };
"""
VISIT = """
  let turns = 0;
  const turned = async act => {
    turns += 1;
    act();
    while (Number(document.body.dataset.drawn ?? 0) < turns) await waited();
  };
  const view = async name => (await window.charts[name]).view;
  const domain = async (name, scale) => (await view(name)).scale(scale).domain();
  const chip = name => document.querySelector(`.chip[data-name="${name}"]`);
  const rows = () => [...document.querySelectorAll("tr[data-variant], dl > div[data-variant]")];
  const visible = () => rows().filter(row => row.offsetParent !== null).length;
  const state = async () => ({
    training: await domain("chart-1", "y"), validation: await domain("chart-2", "y"),
    end: (await domain("chart-1", "x"))[1], rows: visible(), words: document.querySelector(".along").textContent,
    lines: document.querySelectorAll("#chart-1 .mark-line path").length,
    pressed: [...document.querySelectorAll(".chip[aria-pressed=true]")].map(chip => chip.dataset.name),
    shown: (await view("chart-2")).signal("shown"),
  });
  const seen = { layout, start: await state() };
  for (const name of ["projection", "lora", "language", "vision"]) await turned(() => chip(name).click());
  seen.hidden = await state();
  await turned(() => document.getElementById("show-all").click());
  seen.again = await state();
  await turned(() => document.getElementById("raw").click());
  seen.smooth = await state();
  await turned(() => document.querySelector("input[value=samples]").click());
  seen.samples = await state();
  await turned(() => document.querySelector("input[value=minutes]").click());
  seen.minutes = await state();
  await turned(() => chip("head").dispatchEvent(new MouseEvent("click", { detail: 1 })));
  await turned(() => chip("head").dispatchEvent(new MouseEvent("click", { detail: 2 })));
  seen.alone = await state();
  return seen;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    experiment = save_experiment(folder / "modules", num_variants=11, num_steps=60)
    for path in experiment.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        summary["scores"]["vqa_v2"] = 0.37 + summary["scores"]["exact_match"] / 2
        path.write_text(json.dumps(summary))
    comparison = collect([experiment])
    return write_report(comparison, gather(comparison.variants), folder / "report.html")


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return run_in_page(page, LAYOUT + VISIT)


def test_a_click_on_the_legend_hides_a_variant_everywhere_and_the_scales_follow(seen: dict[str, Any]) -> None:
    for split in ("training", "validation"):
        assert seen["hidden"][split][1] < seen["start"][split][1]  # the worst curves are gone: the axis ends lower
    assert seen["hidden"]["rows"] == seen["start"]["rows"] * 7 / 11
    assert seen["hidden"]["shown"] == seen["hidden"]["pressed"]
    assert len(seen["hidden"]["shown"]) == 7


def test_show_all_brings_everything_back(seen: dict[str, Any]) -> None:
    assert seen["again"] == seen["start"]


def test_two_clicks_show_one_variant_alone(seen: dict[str, Any]) -> None:
    assert seen["alone"]["pressed"] == seen["alone"]["shown"] == ["head"]
    assert seen["alone"]["rows"] == seen["start"]["rows"] / 11


def test_the_axis_turns_from_steps_to_samples_and_minutes(seen: dict[str, Any]) -> None:
    assert seen["start"]["end"] == 60
    assert seen["samples"]["end"] == 60 * 32
    assert seen["minutes"]["end"] == pytest.approx(0.5, rel=0.1)
    assert seen["minutes"]["words"] == "minutes of training"


def test_raw_values_can_be_left_out(seen: dict[str, Any]) -> None:
    assert seen["start"]["lines"] == 22 + 11
    assert seen["smooth"]["lines"] == 11


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_stands_beyond_the_edge_and_nothing_is_asked_of_the_network(
    page: Path, seen: dict[str, Any], width: int
) -> None:
    layout = seen["layout"] if width == 1280 else run_in_page(page, f"{LAYOUT} return layout;", width=width)
    assert layout["needed"] <= layout["inner"] == width
    assert len(layout["charts"]) == 2
    assert all(0.3 * width < wide <= width and high > 300 for wide, high in layout["charts"])
    assert layout["chips"] == 0  # whose words are cut off
    assert layout["images"] == [96] * 3
    assert layout["loaded"] == []


def test_every_table_fits_on_a_screen_and_a_phone_moves_it_inside_its_box(page: Path, seen: dict[str, Any]) -> None:
    assert (
        len(read_page(page).section("Results").all("abbr")) == 14
    )  # two scores, two losses, eight costs, the parameters of each part
    assert len(seen["layout"]["tables"]) == 3
    assert all(needed <= has for needed, has in seen["layout"]["tables"])
    phone = run_in_page(page, f"{LAYOUT} return layout;", width=390)
    assert all(has <= 390 for _, has in phone["tables"])
