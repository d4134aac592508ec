"""The two views of a picture under a grid of squares: words that stand on it, and heat that lies on it.

In: squares and the numbers of `ImageInspection.as_json`. Out: HTML with its script; no network, keys and touch work.
Usage: `words_view(squares, values, picture="<img ...>")`, once a page behind `STYLE`
"""

from __future__ import annotations

import json
from typing import Any

from visgraft.inspection.patch_grid import PatchGrid
from visgraft.reporting.page import escape

STYLE = """<style>
.look { display: grid; grid-template-columns: minmax(0, 6fr) minmax(0, 5fr); gap: 20px; align-items: start; }
.picture { position: relative; min-width: calc(var(--columns) * 34px); border-radius: 8px; overflow: hidden; }
.picture img { display: block; width: 100%; image-rendering: auto; }
.squares { position: absolute; inset: 0 auto auto 0; display: grid; container-type: inline-size;
  grid-template: repeat(var(--rows), minmax(0, 1fr)) / repeat(var(--columns), minmax(0, 1fr)); }
.squares button { all: unset; box-sizing: border-box; display: flex; align-items: center; justify-content: center;
  overflow: hidden; overflow-wrap: anywhere; text-align: center; cursor: pointer; line-height: 1.05; padding: 1px;
  color: #fff; font-size: clamp(7.5px, calc(100cqw / var(--columns) / 4.6), 17px); border: 1px solid #ffffff40; }
.words .squares button { background: #0a0e16a0; text-shadow: 0 0 3px #000; }
.words.bare .squares button { background: none; color: transparent; text-shadow: none; }
.squares button:focus-visible, .squares button[aria-pressed=true] { outline: 3px solid #ffd34d; outline-offset: -3px; }
.heat .squares button { border-color: transparent; }
.controls { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; margin-bottom: 10px; }
.controls label { cursor: pointer; } .controls select { font: inherit; max-width: 100%; color: inherit;
  background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: 3px 6px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 12px; border: 0; padding: 0; min-width: 0; }
.chip { cursor: pointer; } .chip input { position: absolute; opacity: 0; }
.chip span, button.chip { display: inline-block; border: 1px solid var(--line); border-radius: 8px; padding: 3px 9px;
  background: var(--back); color: inherit; font: inherit; }
.chip small { display: block; color: var(--soft); font-size: .76rem; line-height: 1.1; }
.chip input:checked + span, button.chip[aria-pressed=true] { border-color: var(--accent);
  box-shadow: inset 0 0 0 1px var(--accent); }
.chip input:focus-visible + span { outline: 2px solid var(--accent); outline-offset: 2px; }
.ramp { height: 12px; border-radius: 6px; margin: 10px 0 2px; background: linear-gradient(90deg, #000004, #420a68,
  #932667, #dd513a, #fca50a, #fcffa4); } .ends { display: flex; justify-content: space-between; font-size: .85rem; }
.look h3 { font-size: 1rem; margin: 0 0 6px; } .halves { display: grid; gap: 8px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
@media (max-width: 760px) { .look { grid-template-columns: minmax(0, 1fr); } }
</style>"""

_WORDS_SCRIPT = """<script>(() => {
const view = document.getElementById("words-view"), data = JSON.parse(view.querySelector(".data").textContent);
const cells = [...view.querySelectorAll("[data-token]")], detail = view.querySelector(".detail");
let chosen = data.leading < data.tokens.length ? data.leading : 0;
const cell = (tag, text) => Object.assign(document.createElement(tag), {textContent: text});
function show() {
  const by = view.querySelector("input[name=measure]:checked").value;
  view.classList.toggle("bare", !view.querySelector("input[name=shown]").checked);
  for (const button of cells) {
    const token = data.tokens[+button.dataset.token];
    (button.querySelector("b") || button).textContent = token["by_" + by][0].text;
    button.setAttribute("aria-pressed", +button.dataset.token === chosen);
  }
  const token = data.tokens[chosen], table = document.createElement("table"), head = table.insertRow();
  for (const name of ["nearest", "dot product", "cosine"]) head.append(cell("th", name));
  for (const word of token["by_" + by]) {
    const row = table.insertRow();
    row.append(cell("td", word.text), cell("td", word.dot.toFixed(2)), cell("td", word.cosine.toFixed(3)));
  }
  for (const number of table.querySelectorAll("tr > :nth-child(n+2)")) number.className = "number";
  const [row, column] = token.place || [];
  const place = token.place ? `Row ${row + 1}, column ${column + 1}` : `Token ${chosen + 1}, in front`;
  detail.replaceChildren(cell("h3", place), cell("p", `length ${token.norm.toFixed(2)}`), table);
}
cells.forEach(button => button.addEventListener("click", () => { chosen = +button.dataset.token; show(); }));
view.querySelectorAll("input").forEach(input => input.addEventListener("change", show));
show();
})();</script>"""

