// Colour each square of #heat-view by its share of the attention of the chosen token of the answer in the chosen layer.
(() => {
  const view = document.getElementById("heat-view"), data = JSON.parse(view.querySelector(".data").textContent);
  const cells = [...view.querySelectorAll("[data-token]")], detail = view.querySelector(".detail");
  const stops = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]]; // as .ramp
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
  const sum = list => list.reduce((total, value) => total + value, 0);
  const mean = list => sum(list) / list.length;
  const meanRow = rows => rows[0].map((_, index) => mean(rows.map(row => row[index])));

  function color(share) {
    const at = Math.min(share, 0.9999) * (stops.length - 1), low = Math.floor(at), part = at - low;
    return stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * part)).join(" ");
  }

  function show() {
    const which = view.querySelector("input[name=token]:checked").value, layer = view.querySelector("select").value;
    const tokens = which === "all" ? data.tokens : [data.tokens[Number(which)]];
    const ofLayer = list => layer === "mean" ? list : [list[Number(layer)]];
    const weights = meanRow(tokens.flatMap(token => ofLayer(token.weights_by_layer)));
    const share = mean(tokens.flatMap(token => ofLayer(token.image_share_by_layer)));
    const onPicture = weights.slice(data.leading), top = Math.max(...onPicture, 1e-9);
    for (const button of cells) {
      const weight = weights[Number(button.dataset.token)];
      button.style.background = `rgb(${color(weight / top)} / 66%)`;
      button.title = `${percent(weight, 2)} of the attention to the image`;
    }
    const name = which === "all" ? "The whole answer" : `“${tokens[0].text}”`;
    view.querySelector(".share").textContent = `${name} gives ${percent(share)} of its attention to the image; ` +
      `${percent(mean(tokens.map(token => token.even_share)))} if every position drew alike.`;
    view.querySelector(".front").textContent = data.leading
      ? `Tokens in front, which lie nowhere on the picture, get ${percent(1 - sum(onPicture))} of that.`
      : "";
    view.querySelector(".most").textContent = `${percent(top, top < 0.1 ? 2 : 1)} of it`;
  }

  for (const button of cells) button.addEventListener("click", () => { detail.textContent = button.title; });
  for (const input of view.querySelectorAll("input, select")) input.addEventListener("change", show);
  show();
})();
