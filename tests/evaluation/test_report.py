"""The page of an evaluation: what it says, and that a browser shows it."""

import json
import re
from pathlib import Path

import pytest

from tests.evaluation.made_evaluation import made_evaluation
from tests.reporting.chromium import needs_chromium, run_in_page
from visgraft.evaluation.report import short_names, write_report

pytestmark = pytest.mark.slow  # the charts' library is brought into each page

VISIT = """
  const view = document.getElementById("answers-view");
  const control = name => view.querySelector(`[name=${name}]`);
  const set = (name, key, value) => {
    control(name)[key] = value;
    control(name).dispatchEvent(new Event("input", { bubbles: true }));
  };
  const cards = () => [...view.querySelectorAll("ol li")];
  const count = () => view.querySelector(".count").textContent;
  const values = () => cards().map(card => Number(card.querySelector("tr.chosen .value, tr .value").textContent));
  const press = key => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const seen = {
    inner: innerWidth, needed: document.documentElement.scrollWidth,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(x => !x.startsWith("data:")),
    charts: document.querySelectorAll(".plot svg").length,
    drawn: cards().length, all: count(), worst: values(),
    picture: cards()[0].querySelector("img").src.slice(0, 15),
  };
  press("j"); press("j");
  seen.second = cards().indexOf(document.activeElement);
  press("k");
  seen.first = cards().indexOf(document.activeElement);
  set("order", "value", "best");
  seen.best = values().slice(0, 5);
  press("w");
  seen.wrong = [count(), Math.max(...values())];
  press("w");
  for (const name of ["answer", "wrong"]) {
    control(name).dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    seen[`typed in ${name}`] = cards().indexOf(document.activeElement);
  }
  set("kind", "value", "yes/no");
  seen.kind = count();
  set("kind", "value", "");
  set("answer", "value", "no");
  seen.answer = cards().every(card => card.querySelector("td:nth-child(2)").textContent === "no");
  set("answer", "value", "");
  set("most", "value", "0");
  seen.most = Math.max(...values());
  set("most", "value", "");
  if (control("differ")) {
    set("differ", "checked", true);
    seen.differ = count();
    set("differ", "checked", false);
  }
  set("unmoved", "checked", true);
  seen.unmoved = count();
  return seen;
"""


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" class="data">(.+?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_names_scores_intervals_sight_and_settings(tmp_path: Path) -> None:
    made = made_evaluation(tmp_path, num_images=6)
    text = write_report(made, tmp_path / "report.html").read_text()
    interval = made.models[0].scored.intervals["exact_match"]
    for expected in (
        f"{interval.value:.4f}", f"{interval.low:.4f} to {interval.high:.4f}", "multi-modal gain", "with another image",
        "yes/no (6)", "model checksum", "projection-only is not distinguishable from lora-r16",
    ):  # fmt: skip
        assert expected in text


def test_every_answer_is_on_the_page_with_its_values_and_its_picture(tmp_path: Path) -> None:
    made = made_evaluation(tmp_path, num_images=4, models=["one"])
    page = write_report(made, tmp_path / "report.html")
    items = data_of(page)["items"]
    assert [item["said"][0]["answer"] for item in items] == [each.answer for each in made.models[0].scored.answered]
    assert items[0]["said"][0]["values"] == [
        round(score.per_sample[0], 4) for score in made.models[0].scored.scores.values()
    ]
    assert [item["picture"] for item in items] == [n // 3 for n in range(12)]  # each picture once
    assert page.read_text().count("data:image/jpeg") == 4


def test_what_a_model_says_is_text_on_the_page(tmp_path: Path) -> None:
    from dataclasses import replace

    made = made_evaluation(tmp_path, num_images=1, models=["one"])
    said = replace(made.models[0].scored.answered[0], answer="</script><img src=x onerror=alert(1)>")
    scored = replace(made.models[0].scored, answered=[said, *made.models[0].scored.answered[1:]])
    made = replace(made, models=[replace(made.models[0], scored=scored)])
    assert "</script><img" not in write_report(made, tmp_path / "report.html").read_text()


def test_models_are_named_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["one/model", "two/model"]) == ["one/model", "two/model"]
    assert short_names(["hub/name"]) == ["name"]


@needs_chromium
@pytest.mark.parametrize(("width", "models"), [(1280, ("runs/lora", "runs/frozen")), (390, ("runs/lora",))])
def test_a_browser_filters_sorts_and_steps_offline(tmp_path: Path, width: int, models: tuple[str, ...]) -> None:
    made = made_evaluation(tmp_path, num_images=30, models=models)
    page = write_report(made, tmp_path / "report.html")
    seen = run_in_page(page, VISIT, width=width)
    assert (seen["inner"], seen["loaded"], seen["charts"]) == (width, [], 4)
    assert seen["needed"] <= width
    values = made.models[0].scored.scores["exact_match"].per_sample
    assert seen["all"] == "90 of 90 questions"
    assert seen["drawn"] >= 40
    assert seen["worst"] == sorted(values)[: seen["drawn"]]
    assert seen["picture"] == "data:image/jpeg"
    assert (seen["second"], seen["first"]) == (1, 0)
    assert seen["best"] == [1, 1, 1, 1, 1]
    assert seen["wrong"] == [f"{values.count(0.0)} of 90 questions", 0]
    assert (seen["typed in answer"], seen["typed in wrong"]) == (-1, 0)  # a letter of a text; a key beside a ticked box
    assert seen["kind"] == "30 of 90 questions"
    assert seen["answer"]
    assert seen["most"] == 0
    same = made.models[0].controls[1].same_answers
    assert seen["unmoved"] == f"{len(same)} of 90 questions"
    if len(models) > 1:
        pairs = zip(*(each.scored.answered for each in made.models), strict=True)
        assert seen["differ"] == f"{sum(a.answer != b.answer for a, b in pairs)} of 90 questions"