_HEAT_SCRIPT = """<script>(() => {
const view = document.getElementById("heat-view"), data = JSON.parse(view.querySelector(".data").textContent);
const cells = [...view.querySelectorAll("[data-token]")], detail = view.querySelector(".detail");
const stops = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
const percent = (x, digits = 1) => (100 * x).toFixed(digits) + " %";
const mean = rows => rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
const average = list => list.reduce((sum, x) => sum + x, 0) / list.length;
function color(x) {
  const at = Math.min(x, 0.9999) * (stops.length - 1), low = Math.floor(at), part = at - low;
  return stops[low].map((c, i) => Math.round(c + (stops[low + 1][i] - c) * part)).join(" ");
}
function show() {
  const which = view.querySelector("input[name=token]:checked").value, layer = view.querySelector("select").value;
  const tokens = which === "all" ? data.tokens : [data.tokens[+which]];
  const of = list => layer === "mean" ? list : [list[+layer]];
  const weights = mean(tokens.flatMap(token => of(token.weights_by_layer)));
  const share = average(tokens.flatMap(token => of(token.image_share_by_layer)));
  const onPicture = weights.slice(data.leading), top = Math.max(...onPicture, 1e-9);
  for (const button of cells) {
    const index = +button.dataset.token, weight = weights[index];
    button.style.background = `rgb(${color(weight / top)} / 66%)`;
    button.title = `${percent(weight, 2)} of the attention to the image`;
  }
  const name = which === "all" ? "The whole answer" : `“${tokens[0].text}”`;
  view.querySelector(".share").textContent = `${name} gives ${percent(share)} of its attention to the image; ` +
    `${percent(average(tokens.map(token => token.even_share)))} if every position drew alike.`;
  view.querySelector(".front").textContent = data.leading ? `Tokens in front, which lie nowhere on the picture, get ` +
    `${percent(average([1]) - onPicture.reduce((a, b) => a + b, 0))} of that.` : "";
  view.querySelector(".most").textContent = percent(top, top < 0.1 ? 2 : 1) + " of it";
}
cells.forEach(button => button.addEventListener("click", () => { detail.textContent = button.title; }));
view.querySelectorAll("input, select").forEach(input => input.addEventListener("change", show));
show();
})();</script>"""


def words_view(squares: PatchGrid, values: dict[str, Any], *, picture: str) -> str:
    """Give the view of the words: dot product or cosine, with or without words, the chosen square's next nearest."""
    fronts = "".join(
        f'<button class="chip" data-token="{index}"><small>token {index + 1}, in front</small><b></b></button>'
        for index in range(squares.num_leading)
    )
    in_front = f'<div class="chips">{fronts}</div>' if fronts else ""
    controls = (
        '<div class="controls"><label><input type="radio" name="measure" value="cosine" checked> cosine</label>'
        '<label><input type="radio" name="measure" value="dot"> dot product</label>'
        '<label><input type="checkbox" name="shown" checked> words</label></div>'
    )
    data = {"leading": squares.num_leading, "tokens": values["image_tokens"]}
    return (
        f'<div class="look words" id="words-view"><div>{controls}{in_front}{_grid(squares, picture)}</div>'
        f'<div class="detail scroll" aria-live="polite"></div>{_data(data)}</div>{_WORDS_SCRIPT}'
    )


def attention_view(squares: PatchGrid, values: dict[str, Any], *, picture: str) -> str:
    """Give the view of an answer's attention: choose a token and a layer, see the heat."""
    chips = '<label class="chip"><input type="radio" name="token" value="all" checked><span>all</span></label>'
    for index, token in enumerate(values["tokens"]):
        chips += (
            f'<label class="chip"><input type="radio" name="token" value="{index}"><span>{escape(token["text"])}'
            f"<small>{token['image_share']:.0%}</small></span></label>"
        )
    options = f'<option value="mean">mean of {len(values["layers"])} layers</option>' + "".join(
        f'<option value="{index}">layer {layer}</option>' for index, layer in enumerate(values["layers"])
    )
    prompt = f"{escape(values['prompt'])} " if values["prompt"] else ""
    beside = (
        f"<p>{prompt}<b>{escape(values['answer'] or '(nothing)')}</b></p>"
        f'<fieldset class="chips" aria-label="token of the answer">{chips}</fieldset>'
        f'<div class="controls"><label>Layer <select>{options}</select></label></div>'
        '<p class="share" aria-live="polite"></p><p class="front"></p>'
        '<div class="ramp"></div><div class="ends soft"><span>0</span><span class="most"></span></div>'
        '<p class="detail soft"></p>'
    )
    data = {"leading": squares.num_leading, "tokens": values["tokens"]}
    return (
        f'<div class="look heat" id="heat-view"><div>{_grid(squares, picture)}</div><div>{beside}</div>{_data(data)}'
        f"</div>{_HEAT_SCRIPT}"
    )


def _grid(squares: PatchGrid, picture: str) -> str:
    """Give the picture with a button on each square."""
    first = squares.num_leading
    buttons = "".join(
        f'<button type="button" data-token="{index}" aria-label="square {index - first + 1}"></button>'
        for index in range(first, first + squares.rows * squares.columns)
    )
    size = f"width: {squares.width:.4%}; height: {squares.height:.4%}"
    return (
        f'<div class="scroll"><div class="picture" style="--rows: {squares.rows}; --columns: {squares.columns}">'
        f'{picture}<div class="squares" style="{size}">{buttons}</div></div></div>'
    )


def _data(values: dict[str, Any]) -> str:
    text = json.dumps(values).replace("</", "<\\/")
    return f'<script type="application/json" class="data">{text}</script>'
