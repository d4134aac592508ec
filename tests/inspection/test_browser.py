"""The page of words as a browser shows it: squares and controls work, nothing is loaded, a phone shows all of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.chromium import needs_chromium, run_in_page
from tests.training.tiny import save_data, save_parts
from visgraft import Processor, VisionLanguageModel
from visgraft.data.images.opening import open_image
from visgraft.inspection import inspect_image, write_report

pytestmark = [needs_chromium, pytest.mark.slow]
VISIT = """
  const words = document.getElementById("words-view"), heat = document.getElementById("heat-view");
  const squares = view => [...view.querySelectorAll(".squares button")];
  const texts = () => squares(words).map(button => button.textContent);
  const seen = {
    inner: innerWidth, needed: document.documentElement.scrollWidth,
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(x => !x.startsWith("data:")),
    cosine: texts(), colours: squares(heat).map(button => button.style.background),
    share: heat.querySelector(".share").textContent, charts: document.querySelectorAll(".plot svg").length,
  };
  words.querySelector("input[value=dot]").click();
  seen.dot = texts();
  squares(words)[3].click();
  seen.place = words.querySelector(".detail h3").textContent;
  seen.rows = [...words.querySelectorAll(".detail tr")].slice(1).map(row => row.cells[0].textContent);
  heat.querySelector("input[name=token][value='0']").click();
  heat.querySelector("select").value = "1";
  heat.querySelector("select").dispatchEvent(new Event("change"));
  seen.firstShare = heat.querySelector(".share").textContent;
  squares(heat)[2].click();
  seen.square = heat.querySelector(".detail").textContent;
  return seen;
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("words")
    parts = save_parts(folder)
    loaded = VisionLanguageModel.from_parts(*parts).eval(), Processor.from_parts(*parts)
    image = open_image(Path(save_data(folder / "photos", num_images=1)) / "0.png")
    look = inspect_image(*loaded, image, prompt="What is it?", max_new_tokens=3)
    page = write_report(folder / "inside.html", look, title="What a-rather-long-name-of-a-run sees")
    return page, json.loads(json.dumps(look.as_json()))


@pytest.mark.parametrize("width", [1280, 390])
def test_controls_show_the_numbers_that_were_written(made: tuple[Path, dict[str, Any]], width: int) -> None:
    page, values = made
    seen = run_in_page(page, VISIT, width=width)
    assert (seen["inner"], seen["loaded"], seen["charts"]) == (width, [], 2)
    assert seen["needed"] <= width
    on_picture = values["image_tokens"][1:]
    assert seen["cosine"] == [token["by_cosine"][0]["text"] for token in on_picture]
    assert seen["dot"] == [token["by_dot"][0]["text"] for token in on_picture]
    assert seen["place"] == "Row 2, column 2"
    assert seen["rows"] == [word["text"] for word in on_picture[3]["by_dot"]]
    assert all(colour.startswith("rgb") for colour in seen["colours"])
    tokens = values["attention"]["tokens"]
    whole = sum(token["image_share"] for token in tokens) / len(tokens)
    assert f"The whole answer gives {100 * whole:.1f} %" in seen["share"]
    first = tokens[0]
    assert f"“{first['text']}” gives {100 * first['image_share_by_layer'][1]:.1f} %" in seen["firstShare"]
    assert seen["square"] == f"{100 * first['weights_by_layer'][1][3]:.2f} % of the attention to the image"
